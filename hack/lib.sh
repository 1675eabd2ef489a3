# What dev.sh and demo.sh share. Sourced, never run. Everything it starts is ended by stop_operator and stop_control_plane.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
platform=remit-system

fail() {
  printf 'FAILED: %s\n' "$*" >&2
  exit 1
}

needs() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || fail "$tool is needed and is not on PATH"
  done
}

controlplane() { "$root/hack/controlplane/run" "$@"; }

# Builds the remit binary, and sets `remit` to its path.
build_remit() {
  (cd "$root" && cargo build --bin remit)
  local target
  target=$(cd "$root" && cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
  remit=$target/debug/remit
}

# tools FOLDER: links kubectl, helm, remit and kubectl-remit into it and puts it first on PATH.
tools() {
  mkdir -p "$1"
  local found
  found=$(
    eval "$(controlplane env)"
    command -v kubectl
    command -v helm
  )
  ln -sf "$(sed -n 1p <<<"$found")" "$1/kubectl"
  ln -sf "$(sed -n 2p <<<"$found")" "$1/helm"
  # A copy: what runs must not change under a build that comes later.
  rm -f "$1/remit"
  cp "$remit" "$1/remit"
  ln -sf remit "$1/kubectl-remit"
  export PATH="$1:$PATH"
  export KUBECACHEDIR=$1/cache # not into the user's ~/.kube
}

# A port that nothing listens on, below those that the kernel gives to outgoing connections.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# until_true SECONDS WHAT COMMAND...: polls, and says every 10 s that it waits.
until_true() {
  local limit=$1 what=$2 begun=$SECONDS said=$SECONDS
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS - begun < limit)) || return 1
    if ((SECONDS - said >= 10)); then
      said=$SECONDS
      echo "waiting until $what, $((SECONDS - begun)) s"
    fi
    sleep 0.1
  done
}

choose_ports() {
  https_port=$(free_port)
  webhook_port=$(free_port)
  metrics_port=$(free_port)
  address=${REMIT_ADDRESS:-127.0.0.1}
  case $address in
  127.* | localhost) bind=127.0.0.1 ;;
  *) bind=0.0.0.0 ;; # an API server elsewhere must reach the webhook
  esac
  REMIT_URL=https://$address:$https_port
  export REMIT_URL
}

# install_chart FOLDER: applies CRDs, roles and the webhook for an operator on this machine.
install_chart() {
  kubectl create namespace $platform >/dev/null
  helm template remit "$root/charts/remit" --namespace $platform --set deploy=false \
    --set "webhook.url=https://$address:$webhook_port" >"$1/chart.yaml"
  kubectl apply --server-side -f "$1/chart.yaml" >/dev/null
  kubectl wait --for=condition=Established --timeout=60s \
    crd/agents.remit.dev crd/policypackages.remit.dev crd/policysigners.remit.dev crd/tenantrollouts.remit.dev crd/tenantprofiles.remit.dev >/dev/null
}

# operator_kubeconfig FOLDER: what the operator's pod would have: the token of ServiceAccount remit.
operator_kubeconfig() {
  local server authority token
  server=$(kubectl config view --raw --minify --flatten -o jsonpath='{.clusters[0].cluster.server}')
  authority=$(kubectl config view --raw --minify --flatten -o jsonpath='{.clusters[0].cluster.certificate-authority-data}')
  token=$(kubectl create token remit -n $platform --duration=168h)
  (
    umask 077
    cat >"$1/operator.kubeconfig" <<END
apiVersion: v1
kind: Config
current-context: remit
clusters: [{name: remit, cluster: {server: "$server"${authority:+, certificate-authority-data: "$authority"}}}]
users: [{name: remit, user: {token: "$token"}}]
contexts: [{name: remit, context: {cluster: remit, user: remit}}]
END
  )
}

# start_operator FOLDER [FLAG...]: starts it on the chosen ports with its data in FOLDER and waits until it is ready.
start_operator() {
  local folder=$1
  shift
  mkdir -p "$folder/data"
  # A process group of its own, so that Ctrl-C reaches this script first and the end is an orderly one.
  set -m
  KUBECONFIG="$folder/operator.kubeconfig" nohup "$folder/bin/remit" operator --namespace $platform --log-format json \
    --listen "$bind:$https_port" --webhook-listen "$bind:$webhook_port" --metrics-listen "127.0.0.1:$metrics_port" \
    --dns-names "$address" --data-dir "$folder/data" "$@" >>"$folder/operator.log" 2>&1 </dev/null &
  operator_pid=$!
  set +m
  echo "$operator_pid" >"$folder/operator.pid"
  if ! until_true 120 "the operator is ready" operator_ready_or_gone || ! operator_ready; then
    tail -n 20 "$folder/operator.log" >&2
    fail "the operator does not become ready; the end of its log is above"
  fi
  until_true 60 "the webhook has its certificate" webhook_has_bundle || fail "the webhook's caBundle was not set"
  export REMIT_CA_FILE=$folder/ca.crt
  kubectl get secret remit-ca -n $platform -o 'jsonpath={.data.tls\.crt}' | base64 -d >"$REMIT_CA_FILE"
}

operator_ready() { curl -fsS --max-time 5 "http://127.0.0.1:$metrics_port/readyz" >/dev/null; }
operator_ready_or_gone() { ! kill -0 "$operator_pid" || operator_ready; }
webhook_has_bundle() { kubectl get validatingwebhookconfiguration remit -o 'jsonpath={.webhooks[0].clientConfig.caBundle}' | grep -q .; }

# stop_operator FOLDER: ends the operator of this folder, if it is still that.
stop_operator() {
  local pid
  [[ -f $1/operator.pid ]] || return 0
  pid=$(<"$1/operator.pid")
  rm -f "$1/operator.pid"
  operator_is "$pid" "$1" || return 0
  kill -TERM "$pid" 2>/dev/null || return 0
  until_true 20 "the operator has ended" operator_gone "$pid" "$1" || kill -KILL "$pid" 2>/dev/null || true
}

# Another program may have the pid by now.
operator_is() { ps -o args= -p "$1" 2>/dev/null | grep -qF -- "$2/data"; }
operator_gone() { ! operator_is "$1" "$2"; }

# grant_and_token NAMESPACE ACCOUNT ROLE AUDIENCE FILE: a ServiceAccount with a role there, and its token.
grant_and_token() {
  kubectl create serviceaccount "$2" -n "$1" >/dev/null
  kubectl create rolebinding "$2" -n "$1" --clusterrole="$3" --serviceaccount="$1:$2" >/dev/null
  (umask 077 && kubectl create token "$2" -n "$1" --audience="$4" --duration=24h >"$5")
}

# auditor_token FOLDER: who may read the records of acme and verify the whole chain.
auditor_token() {
  export REMIT_ADMIN_TOKEN_FILE=$1/admin-token
  grant_and_token acme auditor remit-auditor remit-admin "$REMIT_ADMIN_TOKEN_FILE"
  kubectl create rolebinding auditor-of-acme -n $platform --clusterrole=remit-auditor --serviceaccount=acme:auditor >/dev/null
}

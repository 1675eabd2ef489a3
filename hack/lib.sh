# What dev.sh and demo.sh share. Sourced, never run. Everything it starts is ended by stop_operator, stop_replicas, stop_balancer, stop_postgres and the control plane's stop.
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

# choose_ports [N]: where agents and the API server reach Remit. With several replicas these ports are a balancer's, as a Service
# would be, and each replica has ports of its own.
choose_ports() {
  replicas=${1:-1}
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
  launch "$folder" "$folder" "$bind" "$https_port" "$webhook_port" "$metrics_port" "$@"
  wait_operator "$folder" "$metrics_port"
  webhook_and_ca "$folder"
}

# start_replicas FOLDER N [FLAG...]: N operators on the PostgreSQL of start_postgres, one Lease between them, data and log of each in
# FOLDER/replica-I; one balancer on the chosen ports (choose_ports N) in front of all. replica_metrics[I] is the metrics port of each.
start_replicas() {
  local folder=$1 n=$2 i https=() webhook=()
  shift 2
  [[ -n ${postgres_url:-} ]] || fail "start_replicas: start_postgres comes first"
  if ((${#replica_metrics[@]} != n)); then
    replica_https=() replica_webhook=() replica_metrics=()
    for ((i = 1; i <= n; i++)); do
      replica_https+=("$(free_port)")
      replica_webhook+=("$(free_port)")
      replica_metrics+=("$(free_port)")
    done
  fi
  for ((i = 1; i <= n; i++)); do start_replica "$folder" "$i" "$@"; done
  for ((i = 1; i <= n; i++)); do
    wait_operator "$folder/replica-$i" "${replica_metrics[i - 1]}"
    https+=("127.0.0.1:${replica_https[i - 1]}")
    webhook+=("127.0.0.1:${replica_webhook[i - 1]}")
  done
  start_balancer "$folder" \
    "$bind:$https_port=$(IFS=, && echo "${https[*]}")" "$bind:$webhook_port=$(IFS=, && echo "${webhook[*]}")"
  webhook_and_ca "$folder"
}

replica_https=() replica_webhook=() replica_metrics=()

# start_replica FOLDER I [FLAG...]: one of them (again), without waiting until it is ready.
start_replica() {
  local folder=$1 i=$2
  shift 2
  POD_NAME=replica-$i launch "$folder" "$folder/replica-$i" 127.0.0.1 \
    "${replica_https[i - 1]}" "${replica_webhook[i - 1]}" "${replica_metrics[i - 1]}" --postgres-url "$postgres_url" "$@"
}

# launch FOLDER HOME BIND HTTPS WEBHOOK METRICS [FLAG...]: one process with the tools and kubeconfig of FOLDER and its data in HOME.
launch() {
  local folder=$1 home=$2 bind=$3 https=$4 webhook=$5 metrics=$6
  shift 6
  mkdir -p "$home/data"
  # A process group of its own, so that Ctrl-C reaches this script first and the end is an orderly one.
  set -m
  KUBECONFIG="$folder/operator.kubeconfig" nohup "$folder/bin/remit" operator --namespace $platform --log-format json \
    --listen "$bind:$https" --webhook-listen "$bind:$webhook" --metrics-listen "127.0.0.1:$metrics" \
    --dns-names "$address" --data-dir "$home/data" "$@" >>"$home/operator.log" 2>&1 </dev/null &
  operator_pid=$!
  set +m
  echo "$operator_pid" >"$home/operator.pid"
}

# wait_operator HOME METRICS: until it is ready.
wait_operator() {
  local pid
  pid=$(<"$1/operator.pid")
  if ! until_true 120 "the operator is ready" operator_ready_or_gone "$pid" "$2" || ! operator_ready "$2"; then
    tail -n 20 "$1/operator.log" >&2
    fail "the operator does not become ready; the end of its log is above"
  fi
}

# webhook_and_ca FOLDER: waits for the webhook, and keeps the CA's certificate in FOLDER.
webhook_and_ca() {
  until_true 60 "the webhook has its certificate" webhook_has_bundle || fail "the webhook's caBundle was not set"
  export REMIT_CA_FILE=$1/ca.crt
  kubectl get secret remit-ca -n $platform -o 'jsonpath={.data.tls\.crt}' | base64 -d >"$REMIT_CA_FILE"
}

operator_ready() { curl -fsS --max-time 5 "http://127.0.0.1:$1/readyz" >/dev/null; }
operator_ready_or_gone() { ! kill -0 "$1" || operator_ready "$2"; }
webhook_has_bundle() { kubectl get validatingwebhookconfiguration remit -o 'jsonpath={.webhooks[0].clientConfig.caBundle}' | grep -q .; }

# leading_replica: number of the replica that holds the lease.
leading_replica() {
  local holder
  holder=$(kubectl get lease remit -n $platform -o 'jsonpath={.spec.holderIdentity}') || return 1
  [[ $holder == replica-* ]] || return 1
  holder=${holder#replica-}
  echo "${holder%%_*}"
}

# kill_replica FOLDER I: as a crash would. start_replica brings it back.
kill_replica() {
  local pid
  pid=$(<"$1/replica-$2/operator.pid")
  operator_is "$pid" "$1/replica-$2" || return 0
  kill -KILL "$pid" 2>/dev/null || true
  until_true 20 "the replica is gone" operator_gone "$pid" "$1/replica-$2" || true
  rm -f "$1/replica-$2/operator.pid"
}

# stop_replicas FOLDER: ends all of them, the balancer stays.
stop_replicas() {
  local home
  # All are asked before the first is waited for.
  for home in "$1"/replica-*; do
    if [[ -f $home/operator.pid ]] && operator_is "$(<"$home/operator.pid")" "$home"; then kill -TERM "$(<"$home/operator.pid")" 2>/dev/null || true; fi
  done
  for home in "$1"/replica-*; do stop_operator "$home"; done
}

# start_balancer FOLDER LISTEN=TARGET,TARGET...: where it does not run already.
start_balancer() {
  local folder=$1 pid spec
  shift
  if [[ -f $folder/balancer.pid ]] && balancer_is "$(<"$folder/balancer.pid")" "$folder"; then return 0; fi
  set -m
  nohup "$root/hack/controlplane/run" balance --dir "$folder" "$@" >>"$folder/balancer.log" 2>&1 </dev/null &
  pid=$!
  set +m
  echo "$pid" >"$folder/balancer.pid"
  for spec in "$@"; do
    until_true 30 "the balancer listens" listens "${spec%%=*}" || fail "the balancer does not start: $(tail -n 3 "$folder/balancer.log")"
  done
}

stop_balancer() {
  local pid
  [[ -f $1/balancer.pid ]] || return 0
  pid=$(<"$1/balancer.pid")
  rm -f "$1/balancer.pid"
  if balancer_is "$pid" "$1"; then kill -TERM "$pid" 2>/dev/null || true; fi
}

balancer_is() { ps -o args= -p "$1" 2>/dev/null | grep -qF -- "balance --dir $2 "; }
listens() { (: <"/dev/tcp/127.0.0.1/${1##*:}"); }

# stop_operator FOLDER: ends the operator of this folder, if it is still that.
stop_operator() {
  local pid
  [[ -f $1/operator.pid ]] || return 0
  pid=$(<"$1/operator.pid")
  rm -f "$1/operator.pid"
  operator_is "$pid" "$1" || return 0
  kill -TERM "$pid" 2>/dev/null || return 0
  until_true 45 "the operator has ended" operator_gone "$pid" "$1" || kill -KILL "$pid" 2>/dev/null || true
}

# Another program may have the pid by now.
operator_is() { ps -o args= -p "$1" 2>/dev/null | grep -qF -- "$2/data"; }
operator_gone() { ! operator_is "$1" "$2"; }

# start_postgres FOLDER: a PostgreSQL of its own, on a Unix socket only; sets postgres_url. PostgreSQL refuses to run as root: then
# it runs as user postgres (or nobody) in a folder of its own, which FOLDER/postgres.home names.
start_postgres() {
  local bin home user
  bin=$(postgres_bin) || fail "PostgreSQL is needed for several replicas, and initdb is neither on PATH nor in /usr/lib/postgresql: apt-get install postgresql (its server need not run)"
  if ((EUID == 0)); then
    user=postgres
    id "$user" >/dev/null 2>&1 || user=nobody
  fi
  if [[ -f $1/postgres.home ]]; then
    home=$(<"$1/postgres.home")
  else
    # A short path: that of a socket has at most 107 bytes.
    home=$(mktemp -d /tmp/remit-pg.XXXXXX)
    if [[ -n ${user:-} ]]; then chown "$user" "$home"; fi
    echo "$home" >"$1/postgres.home"
    as_user "${user:-}" "$bin/initdb" --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync --pgdata "$home/data" >"$1/postgres.log" 2>&1 ||
      { tail -n 20 "$1/postgres.log" >&2; fail "initdb failed; the end of its log is above"; }
  fi
  as_user "${user:-}" "$bin/pg_ctl" --pgdata "$home/data" --log "$home/log" --wait --timeout 60 \
    --options "-k $home -c listen_addresses= -c max_connections=200" start >>"$1/postgres.log" 2>&1 </dev/null ||
    { tail -n 20 "$home/log" >&2; fail "PostgreSQL does not start; the end of its log is above"; }
  postgres_url="postgres://postgres@${home//\//%2F}/postgres"
}

# stop_postgres FOLDER [keep]: ends it, and removes its data unless they are to be kept for another start_postgres.
stop_postgres() {
  local bin home user
  [[ -f $1/postgres.home ]] || return 0
  home=$(<"$1/postgres.home")
  if [[ -f $home/data/postmaster.pid ]] && bin=$(postgres_bin); then
    user=$(stat -c %U "$home/data")
    [[ $user != "$(id -un)" ]] || user=
    as_user "$user" "$bin/pg_ctl" --pgdata "$home/data" --mode fast --wait --timeout 30 stop >/dev/null 2>&1 </dev/null || true
  fi
  if [[ ${2:-} != keep ]]; then
    case $home in /tmp/remit-pg.??????) rm -rf "$home" ;; esac
    rm -f "$1/postgres.home" "$1/postgres.log"
  fi
}

postgres_bin() {
  local dir
  if command -v initdb >/dev/null; then
    dirname "$(command -v initdb)"
    return
  fi
  dir=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
  [[ -x $dir/initdb ]] && echo "$dir"
}

# as_user USER COMMAND...: the command as this user, or as whoever runs this where USER is empty.
as_user() {
  local user=$1
  shift
  # PostgreSQL wants a folder that its user may enter.
  if [[ -n $user ]]; then (cd / && runuser -u "$user" -- "$@"); else "$@"; fi
}

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

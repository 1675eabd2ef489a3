#!/usr/bin/env bash
# `make dev`: a control plane and the operator, left for you to use. run: in the foreground; start: returns when ready; stop.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
dev=$root/.dev

stop() {
  stop_operator "$dev"
  if [[ -f $dev/controlplane/state.json ]]; then controlplane stop --dir "$dev/controlplane"; fi
  rm -rf "$dev/env" "$dev/data" "$dev/token" "$dev/admin-token" "$dev/ca.crt" "$dev/chart.yaml" "$dev/operator.kubeconfig" "$dev/controlplane"
}

start() {
  needs cargo go curl
  mkdir -p "$dev"
  [[ ! -f $dev/operator.pid ]] || fail "it runs already; \`make dev-stop\` ends it"
  trap 'status=$?; if ((status)); then stop >/dev/null 2>&1 || true; fi; exit $status' EXIT
  trap 'exit 130' INT TERM
  build_remit
  controlplane start --dir "$dev/controlplane"
  export KUBECONFIG=$dev/controlplane/kubeconfig
  tools "$dev/bin"
  choose_ports
  install_chart "$dev"
  operator_kubeconfig "$dev"
  : >"$dev/operator.log"
  start_operator "$dev"
  kubectl create namespace acme >/dev/null
  grant_and_token acme gateway remit-gateway remit "$dev/token"
  auditor_token "$dev"
  {
    echo "# Written by make dev; to be sourced."
    printf 'export KUBECONFIG=%q\n' "$KUBECONFIG"
    printf 'export REMIT_URL=%q\n' "$REMIT_URL"
    printf 'export REMIT_CA_FILE=%q\n' "$REMIT_CA_FILE"
    echo "# ServiceAccount gateway of namespace acme: it may \`check\` there."
    printf 'export REMIT_TOKEN_FILE=%q\n' "$dev/token"
    echo "# ServiceAccount auditor: it may read the records."
    printf 'export REMIT_ADMIN_TOKEN_FILE=%q\n' "$REMIT_ADMIN_TOKEN_FILE"
    printf 'export PATH=%q:"$PATH"\n' "$dev/bin"
  } >"$dev/env"
  trap - EXIT INT TERM
  echo
  echo "Remit runs at $REMIT_URL; its log is .dev/operator.log."
  echo "    source .dev/env"
}

case ${1:-} in
start)
  start
  echo "    make dev-stop     ends it"
  ;;
run)
  start
  trap 'stop; exit 0' INT TERM HUP
  trap stop EXIT
  echo "Ctrl-C ends it."
  while operator_is "$operator_pid" "$dev"; do sleep 1; done
  tail -n 20 "$dev/operator.log" >&2
  fail "the operator ended; the end of its log is above"
  ;;
stop)
  stop
  echo "Nothing of make dev runs any more."
  ;;
*)
  echo "usage: hack/dev.sh run|start|stop" >&2
  exit 2
  ;;
esac

#!/usr/bin/env bash
# `make dev`: a control plane and the operator, left for you to use. run: in the foreground; start: returns when ready; stop.
# One operator with SQLite; REMIT_REPLICAS=3 gives three on a PostgreSQL of their own, as the chart's Deployment has them.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
dev=$root/.dev
n=${REMIT_REPLICAS:-1}

stop() {
  stop_operator "$dev"
  stop_replicas "$dev"
  stop_balancer "$dev"
  stop_postgres "$dev"
  if [[ -f $dev/controlplane/state.json ]]; then controlplane stop --dir "$dev/controlplane"; fi
  rm -rf "$dev/env" "$dev/data" "$dev/token" "$dev/admin-token" "$dev/ca.crt" "$dev/chart.yaml" "$dev/operator.kubeconfig" "$dev/controlplane" "$dev"/replica-*
}

start() {
  needs cargo go curl
  mkdir -p "$dev"
  [[ $n =~ ^[1-9][0-9]?$ ]] || fail "REMIT_REPLICAS is a number of operators, 1 to 99, not $n"
  [[ ! -f $dev/controlplane/state.json ]] || fail "it runs already; \`make dev-stop\` ends it"
  trap 'status=$?; if ((status)); then stop >/dev/null 2>&1 || true; fi; exit $status' EXIT
  trap 'exit 130' INT TERM
  build_remit
  controlplane start --dir "$dev/controlplane"
  export KUBECONFIG=$dev/controlplane/kubeconfig
  tools "$dev/bin"
  choose_ports "$n"
  install_chart "$dev"
  operator_kubeconfig "$dev"
  if ((n > 1)); then
    start_postgres "$dev"
    start_replicas "$dev" "$n"
  else
    : >"$dev/operator.log"
    start_operator "$dev"
  fi
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
  if ((n > 1)); then
    echo "$n replicas of Remit answer at $REMIT_URL; their logs are .dev/replica-*/operator.log."
    echo "PostgreSQL is at $postgres_url"
  else
    echo "Remit runs at $REMIT_URL; its log is .dev/operator.log."
  fi
  echo "    source .dev/env"
}

# Whether the operator, or any of the replicas, still runs.
operators_run() {
  local home
  for home in "$dev" "$dev"/replica-*; do
    if [[ -f $home/operator.pid ]] && operator_is "$(<"$home/operator.pid")" "$home"; then return 0; fi
  done
  return 1
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
  while operators_run; do sleep 1; done
  tail -n 20 "$dev"/operator.log "$dev"/replica-*/operator.log 2>/dev/null >&2 || true
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

#!/usr/bin/env bash
# `make demo`: from an applied package to an answered and recorded decision, on a real control plane, with three replicas on PostgreSQL. Every command is shown with
# what it really printed; the tour fails where an answer is not the expected one. It leaves nothing running.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=hack/demo-rollouts.sh
source "$(dirname "${BASH_SOURCE[0]}")/demo-rollouts.sh"

"$root/hack/packages.sh" postgresql cvc5
demo=$(mktemp -d "${TMPDIR:-/tmp}/remit-demo.XXXXXX")
own=${REMIT_DEMO_KUBECONFIG:-}
ours=false # whether namespaces and chart on the user's control plane are from this run
number=0

cleanup() {
  local status=$?
  trap - EXIT INT TERM HUP
  if ((status)); then printf '\nThe tour stopped early. Cleaning up.\n' >&2; fi
  cleanup_rollouts
  if [[ -n $own ]] && $ours; then
    # Agents and packages go with their namespace while the operator still answers; then what the chart made.
    kubectl delete namespace acme globex --ignore-not-found --timeout=90s >/dev/null 2>&1 || true
    kubectl delete policysigners.remit.dev release --ignore-not-found >/dev/null 2>&1 || true
    kubectl delete -f "$demo/chart.yaml" --ignore-not-found --timeout=90s >/dev/null 2>&1 || true
    kubectl delete namespace $platform --ignore-not-found --timeout=90s >/dev/null 2>&1 || true
  fi
  stop_replicas "$demo" || true
  stop_balancer "$demo" || true
  stop_postgres "$demo" || true
  if [[ -f $demo/controlplane/state.json ]]; then controlplane stop --dir "$demo/controlplane" 2>/dev/null || true; fi
  if ((status)); then
    echo "The ends of the operators' logs:" >&2
    tail -n 15 "$demo"/replica-*/operator.log >&2 || true
  fi
  rm -rf "$demo"
  exit $status
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

step() {
  number=$((number + 1))
  printf '\n\n== %d. %s\n\n' $number "$*"
}

# run COMMAND: shows it and what it printed; `output` and `status` are for the checks below.
run() {
  printf '$ %s\n' "$1"
  status=0
  output=$(eval "$1" 2>&1) || status=$?
  if [[ -n $output ]]; then sed 's/^/  /' <<<"$output"; fi
}
succeeds() { ((status == 0)) || fail "it should have succeeded (exit code $status)"; }
refused() { ((status != 0)) || fail "it should have been refused"; }
shows() { [[ $output == *"$1"* ]] || fail "the output should contain: $1"; }
hides() { [[ $output != *"$1"* ]] || fail "the output should not contain: $1"; }

milliseconds() {
  local now=${EPOCHREALTIME:-$SECONDS.000000}
  now=${now/[.,]/}
  echo $((now / 1000))
}

# ask TOOL [ARGUMENTS]: the curl of step 3, for the calls after it.
ask() {
  curl -s --max-time 30 --cacert "$REMIT_CA_FILE" -H "Authorization: Bearer $(cat coder.token)" -H 'Content-Type: application/json' \
    "$REMIT_URL/tenants/acme/access/v1/evaluation" -d '{
      "subject": {"type": "agent", "id": "coder"}, "action": {"name": "call_tool"},
      "resource": {"type": "tool", "id": "'"$1"'"}, "context": {"arguments": '"${2:-"{}"}"'}}'
  echo
}

answer_is() { ask "$1" | grep -qF "\"code\":\"$2\""; }

condition_is() { [[ $(kubectl -n acme get policypackage "$1" -o "jsonpath={.status.conditions[?(@.type=='$2')].status}") == "$3" ]]; }
has_digest() { kubectl -n $platform get policypackages -o 'jsonpath={.items[0].status.digest}' | grep -q sha256; }

needs cargo go curl
begun=$SECONDS
echo "Remit in five minutes: a real Kubernetes control plane, the operator, one agent, and what it may do."

step "Building what is missing, and starting a control plane"
build_remit
if [[ -n $own ]]; then
  export KUBECONFIG=$own
  controlplane build kubectl helm
  tools "$demo/bin"
  run "kubectl version"
  succeeds
  for there in namespace/acme namespace/globex namespace/$platform crd/agents.remit.dev; do
    if kubectl get "$there" >/dev/null 2>&1; then fail "$there is on your control plane already, and the tour would change it"; fi
  done
else
  controlplane start --dir "$demo/controlplane" --parent-pid $$
  export KUBECONFIG=$demo/controlplane/kubeconfig
  tools "$demo/bin"
  run "kubectl version"
  succeeds
fi

step "Installing the chart, and starting three replicas on PostgreSQL"
choose_ports 3
ours=true
install_chart "$demo"
operator_kubeconfig "$demo"
start_postgres "$demo"
start_replicas "$demo" 3
echo "Custom resources, roles and the admission webhook are installed; three replicas on PostgreSQL answer at $REMIT_URL, and replica $(leading_replica) leads."
cp -R "$root/examples/tour/." "$demo/work"
cd "$demo/work"

run "kubectl api-resources --api-group=remit.dev"
succeeds
shows PolicyPackage

step "A tenant is a namespace; it needs an agent and a package"
run "kubectl create namespace acme"
succeeds
run "cat agent.yaml package.yaml"
run "kubectl apply -f agent.yaml -f package.yaml -f rollout.yaml"
succeeds
run "kubectl -n acme wait --for=create tenantrollout/default --timeout=60s"
succeeds
run "kubectl -n acme wait --for=condition=Ready agent/coder policypackage/first-0.1.0 tenantrollout/default --timeout=60s"
succeeds
auditor_token "$demo"

step "The agent asks, with the token of its own ServiceAccount"
run "kubectl create token coder -n acme --audience=remit > coder.token"
succeeds
until_true 30 "the agent is known" answer_is git/log allowed || true
# shellcheck disable=SC2016 # shown as a user types it
run 'curl -s --cacert $REMIT_CA_FILE -H "Authorization: Bearer $(cat coder.token)" -H "Content-Type: application/json" \
    $REMIT_URL/tenants/acme/access/v1/evaluation -d '"'"'{
      "subject": {"type": "agent", "id": "coder"}, "action": {"name": "call_tool"},
      "resource": {"type": "tool", "id": "git/log"}, "context": {"arguments": {}}}'"'"
succeeds
shows '"decision":true'
echo
echo "It may. From here on 'ask' stands for that curl, with the tool and its arguments."
echo
run "ask git/push '{\"command\": \"git push\"}'"
shows '"decision":true'
run "ask git/push '{\"command\": \"git push --force\"}'"
shows '"decision":false'
shows 'Open a pull request instead.'
hides 'no-force'
denied=$(sed -n 's/.*"decision_id":"\([^"]*\)".*/\1/p' <<<"$output")
[[ -n $denied ]] || fail "the answer has no decision_id"
echo
echo "Denied, with the author's reason and a decision id. The agent is not told which policies decided; an auditor is:"
echo
run "remit decisions get $denied -n acme"
succeeds
shows 'tenant/first/no-force'

step "Some calls need a human"
run "ask git/delete_branch '{\"branch\": \"old\"}'"
shows '"decision":false'
shows '"code":"approval_required"'

step "From now on only signed packages"
run "remit keygen --out release --signer release --tenants acme > signer.yaml"
succeeds
run "kubectl apply -f signer.yaml"
succeeds
run "kubectl wait --for=condition=Ready policysigner/release --timeout=60s"
succeeds
echo
echo "Somebody without the key tries a newer version that allows everything:"
echo
run "kubectl apply -f open-everything.yaml"
succeeds # what depends on other objects is a warning and a condition, so that a whole set applies in any order
until_true 30 "the package is judged" condition_is first-0.1.1 Ready False || fail "an unsigned package became Ready"
run "kubectl -n acme get policypackage first-0.1.1 -o 'jsonpath={range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{\"\\n\"}{end}'"
shows Unsigned
echo
echo "The real next version: a freeze. It is tested and signed on the author's machine, and tampered with on the way:"
echo
run "remit test freeze"
succeeds
run "remit package sign freeze --key release.key --tenant acme --signer release > freeze.yaml"
succeeds
run "sed 's/until Monday/for most of you/' freeze.yaml > tampered.yaml && kubectl apply -f tampered.yaml"
refused
shows Digest
echo
echo "What is in force stays in force, also over a restart of the operator:"
echo
run "ask git/push '{\"command\": \"git push\"}'"
shows '"decision":true'
printf '(stopping and starting every replica)\n'
stop_replicas "$demo"
start_replicas "$demo" 3
run "ask git/push '{\"command\": \"git push\"}'"
shows '"decision":true'
run "ask git/push '{\"command\": \"git push --force\"}'"
shows 'Open a pull request instead.'

step "The signed version changes the answer"
changes=$(milliseconds)
run "kubectl apply -f freeze.yaml"
succeeds
applied=$(milliseconds)
until_true 60 "the answer changes" answer_is git/push denied_by_policy || fail "the new version did not come into force"
changed=$(milliseconds)
run "ask git/push '{\"command\": \"git push\"}'"
shows 'Release week: nothing is pushed until Monday.'
echo
echo "From the start of kubectl apply to the new answer: $((changed - changes)) ms, of which kubectl itself took $((applied - changes)) ms."
run "kubectl -n acme get tenantrollout,policypackage"
succeeds

step "The platform forbids, and no tenant can undo it"
run "cat platform/main.cedar"
run "remit package build platform --namespace $platform > house-rules.yaml && kubectl apply -f house-rules.yaml"
succeeds
until_true 30 "the platform package is judged" has_digest || fail "the platform's package has no digest"
house=$(kubectl -n $platform get policypackages -o 'jsonpath={.items[0].status.digest}')
printf '(starting the replicas with --platform-package house-rules@%s)\n' "$house"
stop_replicas "$demo"
start_replicas "$demo" 3 --platform-package "house-rules@$house"
until_true 30 "the platform's package is in force" answer_is git/delete_branch denied_by_policy || true
run "ask git/delete_branch '{\"branch\": \"old\"}'"
shows '"code":"denied_by_policy"'
shows 'On this platform agents delete no branches.'
echo
echo "The tenant signs a package that permits everything:"
echo
run "sed 's/0.1.1/0.3.0/' open-everything.yaml > open-0.3.0.yaml && remit package sign open-0.3.0.yaml --key release.key --tenant acme --signer release > open.yaml && kubectl apply -f open.yaml"
succeeds
until_true 60 "it is in force" answer_is git/push allowed || fail "the tenant's own package did not come into force"
run "ask git/push '{\"command\": \"git push --force\"}'"
shows '"decision":true'
run "ask git/delete_branch '{\"branch\": \"old\"}'"
shows '"decision":false'
shows 'On this platform agents delete no branches.'

demo_rollouts

step "Everything is on record, and the record is a chain"
run "remit decisions list -n acme --limit 8"
succeeds
shows coder
echo
echo "Each replica writes a chain of its own, signs every ten seconds where it stands, and keeps that outside the database:"
echo
for address in "${addresses[@]}"; do
  writer=$(curl -s --cacert "$REMIT_CA_FILE" -H "Authorization: Bearer $(<"$REMIT_ADMIN_TOKEN_FILE")" "$address/admin/audit/writers" | sed -n 's/.*"writer":"\([^"]*\)".*/\1/p')
  run "kubectl -n $platform get configmap remit-anchor-$writer -o yaml > anchor.yaml && remit audit verify --url $address --anchor anchor.yaml"
  succeeds
  shows OK
  shows "Anchored     up to"
done

step "Done"
printf 'The tour took %d s. Stopping everything.\n' $((SECONDS - begun))
echo "Next: make dev DETACH=1 leaves it all running for you; README.md and docs/ say more."

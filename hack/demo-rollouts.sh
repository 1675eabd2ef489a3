# The two roads of `make demo`: a good candidate that arrives, and a bad one that is taken back. Sourced by demo.sh, which has `step`,
# `run`, `ask` and the checks; lib.sh has started the replicas, each with a port of its own behind the balancer.
# shellcheck shell=bash

sessions=40

# globex_curl URL-PATH [CURL-ARGUMENT...]: as the gateway of tenant globex.
globex_curl() {
  local address=$1
  shift
  curl -s --max-time 30 --cacert "$REMIT_CA_FILE" -H "Authorization: Bearer $(<gateway.token)" -H 'Content-Type: application/json' "$address" "$@"
}

# Begins the sessions of the demo and writes batch.json: one call of each, every fourth a push.
begin_sessions() {
  local i id items=()
  for ((i = 0; i < sessions; i++)); do
    id=$(globex_curl "${addresses[0]}/tenants/globex/sessions" -d '{"agent": "coder"}' | sed -n 's/.*"session": *"\([^"]*\)".*/\1/p;s/.*"id": *"\([^"]*\)".*/\1/p' | head -n 1)
    [[ -n $id ]] || fail "a session could not be begun"
    session_ids+=("$id")
    if ((i % 4)); then
      items+=('{"resource": {"type": "tool", "id": "git/log"}, "context": {"session": "'"$id"'", "arguments": {}}}')
    else
      items+=('{"resource": {"type": "tool", "id": "git/push"}, "context": {"session": "'"$id"'", "arguments": {"command": "git push"}}}')
    fi
  done
  {
    printf '{"subject": {"type": "agent", "id": "coder"}, "action": {"name": "call_tool"}, "evaluations": [%s' "${items[0]}"
    printf ', %s' "${items[@]:1}"
    printf ']}'
  } >batch.json
}

# One call of every session on every replica. Prints how many were allowed.
round_of_calls() {
  local replica
  for replica in "${addresses[@]}"; do
    globex_curl "$replica/tenants/globex/access/v1/evaluations" -d @batch.json
  done | grep -o '"decision":true' | wc -l
}

# Whether every session is denied db/drop on every replica.
nobody_may_drop() {
  local address
  for address in "${addresses[@]}"; do
    globex_curl "$address/tenants/globex/access/v1/evaluations" -d @drops.json >drops.answers
    [[ $(grep -o '"decision":false' drops.answers | wc -l) == "$sessions" ]] || return 1
  done
}

all_sessions_are_known() { (($(round_of_calls) == sessions * ${#addresses[@]})); }

traffic_on() {
  touch traffic
  while [[ -e traffic ]]; do
    round_of_calls >>traffic.log || true
    sleep 0.5
  done &
  traffic_pid=$!
}
traffic_off() {
  rm -f traffic
  if [[ -n ${traffic_pid:-} ]]; then wait "$traffic_pid" || true; fi
  traffic_pid=
}

rollout_is() { [[ $(kubectl -n globex get tenantrollout default -o "jsonpath={.status.$1}") == "$2" ]]; }
watch_on() {
  kubectl -n globex get tenantrollout default -w >watch.txt 2>/dev/null &
  watch_pid=$!
}
# Ends the watch and shows each line that it printed once.
watch_off() {
  sleep 0.5
  kill "$watch_pid" 2>/dev/null || true
  wait "$watch_pid" 2>/dev/null || true
  watch_pid=
  printf '$ kubectl -n globex get tenantrollout default -w\n'
  awk '{ key = $0; sub(/[^ ]+ *$/, "", key); if (key != last) print "  " $0; last = key }' watch.txt
}

# Every call of globex that was made while a rollout ran (only then a record has a revision), oldest first: SESSION ARM TIME.
arms_in_records() {
  local page='' next
  while :; do
    remit decisions list -n globex --since 5m --limit 1000 -o json ${page:+--page "$page"} >records.json
    tr -d '\n' <records.json | sed 's/"seq"/\n"seq"/g' |
      awk 'function text(key, found) {
          if (!match($0, "\"" key "\": *\"[^\"]*\"")) return ""
          found = substr($0, RSTART, RLENGTH - 1)
          sub(/^[^:]*: *"/, "", found)
          return found
        }
        { session = text("session"); arm = text("arm"); time = text("time"); gsub(/.*T|Z/, "", time)
          if (session != "" && arm != "" && $0 ~ /"revision": *[0-9]/) print session, arm, time }'
    next=$(tr -d '\n' <records.json | sed -n 's/.*"next": *"\([^"]*\)".*/\1/p')
    [[ -n $next ]] || break
    page=$next
  done | tac
}

# Each session must have gone from stable to canary at most once, and never back. Two seconds are for a change to reach all replicas;
# it takes some tens of milliseconds.
no_session_went_back() {
  arms_in_records >arms.txt
  awk 'function seconds(t, p) { split(t, p, ":"); return p[1] * 3600 + p[2] * 60 + p[3] }
    $2 == "canary" && !($1 in first) { first[$1] = seconds($3) }
    $2 == "stable" && ($1 in first) && seconds($3) - first[$1] > 2 { print; bad = 1 }
    END { exit bad }' arms.txt
}

answer_of_drop() {
  globex_curl "$1/tenants/globex/access/v1/evaluation" -d '{"subject": {"type": "agent", "id": "coder"}, "action": {"name": "call_tool"},
    "resource": {"type": "tool", "id": "db/drop"}, "context": {"session": "'"$2"'", "arguments": {"table": "orders"}}}'
}

cleanup_rollouts() {
  rm -f traffic
  local pid
  for pid in ${traffic_pid:-} ${watch_pid:-}; do kill "$pid" 2>/dev/null || true; done
}

demo_rollouts() {
  local port
  addresses=()
  for port in "${replica_https[@]}"; do addresses+=("https://127.0.0.1:$port"); done
  step "A second tenant, with ${#addresses[@]} replicas and $sessions sessions at work"
  cp -R "$root/examples/rollout/." globex
  run "kubectl create namespace globex && kubectl apply -f globex/agent.yaml"
  succeeds
  run "remit package build globex/v1 --namespace globex > globex/guard-1.0.0.yaml && kubectl apply -f globex/guard-1.0.0.yaml -f globex/rollout.yaml"
  succeeds
  run "kubectl -n globex wait --for=condition=Ready agent/coder tenantrollout/default --timeout=60s"
  succeeds
  grant_and_token globex gateway remit-gateway remit gateway.token
  kubectl create rolebinding auditor-of-globex -n globex --clusterrole=remit-auditor --serviceaccount=acme:auditor >/dev/null
  session_ids=()
  until_true 30 "the gateway is known" begins_a_session || fail "the gateway can't begin a session"
  begin_sessions
  until_true 30 "every replica knows every session" all_sessions_are_known || fail "not every replica allows what it should"
  echo
  echo "$((sessions * ${#addresses[@]})) calls, one of each session on each replica, all allowed. One agent forgets itself once:"
  echo
  globex_ask git/push '{"command": "git push -f"}' >/dev/null
  run "remit decisions list -n globex --limit 3"
  succeeds
  local i
  for i in 1 2 3; do round_of_calls >/dev/null; done

  step "Before the merge: what the pull request would change"
  run "diff globex/v1/main.cedar globex/good/main.cedar"
  run "remit decisions list -n globex --limit 1000 -o json > week.json"
  succeeds
  run "remit diff --baseline globex/v1 --candidate globex/good --decisions week.json --tenant globex --proof no-expansion"
  succeeds
  shows "Permits no new call"
  shows "Denies 1 of"

  step "The good road: 5, 25, 100 % of sessions"
  run "grep -A 9 'stages:' globex/rollout.yaml"
  watch_on
  traffic_on
  run "remit package build globex/good --namespace globex > globex/guard-1.1.0.yaml && kubectl apply -f globex/guard-1.1.0.yaml"
  succeeds
  until_true 60 "1.1.0 is in force for everyone" rollout_is stable.version 1.1.0 || {
    watch_off
    kubectl -n globex get tenantrollout default -o yaml
    fail "the good candidate did not arrive"
  }
  traffic_off
  watch_off
  [[ $(<watch.txt) == *canary* ]] || fail "no stage was seen on the way"
  echo
  run "kubectl -n globex describe tenantrollout default | sed -n '/^Events/,\$p'"
  no_session_went_back || fail "a session was answered by the new package and then by the old one again"
  awk '{ n[$2]++; s[$2 " " $1] } END { for (k in s) { split(k, p, " "); c[p[1]]++ }
    printf "On %s replicas %d calls were answered by the old package (of %d sessions) and %d by the new one (of %d); no session went back.\n", r, n["stable"], c["stable"], n["canary"], c["canary"] }' r="${#addresses[@]}" arms.txt
  grep -q canary arms.txt || fail "the records know no canary"
  run "globex_ask git/push '{\"command\": \"git push -f\"}'"
  shows '"decision":false'

  step "The bad road: somebody loosens a rule, and it is merged"
  run "diff globex/good/main.cedar globex/bad/main.cedar"
  run "remit diff --baseline globex/good --candidate globex/bad --decisions week.json --tenant globex --proof no-expansion"
  refused
  shows "db/drop"
  echo
  echo "The check is red: the proof says that somebody may do more. It is merged all the same. Nobody has called that tool yet, so nothing"
  echo "in the records speaks against it, and this tenant's rollouts don't ask for 'proof: NoExpansion'. So it begins:"
  echo
  watch_on
  traffic_on
  run "remit package build globex/bad --namespace globex > globex/guard-1.2.0.yaml && kubectl apply -f globex/guard-1.2.0.yaml"
  succeeds
  until_true 60 "1.2.0 decides for 25 %" rollout_is percent 25 || {
    watch_off
    kubectl -n globex get tenantrollout default -o yaml
    fail "the bad candidate did not come to 25 %"
  }
  echo "At 25 % an agent calls the tool. Whichever package answers, the other one is asked in shadow:"
  echo
  local before after id allowed=0
  for id in "${session_ids[@]:0:8}"; do
    [[ $(answer_of_drop "${addresses[0]}" "$id") != *'"decision":true'* ]] || allowed=$((allowed + 1))
  done
  before=$(milliseconds)
  until_true 60 "it is taken back" rollout_is phase Degraded || fail "the bad candidate was not taken back"
  after=$(milliseconds)
  traffic_off
  watch_off
  printf '8 sessions asked for db/drop, %d were under the candidate and got it; taken back %d ms after the last of them.\n\n' "$allowed" "$((after - before))"
  run "kubectl -n globex get tenantrollout default -o 'jsonpath={range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{\"\n\"}{end}'"
  run "kubectl -n globex get tenantrollout default -o 'jsonpath={.status.history[0].version} {.status.history[0].phase}: {.status.history[0].message}{\"\n\"}'"
  shows riticalDrift
  shows "at most 0"
  shows drops
  rollout_is stable.version 1.1.0 || fail "1.1.0 is not in force"
  sed 's/"git\/[a-z]*"/"db\/drop"/g' batch.json >drops.json
  until_true 5 "no session may drop tables" nobody_may_drop || fail "a session may still drop tables"
  echo
  echo "Every session is denied again on every replica. Git still has the bad version; applying it again changes nothing:"
  echo
  run "kubectl apply -f globex/guard-1.2.0.yaml -f globex/rollout.yaml"
  succeeds
  sleep 2
  run "kubectl -n globex get tenantrollout default"
  shows Degraded
  rollout_is stable.version 1.1.0 || fail "the failed candidate came back"
  [[ -z $(kubectl -n globex get tenantrollout default -o 'jsonpath={.status.candidate.version}') ]] || fail "the failed candidate started again"
}

begins_a_session() { globex_curl "${addresses[0]}/tenants/globex/sessions" -d '{"agent": "coder"}' | grep -q expires_after_seconds; }

# globex_ask TOOL [ARGUMENTS]: one call of the agent, outside any session.
globex_ask() {
  globex_curl "${addresses[0]}/tenants/globex/access/v1/evaluation" -d '{
    "subject": {"type": "agent", "id": "coder"}, "action": {"name": "call_tool"},
    "resource": {"type": "tool", "id": "'"$1"'"}, "context": {"arguments": '"${2:-"{}"}"'}}'
  echo
}

#!/usr/bin/env bash
# `make tour`: the README's laptop tour, with the commands as they stand there, and a look at what they answer. What `cargo install` would
# put on the PATH is built here. npx downloads the inspector and the MCP server, unpinned, as it does for a reader.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

needs node npx
remit=${REMIT_BIN:-}
[[ -n $remit ]] || build_remit

tour=$(mktemp -d "${TMPDIR:-/tmp}/remit-tour.XXXXXX")
trap 'rm -rf "$tour"' EXIT
mkdir "$tour/bin"
ln -s "$(realpath "$remit")" "$tour/bin/remit"

# Commands are what is indented by four spaces or fenced as sh. What a command prints stands there, too, and is no command.
awk '
  /^## / { within = /^## On a laptop/ }
  !within { next }
  /^```sh$/ { fenced = 1; next }
  /^```$/ { fenced = 0; next }
  fenced { print; next }
  /^    [^"]/ { sub(/^    /, ""); print }
' "$root/README.md" >"$tour/tour.sh"
# The first-quoted line is the answer that the reader is promised.
promised=$(sed -n 's/^    "text": "\(.*\)"$/\1/p' "$root/README.md")
[[ -n $promised ]] || fail 'README.md promises no denial'

said=$tour/said
(cd "$tour" && PATH="$tour/bin:$PATH" bash -euo pipefail -x tour.sh) 2>&1 | tee "$said"

expect() {
  grep -qF -- "$1" "$said" || fail "the tour does not say: $1"
}
expect "$promised"
expect 'buy milk\n'
expect '"name": "read_text_file"'
if grep -qF '"name": "write_file"' "$said"; then fail 'what writes is shown'; fi
expect 'tenant/policy/untrusted-writes'
expect 'principal.trust = 1'
[[ $(cat "$tour/notes/todo.md") == 'buy milk' ]] || fail 'the server has seen the call'
grep -q '^kind: PolicyPackage$' "$tour/package.yaml" || fail 'package.yaml is no PolicyPackage'

# `trustLevel: 2`, as the README says next: the same call is made.
sed -i 's/^  trustLevel: 1$/  trustLevel: 2/' "$tour/policy/agents.yaml"
sed -n '/^cat > mcp.json/,/^END$/p; /^mcp() /p; / write_file /p' "$tour/tour.sh" >"$tour/again.sh"
(cd "$tour" && PATH="$tour/bin:$PATH" bash -euo pipefail again.sh)
[[ $(cat "$tour/notes/todo.md") == gone ]] || fail 'with trust 2 nothing is written'
printf '\nThe laptop tour of README.md runs as it is written.\n'

#!/usr/bin/env bash
# `make sdk-test`: the packages in sdk/ with the real frameworks, against this checkout's `remit serve`. `make sdk-lock` writes the lock
# files anew. What is installed lies in target/sdk, once for each lock file.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

say() { printf -- '-- %s\n' "$*"; }

# installed NAME LOCK VERSION: sets `place` to a folder of its own for these, and succeeds if it is complete.
installed() {
  local key
  key=$(cat "$2" - <<<"$3" | sha256sum | cut -c1-12)
  place=$out/$1-$key
  [[ -f $place/complete ]] && return
  rm -rf "${out:?}/$1"-*
  mkdir -p "$place"
  return 1
}

python_packages() {
  if ! installed python "$root/sdk/python/tests/requirements.txt" "$(python3 --version)"; then
    say "langchain, langgraph, mcp and what they need, from PyPI (about half a minute)"
    python3 -m venv "$place/venv"
    "$place/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$root/sdk/python/tests/requirements.txt"
    touch "$place/complete"
  fi
  python=$place/venv/bin/python
}

npm_packages() {
  if ! installed typescript "$root/sdk/typescript/package-lock.json" "$(node --version)"; then
    say "langchain, @langchain/langgraph, @modelcontextprotocol/sdk and what they need, from npm (about 15 seconds)"
    cp "$root"/sdk/typescript/package{,-lock}.json "$place"
    (cd "$place" && npm ci --silent --no-audit --no-fund)
    touch "$place/complete"
  fi
  rm -rf "$place/src" "$place/tests" "$place/dist"
  cp -R "$root"/sdk/typescript/{src,tests,package.json,tsconfig.json} "$place"
}

run_tests() {
  needs cargo python3 node npm sha256sum
  build_remit
  export REMIT_BIN=$remit REMIT_TEST_POLICY=$root/sdk/testdata/policy
  out=${remit%/*/*}/sdk
  mkdir -p "$out"
  python_packages
  say "sdk/python: types"
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall "$root/sdk/python"
  (cd "$root/sdk/python" && "$python" -m mypy --cache-dir "$place/mypy" src)
  say "sdk/python: tests"
  (cd "$root/sdk/python" && PYTHONDONTWRITEBYTECODE=1 "$python" -m pytest)
  npm_packages
  say "sdk/typescript: types and tests"
  (cd "$place" && node_modules/.bin/tsc -p . && node --test --test-reporter=dot dist/tests/*.test.js)
}

write_locks() {
  needs python3 npm
  local work
  work=$(mktemp -d)
  # shellcheck disable=SC2064 # its name now
  trap "rm -rf '$work'" EXIT
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check pip-tools
  (cd "$root/sdk/python/tests" && "$work/venv/bin/pip-compile" --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-trusted-host \
    --strip-extras --no-header --allow-unsafe requirements.in --output-file requirements.txt)
  cp "$root/sdk/typescript/package.json" "$work"
  (cd "$work" && npm install --silent --package-lock-only --omit-lockfile-registry-resolved)
  cp "$work/package-lock.json" "$root/sdk/typescript"
}

case ${1:-} in
  test) run_tests ;;
  lock) write_locks ;;
  *) fail "usage: hack/sdk.sh test|lock" ;;
esac

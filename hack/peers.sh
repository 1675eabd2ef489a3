#!/usr/bin/env bash
# Installs the official MCP servers and SDKs that the tests talk to into target/peers: what tests/peers pins, nothing else. Does
# nothing when it is there already.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
from="$root/tests/peers"
into="${REMIT_PEERS:-$root/target/peers}"

need() { # command, what it is for
  command -v "$1" >/dev/null || { echo "peers: $1 is needed to run $2 (Debian: apt-get install nodejs npm python3-venv)" >&2; exit 2; }
}
need node "the MCP reference servers"
need npm "the MCP reference servers"
need python3 "the Python client of the tests"
python3 -c 'import ensurepip, venv' 2>/dev/null \
  || { echo "peers: python3 can't make virtual environments (Debian: apt-get install python3-venv)" >&2; exit 2; }
node -e 'process.exit(process.versions.node.split(".")[0] < 20 ? 1 : 0)' \
  || { echo "peers: Node.js 20 or newer is needed, this is $(node --version)" >&2; exit 2; }

stamp() { # files that decide what is installed, and what runs it
  { cat "$@"; node --version; python3 --version; } | sha256sum | cut -d' ' -f1
}
wanted=$(stamp "$from/package.json" "$from/package-lock.json" "$from"/requirements-*.txt)
if [[ -f "$into/stamp" && "$(cat "$into/stamp")" == "$wanted" ]]; then
  echo "peers: installed already ($into)"
  exit 0
fi

mkdir -p "$into"
# One at a time: two test runs of one checkout must not install over each other.
exec 9>"$into/lock"
if command -v flock >/dev/null; then flock 9; fi
if [[ -f "$into/stamp" && "$(cat "$into/stamp")" == "$wanted" ]]; then exit 0; fi
rm -f "$into/stamp"

echo "peers: npm installs the reference servers and the TypeScript SDKs into $into"
cp "$from/package.json" "$from/package-lock.json" "$from/.npmrc" "$into/"
npm ci --prefix "$into" --no-audit --no-fund --ignore-scripts --loglevel=error
for era in 1 2; do
  echo "peers: pip installs the Python SDK $era.x"
  rm -rf "$into/python-$era"
  python3 -m venv "$into/python-$era"
  "$into/python-$era/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -r "$from/requirements-$era.txt"
done
echo "$wanted" >"$into/stamp"
echo "peers: ready"

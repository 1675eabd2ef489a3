#!/usr/bin/env bash
# The solver cvc5, which proofs and their tests need: there already, or installed from Debian's archive where this runs as root.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

solver=${REMIT_CVC5:-cvc5}
if ! command -v "$solver" >/dev/null; then
  if [[ $solver == cvc5 && $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    apt-get install -y --no-install-recommends cvc5
  else
    fail "the solver $solver is not there: install Debian's package cvc5 (apt-get install cvc5), or name it in REMIT_CVC5"
  fi
fi
printf 'solver: %s\n' "$(command -v "$solver")"

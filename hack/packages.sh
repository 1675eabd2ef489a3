#!/usr/bin/env bash
# packages.sh postgresql|cvc5...: sees to Debian's packages that tests and demo need. Installs what is missing with apt-get as root, and
# says what to install otherwise. Does nothing where the programs are there.
set -euo pipefail

there() {
  case $1 in
  # Debian keeps the server's programs out of PATH.
  postgresql) command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null ;;
  *) command -v "$1" >/dev/null ;;
  esac
}

missing=()
for package in "$@"; do
  # A PostgreSQL that runs already needs no programs here.
  if [[ $package == postgresql && -n ${REMIT_TEST_POSTGRES_URL:-} ]]; then continue; fi
  there "$package" || missing+=("$package")
done
((${#missing[@]})) || exit 0

if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
  echo "packages: apt-get installs ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
    # The lists of a fresh machine are empty or old.
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  }
fi
for package in "${missing[@]}"; do
  there "$package" || {
    echo "packages: $package is needed and is not installed (Debian: apt-get install ${missing[*]})" >&2
    exit 2
  }
done

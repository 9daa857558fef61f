#!/usr/bin/env bash
# Sets up what is missing, then does what it is asked for. Needs bash and Python 3.11 or newer.
set -euo pipefail
caller=$PWD
cd "$(dirname "$0")"

usage() {
  cat <<'TEXT'
./run.sh                        set up what is missing, then serve on http://127.0.0.1:8100
./run.sh generate "a prompt"    make a picture without a server   (-o FILE, --help)
./run.sh models                 the models there are
./run.sh devices                the devices this machine has
./run.sh install MODEL          fetch or convert a model's weights
./run.sh test                   checks and tests that need no torch, no Docker and little time
./run.sh test --all             everything: conversions, containers and what takes minutes, too
./run.sh test --docker          the tests in containers only
./run.sh --help                 this text

Environment variables configure the service; README.md lists them. MODEL=demo is the default.
TEXT
}

venv=${VENV:-.venv}

# Makes the environment of a requirements file once; a stamp with the file's content says it is there.
setup() {
  local lock=requirements/$1.txt stamp=$venv/.installed-$1
  cmp -s "$lock" "$stamp" && return
  if [[ ! -x $venv/bin/python ]]; then
    say "Making a Python environment in $venv"
    "$(python)" -m venv "$venv"
  fi
  say "Installing the $1 packages (once; about 450 MB for the runtime)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
  cp "$lock" "$stamp"
}

python() {
  local name
  for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  say "Python 3.11 or newer with its venv module is needed (Debian, Ubuntu: apt install python3-venv)."
  exit 1
}

say() { printf '%s\n' "$*" >&2; }

case ${1:-serve} in
  -h | --help | help) usage ;;
  test)
    setup runtime
    setup test
    exec scripts/test "${@:2}"
    ;;
  serve | generate | models | devices | install)
    setup runtime
    python=$(cd "$venv/bin" && pwd)/python
    export PYTHONPATH=$PWD DATA_DIR=${DATA_DIR:-${OUTPUT_DIR:-$PWD/data}}
    cd "$caller" # a file or folder means what it meant to the caller
    exec "$python" -P -m app "${@:-serve}"
    ;;
  *)
    say "./run.sh: there is no '$1' here."
    usage >&2
    exit 2
    ;;
esac

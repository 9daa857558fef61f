#!/usr/bin/env bash
# Axera's Python runtime, then the weights: axera/setup.sh [MODEL]
#
#   AXENGINE_WHEEL   path or address of the axengine wheel, which is on no package index
#   TEXT_MODEL_DIR   a folder that has the weights already; then none are fetched
#
# The driver is the system's; docs/axera.md says how to install it.
set -euo pipefail
cd "$(dirname "$0")/.."
model=${1:-axera-sd15-lcm}
python=${VENV:-.venv}/bin/python

say() { printf '%s\n' "$*" >&2; }

[[ -x $python ]] || ./run.sh models >/dev/null # makes the environment

if [[ -n ${AXENGINE_WHEEL:-} ]]; then
  say "Installing axengine from $AXENGINE_WHEEL"
  "$python" -m pip install --quiet --disable-pip-version-check "$AXENGINE_WHEEL"
elif ! "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("axengine") is None)'; then
  say "axengine is not installed. Download its wheel (axengine-...-py3-none-any.whl) from the releases of"
  say "AXERA-TECH/pyaxengine and run: AXENGINE_WHEEL=<path or address> axera/setup.sh"
  exit 1
fi
if ! reason=$("$python" -c 'import axengine' 2>&1); then
  say "axengine is installed, but the driver is not: ${reason##*$'\n'}"
  say "Install it as docs/axera.md says; the weights can be fetched meanwhile."
fi
if [[ -n ${TEXT_MODEL_DIR:-} ]]; then
  say "The weights in $TEXT_MODEL_DIR are used where they lie."
else
  "$python" -m app install "$model"
fi
say "Try it out: python -m app devices --check AXERA"

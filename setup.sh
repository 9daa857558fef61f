#!/usr/bin/env bash
# The environment, then a model by its family's own setup: ./setup.sh [MODEL] [--weight-format ...]
set -euo pipefail
cd "$(dirname "$0")"
model=${1:-${MODEL:-demo}}
family=$(./run.sh install "$model" --family)
if [[ -x $family/setup.sh ]]; then
  exec "$family/setup.sh" "$model" "${@:2}"
fi
exec ./run.sh install "$model" "${@:2}"

#!/usr/bin/env bash
# The environment, then a model by its family's own setup: ./setup.sh [MODEL] [--weight-format ...]
set -euo pipefail
run=$(dirname "$0")/run.sh
model=${1:-${MODEL:-demo}}
family=$("$run" install "$model" --family)
if [[ -x $family/setup.sh ]]; then
  exec "$family/setup.sh" "$model" "${@:2}"
fi
exec "$run" install "$model" "${@:2}"

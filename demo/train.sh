#!/usr/bin/env bash
# Trains the bundled model from nothing and writes demo/weights: ./demo/train.sh [MINUTES]
# Stopped and started again with the same minutes, it goes on where it was.
# Needs the environment for converting checkpoints; PYTHON names its interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:-120}
python=${PYTHON:-python3}

if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  workers=1
else
  workers=$(nproc)
fi
eye=$((minutes * 35 / 100))
"$python" -m demo.training.vae --minutes "$eye" --workers "$workers"
"$python" -m demo.training.denoiser --minutes $((minutes - eye)) --workers "$workers"
"$python" -m demo.training.export

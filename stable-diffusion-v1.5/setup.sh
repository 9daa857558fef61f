#!/usr/bin/env bash
# Installs a model of this family: ./setup.sh [MODEL] [--weight-format fp16|int8|int4]
exec "$(dirname "$0")/../run.sh" install "${@:-stable-diffusion-v1.5}"

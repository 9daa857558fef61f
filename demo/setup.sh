#!/usr/bin/env bash
# The bundled model is in the repository: this only makes the environment, and checks that it is there.
exec "$(dirname "$0")/../run.sh" install "${@:-demo}"

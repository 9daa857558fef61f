"""Easel: a text-to-image service for Intel and Axera hardware."""

import sys

__version__ = "0.1.0"

# `import openvino` reports to its maker's analytics over the network and keeps an identifier in the
# home folder. It does so by this package alone, and does without where there is none.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

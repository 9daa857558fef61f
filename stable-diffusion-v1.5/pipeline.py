"""Stable Diffusion 1.x, 2.x and their consistency models on OpenVINO GenAI."""

from pathlib import Path

import numpy as np

from app.runtime import genai
from app.runtime.protocol import LoadOptions, Pipeline

# The latents' colours, by a least-squares fit of decoded pictures: figures known from ComfyUI, for
# -1..1.
COLOURS = [
    [0.3512, 0.2297, 0.3227],
    [0.3250, 0.4974, 0.2350],
    [-0.2829, 0.1762, 0.2721],
    [-0.2120, -0.2616, -0.7177],
    [0.0, 0.0, 0.0],
]


def load(weights: Path, device: str, options: LoadOptions) -> Pipeline:
    preview = np.array(COLOURS, dtype=np.float32) / 2
    preview[-1] += 0.5
    return genai.load(weights, device, options, preview=preview)

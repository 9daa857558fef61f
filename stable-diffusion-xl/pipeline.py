"""Stable Diffusion XL on OpenVINO GenAI."""

from pathlib import Path

import numpy as np

from app.runtime import genai
from app.runtime.protocol import LoadOptions, Pipeline

# The latents' colours, by a least-squares fit of decoded pictures: figures known from ComfyUI, for
# -1..1.
COLOURS = [
    [0.3651, 0.4232, 0.4341],
    [-0.2533, -0.0042, 0.1068],
    [0.1076, 0.1111, -0.0362],
    [-0.3165, -0.2492, -0.2188],
    [0.1084, -0.0175, -0.0011],
]


def load(weights: Path, device: str, options: LoadOptions) -> Pipeline:
    preview = np.array(COLOURS, dtype=np.float32) / 2
    preview[-1] += 0.5
    return genai.load(weights, device, options, preview=preview)

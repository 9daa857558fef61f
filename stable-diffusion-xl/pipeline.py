"""Stable Diffusion XL on OpenVINO GenAI."""

from pathlib import Path

from app.runtime import genai, previews
from app.runtime.protocol import LoadOptions, Pipeline

# What each latent channel adds to red, green and blue, the constant last (previews.from_colours).
COLOURS = [
    [0.3651, 0.4232, 0.4341],
    [-0.2533, -0.0042, 0.1068],
    [0.1076, 0.1111, -0.0362],
    [-0.3165, -0.2492, -0.2188],
    [0.1084, -0.0175, -0.0011],
]


def load(weights: Path, device: str, options: LoadOptions) -> Pipeline:
    return genai.load(weights, device, options, preview=previews.from_colours(COLOURS))

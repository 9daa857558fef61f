"""Stable Diffusion 1.x, 2.x and their consistency models on OpenVINO GenAI."""

from pathlib import Path

from app.runtime import genai, previews
from app.runtime.protocol import LoadOptions, Pipeline

# What each latent channel adds to red, green and blue, the constant last (previews.from_colours).
COLOURS = [
    [0.3512, 0.2297, 0.3227],
    [0.3250, 0.4974, 0.2350],
    [-0.2829, 0.1762, 0.2721],
    [-0.2120, -0.2616, -0.7177],
    [0.0, 0.0, 0.0],
]


def load(weights: Path, device: str, options: LoadOptions) -> Pipeline:
    return genai.load(weights, device, options, preview=previews.from_colours(COLOURS))

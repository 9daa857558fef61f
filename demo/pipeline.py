"""The bundled family: a small Stable Diffusion with its own latent space."""

from pathlib import Path

import numpy as np

from app import openvino
from app.pipeline import LoadOptions, Pipeline


def load(weights: Path, device: str, options: LoadOptions) -> Pipeline:
    return openvino.load(weights, device, options, preview=np.load(weights / "preview.npy"))

"""The bundled family: a small Stable Diffusion with its own latent space."""

from pathlib import Path

import numpy as np

from app import openvino
from app.pipeline import Inputs, LoadOptions, Pipeline
from app.request import ImageRequest


def load(weights: Path, device: str, options: LoadOptions) -> Pipeline:
    pipeline = openvino.load(weights, device, options, preview=np.load(weights / "preview.npy"))
    # A pipeline whose first picture is one of 64 pixels makes NaN of larger ones ever after (seen
    # with OpenVINO 2026.4.1 in bfloat16), so the first one is of the usual size.
    recipe, _ = options.model.complete(ImageRequest(prompt="a picture", steps=1))
    pipeline.generate(recipe, 0, Inputs(), lambda *_: None)
    return pipeline

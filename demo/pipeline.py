"""The bundled family: a small Stable Diffusion with its own latent space."""

from pathlib import Path

import numpy as np

from app.errors import GenerationFailed, LoadFailed
from app.request import ImageRequest
from app.runtime import genai
from app.runtime.protocol import Inputs, LoadOptions, Pipeline


def load(weights: Path, device: str, options: LoadOptions) -> Pipeline:
    pipeline = genai.load(weights, device, options, preview=np.load(weights / "preview.npy"))
    # A pipeline whose first picture is one of 64 pixels makes NaN of larger ones ever after (seen
    # with OpenVINO 2026.4.1 in bfloat16), so the first one is of the usual size.
    first = ImageRequest(prompt="a picture", steps=options.model.limits.steps[0])
    recipe, _ = options.model.complete(first)
    try:
        pipeline.generate(recipe, 0, Inputs(), lambda *_: None)
    except GenerationFailed as error:
        raise LoadFailed(f"{options.model.name} draws nothing on {device}: {error}") from error
    return pipeline

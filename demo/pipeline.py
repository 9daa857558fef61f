"""The bundled family on OpenVINO GenAI: a small Stable Diffusion with a latent space of its own,
whose map to preview pixels lies beside the weights."""

from pathlib import Path

import numpy as np

from app.errors import GenerationFailed, LoadFailed
from app.request import ImageRequest
from app.runtime import genai
from app.runtime.protocol import Inputs, LoadOptions, Pipeline


def load(weights: Path, device: str, options: LoadOptions) -> Pipeline:
    pipeline = genai.load(weights, device, options, preview=np.load(weights / "preview.npy"))
    # A pipeline whose very first picture has 64 pixels a side computes NaN for every larger one
    # after it, and they come out black (seen with OpenVINO 2026.4.1 in bfloat16). So the first
    # picture is drawn here, at the default size.
    first = ImageRequest(prompt="a picture", steps=options.model.limits.steps[0])
    recipe, _ = options.model.complete(first)
    try:
        pipeline.generate(recipe, 0, Inputs(), lambda *_: None)
    except GenerationFailed as error:
        raise LoadFailed(f"{options.model.name} draws nothing on {device}: {error}") from error
    return pipeline

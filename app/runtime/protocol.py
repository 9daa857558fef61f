"""What a family's pipeline.py fulfils, and the data that goes in and out of it. Knows no process,
no queue and no runtime.

pipeline.py offers `load(weights, device, options) -> Pipeline`. A pipeline makes one picture a
call, so that the picture of a seed does not depend on how many were asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.models.model import Model
from app.request import Recipe

Pixels = NDArray[np.uint8]
"""A picture: [height, width, 3], RGB, 0..255."""


class Canceled(BaseException):
    """Raised by on_step to end a generation. A BaseException, so that an `except Exception` in a
    pipeline does not swallow it."""


Preview = Callable[[], Pixels] | None
"""Makes a small picture of the latent as it was at its step. It may be called later, from another
thread, or never, so it keeps what it needs."""


class OnStep(Protocol):
    """Called by a pipeline after each denoising step with the number of steps done and of all.
    Raises Canceled when nobody wants the picture any more."""

    def __call__(self, step: int, steps: int, preview: Preview = None) -> None: ...


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What loading a pipeline may need beyond weights and device."""

    model: Model
    cache_dir: Path | None = None  # where the runtime keeps compiled models
    threads: int = 0  # inference threads; 0: the runtime decides


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The pictures of an image-to-image or inpainting job, both of the recipe's size."""

    init_image: Pixels | None = None
    mask: NDArray[np.uint8] | None = None  # [height, width], 255 = repaint


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One picture, where its time went (milliseconds: text, denoise, decode), and what was not
    honoured, in words."""

    pixels: Pixels
    timings_ms: dict[str, float]
    warnings: tuple[str, ...] = ()


class Pipeline(Protocol):
    """A model on a device, ready to draw."""

    def generate(self, recipe: Recipe, seed: int, inputs: Inputs, on_step: OnStep) -> Generated:
        """Makes one picture of recipe.width x recipe.height; lets Canceled through when on_step
        raises it. Raises GenerationFailed."""
        ...


class Family(Protocol):
    """A family's pipeline.py, as a module."""

    def load(self, weights: Path, device: str, options: LoadOptions) -> Pipeline:
        """Raises LoadFailed."""
        ...

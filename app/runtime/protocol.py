"""The protocol between a worker and a family's adapter. Knows no process, no queue and no runtime.

A family's pipeline.py offers `load(weights, device, options) -> Pipeline`. A pipeline makes one
picture per call, so that the picture of a seed never depends on how many were asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.models.model import Model
from app.request import Recipe

Pixels = NDArray[np.uint8]
"""A picture: [height, width, 3], RGB, 0..255."""


class Canceled(BaseException):
    """Raised by on_step to end a generation; a BaseException, so that no `except Exception` eats
    it."""


Preview = Callable[[], Pixels] | None
"""Makes a small picture of the latent as it was at a step: at once, later, from another thread, or
never."""


class OnStep(Protocol):
    """Called after each denoising step with what is done and how much there is. Raises Canceled
    when the job is no longer wanted."""

    def __call__(self, step: int, steps: int, preview: Preview = None) -> None: ...


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What an adapter may need beyond the weights."""

    model: Model
    cache_dir: Path | None = None  # where the runtime keeps compiled models
    threads: int = 0  # inference threads; 0: the runtime decides
    extra: dict[str, str] = field(default_factory=dict[str, str])  # the family's own settings


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The pictures of an image-to-image or inpainting job, both of the recipe's size."""

    init_image: Pixels | None = None
    mask: NDArray[np.uint8] | None = None  # [height, width], 255 = repaint


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One picture, where its time went (milliseconds: text, denoise, decode), and what was not
    honoured."""

    pixels: Pixels
    timings_ms: dict[str, float]
    warnings: tuple[str, ...] = ()


class Pipeline(Protocol):
    def generate(self, recipe: Recipe, seed: int, inputs: Inputs, on_step: OnStep) -> Generated:
        """Makes one picture of recipe.width x recipe.height; raises Canceled when on_step did."""
        ...


class Adapter(Protocol):
    """A family's pipeline.py, as a module."""

    def load(self, weights: Path, device: str, options: LoadOptions) -> Pipeline: ...

"""What was asked (ImageRequest, gaps allowed) and what will be done (Recipe, complete and checked).

Holds no defaults and no limits: they are the model's (model.py turns one into the other).
"""

import secrets
from dataclasses import dataclass
from typing import Literal

MAX_PROMPT = 10_000  # characters
MAX_SEED = 2**32 - 1  # the runtime takes seeds modulo 2^32
FORMATS = ("png", "jpeg", "webp")

ImageFormat = Literal["png", "jpeg", "webp"]
Resize = Literal["stretch", "crop", "pad"]


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """A request as a face understood it. None means: not said, the model decides.

    width and height are in pixels, strength is in (0, 1], init_image and mask are the bytes of an
    image file; a mask is as large as its init_image and white where the picture is to be repainted.
    """

    prompt: str
    negative_prompt: str | None = None
    model: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    images: int | None = None
    sampler: str | None = None
    init_image: bytes | None = None
    strength: float | None = None
    mask: bytes | None = None
    resize: Resize = "stretch"
    format: ImageFormat | None = None
    quality: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines the pictures of a job; image n is made with seed + n.

    init_image and mask name the prepared pictures (RGB and greyscale PNG files of width x height).
    """

    prompt: str
    negative_prompt: str | None
    model: str
    width: int
    height: int
    steps: int
    guidance: float | None
    seed: int
    images: int
    sampler: str | None
    init_image: str | None
    strength: float | None
    mask: str | None
    format: ImageFormat
    quality: int

    def image_seed(self, n: int) -> int:
        return (self.seed + n) % (MAX_SEED + 1)


def random_seed() -> int:
    return secrets.randbelow(MAX_SEED + 1)

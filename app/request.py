"""What a client asked for (ImageRequest, with gaps) and what will be drawn (Recipe, complete).

Plain data: Model.complete in models/model.py checks the one and makes the other of it.
"""

import secrets
from dataclasses import dataclass
from typing import Literal

MAX_PROMPT = 10_000  # characters
MAX_SEED = 2**32 - 1  # the runtime takes seeds modulo 2^32
FORMATS = ("png", "jpeg", "webp")

ImageFormat = Literal["png", "jpeg", "webp"]
Resize = Literal["stretch", "crop", "pad"]
MaskMeans = Literal["white", "black", "transparent"]


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """A request as a face read it. None: the client left it out, the model's default is used.

    width and height are in pixels, strength is in (0, 1], init_image and mask are the bytes of an
    image file. A mask is as large as its init_image; mask_means says what in it marks the part to
    be repainted, mask_blur (pixels of the init_image) how soft its edge is made. With a
    mask_padding, only that part and mask_padding pixels around it are cut out, redrawn at
    width x height and put back into the init_image.
    """

    prompt: str | None  # None: only the init_image is given
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
    mask_means: MaskMeans = "white"
    mask_blur: int = 0
    mask_padding: int | None = None
    resize: Resize = "stretch"
    format: ImageFormat | None = None
    quality: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines the pictures of a job; image n is made with seed + n.

    init_image and mask name the prepared pictures: RGB and greyscale PNG files of width x height,
    or, with a mask_padding, of the size they came in.
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
    mask_padding: int | None = None

    def image_seed(self, n: int) -> int:
        return (self.seed + n) % (MAX_SEED + 1)


def random_seed() -> int:
    return secrets.randbelow(MAX_SEED + 1)

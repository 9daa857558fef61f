"""Small pictures of a latent while it is denoised, by a linear map from its channels to colours.

Knows arrays only; which colours a model's channels have is a fact of its family.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.runtime.protocol import Pixels

LatentToRgb = NDArray[np.float32]
"""A linear map, [channels + 1, 3 * p * p]: from the channels of a latent position and a constant 1
to the p x p pixels (row, column, rgb) of that position, in 0..1."""


def from_colours(colours: Sequence[Sequence[float]]) -> LatentToRgb:
    """The map that makes one pixel of each latent position.

    `colours` has a row for each latent channel and a last one for the constant: the red, green and
    blue, in -1..1, that one unit adds. ComfyUI publishes such tables (latent_formats.py), fitted by
    least squares to decoded pictures.
    """
    rgb: LatentToRgb = np.array(colours, dtype=np.float32) / np.float32(2)
    rgb[-1] += 0.5
    return rgb


def latent_to_rgb(latent: NDArray[np.float32], to_rgb: LatentToRgb, aspect: float) -> Pixels:
    """A small picture of a latent [n, channels, h, w], or of a packed one (FLUX),
    [n, h/2 * w/2, 4 * channels]; only the first of the n is drawn.

    `aspect` is height / width of the picture: a packed latent does not say how its positions lie.
    """
    if latent.ndim == 3:
        count, packed = latent.shape[1:]
        wide = max(1, round((count / aspect) ** 0.5))
        # Packing puts each 2x2 block of positions into the channels: c, row, column.
        blocks = latent[0].reshape(count // wide, wide, packed // 4, 2, 2)
        latent = blocks.transpose(2, 0, 3, 1, 4).reshape(1, packed // 4, -1, 2 * wide)
    channels, height, width = latent.shape[1:]
    side = int((to_rgb.shape[1] // 3) ** 0.5)
    flat = latent[0].reshape(channels, -1).T @ to_rgb[:-1] + to_rgb[-1]
    rgb = flat.reshape(height, width, side, side, 3).transpose(0, 2, 1, 3, 4)
    return (rgb.reshape(height * side, width * side, 3).clip(0, 1) * 255).astype(np.uint8)

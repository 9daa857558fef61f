"""The init_image and mask of a request: decoded, checked against each other, and fitted to the
recipe's size. With a mask_padding the region around the mask is cut out, drawn and put back. Knows
bytes and pixels, no paths."""

import io
from collections.abc import Mapping

from PIL import Image as Pillow
from PIL.Image import Image, Resampling

from app.errors import InvalidRequest
from app.pictures import codec, transform
from app.request import ImageRequest, Recipe


def open_inputs(request: ImageRequest) -> dict[str, Image]:
    """The decoded init_image and mask of a request, those it has; raises InvalidRequest."""
    if request.init_image is None:
        return {}  # a mask without an init_image is refused by Model.complete
    init = codec.open_image(request.init_image, "init_image")
    if request.mask is None:
        return {"init_image": init}
    mask = codec.open_image(request.mask, "mask")
    if mask.size != init.size:
        raise InvalidRequest(
            f"mask is {mask.width}x{mask.height}, init_image {init.width}x{init.height}; "
            "they must be of one size.",
            field="mask",
        )
    return {"init_image": init, "mask": mask}


def fit_inputs(
    pictures: dict[str, Image], recipe: Recipe, request: ImageRequest
) -> dict[str, bytes]:
    """The PNG files that the recipe names, by name: RGB init_image and greyscale mask, white =
    repaint."""
    files: dict[str, bytes] = {}
    size = (recipe.width, recipe.height)
    for name, picture in pictures.items():
        if name == "mask":
            picture = transform.to_mask(picture, request.mask_means, request.mask_blur)
        else:
            picture = transform.to_rgb(picture)
        if recipe.mask_padding is None:
            picture = transform.fit(picture, size, request.resize)
        files[f"{name}.png"] = codec.to_png(picture)
    return files


def read_inputs(recipe: Recipe, files: Mapping[str, bytes]) -> tuple[Image | None, Image | None]:
    """The init_image and mask for the pipeline, at the recipe's width x height, from the files that
    `fit_inputs` made. With a mask_padding only the region around the mask, scaled to that size.
    """
    init, mask = _opened(recipe, files)
    if init is None or mask is None or recipe.mask_padding is None:
        return init, mask
    size = (recipe.width, recipe.height)
    box = region(mask, recipe.mask_padding, size)
    return (
        init.resize(size, Resampling.LANCZOS, box),
        mask.resize(size, Resampling.BILINEAR, box),
    )


def put_back(picture: Image, recipe: Recipe, files: Mapping[str, bytes]) -> Image:
    """The finished picture: with a mask_padding, the init_image with `picture` laid over the region
    that `read_inputs` cut out, as far as the mask says; otherwise `picture` itself."""
    if recipe.mask_padding is None:
        return picture
    init, mask = _opened(recipe, files)
    assert init is not None and mask is not None
    left, top, right, bottom = box = region(
        mask, recipe.mask_padding, (recipe.width, recipe.height)
    )
    part = picture.resize((right - left, bottom - top), Resampling.LANCZOS)
    init.paste(part, box, mask.crop(box))
    return init


def region(mask: Image, padding: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) around all that is not black in the mask, wider by
    `padding` pixels and then grown to the proportions of `size`, as far as the picture goes."""
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    left, right = max(0, left - padding), min(mask.width, right + padding)
    top, bottom = max(0, top - padding), min(mask.height, bottom + padding)
    wide, high = right - left, bottom - top
    left, right = _grown(left, right, round(high * size[0] / size[1]), mask.width)
    top, bottom = _grown(top, bottom, round(wide * size[1] / size[0]), mask.height)
    return left, top, right, bottom


def _grown(low: int, high: int, length: int, end: int) -> tuple[int, int]:
    """The stretch low..high made at least `length` long, if it fits into 0..end."""
    length = min(max(length, high - low), end)
    low = min(max(0, low - (length - (high - low)) // 2), end - length)
    return low, low + length


def _opened(recipe: Recipe, files: Mapping[str, bytes]) -> tuple[Image | None, Image | None]:
    def opened(name: str | None) -> Image | None:
        return Pillow.open(io.BytesIO(files[name])) if name else None

    return opened(recipe.init_image), opened(recipe.mask)

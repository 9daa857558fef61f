"""The pictures a request starts from: decoded safely, checked against each other, fitted to the
recipe."""

from PIL.Image import Image

from app import image
from app.errors import InvalidRequest
from app.request import ImageRequest, Recipe, Resize


def open_inputs(request: ImageRequest) -> dict[str, Image]:
    """The decoded init_image and mask of a request, those it has; raises InvalidRequest."""
    if request.init_image is None:
        return {}  # a mask alone is refused with the other limits
    init = image.open_image(request.init_image, "init_image")
    if request.mask is None:
        return {"init_image": init}
    mask = image.open_image(request.mask, "mask")
    if mask.size != init.size:
        raise InvalidRequest(
            f"mask is {mask.width}x{mask.height}, init_image {init.width}x{init.height}; "
            "they must be of one size.",
            field="mask",
        )
    return {"init_image": init, "mask": mask}


def fit_inputs(pictures: dict[str, Image], recipe: Recipe, resize: Resize) -> dict[str, bytes]:
    """The PNG files that the recipe names: RGB init_image and greyscale mask of its width x
    height."""
    files: dict[str, bytes] = {}
    size = (recipe.width, recipe.height)
    for name, picture in pictures.items():
        converted = image.to_mask(picture) if name == "mask" else image.to_rgb(picture)
        files[f"{name}.png"] = image.to_png(image.fit(converted, size, resize))
    return files

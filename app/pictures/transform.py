"""Changes the pixels of pictures: colours, masks, sizes. Knows no file formats; codec.py does."""

from PIL import Image, ImageFilter, ImageOps

from app.errors import InvalidRequest
from app.pictures.codec import MAX_PIXELS, open_image, to_png
from app.request import MaskMeans, Resize


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any picture: 16-bit values scaled, transparency laid on white."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def to_mask(image: Image.Image, means: MaskMeans = "white", blur: int = 0) -> Image.Image:
    """A greyscale mask in which white means repaint. `means` says what means repaint in `image`;
    "transparent" is taken as "white" where there is no transparency. `blur` is the standard
    deviation of a Gaussian blur, in pixels."""
    if means == "transparent" and ("A" in image.getbands() or "transparency" in image.info):
        mask = ImageOps.invert(image.convert("RGBA").getchannel("A"))
    else:
        mask = to_rgb(image).convert("L")
        if means == "black":
            mask = ImageOps.invert(mask)
    if blur > 0:
        mask = mask.filter(ImageFilter.GaussianBlur(min(blur, max(mask.size))))
    return mask


def fit(image: Image.Image, size: tuple[int, int], resize: Resize) -> Image.Image:
    """The picture at `size` (width, height): stretched, or cropped or padded with its proportions
    kept."""
    if image.size == size:
        return image
    if resize == "crop":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    if resize == "pad":
        return ImageOps.pad(image, size, Image.Resampling.LANCZOS)
    return image.resize(size, Image.Resampling.LANCZOS)


def enlarge(
    data: bytes,
    field: str,
    *,
    factor: float,
    size: tuple[int, int] | None,
    crop: bool,
    smooth: bool,
) -> bytes:
    """A picture file resized to a PNG, its proportions kept: `factor` times as large, or, given a
    `size`, either filling it and cropped (`crop`) or fitting inside it."""
    picture = to_rgb(open_image(data, field))
    width, height = picture.size
    if size is not None:
        choose = max if crop else min
        factor = choose(size[0] / width, size[1] / height)
    wide, high = max(1, round(width * factor)), max(1, round(height * factor))
    if wide * high > MAX_PIXELS:
        raise InvalidRequest(
            f"{wide}x{high} is too large; at most {MAX_PIXELS // 1_000_000} million pixels are "
            "made.",
            field="upscaling_resize",
        )
    method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    picture = picture.resize((wide, high), method)
    return to_png(ImageOps.fit(picture, size, method) if size and crop else picture)

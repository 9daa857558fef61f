"""Picture files to pixels and back: safe decoding of what callers send; PNG, JPEG and WebP with the
recipe inside. Knows no paths.

Pillow only, no numpy, so that the API process stays small.
"""

import io
import warnings
from dataclasses import replace

from PIL import ExifTags, Image, ImageOps

from app.errors import InvalidRequest
from app.pictures.data_uri import has_picture_signature
from app.pictures.infotext import parameters, parse_parameters, read_parameters
from app.pictures.png import write_png
from app.request import ImageFormat, Recipe

LONGEST_EXIF = 65_000  # bytes
MAX_PIXELS = 50_000_000  # of a picture that a caller sends
MEDIA_TYPES: dict[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "MPO")


def open_image(data: bytes, field: str) -> Image.Image:
    """A decoded picture from untrusted bytes, upright, first frame; raises InvalidRequest.

    The size is read from the header before a pixel is decoded, so that a small file cannot fill
    memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_READABLE)
            if image.width * image.height > MAX_PIXELS:
                raise InvalidRequest(
                    f"{field} is {image.width}x{image.height}; at most "
                    f"{MAX_PIXELS // 1_000_000} million pixels are accepted. Send it smaller.",
                    field=field,
                )
            image.load()
            return ImageOps.exif_transpose(image)
    except InvalidRequest:
        raise
    except Image.DecompressionBombError:
        raise InvalidRequest(
            f"{field} has too many pixels; at most {MAX_PIXELS // 1_000_000} million pixels are "
            "accepted. Send it smaller.",
            field=field,
        ) from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        reason = (
            "is damaged"
            if isinstance(error, OSError | SyntaxError) and has_picture_signature(data)
            else "is not a picture"
        )
        raise InvalidRequest(
            f"{field} {reason} that can be read; send PNG, JPEG, WebP, GIF, BMP or TIFF.",
            field=field,
        ) from None


def describe(data: bytes, field: str) -> tuple[str, dict[str, str]]:
    """The recipe text of a picture file and its `key: value` pairs, both empty if it has none."""
    text = read_parameters(open_image(data, field)) or ""
    return text, parse_parameters(text)


def to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def preview_jpeg(image: Image.Image, side: int = 128) -> bytes:
    """A small JPEG of a latent preview, at most `side` pixels wide and high."""
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return buffer.getvalue()


def encode(image: Image.Image, recipe: Recipe, seed: int) -> bytes:
    """The finished file in the recipe's format, with the recipe as metadata."""
    if recipe.format == "png":
        return write_png(image, parameters(recipe, seed))
    exif = Image.Exif()
    comment = b"UNICODE\0" + _parameters_for_exif(recipe, seed).encode("utf-16-be")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    name: dict[ImageFormat, str] = {"jpeg": "JPEG", "webp": "WEBP"}
    buffer = io.BytesIO()
    image.save(buffer, name[recipe.format], quality=recipe.quality, exif=exif.tobytes())
    return buffer.getvalue()


def _parameters_for_exif(recipe: Recipe, seed: int) -> str:
    """The parameters, with long prompts cut so that they fit the 64 KiB of a JPEG's EXIF."""
    text = parameters(recipe, seed)
    if len(text) <= LONGEST_EXIF // 4:  # four bytes a character at most
        return text
    half = LONGEST_EXIF // 9  # characters of either prompt: 8/9 at 4 bytes each; 1/9 for the pairs
    negative = recipe.negative_prompt[:half] if recipe.negative_prompt else None
    return parameters(replace(recipe, prompt=recipe.prompt[:half], negative_prompt=negative), seed)

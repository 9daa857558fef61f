"""Bytes to pixels and back: safe decoding of what callers send, PNG, JPEG and WebP with the recipe
inside.

Pillow only, no numpy, so that the API process stays small.
"""

import base64
import binascii
import contextlib
import io
import json
import re
import struct
import warnings
import zlib
from dataclasses import replace
from typing import Any

from PIL import ExifTags, Image, ImageChops, ImageFilter, ImageOps, PngImagePlugin

from app import __version__
from app.errors import InvalidRequest
from app.request import MAX_PROMPT, ImageFormat, MaskMeans, Recipe, Resize

LONGEST_EXIF = 65_000  # bytes
MAX_PIXELS = 50_000_000  # of a picture that a caller sends
MEDIA_TYPES: dict[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FILTER_UP, _COLOR_RGB = 2, 2
_PAIR = re.compile(r'([A-Za-z][\w /-]{0,60}): ("(?:[^"\\]|\\.)*"|[^,]*)(?:, |$)')
_READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "MPO")
SAMPLER_TITLES = {  # the names AUTOMATIC1111 writes into its parameters
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "ddim": "DDIM",
    "pndm": "PLMS",
    "lcm": "LCM",
    "flow_match_euler": "Euler",
}


def from_base64(text: str, field: str) -> bytes:
    """The bytes of a base64 text or a data URI; raises InvalidRequest naming the field."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise InvalidRequest(f"{field} is a data URI without base64 data.", field=field)
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            f"{field} is not base64; send the picture's bytes in base64 or as a data URI.",
            field=field,
        ) from None
    if not data:
        raise InvalidRequest(f"{field} is empty.", field=field)
    return data


def is_picture(text: str) -> bool:
    """Whether a text is a picture in base64 or a data URI, told by its first bytes."""
    start = "".join(text.partition(",")[2 if text.startswith("data:") else 0][:64].split())
    try:
        return _known(base64.b64decode(start[: len(start) // 4 * 4], validate=True))
    except (binascii.Error, ValueError):
        return False


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def to_data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{to_base64(data)}"


def open_image(data: bytes, field: str) -> Image.Image:
    """A decoded picture from untrusted bytes, upright, first frame; raises InvalidRequest in words.

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
            if isinstance(error, OSError | SyntaxError) and _known(data)
            else "is not a picture"
        )
        raise InvalidRequest(
            f"{field} {reason} that can be read; send PNG, JPEG, WebP, GIF, BMP or TIFF.",
            field=field,
        ) from None


def _known(data: bytes) -> bool:
    return data[:4] in (b"\x89PNG", b"RIFF", b"GIF8") or data[:2] in (b"\xff\xd8", b"BM")


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
    """A greyscale mask, white = repaint, of one in which white, black or transparent means so; one
    without transparency means white. `blur` is the standard deviation of its soft edge, pixels."""
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
        return _png(image, parameters(recipe, seed))
    exif = Image.Exif()
    comment = b"UNICODE\0" + _fitting(recipe, seed).encode("utf-16-be")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    name: dict[ImageFormat, str] = {"jpeg": "JPEG", "webp": "WEBP"}
    buffer = io.BytesIO()
    image.save(buffer, name[recipe.format], quality=recipe.quality, exif=exif.tobytes())
    return buffer.getvalue()


def _png(image: Image.Image, text: str) -> bytes:
    """An RGB picture as PNG (ISO/IEC 15948) with one filter, "up", for all rows.

    Pillow's writer tries every filter on every row: twice the time, with the interpreter's lock
    held, so that the next picture waits, for files 4 % smaller (docs/decisions/2026-11-20-png.md).
    """
    width, height = image.size
    above = Image.new("RGB", image.size)
    above.paste(image, (0, 1))
    filtered = ImageChops.subtract_modulo(image, above).tobytes()
    rows = Image.new("L", (1 + 3 * width, height), _FILTER_UP)  # a row begins with its filter
    rows.paste(Image.frombytes("L", (3 * width, height), filtered), (1, 0))
    # After the filter, runs are nearly all there is to find.
    deflate = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    data = deflate.compress(rows.tobytes()) + deflate.flush()
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    header = struct.pack(">2I5B", width, height, 8, _COLOR_RGB, 0, 0, 0)
    texts = [(chunk[0], chunk[1]) for chunk in info.chunks]
    buffer = io.BytesIO()
    buffer.write(_PNG_SIGNATURE)
    for name, content in ((b"IHDR", header), *texts, (b"IDAT", data), (b"IEND", b"")):
        PngImagePlugin.putchunk(buffer, name, content)
    return buffer.getvalue()


def parameters(recipe: Recipe, seed: int) -> str:
    """The recipe as AUTOMATIC1111 writes it: prompt, negative prompt, then `key: value` pairs."""
    pairs: dict[str, Any] = {"Steps": recipe.steps}
    if recipe.sampler:
        pairs["Sampler"] = SAMPLER_TITLES.get(recipe.sampler, recipe.sampler)
    if recipe.guidance is not None:
        pairs["CFG scale"] = f"{recipe.guidance:g}"
    pairs |= {"Seed": seed, "Size": f"{recipe.width}x{recipe.height}", "Model": recipe.model}
    if recipe.strength is not None:
        pairs["Denoising strength"] = f"{recipe.strength:g}"
    pairs["Version"] = f"Easel {__version__}"
    lines = [recipe.prompt]
    if recipe.negative_prompt:
        lines.append(f"Negative prompt: {recipe.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items()))
    return "\n".join(lines)


def _fitting(recipe: Recipe, seed: int) -> str:
    """The parameters, with long prompts cut so that they fit the 64 KiB of a JPEG's EXIF."""
    text = parameters(recipe, seed)
    if len(text) <= LONGEST_EXIF // 4:  # four bytes a character at most
        return text
    half = LONGEST_EXIF // 9
    negative = recipe.negative_prompt[:half] if recipe.negative_prompt else None
    return parameters(replace(recipe, prompt=recipe.prompt[:half], negative_prompt=negative), seed)


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def describe(data: bytes, field: str) -> tuple[str, dict[str, str]]:
    """The recipe text of a picture file and its `key: value` pairs, both empty if it has none."""
    text = read_parameters(open_image(data, field)) or ""
    return text, parse_parameters(text)


def parse_parameters(text: str) -> dict[str, str]:
    """The inverse of `parameters`, also for texts that AUTOMATIC1111 wrote: its last line's pairs,
    and before them `Prompt` and `Negative prompt`."""
    *lines, last = text.strip().split("\n")
    found = _PAIR.findall(last[:MAX_PROMPT])
    if len(found) < 3:
        lines, found = [*lines, last], []
    prompt, _, negative = "\n".join(["", *lines]).partition("\nNegative prompt:")
    pairs = {"Prompt": prompt.strip(), "Negative prompt": negative.strip()}
    for key, value in found:
        if value.startswith('"'):
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        pairs[key] = value
    return pairs if text else {}


def enlarge(
    data: bytes,
    field: str,
    *,
    factor: float,
    size: tuple[int, int] | None,
    crop: bool,
    smooth: bool,
) -> bytes:
    """A picture file as a PNG `factor` times as large, or, given a `size`, as large as that, its
    proportions kept: `crop` fills it and cuts off the rest, otherwise it is reached by one side."""
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


def read_parameters(image: Image.Image) -> str | None:
    """The recipe text of a picture made by Easel or AUTOMATIC1111, if it carries one."""
    text = image.info.get("parameters")
    if isinstance(text, str):
        return text
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        return comment[8:].decode("utf-16-be", errors="replace")
    return None

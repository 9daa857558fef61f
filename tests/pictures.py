"""Pictures that callers send, good ones and bad ones, as base64 text."""

import base64
import io
import struct
import zlib
from typing import Any

from PIL import Image


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> str:
    """A picture as a caller would send it."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return base64_of(buffer.getvalue())


def gradient(width: int = 128, height: int = 128) -> Image.Image:
    """A picture with something to see in every corner: red grows to the right, green downwards."""
    red = Image.linear_gradient("L").rotate(90).resize((width, height))
    green = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (red, green, Image.new("L", (width, height), 128)))


def half_mask(width: int = 128, height: int = 128) -> Image.Image:
    """White, to be repainted, on the right half."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (width // 2, 0, width, height))
    return mask


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few hundred bytes that says it has side x side pixels."""
    return png(struct.pack("!IIBBBBB", side, side, 8, 2, 0, 0, 0), zlib.compress(b"\0" * 1000))


def png(header: bytes, data: bytes) -> bytes:
    """A PNG file of its raw parts."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
        check = zlib.crc32(kind + body)
        parts.append(struct.pack("!I", len(body)) + kind + body + struct.pack("!I", check))
    return b"".join(parts)

"""Writes finished pictures as PNG (ISO/IEC 15948) with one filter for all rows. Reads none.

Pillow's writer tries every filter on every row. That makes files 4 % smaller but takes twice as
long, and holds the interpreter's lock, so that the next picture waits
(docs/decisions/2026-11-20-png.md).
"""

import io
import struct
import zlib

from PIL import Image, ImageChops, PngImagePlugin

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FILTER_UP, _COLOR_RGB = 2, 2


def write_png(image: Image.Image, parameters: str) -> bytes:
    """An RGB picture as a PNG file with one filter, "up", for all rows, and its recipe's text in a
    `parameters` chunk, where AUTOMATIC1111 and its like look for it."""
    width, height = image.size
    above = Image.new("RGB", image.size)
    above.paste(image, (0, 1))
    filtered = ImageChops.subtract_modulo(image, above).tobytes()
    rows = Image.new("L", (1 + 3 * width, height), _FILTER_UP)  # a row begins with its filter
    rows.paste(Image.frombytes("L", (3 * width, height), filtered), (1, 0))
    # Filtered rows are mostly runs of one value, so that run-length matches alone compress well.
    deflate = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    data = deflate.compress(rows.tobytes()) + deflate.flush()
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", parameters)
    header = struct.pack(">2I5B", width, height, 8, _COLOR_RGB, 0, 0, 0)
    texts = [(chunk[0], chunk[1]) for chunk in info.chunks]
    buffer = io.BytesIO()
    buffer.write(_SIGNATURE)
    for name, content in ((b"IHDR", header), *texts, (b"IDAT", data), (b"IEND", b"")):
        PngImagePlugin.putchunk(buffer, name, content)
    return buffer.getvalue()

"""Pictures as JSON carries them: base64, plain or in a data URI. Knows their bytes, not their
pixels."""

import base64
import binascii

from app.errors import InvalidRequest

_SIGNATURES = (b"\x89PNG", b"RIFF", b"GIF8", b"\xff\xd8", b"BM")  # of PNG, WebP, GIF, JPEG, BMP


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
    """Whether a text is base64 or a data URI that begins with the signature of a picture format."""
    start = "".join(text.partition(",")[2 if text.startswith("data:") else 0][:64].split())
    try:
        return has_picture_signature(base64.b64decode(start[: len(start) // 4 * 4], validate=True))
    except (binascii.Error, ValueError):
        return False


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def to_data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{to_base64(data)}"


def has_picture_signature(data: bytes) -> bool:
    """Whether the first bytes are those of a PNG, WebP, GIF, JPEG or BMP file."""
    return data.startswith(_SIGNATURES)

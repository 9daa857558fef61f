"""What a model accepts (Limits), and the check of a request's values against it (Checker).

Model.complete in model.py calls the checker and passes the defaults; this module knows none.
"""

from dataclasses import dataclass
from typing import TypeVar

from app.errors import InvalidRequest
from app.request import MAX_PROMPT, ImageRequest

MAX_PADDING = 4096  # pixels around a mask

N = TypeVar("N", int, float)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the model and its runtime accept; ranges are inclusive."""

    steps: tuple[int, int]
    side: tuple[int, int]  # pixels, of width and of height
    multiple_of: int = 8  # pixels
    sizes: tuple[tuple[int, int], ...] | None = None  # the only (width, height) there are
    guidance: tuple[float, float] | None = None  # None: the model has no guidance
    images: int = 8  # pictures in one job
    negative_prompt: bool = True
    image_to_image: bool = True
    inpainting: bool = True
    any_strength: bool = False  # whether its pipeline runs a step even where steps * strength < 1
    memory: int = 0  # bytes a loaded pipeline takes, roughly
    alone: bool = False  # whether its device can hold only this one pipeline

    def nearest_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The width and height the model can make that are nearest to a picture's own, its
        proportions kept."""
        low, high = self.side
        scale = min(1.0, high / max(size))
        scale = max(scale, low / min(size))
        step = self.multiple_of
        fitted = (round(side * scale / step) * step for side in size)
        width, height = (
            min(max(side, -(-low // step) * step), high // step * step) for side in fitted
        )
        return width, height


class Checker:
    """Checks the values of one request. Strict, it raises InvalidRequest for a value out of bounds;
    lenient, it takes the nearest allowed value and adds a sentence to `warnings`."""

    def __init__(self, lenient: bool) -> None:
        self.lenient = lenient
        self.warnings: list[str] = []

    def refuse(self, why: str, *, field: str, instead: str = "ignored") -> None:
        """Raises InvalidRequest; when lenient, adds a warning that says what is done `instead`."""
        if not self.lenient:
            raise InvalidRequest(f"{why}.", field=field)
        self.warnings.append(f"{field} {instead}: {why}.")

    def within(self, field: str, value: N | None, default: N, bounds: tuple[N, N]) -> N:
        """The value, `default` where it is None, checked against `bounds` (inclusive)."""
        if value is None:
            return default
        low, high = bounds
        if low <= value <= high:  # false for NaN, so that it is refused too
            return value
        nearest = default if value != value else min(max(value, low), high)
        self.refuse(
            f"{field} is a number from {low} to {high}, not {_shown(value)}",
            field=field,
            instead=f"set to {nearest}",
        )
        return nearest

    def side(self, field: str, value: int | None, default: int, limits: Limits) -> int:
        """A width or height in pixels, `default` where it is None, checked against the limits."""
        if value is None:
            return default
        low, high = limits.side
        multiple = limits.multiple_of
        if low <= value <= high and value % multiple == 0:
            return value
        inside = min(max(value, low), high)  # before any arithmetic: a caller may send 400 digits
        least = -(-low // multiple) * multiple
        nearest = min(max(round(inside / multiple) * multiple, least), high)
        nearest -= nearest % multiple
        self.refuse(
            f"{field} is a multiple of {multiple} from {low} to {high} pixels, not {_shown(value)}",
            field=field,
            instead=f"set to {nearest}",
        )
        return nearest


def _shown(value: float) -> str:
    """A number as a message repeats it, however many digits it has."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} digits)"


def check_mask_padding(request: ImageRequest, check: Checker) -> int | None:
    """The request's mask_padding in pixels; refused without a mask."""
    padding = request.mask_padding
    if padding is None:
        return None
    if request.mask is None:
        check.refuse("mask_padding needs a mask", field="mask_padding")
        return None
    return check.within("mask_padding", padding, 0, (0, MAX_PADDING))


def check_prompt(field: str, text: str) -> None:
    """Raises InvalidRequest for a prompt that is too long, holds NUL or is no valid Unicode."""
    if len(text) > MAX_PROMPT:
        raise InvalidRequest(
            f"{field} has {len(text)} characters; at most {MAX_PROMPT} are allowed.", field=field
        )
    if "\0" in text:
        raise InvalidRequest(f"{field} contains a NUL character; remove it.", field=field)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{field} is not valid Unicode text.", field=field) from None

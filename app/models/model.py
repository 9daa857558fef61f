"""A model's facts, read from its family's model.toml, and how they turn a request into a recipe.

The only place where defaults are filled in and limits are checked. Names no model.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from app.errors import InvalidRequest, UnknownDevice
from app.request import MAX_PROMPT, MAX_SEED, ImageRequest, Recipe, random_seed

MAX_PADDING = 4096  # pixels around a mask

N = TypeVar("N", int, float)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where a model's files come from: a folder of the family (path), or the hub."""

    path: str | None = None  # inside the family's folder; such a model is always installed
    repository: str | None = None  # the original checkpoint, to be converted
    revision: str | None = None
    openvino: dict[str, str] | None = None  # weight format -> pre-converted repository
    folder: str | None = None  # inside the repository
    files: tuple[str, ...] = ()  # patterns of what is taken from it as it is, without a conversion
    variable: str | None = None  # an environment variable that names another folder for the weights
    format: str | None = None  # fp16, int8 or int4; None: what is ready-made, or fits the machine
    gated: bool = False  # a licence has to be accepted on the hub first
    bytes: int = 0  # roughly what the installed files take


@dataclass(frozen=True, kw_only=True)
class Defaults:
    width: int
    height: int
    steps: int
    guidance: float | None = None
    strength: float = 0.7
    sampler: str | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the model and its runtime accept; ranges are inclusive."""

    steps: tuple[int, int]
    side: tuple[int, int]  # pixels, of width and of height
    multiple_of: int = 8  # pixels
    sizes: tuple[tuple[int, int], ...] | None = None  # where the model was compiled for fixed sizes
    guidance: tuple[float, float] | None = None  # None: the model is run without guidance
    images: int = 8  # pictures in one job
    negative_prompt: bool = True
    image_to_image: bool = True
    inpainting: bool = True
    any_strength: bool = False  # however small: at least one step is run
    memory: int = 0  # bytes a loaded pipeline takes, roughly
    alone: bool = False  # its device takes no second pipeline


@dataclass(frozen=True, kw_only=True)
class Model:
    """One set of weights with its facts; `folder` is its family's, `weights_dir` where its files
    lie."""

    name: str
    title: str
    family: str
    licence: str
    devices: tuple[str, ...]
    weights: Weights
    defaults: Defaults
    limits: Limits
    folder: Path
    weights_dir: Path
    aliases: tuple[str, ...] = ()
    samplers: tuple[str, ...] = ()
    places: dict[str, Path] = field(default_factory=dict[str, Path])  # of files that lie elsewhere

    @property
    def installed(self) -> bool:
        return self.weights_dir.is_dir()

    @property
    def memory(self) -> int:
        """Bytes a loaded pipeline takes: as stated, or more where the weights are larger than was
        reckoned with, as in fp16; without a statement, guessed from their size."""
        files = sum(file.stat().st_size for file in self.weights_dir.rglob("*.bin")) * 3 // 2
        return max(self.limits.memory, files) if self.limits.memory else files + 400_000_000

    def supports(self, device: str) -> bool:
        """Whether the model can be asked for on this device; GPU.1 counts as a GPU."""
        return device.partition(".")[0] in (*self.devices, "AUTO") and (
            device != "AUTO" or "CPU" in self.devices
        )

    def check_device(self, device: str) -> None:
        """Raises UnknownDevice, naming the right ones, when the model cannot be asked for on it."""
        if not self.supports(device):
            raise UnknownDevice(
                f"{self.name} does not run on {device[:32]!r}; it runs on: "
                f"{', '.join(self.devices)}.",
                field="device",
            )

    def complete(
        self,
        request: ImageRequest,
        *,
        lenient: bool = False,
        init_size: tuple[int, int] | None = None,
    ) -> tuple[Recipe, list[str]]:
        """The recipe for a request, and what was asked but is not honoured, in words.

        Strict, a value outside the model's limits raises InvalidRequest naming the key. Lenient,
        it is moved inside and a warning says so. `init_size` (width, height) is the init_image's
        own.
        """
        check = _Checker(lenient)
        prompt = request.prompt
        if prompt is None and request.init_image is not None:
            prompt = ""
        elif not (prompt or "").strip():
            raise InvalidRequest("prompt is empty; say what the picture shows.", field="prompt")
        assert prompt is not None
        _check_prompt("prompt", prompt)
        width, height = self._size(request, check, init_size)
        steps = check.within("steps", request.steps, self.defaults.steps, self.limits.steps)
        guidance = self._guidance(request, check)
        images = check.within("images", request.images, 1, (1, self.limits.images))
        seed = check.within("seed", request.seed, random_seed(), (0, MAX_SEED))
        strength = self._strength(request, check, steps)
        recipe = Recipe(
            prompt=prompt,
            negative_prompt=self._negative_prompt(request, check, guidance),
            model=self.name,
            width=width,
            height=height,
            steps=steps,
            guidance=guidance,
            seed=seed,
            images=images,
            sampler=self._sampler(request, check),
            init_image="init_image.png" if request.init_image is not None else None,
            strength=strength,
            mask="mask.png" if request.mask is not None else None,
            format=request.format or "png",
            quality=check.within("quality", request.quality, 90, (1, 100)),
            mask_padding=_mask_padding(request, check),
        )
        return recipe, check.warnings

    def _size(
        self, request: ImageRequest, check: "_Checker", init_size: tuple[int, int] | None
    ) -> tuple[int, int]:
        limits, default = self.limits, (self.defaults.width, self.defaults.height)
        if limits.sizes is not None:
            asked = (
                default[0] if request.width is None else request.width,
                default[1] if request.height is None else request.height,
            )
            if asked in limits.sizes:
                return asked
            allowed = ", ".join(f"{w}x{h}" for w, h in limits.sizes)
            check.refuse(
                f"{self.name} makes pictures of {allowed} only, not {asked[0]}x{asked[1]}",
                field="width" if request.width is not None else "height",
                instead=f"made at {default[0]}x{default[1]}",
            )
            return default
        if request.width is None and request.height is None and init_size is not None:
            default = self._fitting(init_size)
        width = check.side("width", request.width, default[0], limits)
        height = check.side("height", request.height, default[1], limits)
        return width, height

    def _fitting(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size nearest to a picture's own that the model can make, its proportions kept."""
        low, high = self.limits.side
        scale = min(1.0, high / max(size))
        scale = max(scale, low / min(size))
        step = self.limits.multiple_of
        fitted = (round(side * scale / step) * step for side in size)
        width, height = (
            min(max(side, -(-low // step) * step), high // step * step) for side in fitted
        )
        return width, height

    def _guidance(self, request: ImageRequest, check: "_Checker") -> float | None:
        if self.limits.guidance is None:
            if request.guidance is not None and request.guidance > 1:
                check.refuse(f"{self.name} runs without guidance", field="guidance")
            return None
        return check.within(
            "guidance", request.guidance, self.defaults.guidance or 1.0, self.limits.guidance
        )

    def _negative_prompt(
        self, request: ImageRequest, check: "_Checker", guidance: float | None
    ) -> str | None:
        negative = request.negative_prompt
        if negative is None:
            return None
        _check_prompt("negative_prompt", negative)
        if negative and not self.limits.negative_prompt:
            check.refuse(f"{self.name} takes no negative prompt", field="negative_prompt")
            return None
        if negative and (guidance is None or guidance <= 1):
            check.warnings.append("negative_prompt has no effect at a guidance of 1 or less.")
        return negative

    def _strength(self, request: ImageRequest, check: "_Checker", steps: int) -> float | None:
        if request.mask is not None:
            if request.init_image is None:
                raise InvalidRequest("mask needs an init_image to repaint.", field="mask")
            if not self.limits.inpainting:
                raise InvalidRequest(
                    f"{self.name} cannot repaint a part of a picture.", field="mask"
                )
        if request.init_image is None:
            if request.strength is not None:
                check.refuse("strength needs an init_image to start from", field="strength")
            return None
        if not self.limits.image_to_image:
            raise InvalidRequest(f"{self.name} cannot start from a picture.", field="init_image")
        strength = check.within("strength", request.strength, self.defaults.strength, (0.01, 1.0))
        # Most samplers run floor(steps * strength) steps; none at all kills the runtime.
        if math.floor(steps * strength) < 1 and not self.limits.any_strength:
            least = math.ceil(100 / steps) / 100
            check.refuse(
                f"strength {strength:g} of {steps} steps leaves no step to run; "
                f"at least {least:g} is needed, or more steps",
                field="strength",
                instead=f"raised to {least:g}",
            )
            return least
        return strength

    def _sampler(self, request: ImageRequest, check: "_Checker") -> str | None:
        if request.sampler is None or request.sampler in self.samplers:
            return request.sampler or self.defaults.sampler
        allowed = ", ".join(self.samplers) or "none to choose from"
        check.refuse(
            f"unknown sampler {request.sampler[:50]!r}; {self.name} has: {allowed}",
            field="sampler",
            instead=f"made with {self.defaults.sampler}",
        )
        return self.defaults.sampler


class _Checker:
    """Refuses what is out of bounds, or, for a lenient face, moves it inside and remembers to say
    so."""

    def __init__(self, lenient: bool) -> None:
        self.lenient = lenient
        self.warnings: list[str] = []

    def refuse(self, why: str, *, field: str, instead: str = "ignored") -> None:
        if not self.lenient:
            raise InvalidRequest(f"{why}.", field=field)
        self.warnings.append(f"{field} {instead}: {why}.")

    def within(self, field: str, value: N | None, default: N, bounds: tuple[N, N]) -> N:
        if value is None:
            return default
        low, high = bounds
        if low <= value <= high:  # false for NaN, so that it is refused too
            return value
        nearest = default if value != value else min(max(value, low), high)
        self.refuse(
            f"{field} is a number from {low} to {high}, not {value}",
            field=field,
            instead=f"set to {nearest}",
        )
        return nearest

    def side(self, field: str, value: int | None, default: int, limits: Limits) -> int:
        if value is None:
            return default
        low, high = limits.side
        multiple = limits.multiple_of
        if low <= value <= high and value % multiple == 0:
            return value
        nearest = min(max(round(value / multiple) * multiple, -(-low // multiple) * multiple), high)
        nearest -= nearest % multiple
        self.refuse(
            f"{field} is a multiple of {multiple} from {low} to {high} pixels, not {value}",
            field=field,
            instead=f"set to {nearest}",
        )
        return nearest


def _mask_padding(request: ImageRequest, check: _Checker) -> int | None:
    padding = request.mask_padding
    if padding is None:
        return None
    if request.mask is None:
        check.refuse("mask_padding needs a mask", field="mask_padding")
        return None
    return check.within("mask_padding", padding, 0, (0, MAX_PADDING))


def _check_prompt(field: str, text: str) -> None:
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

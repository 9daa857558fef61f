"""A model's facts, as its family's model.toml states them. Model.complete turns a request into a
recipe; no other place fills in defaults. Names no model and loads none; limits.py checks values.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from app.errors import InvalidRequest, NotInstalled, UnknownDevice
from app.models.limits import Checker, Limits, check_mask_padding, check_prompt
from app.request import MAX_SEED, ImageRequest, Recipe, random_seed


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where a model's files come from: a folder of the family (`path`), or the hub."""

    path: str | None = None  # inside the family's folder; such a model is always installed
    repository: str | None = None  # the original checkpoint, to be converted
    revision: str | None = None
    openvino: dict[str, str] | None = None  # weight format -> pre-converted repository
    folder: str | None = None  # inside the repository
    files: tuple[str, ...] = ()  # patterns of the files that are taken unconverted
    variable: str | None = None  # an environment variable that names another folder for the weights
    format: str | None = (
        None  # fp16, int8, int4; None: as ready-made on the hub, else by the machine
    )
    gated: bool = False  # a licence has to be accepted on the hub first
    bytes: int = 0  # roughly what the installed files take


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """The values for what a request leaves out. Width and height are in pixels."""

    width: int
    height: int
    steps: int
    guidance: float | None = None
    strength: float = 0.7
    sampler: str | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    """One set of weights with its facts. `folder` is the folder of its family, `weights_dir` the
    one that holds its files once it is installed."""

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
    places: dict[str, Path] = field(default_factory=dict[str, Path])  # variable -> file

    @property
    def installed(self) -> bool:
        return self.weights_dir.is_dir()

    def require_installed(self) -> None:
        """Raises NotInstalled, naming the command that installs it, when its folder is missing."""
        if not self.installed:
            raise NotInstalled(
                f"{self.name} is not installed; `python -m app install {self.name}` installs it.",
                field="model",
            )

    def read_memory(self) -> int:
        """Bytes of memory a loaded pipeline takes, roughly.

        That is `limits.memory`, or 1.5 times the size of the weights where that is more (as in
        fp16); without `limits.memory`, 1.5 times the weights and 400 MB. Reads the sizes of all
        files from the disk, so it must not run on the event loop; callers keep the result.
        """
        files = sum(file.stat().st_size for file in self.weights_dir.rglob("*.bin")) * 3 // 2
        return max(self.limits.memory, files) if self.limits.memory else files + 400_000_000

    def supports(self, device: str) -> bool:
        """Whether the model runs on this kind of device: GPU.1 counts as GPU, AUTO as CPU. Says
        nothing of whether the machine has it."""
        return device.partition(".")[0] in (*self.devices, "AUTO") and (
            device != "AUTO" or "CPU" in self.devices
        )

    def usual_device(self, preferred: str) -> str:
        """The preferred device if the model supports it, else the model's first one."""
        return preferred if self.supports(preferred) else self.devices[0]

    def check_device(self, device: str) -> None:
        """Raises UnknownDevice, with the devices it runs on, if the model does not support it."""
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
        """The recipe for a request, and a warning for each value that was changed or ignored.

        A value outside the model's limits raises InvalidRequest with the name of the field; with
        `lenient` it is moved to the nearest allowed one and a warning says so. `init_size` is the
        init_image's own (width, height) in pixels: the default size of an image-to-image job.
        """
        check = Checker(lenient)
        prompt = request.prompt
        if prompt is None and request.init_image is not None:
            prompt = ""
        elif not (prompt or "").strip():
            raise InvalidRequest("prompt is empty; say what the picture shows.", field="prompt")
        assert prompt is not None
        check_prompt("prompt", prompt)
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
            mask_padding=check_mask_padding(request, check),
        )
        return recipe, check.warnings

    def _size(
        self, request: ImageRequest, check: Checker, init_size: tuple[int, int] | None
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
            default = self.limits.nearest_size(init_size)
        width = check.side("width", request.width, default[0], limits)
        height = check.side("height", request.height, default[1], limits)
        return width, height

    def _guidance(self, request: ImageRequest, check: Checker) -> float | None:
        if self.limits.guidance is None:
            if request.guidance is not None and request.guidance > 1:
                check.refuse(f"{self.name} runs without guidance", field="guidance")
            return None
        return check.within(
            "guidance", request.guidance, self.defaults.guidance or 1.0, self.limits.guidance
        )

    def _negative_prompt(
        self, request: ImageRequest, check: Checker, guidance: float | None
    ) -> str | None:
        negative = request.negative_prompt
        if negative is None:
            return None
        check_prompt("negative_prompt", negative)
        if negative and not self.limits.negative_prompt:
            check.refuse(f"{self.name} takes no negative prompt", field="negative_prompt")
            return None
        if negative and (guidance is None or guidance <= 1):
            check.warnings.append("negative_prompt has no effect at a guidance of 1 or less.")
        return negative

    def _strength(self, request: ImageRequest, check: Checker, steps: int) -> float | None:
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
        # Most samplers run floor(steps * strength) steps; with 0 steps the runtime crashes.
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

    def _sampler(self, request: ImageRequest, check: Checker) -> str | None:
        if request.sampler is None or request.sampler in self.samplers:
            return request.sampler or self.defaults.sampler
        allowed = ", ".join(self.samplers) or "none to choose from"
        check.refuse(
            f"unknown sampler {request.sampler[:50]!r}; {self.name} has: {allowed}",
            field="sampler",
            instead=f"made with {self.defaults.sampler}",
        )
        return self.defaults.sampler

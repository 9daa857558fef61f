"""Tries a device out (`devices --check`): loads each installed model that runs on it, draws,
cancels, loads again, and yields a finding for each. Prints nothing; names no device and no model.
"""

import asyncio
import io
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import psutil
from PIL import Image, ImageStat

from app.device import Devices
from app.errors import EaselError, LoadFailed
from app.models.catalog import Catalog
from app.models.model import Model
from app.pictures.codec import to_png
from app.request import ImageRequest, Recipe
from app.settings import Settings
from app.workers.message import Drawn, Run, Stopped
from app.workers.outcome import Outcome
from app.workers.worker import Worker, WorkerOptions

PROMPT = "a photograph of a red fox in the snow, highly detailed"
ROUNDS = 5  # pictures that are timed; those drawn before have warmed the device up
CANCEL_WITHIN = 0.05  # seconds that a cancel may take beyond one step


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report. `detail` has the figures, or the reason why it is not `ok`."""

    what: str
    ok: bool
    detail: str


class Failure(Exception):
    """A check failed; the message says why."""


async def check(settings: Settings, catalog: Catalog, device: str) -> AsyncIterator[Finding]:
    """The findings about a device, each yielded as soon as it is known."""
    absent = await Devices().why_absent(device)
    yield Finding(what=device, ok=absent is None, detail=absent or "is there")
    if absent is not None:
        return
    models = [model for model in catalog if model.supports(device) and model.installed]
    if not models:
        names = ", ".join(model.name for model in catalog if model.supports(device)) or "none"
        detail = f"no model for {device} is installed; there are: {names}"
        yield Finding(what="models", ok=False, detail=detail)
    for model in models:
        async for finding in _check_model(settings, model, device):
            yield replace(finding, what=f"{model.name}: {finding.what}")


async def _check_model(settings: Settings, model: Model, device: str) -> AsyncIterator[Finding]:
    trial = Trial(WorkerOptions.of(settings), model, device)
    tries = [
        ("load", trial.load),
        ("a picture", trial.picture),
        ("the same seed, the same file", trial.same_again),
        ("the seconds a picture takes", trial.speed),
        ("a picture from a picture", trial.image_to_image),
        ("cancel", trial.cancel),
        ("a second pipeline is refused", trial.second),
        ("load once more", trial.load),
        ("still the same file", trial.same_again),
    ]
    try:
        for what, attempt in tries:
            try:
                async with asyncio.timeout(settings.stall_timeout):
                    detail = await attempt()
            except TimeoutError:
                detail = f"nothing came of it in {settings.stall_timeout:g} s (STALL_TIMEOUT)"
                yield Finding(what=what, ok=False, detail=detail)
                return
            except (EaselError, Failure) as error:
                yield Finding(what=what, ok=False, detail=str(error))
                if not trial.loaded:
                    return
            else:
                if detail is not None:
                    yield Finding(what=what, ok=True, detail=detail)
    finally:
        await trial.end()


class Trial:
    """One model on one device. Each check returns its figures, or None where it does not apply to
    the model; it raises Failure or EaselError where it fails."""

    def __init__(self, options: WorkerOptions, model: Model, device: str) -> None:
        self._options = options
        self._model = model
        self._device = device
        self._worker: Worker | None = None
        self._recipe, _ = model.complete(ImageRequest(prompt=PROMPT, seed=1))
        self._first = b""
        self._step = 0.0  # seconds of one denoising step

    @property
    def loaded(self) -> bool:
        return self._worker is not None and not self._worker.dead

    async def end(self) -> None:
        if self._worker is not None:
            await self._worker.stop()

    async def load(self) -> str:
        await self.end()
        self._worker = worker = await Worker.start(self._model, self._device, self._options)
        memory = psutil.Process(worker.pid).memory_info().rss
        return f"{worker.load_ms / 1000:.1f} s, {memory / 2**20:.0f} MB of the host's memory"

    async def picture(self) -> str:
        self._first, drawn = await self._draw(self._recipe)
        image = Image.open(io.BytesIO(self._first))
        if max(ImageStat.Stat(image).stddev) < 2:
            raise Failure("it is of one colour")
        times = ", ".join(f"{name} {took:.0f} ms" for name, took in drawn.timings_ms.items())
        return f"{image.width}x{image.height}: {times}"

    async def same_again(self) -> str:
        again, _ = await self._draw(self._recipe)
        if again != self._first:
            raise Failure("the file is another one")
        other, _ = await self._draw(replace(self._recipe, seed=2))
        if Image.open(io.BytesIO(other)).tobytes() == Image.open(io.BytesIO(again)).tobytes():
            raise Failure("another seed gives the same picture")
        return "and another seed another picture"

    async def speed(self) -> str:
        times: list[float] = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            _, drawn = await self._draw(self._recipe)
            times.append(time.perf_counter() - began)
            self._step = drawn.timings_ms["denoise"] / 1000 / self._recipe.steps
        low, middle, high = min(times), statistics.median(times), max(times)
        return f"{low:.2f} to {high:.2f}, median {middle:.2f}; a step takes {self._step:.3f}"

    async def image_to_image(self) -> str | None:
        if not self._model.limits.image_to_image:
            return None
        start = Image.linear_gradient("L").resize((self._recipe.width, self._recipe.height))
        request = ImageRequest(prompt=PROMPT, seed=1, init_image=b"-")
        recipe, _ = self._model.complete(request, init_size=start.size)
        _, drawn = await self._draw(recipe, {"init_image.png": to_png(start.convert("RGB"))})
        return f"strength {recipe.strength:g}: {sum(drawn.timings_ms.values()):.0f} ms"

    async def cancel(self) -> str:
        worker = self._ready()
        stepped = asyncio.Event()
        order = Run(job="canceled", recipe=self._recipe)
        outcome = Outcome(worker, order, lambda step, steps: stepped.set())
        outcome.drawn.add_done_callback(lambda _: stepped.set())
        await stepped.wait()
        began = time.perf_counter()
        worker.cancel("canceled")
        ended = await outcome.drawn
        took = time.perf_counter() - began
        if not isinstance(ended, Stopped):
            return "the picture was finished before it could be canceled"
        if took > self._step + CANCEL_WITHIN:
            raise Failure(f"it took {took:.3f} s to stop, more than a step")
        return f"stopped after {took:.3f} s"

    async def second(self) -> str | None:
        if not self._model.limits.alone:
            return None
        try:
            worker = await Worker.start(self._model, self._device, self._options)
        except LoadFailed as error:
            return error.detail
        await worker.stop()
        raise Failure("it was loaded beside the first one")

    async def _draw(
        self, recipe: Recipe, inputs: dict[str, bytes] | None = None
    ) -> tuple[bytes, Drawn]:
        order = Run(job="picture", recipe=recipe, inputs=inputs or {})
        outcome = Outcome(self._ready(), order)
        drawn, encoded = await outcome.drawn, await outcome.encoded
        assert isinstance(drawn, Drawn)
        return encoded.pictures[0], drawn

    def _ready(self) -> Worker:
        assert self._worker is not None
        return self._worker

"""A pipeline that does what the first word of its prompt says, for the tests of what may go wrong.

Needs numpy only and draws at once, so that a test costs milliseconds.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from app.errors import LoadFailed
from app.request import Recipe
from app.runtime.protocol import Canceled, Generated, Inputs, LoadOptions, OnStep, Pipeline, Pixels

STEP = 0.02  # seconds a step of a slow job takes


def load(weights: Path, device: str, options: LoadOptions) -> Pipeline:
    match options.model.name:
        case "load-raises":
            raise LoadFailed("The weights are of another planet.")
        case "load-aborts":
            os.abort()
        case "load-exits":
            sys.exit(3)
        case "load-hangs":
            time.sleep(3600)
        case "load-slow":
            time.sleep(2)
    if device == "GPU":
        raise RuntimeError("there is no GPU in this double")
    return Brittle(options.cache_dir)


class Brittle:
    def __init__(self, scratch: Path | None) -> None:
        self._scratch = scratch or Path(".")

    def generate(self, recipe: Recipe, seed: int, inputs: Inputs, on_step: OnStep) -> Generated:
        what, _, rest = recipe.prompt.partition(" ")
        if what == "once":  # misbehaves the first time only
            what = rest.partition(" ")[0] if self._first_time(recipe.prompt) else "well"
        pixels = _picture(recipe, seed)
        for step in range(1, recipe.steps + 1):
            if what == "slow":
                time.sleep(STEP)
            try:
                on_step(step, recipe.steps, lambda: _preview(what, pixels))
            except Canceled:
                if what != "deaf":
                    raise
            if step == 2 or recipe.steps == 1:
                _misbehave(what)
        if what == "lingers":
            time.sleep(1)
        return Generated(pixels=_spoilt(what, pixels), timings_ms={"denoise": 1.0})

    def _first_time(self, prompt: str) -> bool:
        self._scratch.mkdir(parents=True, exist_ok=True)
        try:
            (self._scratch / prompt.replace(" ", "-")).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _preview(what: str, pixels: Pixels) -> Pixels:
    if what == "blind":
        raise ValueError("the double was asked for no previews")
    return pixels[::8, ::8]


def _misbehave(what: str) -> None:
    match what:
        case "raise":
            raise RuntimeError("the double was asked to raise")
        case "exit":
            sys.exit(7)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "abort":
            print("terminate called by the double", flush=True)
            os.abort()
        case "hang" | "deaf":
            time.sleep(3600)
        case "chatter":
            sys.stdout.write("x" * 2**20)
            sys.stdout.flush()


def _picture(recipe: Recipe, seed: int) -> Pixels:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (recipe.height, recipe.width, 3), dtype=np.uint8)


def _spoilt(what: str, pixels: Pixels) -> Pixels:
    match what:
        case "nan":
            return np.full(pixels.shape, np.nan)  # type: ignore[return-value]
        case "small":
            return pixels[::2, ::2]
        case "nothing":
            return None  # type: ignore[return-value]
    return pixels

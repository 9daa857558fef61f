"""A worker process: loads one pipeline, then draws one job after the other and encodes each beside
the drawing of the next. Knows no queue: which job comes next, and why, is the service's to decide.

    python -m app.runtime.main FD

FD is its end of a socket pair. It ends when the service closes the other end (channel.py).
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from app.errors import EaselError, GenerationFailed, LoadFailed
from app.pictures import codec
from app.pictures.inputs import put_back, read_inputs
from app.request import Recipe
from app.runtime import Inputs, load
from app.runtime.attempt import Attempt
from app.runtime.channel import Channel
from app.runtime.protocol import Canceled, Pipeline, Pixels, Preview
from app.workers import message
from app.workers.message import Drawn, Encoded, Failed, Loaded, Run, Stopped

NICENESS = 5  # below the service, so that a health check does not wait for a denoising step


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the service decides when this ends
    os.nice(NICENESS)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    pipeline = _load(channel)
    if pipeline is None:
        return
    with ThreadPoolExecutor(1, initializer=_give_way) as encoder:
        while True:
            _run(channel, pipeline, channel.wait_for_job(), encoder)


def _load(channel: Channel) -> Pipeline | None:
    """What the service's first order names, ready to draw; None after a failure was reported."""
    order = channel.wait_for_load()
    model, device = order.model, order.device
    began = time.perf_counter()
    try:
        pipeline = load(model, device, cache_dir=order.cache_dir, threads=order.threads)
    except EaselError as error:
        channel.send(message.LoadFailed(code=error.code, detail=error.detail))
        return None
    except Exception as error:  # noqa: BLE001 - a family's code may raise anything
        detail = f"{model.name} cannot be loaded on {device}: {type(error).__name__}: {error}"
        channel.send(message.LoadFailed(code=LoadFailed.code, detail=detail))
        return None
    channel.send(Loaded(milliseconds=_since(began)))
    return pipeline


def _give_way() -> None:
    """Makes the encoder's thread yield to the drawing; by a little only, because it may hold the
    interpreter's lock while the drawing waits for that."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS + 5)


def _run(
    channel: Channel, pipeline: Pipeline, attempt: Attempt, encoder: ThreadPoolExecutor
) -> None:
    """Draws a job and reports how that ended; its pictures go to the encoder."""
    run = attempt.run
    try:
        pixels, timings, warnings = _draw(pipeline, attempt)
    except Canceled:
        channel.send(Stopped(job=run.job))
    except EaselError as error:
        channel.send(Failed(job=run.job, code=error.code, detail=error.detail))
    except Exception as error:  # noqa: BLE001 - a pipeline may raise anything; the worker lives on
        detail = f"The pipeline failed: {type(error).__name__}: {error}"
        channel.send(Failed(job=run.job, code=GenerationFailed.code, detail=detail[:500]))
    else:
        channel.send(Drawn(job=run.job, timings_ms=timings, warnings=warnings))
        encoder.submit(_encode, channel, run, pixels)
    finally:
        attempt.end()


def _draw(
    pipeline: Pipeline, attempt: Attempt
) -> tuple[list[Pixels], dict[str, float], tuple[str, ...]]:
    """The job's pictures, the milliseconds of each part of the work over all of them, and the
    warnings, each once; raises Canceled when the job is no longer wanted."""
    recipe = attempt.run.recipe
    inputs = _inputs(recipe, attempt.run.inputs)
    pixels: list[Pixels] = []
    timings: dict[str, float] = {}
    warnings: dict[str, None] = {}
    for n in range(recipe.images):

        def on_step(step: int, steps: int, preview: Preview = None, done: int = n) -> None:
            if attempt.canceled:
                raise Canceled
            attempt.report_step(done * steps + step, recipe.images * steps, preview)

        if attempt.canceled:
            raise Canceled
        made = pipeline.generate(recipe, recipe.image_seed(n), inputs, on_step)
        pixels.append(_checked(made.pixels, recipe))
        warnings |= dict.fromkeys(made.warnings)
        for part, milliseconds in made.timings_ms.items():
            timings[part] = timings.get(part, 0.0) + milliseconds
    if attempt.canceled:
        raise Canceled
    return pixels, timings, tuple(warnings)


def _inputs(recipe: Recipe, files: Mapping[str, bytes]) -> Inputs:
    init, mask = read_inputs(recipe, files)
    return Inputs(
        init_image=np.asarray(init) if init else None, mask=np.asarray(mask) if mask else None
    )


def _checked(pixels: Any, recipe: Recipe) -> Pixels:
    """What a pipeline made, if it is a picture of the recipe's size; raises GenerationFailed."""
    made = np.asarray(pixels)
    if made.shape != (recipe.height, recipe.width, 3) or made.dtype != np.uint8:
        raise GenerationFailed(
            f"The pipeline made {made.dtype} of shape {made.shape}, "
            f"not a picture of {recipe.width}x{recipe.height}."
        )
    return made


def _encode(channel: Channel, run: Run, pixels: list[Pixels]) -> None:
    """Sends the finished files. Runs on the encoder's thread, where an exception would be lost and
    the service would wait for ever, so all become a report."""
    began = time.perf_counter()
    try:
        finished = [put_back(Image.fromarray(each), run.recipe, run.inputs) for each in pixels]
        pictures = tuple(
            codec.encode(picture, run.recipe, run.recipe.image_seed(n))
            for n, picture in enumerate(finished)
        )
    except Exception as error:  # noqa: BLE001 - see above
        detail = f"Encoding failed: {error}"
        channel.send(Failed(job=run.job, code=GenerationFailed.code, detail=detail))
        return
    size = finished[0].size
    channel.send(Encoded(job=run.job, pictures=pictures, size=size, milliseconds=_since(began)))


def _since(began: float) -> float:
    """Milliseconds since a time of perf_counter."""
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()

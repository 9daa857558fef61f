"""The inside of a worker process: holds exactly one pipeline and makes pictures with it, one job
at a time.

    python -m app.runtime.main FD

FD is its end of a socket pair. It ends when the other end closes, even in the middle of a step, so
that no worker outlives the service.
"""

import importlib.util
import math
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

import numpy as np
from PIL import Image

from app.errors import EaselError, GenerationFailed, LoadFailed
from app.models import manifest
from app.models.model import Model
from app.pictures import codec
from app.pictures.inputs import put_back, read_inputs
from app.request import Recipe
from app.runtime.protocol import Adapter, Canceled, Inputs, LoadOptions, Pipeline, Pixels, Preview
from app.workers.message import (
    LENGTH,
    Cancel,
    Counted,
    Drawn,
    Encoded,
    Failed,
    Load,
    Loaded,
    Run,
    Stepped,
    Stopped,
    Watch,
    pack,
)

NICENESS = 5  # below the service, so that a health check never waits for a denoising step
UNWATCHED = 0.25  # seconds between two reports while nobody looks: each takes from the drawing
UNSEEN = 64  # steps whose previews somebody who comes late still gets


class Channel:
    """The worker's end of the socket pair: messages arrive on a thread of their own, so that a
    running job hears what concerns it at once."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rb")
        self._connection = connection
        self._sending = threading.Lock()
        self._incoming: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._receive, daemon=True).start()

    def send(self, message: Any) -> None:
        with self._sending:
            self._connection.sendall(pack(message))

    def receive(self) -> Any:
        """The Load, then an Attempt for each Run."""
        return self._incoming.get()

    def _receive(self) -> None:
        attempts = WeakValueDictionary[str, Attempt]()  # those that wait or are drawn
        try:
            while len(head := self._file.read(LENGTH.size)) == LENGTH.size:
                message = pickle.loads(self._file.read(LENGTH.unpack(head)[0]))
                match message:
                    case Run():
                        attempt = attempts[message.job] = Attempt(message, self.send)
                        self._incoming.put(attempt)
                    case Cancel() if attempt := attempts.get(message.job):
                        attempt.canceled = True
                    case Watch() if attempt := attempts.get(message.job):
                        attempt.watch()
                    case Load():
                        self._incoming.put(message)
                    case _:
                        pass  # of a job that has ended meanwhile
        except OSError:
            pass  # the service died with something unread
        finally:
            os._exit(0)  # the service is gone; the main thread may be deep inside a native call


class Attempt:
    """A run: whether it is still wanted, and what is told of its steps. While nobody looks, that is
    their number, now and then; whoever comes late gets every step with its preview all the same."""

    def __init__(self, run: Run, send: Callable[[Any], None]) -> None:
        self.run = run
        self.canceled = False
        self._send = send
        self._watched = run.watched
        self._told = -math.inf
        self._unseen: deque[tuple[int, int, Preview]] = deque(maxlen=UNSEEN)
        self._telling = threading.Lock()

    def step(self, step: int, steps: int, preview: Preview) -> None:
        with self._telling:
            self._unseen.append((step, steps, preview))
            if self._watched:
                self._tell()
            elif time.monotonic() - self._told >= UNWATCHED:
                self._told = time.monotonic()
                self._send(Counted(job=self.run.job, step=step, steps=steps))

    def watch(self) -> None:
        with self._telling:
            self._watched = True
            self._tell()

    def end(self) -> None:
        with self._telling:
            self._unseen.clear()

    def _tell(self) -> None:
        while self._unseen:
            step, steps, preview = self._unseen.popleft()
            small = _small_jpeg(preview) if preview else None
            self._send(Stepped(job=self.run.job, step=step, steps=steps, preview=small))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's to handle
    os.nice(NICENESS)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    load: Load = channel.receive()
    began = time.perf_counter()
    try:
        pipeline = _load(load)
    except EaselError as error:
        channel.send(Failed(job=None, code=error.code, detail=error.detail))
        return
    except Exception as error:  # noqa: BLE001 - an adapter may raise anything
        detail = (
            f"{load.model.name} cannot be loaded on {load.device}: {type(error).__name__}: {error}"
        )
        channel.send(Failed(job=None, code=LoadFailed.code, detail=detail))
        return
    channel.send(Loaded(milliseconds=_since(began)))
    with ThreadPoolExecutor(1, initializer=_give_way) as encoder:
        while True:
            _run(channel, pipeline, channel.receive(), encoder)


def _give_way() -> None:
    """Lets the drawing of the next picture go before this thread; not by much, since it may hold
    what the drawing waits for."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS + 5)


def _load(load: Load) -> Pipeline:
    manifest.check(load.model)
    options = LoadOptions(
        model=load.model,
        cache_dir=load.cache_dir,
        threads=load.threads,
        extra={name: str(place) for name, place in load.model.places.items()},
    )
    return load_adapter(load.model).load(load.model.weights_dir, load.device, options)


def load_adapter(model: Model) -> Adapter:
    """The family's pipeline.py as a module. By path, because families may have hyphens and dots."""
    path = model.folder / "pipeline.py"
    name = f"easel_family_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise LoadFailed(f"The family {model.family} has no pipeline.py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up
    spec.loader.exec_module(module)
    return cast(Adapter, module)


def _run(
    channel: Channel, pipeline: Pipeline, attempt: Attempt, encoder: ThreadPoolExecutor
) -> None:
    run = attempt.run
    try:
        pixels, timings, warnings = _draw(pipeline, attempt)
    except Canceled:
        channel.send(Stopped(job=run.job))
    except EaselError as error:
        channel.send(Failed(job=run.job, code=error.code, detail=error.detail))
    except Exception as error:  # noqa: BLE001 - a pipeline may raise anything; the worker lives on
        detail = f"The pipeline failed: {type(error).__name__}: {error}"
        channel.send(Failed(job=run.job, code="generation_failed", detail=detail[:500]))
    else:
        channel.send(Drawn(job=run.job, timings_ms=timings, warnings=warnings))
        encoder.submit(_encode, channel, run, pixels)
    finally:
        attempt.end()


def _draw(
    pipeline: Pipeline, attempt: Attempt
) -> tuple[list[Pixels], dict[str, float], tuple[str, ...]]:
    recipe = attempt.run.recipe
    inputs = _inputs(recipe, attempt.run.folder)
    pixels: list[Pixels] = []
    timings: dict[str, float] = {}
    warnings: dict[str, None] = {}
    for n in range(recipe.images):

        def on_step(step: int, steps: int, preview: Preview = None, done: int = n) -> None:
            if attempt.canceled:
                raise Canceled
            attempt.step(done * steps + step, recipe.images * steps, preview)

        if attempt.canceled:
            raise Canceled
        made = pipeline.generate(recipe, recipe.image_seed(n), inputs, on_step)
        pixels.append(_checked(made.pixels, recipe))
        warnings |= dict.fromkeys(made.warnings)
        for name, milliseconds in made.timings_ms.items():
            timings[name] = timings.get(name, 0.0) + milliseconds
    if attempt.canceled:
        raise Canceled
    return pixels, timings, tuple(warnings)


def _small_jpeg(preview: Callable[[], Pixels]) -> bytes | None:
    """A preview that cannot be made costs no picture."""
    try:
        return codec.preview_jpeg(Image.fromarray(preview()))
    except Exception as error:  # noqa: BLE001 - it is the adapter's code
        print(f"no preview: {error!r}", file=sys.stderr, flush=True)
        return None


def _checked(pixels: Any, recipe: Recipe) -> Pixels:
    """What a pipeline made, if it is the picture it was asked for; raises GenerationFailed."""
    made = np.asarray(pixels)
    if made.shape != (recipe.height, recipe.width, 3) or made.dtype != np.uint8:
        raise GenerationFailed(
            f"The pipeline made {made.dtype} of shape {made.shape}, "
            f"not a picture of {recipe.width}x{recipe.height}."
        )
    return made


def _inputs(recipe: Recipe, folder: Path | None) -> Inputs:
    if folder is None:
        return Inputs()
    init, mask = read_inputs(recipe, folder)
    return Inputs(
        init_image=np.asarray(init) if init else None, mask=np.asarray(mask) if mask else None
    )


def _encode(channel: Channel, run: Run, pixels: list[Pixels]) -> None:
    began = time.perf_counter()
    try:
        finished = [put_back(Image.fromarray(each), run.recipe, run.folder) for each in pixels]
        pictures = tuple(
            codec.encode(picture, run.recipe, run.recipe.image_seed(n))
            for n, picture in enumerate(finished)
        )
    except Exception as error:  # noqa: BLE001 - on a thread of its own: unheard, it would hang the job
        channel.send(
            Failed(job=run.job, code="generation_failed", detail=f"Encoding failed: {error}")
        )
        return
    size = finished[0].size
    channel.send(Encoded(job=run.job, pictures=pictures, size=size, milliseconds=_since(began)))


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()

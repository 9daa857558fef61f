"""What the Axera loop costs beside the NPU: everything of a step that is not a run of a graph.

    .venv/bin/python bench/axera.py [--pictures 50]

Runs on the axengine double, whose time is taken off; a preview of each step is counted in. Needs
onnx and onnxruntime. docs/axera.md quotes the results.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HOME = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(HOME), str(HOME / "tests" / "doubles")]

from app.models.catalog import Catalog  # noqa: E402
from app.pictures.codec import preview_jpeg  # noqa: E402
from app.request import ImageRequest  # noqa: E402
from app.runtime import Inputs, load  # noqa: E402
from tests.axera.conftest import write_set  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=50)
    pictures: int = parser.parse_args().pictures
    start = Inputs(init_image=np.full((512, 512, 3), 99, np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        for name, size, inputs in (
            ("axera-sd15-lcm", (512, 512), Inputs()),
            ("axera-sd15-lcm", (512, 512), start),
            ("axera-sd15-lcm-1024x768", (768, 1024), Inputs()),
        ):
            weights = Path(folder) / name
            if not weights.exists():
                write_set(weights, *size)
            measure(name, weights, inputs, pictures)


def measure(name: str, weights: Path, inputs: Inputs, pictures: int) -> None:
    model = Catalog([HOME], weights.parent).get(name)
    pipeline: Any = load(model, "AXERA")
    runs: list[float] = []
    for part in ("_text_encoder", "_unet", "_vae_decoder", "_vae_encoder"):
        session = getattr(pipeline, part)._session
        session.run = timed(session.run, runs)
    strength = None if inputs.init_image is None else 1.0
    recipe, _ = model.complete(ImageRequest(prompt="a red fox in the snow"))
    recipe = replace(recipe, strength=strength)
    own: dict[str, list[float]] = {"denoise": [], "whole": []}
    for seed in range(pictures + 5):
        runs.clear()
        began = time.perf_counter()
        made = pipeline.generate(recipe, seed, inputs, on_step)
        whole = (time.perf_counter() - began) * 1000
        inside = [took * 1000 for took in runs]
        # In order: text encoder, perhaps VAE encoder, four of the UNet, VAE decoder.
        own["denoise"].append((made.timings_ms["denoise"] - sum(inside[1:-1])) / 4)
        own["whole"].append(whole - sum(inside))
    step, whole = (statistics.median(times[5:]) for times in own.values())
    # From a picture, the first step's time would include making a latent of it.
    each = f"{step:.2f} ms a step, " if strength is None else "from a picture, "
    print(f"{name}: {each}{whole:.1f} ms a picture")


def on_step(step: int, steps: int, preview: Any = None) -> None:
    """What a worker does: a small JPEG of every step."""
    preview_jpeg(Image.fromarray(preview()))


def timed(run: Callable[..., Any], runs: list[float]) -> Callable[..., Any]:
    def timed_run(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return run(*arguments)
        finally:
            runs.append(time.perf_counter() - began)

    return timed_run


if __name__ == "__main__":
    main()

"""Draws one request without a server: starts a worker, shows a progress bar, writes the files.
Knows no options of the command line; generate.py does."""

import asyncio
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from app.errors import InvalidRequest, NotInstalled
from app.models.catalog import Catalog
from app.models.source import find
from app.preparation import prepare
from app.request import FORMATS, ImageFormat, ImageRequest
from app.settings import Settings
from app.workers.message import Run
from app.workers.outcome import Outcome
from app.workers.placement import device_for
from app.workers.worker import Worker, WorkerOptions


async def draw(
    settings: Settings, catalog: Catalog, request: ImageRequest, output: Path, device: str | None
) -> None:
    """Writes the request's picture to `output`; several get -1, -2, ... before the file
    extension."""
    reference = request.model or settings.model
    model = find(reference, catalog)
    if model is None:
        raise NotInstalled(
            f"{reference} is not installed; `python -m app install {reference}` installs it."
        )
    model.require_installed()
    request = replace(request, format=_format(output))
    if not output.parent.is_dir():
        raise InvalidRequest(f"There is no folder {output.parent}.")
    prepared = await prepare(request, model)
    recipe = prepared.recipe
    device = device_for(model, settings, device)
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task(f"loading {model.name} on {device}", total=None)
        worker = await Worker.start(model, device, WorkerOptions.of(settings))
        try:
            total = recipe.steps * recipe.images
            progress.update(bar, description="drawing", completed=0, total=total)

            def on_step(step: int, steps: int) -> None:
                progress.update(bar, completed=step, total=steps)

            order = Run(job="picture", recipe=recipe, inputs=prepared.inputs)
            outcome = Outcome(worker, order, on_step)
            drawn = await outcome.drawn
            encoded = await outcome.encoded
            progress.update(bar, description="drawn", completed=total, total=total)
        finally:
            await asyncio.shield(worker.stop())
    for n, data in enumerate(encoded.pictures):
        path = output if recipe.images == 1 else output.with_stem(f"{output.stem}-{n + 1}")
        path.write_bytes(data)
        console.print(f"{path}  seed {recipe.image_seed(n)}", highlight=False, soft_wrap=True)
    for warning in (*prepared.warnings, *getattr(drawn, "warnings", ())):
        console.print(f"note: {warning}", highlight=False, soft_wrap=True)


def _format(output: Path) -> ImageFormat:
    ending = output.suffix.lower().removeprefix(".").replace("jpg", "jpeg")
    for known in FORMATS:
        if ending == known:
            return known
    raise InvalidRequest(f"{output.name} should end in .png, .jpg or .webp.")

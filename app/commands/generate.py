"""The command `generate`: its options, and the ImageRequest they make. draw.py does the work and is
imported only when the command runs."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from app.commands import terminal


def generate(
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Where the picture goes; its ending says the format."),
    ] = Path("easel.png"),
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Default: MODEL, else demo.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="Default: DEVICE, else CPU.")
    ] = None,
    negative: Annotated[
        str | None, typer.Option("--negative", help="What it should not show.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strictly the prompt is followed.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same picture.")] = None,
    images: Annotated[int, typer.Option("--images", "-n", help="How many pictures.")] = 1,
    sampler: Annotated[str | None, typer.Option(help="One of the model's samplers.")] = None,
    init: Annotated[Path | None, typer.Option(help="A picture to start from.")] = None,
    strength: Annotated[float | None, typer.Option(help="How far from it, 0 to 1.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="White where --init is to be repainted.")
    ] = None,
) -> None:
    """Make a picture without a server."""
    from app.commands.draw import draw
    from app.request import ImageRequest

    settings = terminal.settings()
    with terminal.errors_in_one_line():
        request = ImageRequest(
            prompt=prompt,
            negative_prompt=negative,
            model=model,
            width=width,
            height=height,
            steps=steps,
            guidance=guidance,
            seed=seed,
            images=images,
            sampler=sampler,
            init_image=init.read_bytes() if init else None,
            strength=strength,
            mask=mask.read_bytes() if mask else None,
        )
        asyncio.run(draw(settings, terminal.catalog(settings), request, output, device))

"""The command line: serve, generate, install, models, devices."""

import asyncio
import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from app.errors import EaselError
from app.models.catalog import Catalog, CatalogError
from app.settings import Settings, SettingsError, read_settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Easel turns words and pictures into pictures, on Intel and Axera hardware.",
)


def _fail(message: str) -> NoReturn:
    """One line that says what is wrong, and exit code 1."""
    print(f"easel: {message}", file=sys.stderr)
    raise SystemExit(1)


@contextmanager
def _errors_in_a_line() -> Generator[None]:
    try:
        yield
    except EaselError as error:
        _fail(error.detail)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        _fail("stopped")


def _settings() -> Settings:
    try:
        return read_settings()
    except SettingsError as error:
        _fail(str(error))


def _catalog(settings: Settings) -> Catalog:
    from app.models.source import open_catalog

    try:
        return open_catalog(settings)
    except CatalogError as error:
        _fail(str(error))


@app.command()
def serve() -> None:
    """Start the service. Environment variables configure it; README lists them."""
    from app.logs import configure
    from app.server import Server, create_app

    settings = _settings()
    configure(settings.log_level)
    try:
        easel = create_app(settings)
    except (EaselError, CatalogError) as error:
        _fail(error.detail if isinstance(error, EaselError) else str(error))
    except OSError as error:
        _fail(f"{error.filename} cannot be read: {error.strerror}")
    try:
        server = Server(easel, settings)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (")[0].lower()
        _fail(f"cannot listen on {settings.host}:{settings.port}: {why} (HOST, PORT)")
    server.serve_on()


@app.command()
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
    from app.commands.generate import draw
    from app.request import ImageRequest

    settings = _settings()
    with _errors_in_a_line():
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
        asyncio.run(draw(settings, _catalog(settings), request, output, device))


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def install(context: typer.Context) -> None:
    """Install a model: download it, convert it where needed, check it."""
    from app.installation.command import main  # with the hub's client, which nothing else needs

    main(context.args, "python -m app install")


@app.command()
def models() -> None:
    """List the models, how large the installed ones are, and where they run."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Column, Table

    from app.models.manifest import size

    settings = _settings()
    name = Column("name", no_wrap=True)
    table = Table(name, "installed", "devices", "licence", box=None)
    for model in _catalog(settings):
        table.add_row(
            model.name + "".join(f"\n  {alias}" for alias in model.aliases),
            decimal(size(model)) if model.installed else "no",
            " ".join(model.devices),
            model.licence,
        )
    Console().print(table)


@app.command()
def devices(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    check: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="Try this one out with what is installed for it."),
    ] = None,
) -> None:
    """List the devices of this machine, and why one is not available."""
    if check is not None:
        asyncio.run(_check(check.upper()))
        return
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from app.device import Devices

    found = asyncio.run(Devices().list())
    if as_json:
        print(json.dumps([asdict(device) for device in found]))
        return
    table = Table("name", "device", "available")
    for device in found:
        table.add_row(
            device.name, device.full_name, "yes" if device.available else f"no: {device.reason}"
        )
    Console().print(table)


async def _check(device: str) -> None:
    """Tells what is found, line by line; exit code 1 where something does not go well."""
    from rich.console import Console

    from app.commands.check import check

    settings = _settings()
    console, well = Console(), True
    async for finding in check(settings, _catalog(settings), device):
        mark = "[green]ok[/green]    " if finding.well else "[red]FAILED[/red]"
        console.print(f"{mark} {finding.what}: {finding.detail}", highlight=False, soft_wrap=True)
        well &= finding.well
    if not well:
        raise SystemExit(1)


if __name__ == "__main__":
    app(prog_name="python -m app")

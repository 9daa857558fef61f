"""The command that installs a model: its options, and progress as a bar, log lines or JSON lines.
What installing takes is known by installer.py.

`python -m app.installation.command NAME --json` is what the service starts;
`python -m app install NAME` what people type.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

from app.errors import EaselError
from app.installation.installer import Installer
from app.installation.progress import OnProgress, Progress
from app.machine import Machine
from app.models import source
from app.models.catalog import CatalogError
from app.settings import Settings, SettingsError, read_settings

_REPORT_EVERY = 15.0  # seconds, where there is no terminal


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="A model's name, a hub repository (owner/name), or the path of a diffusers "
            "folder or of a .safetensors or .ckpt file."
        ),
    ],
    weight_format: Annotated[
        str | None,
        typer.Option(
            "--weight-format",
            help="fp16, int8 or int4; default: what is ready-made, or fits the machine.",
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Compare contents and get anew what differs.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only compare the files' contents.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the model and free its space.")
    ] = False,
    family: Annotated[
        bool, typer.Option("--family", help="Only print the folder of the model's family.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: a line of JSON an event.")
    ] = False,
) -> None:
    """Install a model: download it, convert it where needed, check it."""
    try:
        with _reporter(as_json) as reporter:
            detail = _perform(
                model,
                weight_format,
                again=again,
                verify=verify,
                remove=remove,
                family=family,
                on_progress=reporter,
            )
    except _Damaged as error:
        _fail(str(error), "damaged", as_json)
    except EaselError as error:
        _fail(error.detail, error.code, as_json)
    except (CatalogError, SettingsError) as error:
        _fail(str(error), "install_failed", as_json)
    except KeyboardInterrupt:
        print(f"Stopped. `python -m app install {model}` goes on from here.", file=sys.stderr)
        os._exit(130)  # without waiting for download threads that wait for bytes
    if family or not as_json:
        print(detail)


class _Damaged(Exception):
    """Files that are not what was installed, as a sentence."""


def _perform(
    name: str,
    weight_format: str | None,
    *,
    again: bool,
    verify: bool,
    remove: bool,
    family: bool,
    on_progress: OnProgress,
) -> str:
    """Does what the options ask for and returns the line to print about it."""
    settings = read_settings()
    catalog = source.open_catalog(settings)
    if family:
        found = source.find(name, catalog)
        return str(found.folder) if found else ""
    installer = Installer(
        catalog,
        _models_dir(settings),
        settings.convert_venv,
        weight_format=Machine.of(settings).weight_format,
        token=settings.token(),
        on_progress=on_progress,
    )
    if remove:
        freed = installer.remove(name)
        return f"{name} is removed; {freed / 1e9:.1f} GB are free again."
    if verify:
        if wrong := installer.verify(name):
            raise _Damaged(
                f"{len(wrong)} files of {name} are not what was installed: "
                f"{', '.join(wrong[:5])}. `python -m app install {name} --again` gets them anew."
            )
        return f"{name} is what was installed."
    folder = installer.install(name, weight_format, again=again)
    return f"{name} is installed in {folder}."


def _models_dir(settings: Settings) -> Path:
    return settings.data_dir.resolve() / "models"


def _fail(message: str, code: str, as_json: bool) -> NoReturn:
    if as_json:
        print(json.dumps({"state": "failed", "code": code, "detail": message}), flush=True)
    else:
        print(f"easel: {message}", file=sys.stderr)
    raise SystemExit(1)


def _reporter(as_json: bool) -> "_JsonLines | _Bar | _LogLines":
    if as_json:
        return _JsonLines()
    return _Bar() if sys.stderr.isatty() else _LogLines()


class _JsonLines:
    """A line of JSON for each report."""

    def __enter__(self) -> OnProgress:
        return lambda progress: print(json.dumps(progress.to_json()), flush=True)

    def __exit__(self, *error: object) -> None:
        pass


class _LogLines:
    """A line of text at every new state and every 15 seconds, for logs."""

    def __init__(self) -> None:
        self._reported = ("", 0.0)

    def __enter__(self) -> OnProgress:
        return self._report

    def __exit__(self, *error: object) -> None:
        pass

    def _report(self, progress: Progress) -> None:
        state, moment = self._reported
        if progress.state == state and time.monotonic() - moment < _REPORT_EVERY:
            return
        self._reported = (progress.state, time.monotonic())
        share = f" {100 * progress.bytes / progress.total:.0f} %" if progress.total else ""
        speed = f", {progress.speed / 1e6:.1f} MB/s" if progress.speed else ""
        print(f"{progress.detail}{share}{speed}", file=sys.stderr, flush=True)


class _Bar:
    """Bytes, speed and time left, on a terminal."""

    def __init__(self) -> None:
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> OnProgress:
        self._bars.start()
        return self._show

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def _show(self, progress: Progress) -> None:
        if self._task is None:
            self._task = self._bars.add_task("")
        self._bars.update(
            self._task,
            description=progress.detail,
            completed=progress.bytes,
            total=progress.total or None,
        )


def main(arguments: list[str], program: str) -> None:
    cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    cli.command()(command)
    cli(arguments, prog_name=program)


if __name__ == "__main__":
    main(sys.argv[1:], "python -m app.installation.command")

"""The command `devices`: a table of what the probe of this machine finds; with --check, the
findings of check.py, which is imported only then."""

import asyncio
import json
from dataclasses import asdict
from typing import Annotated

import typer

from app.commands import terminal


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
    else:
        _list(as_json)


def _list(as_json: bool) -> None:
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
    """Prints each finding when it comes; exit code 1 if one of them is a failure."""
    from rich.console import Console

    from app.commands.check import check

    settings = terminal.settings()
    console, all_ok = Console(), True
    async for finding in check(settings, terminal.catalog(settings), device):
        mark = "[green]ok[/green]    " if finding.ok else "[red]FAILED[/red]"
        console.print(f"{mark} {finding.what}: {finding.detail}", highlight=False, soft_wrap=True)
        all_ok &= finding.ok
    if not all_ok:
        raise SystemExit(1)

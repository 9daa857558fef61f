"""Starts an installation as a child process and reads its progress, a JSON object per line.

So the API process never loads the hub's client, and survives whatever ends the child.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

from app.errors import Busy, InstallFailed, UnknownModel
from app.models.catalog import HOME

_ERRORS = {error.code: error for error in (Busy, InstallFailed, UnknownModel)}


async def install(reference: str, on_progress: Callable[[dict[str, Any]], None]) -> None:
    """Installs a model; `on_progress` is called with the fields of progress.Progress. When this is
    canceled the child is killed; what it has downloaded stays for the next time.

    The child reads the settings, the hub's token among them, from the same environment. Raises
    InstallFailed, UnknownModel and Busy, as the installer does.
    """
    command = [sys.executable, "-m", "app.installation.command", reference, "--json"]
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=HOME,
    )
    assert child.stdout is not None and child.stderr is not None
    errors = asyncio.ensure_future(_last(child.stderr))
    failure: dict[str, Any] = {}
    try:
        async for line in child.stdout:
            with contextlib.suppress(ValueError):
                report: dict[str, Any] = json.loads(line)
                if report.get("state") == "failed":
                    failure = report
                else:
                    on_progress(report)
        status = await child.wait()
        last_line = await errors
    finally:
        errors.cancel()
        if child.returncode is None:
            child.kill()
            await child.wait()
    if failure:
        raise _ERRORS.get(failure["code"], InstallFailed)(failure["detail"])
    if status != 0:
        raise InstallFailed(f"The installer ended with status {status}. {last_line}".strip())


async def _last(stream: asyncio.StreamReader) -> str:
    """The last line of a stream, all of which is read so that its writer never waits."""
    last = b""
    async for line in stream:
        last = line.strip() or last
    return last.decode(errors="replace")[:500]

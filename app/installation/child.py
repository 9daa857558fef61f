"""An installation as the service sees it: a child process that tells of its progress in lines of
JSON.

The API process stays free of the hub's client, and whatever happens to the child does not happen to
it.
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
    """Installs a model; `on_progress` hears progress.py's figures. Canceled, the child ends and
    keeps what came.

    The child reads the same settings from the environment, the token among them. Raises what the
    installer raises: InstallFailed, UnknownModel, Busy.
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
    noise = asyncio.ensure_future(_last(child.stderr))
    failure: dict[str, Any] = {}
    try:
        async for line in child.stdout:
            with contextlib.suppress(ValueError):
                told: dict[str, Any] = json.loads(line)
                if told.get("state") == "failed":
                    failure = told
                else:
                    on_progress(told)
        status = await child.wait()
        words = await noise
    finally:
        noise.cancel()
        if child.returncode is None:
            child.kill()
            await child.wait()
    if failure:
        raise _ERRORS.get(failure["code"], InstallFailed)(failure["detail"])
    if status != 0:
        raise InstallFailed(f"The installer ended with status {status}. {words}".strip())


async def _last(stream: asyncio.StreamReader) -> str:
    """The last line of a stream, all of which is read so that its writer never waits."""
    last = b""
    async for line in stream:
        last = line.strip() or last
    return last.decode(errors="replace")[:500]

"""Converting a checkpoint to OpenVINO: the environment for it, and the child process that does it.

torch, diffusers and optimum-intel live in an environment of their own (requirements/convert.txt);
the service never imports them.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from app.errors import InstallFailed
from app.installation.progress import OnProgress, Progress
from app.models import checkpoint
from app.models.catalog import HOME
from app.settings import without_secrets

_LOCKS = (HOME / "requirements" / "torch.txt", HOME / "requirements" / "convert.txt")
_STAMP = "easel-complete"
ENVIRONMENT_BYTES = 3_000_000_000  # packages and their installation, with a torch for the CPU


def environment_is_ready(folder: Path) -> bool:
    stamp = folder / _STAMP
    return stamp.is_file() and stamp.read_text() == _fingerprint()


def check_environment(folder: Path, name: str) -> None:
    """Raises InstallFailed where the environment is missing and cannot be made, as in a container
    that was built without it."""
    if environment_is_ready(folder):
        return
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(place, os.W_OK):
        raise InstallFailed(
            f"{name} has to be converted, and the environment for that is not here and cannot be "
            f"made: {place} cannot be written (CONVERT_VENV). In containers, the image of the "
            "target `convert` has it: `docker build --target convert`, or `docker compose run "
            "--rm convert`."
        )


def make_environment(folder: Path, log: Path, on_progress: OnProgress) -> None:
    """Makes the convert environment, or brings an interrupted or outdated one up to date.

    Raises InstallFailed with the last line of pip's output.
    """
    if environment_is_ready(folder):
        return
    on_progress(Progress(state="preparing", detail="Making the environment for conversions (once)"))
    python = _python(folder)
    if not python.exists():
        _run(
            [sys.executable, "-m", "venv", str(folder)],
            log,
            what="The environment for conversions cannot be made",
        )
    pip = [str(python), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    failed = "The packages for conversions cannot be installed"
    torch = _LOCKS[0].read_text().split()[-1]
    on_progress(Progress(state="preparing", detail="Installing torch"))
    # The CPU build is a tenth of the default one on Linux, but only some package indexes have it.
    if _status([*pip, torch + "+cpu"], log) != 0:
        _run([*pip, torch], log, what=failed)
    on_progress(Progress(state="preparing", detail="Installing diffusers and optimum-intel"))
    _run([*pip, "--no-deps", "--require-hashes", "-r", str(_LOCKS[1])], log, what=failed)
    (folder / _STAMP).write_text(_fingerprint())


def convert(
    given: Path,
    output: Path,
    weight_format: str,
    *,
    environment: Path,
    work: Path,
    config: Path | None = None,
    on_progress: OnProgress,
    keep_open: Sequence[int] = (),
) -> None:
    """Exports a diffusers folder or a single file to `output`, in a child process that uses `work`.

    A single file needs `config`, a diffusers folder of the same architecture without weights. The
    child inherits the descriptors `keep_open`, so that it holds the installer's lock. Raises
    InstallFailed with the last line of the exporter's output.
    """
    for folder in (output, work):
        shutil.rmtree(folder, ignore_errors=True)
    view, variant = _view(config or given, work / "view")
    command = [
        str(_python(environment)),
        "-m",
        "app.installation.convert_main",
        str(output),
        weight_format,
    ]
    command += ["--work", str(work), "--view", str(view)]
    command += ["--checkpoint", str(given)] if given.is_file() else []
    command += ["--variant", variant] if variant else []
    parts = len(checkpoint.models_in(checkpoint.read_index(view))) + 1  # the VAE makes two
    began = time.monotonic()
    made: set[str] = set()

    def report() -> None:
        for folder in (work, output):
            made.update(file.parent.name for file in folder.rglob("openvino_model.bin"))
        minutes = (time.monotonic() - began) / 60
        done = f"{len(made)} of {parts} parts"
        if len(made) >= parts and weight_format != "fp16":
            done = f"compressing to {weight_format}"
        on_progress(
            Progress(state="converting", detail=f"Converting: {done}, {minutes:.0f} min so far")
        )

    _run(
        command,
        work / "convert.log",
        what="The conversion failed",
        extra={"TMPDIR": str(work), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        meanwhile=report,
        keep_open=keep_open,
    )


def _view(given: Path, folder: Path) -> tuple[Path, str | None]:
    """A folder of links to the files that the exporter needs and no others, and their variant."""
    index = checkpoint.read_index(given)
    paths = checkpoint.paths_in(given)
    if any(checkpoint.is_weights(path) for path in paths):
        paths, variant = checkpoint.needed(paths, index)
    else:
        variant = None
    for path in paths:
        link = folder / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(given / path)
    (folder / checkpoint.INDEX).unlink()
    (folder / checkpoint.INDEX).write_text(json.dumps(checkpoint.without_unused(index)))
    return folder, variant


def _run(
    command: list[str],
    log: Path,
    *,
    what: str,
    extra: dict[str, str] | None = None,
    meanwhile: Callable[[], None] | None = None,
    keep_open: Sequence[int] = (),
) -> None:
    status = _status(command, log, extra, meanwhile, keep_open)
    if status == 0:
        return
    if status == -9:
        raise InstallFailed(
            f"{what}: the system ended it, most likely because memory ran out. Stop other "
            "programs, or install on a machine with more memory and copy the model's folder."
        )
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    raise InstallFailed(
        f"{what}: {lines[-1][:500] if lines else f'exit status {status}'} (all of it: {log})"
    )


def _status(
    command: list[str],
    log: Path,
    extra: dict[str, str] | None = None,
    meanwhile: Callable[[], None] | None = None,
    keep_open: Sequence[int] = (),
) -> int:
    """The exit status of a command that runs without keys and tokens, its output appended to the
    log. `meanwhile` is called every second; an interruption kills the child."""
    environ = without_secrets(os.environ) | (extra or {})
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environ,
            cwd=HOME,
            pass_fds=tuple(keep_open),
        )
        try:
            while True:
                try:
                    return child.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    if meanwhile is not None:
                        meanwhile()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"


def _fingerprint() -> str:
    return hashlib.sha256(b"".join(lock.read_bytes() for lock in _LOCKS)).hexdigest()

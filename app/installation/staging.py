"""The folder of an unfinished installation, MODELS/.installing/NAME, and the lock on it.

An interruption leaves the folder; the next installation of the same continues from it. Knows
neither the hub nor the converter.
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.disk import sync
from app.errors import Busy
from app.installation.hub import RemoteFile, Snapshot
from app.installation.wanted import Wanted


class Staging:
    """One model's folder; `lock` is the descriptor of the locked file that keeps other installers
    out."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self.lock = lock
        self.download = folder / "download"
        self.blueprint = folder / "blueprint"
        self.output = folder / "openvino"
        self.work = folder / "work"

    def begin(self, wanted: Wanted) -> None:
        """Keeps what an earlier run left if it was installing the same, else removes it."""
        note = self.folder / "wanted.json"
        if _read(note) != json.loads(json.dumps(asdict(wanted))):
            self.clear()
            self.folder.mkdir(parents=True)
            _write(note, asdict(wanted))

    def snapshot(self) -> Snapshot | None:
        """The repository as remembered when the interrupted download began; None without one."""
        record = _read(self.folder / "snapshot.json")
        try:
            files = tuple(RemoteFile(**file) for file in record.pop("files"))
            return Snapshot(**record, files=files)
        except (AttributeError, KeyError, TypeError):  # none, or one of another version
            return None

    def remember(self, snapshot: Snapshot) -> None:
        _write(self.folder / "snapshot.json", asdict(snapshot))

    def appear(self, output: Path, target: Path) -> None:
        """Renames a finished folder to `target`, replacing one that is there, once its
        content is on the disk."""
        for path in output.rglob("*"):
            if path.is_file():
                sync(path)
        if target.exists():
            self.put_away(target)
        output.rename(target)
        sync(target.parent)
        self.clear()

    def put_away(self, target: Path) -> None:
        """Moves an installed model into the staging folder in one rename; clear() deletes it."""
        aside = self.folder / "replaced"
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def open_staging(models_dir: Path, name: str) -> Generator[Staging]:
    """The folder of one model, locked; raises Busy while another process has it."""
    folder = models_dir / ".installing" / name
    with locked(folder, name) as lock:
        folder.mkdir(exist_ok=True)
        yield Staging(folder, lock)
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where it is empty


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Generator[int]:
    """Holds an flock on folder.lock and gives its descriptor; raises Busy where another process
    holds it. The kernel releases the lock when every process with the descriptor has ended."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{name} is being installed by another process; wait for it.") from None
        yield file.fileno()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _write(path: Path, record: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(record))
    temporary.replace(path)

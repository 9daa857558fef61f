"""Where an installation happens before its model appears: MODELS/.installing/NAME.

What lies there outlives an interruption of any kind, and is used again by the next run that wants
the same.
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.disk import sync
from app.errors import Busy
from app.installation.hub import RemoteFile, Snapshot


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be installed, and under which name."""

    name: str
    reference: str  # a model's name, a hub repository or a path
    repository: str | None = None  # None: `reference` is a path
    revision: str | None = None
    format: str  # fp16, int8 or int4
    listed: bool  # in a family; else it has to be found out which family runs it
    folder: str = ""  # of the repository
    patterns: tuple[
        str, ...
    ] = ()  # what is taken from it as it is; none: an OpenVINO or diffusers pipeline


class Staging:
    """One model's folder; `lock` is the descriptor that keeps other installers out of it."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self.lock = lock
        self.download = folder / "download"
        self.blueprint = folder / "blueprint"
        self.output = folder / "openvino"
        self.work = folder / "work"

    def begin(self, wanted: Wanted) -> None:
        """Keeps what an earlier run left if it wanted the same, else clears it away."""
        note = self.folder / "wanted.json"
        if _read(note) != json.loads(json.dumps(asdict(wanted))):
            self.clear()
            self.folder.mkdir(parents=True)
            _write(note, asdict(wanted))

    def snapshot(self) -> Snapshot | None:
        """The repository as it was when the interrupted download began."""
        record = _read(self.folder / "snapshot.json")
        try:
            files = tuple(RemoteFile(**file) for file in record.pop("files"))
            return Snapshot(**record, files=files)
        except (AttributeError, KeyError, TypeError):  # none, or one of another version
            return None

    def remember(self, snapshot: Snapshot) -> None:
        _write(self.folder / "snapshot.json", asdict(snapshot))

    def appear(self, output: Path, target: Path) -> None:
        """Gives a finished folder its name; one that had it before goes."""
        for path in output.rglob("*"):
            if path.is_file():
                sync(path)
        if target.exists():
            self.put_away(target)
        output.rename(target)
        sync(target.parent)
        self.clear()

    def put_away(self, target: Path) -> None:
        """Takes an installed model out of sight in one step; clear() removes it."""
        aside = self.folder / "replaced"
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def open_staging(models_dir: Path, name: str) -> Generator[Staging]:
    """The folder for one model, for this process alone; raises Busy when another has it."""
    folder = models_dir / ".installing" / name
    with alone(folder, name) as lock:
        folder.mkdir(exist_ok=True)
        yield Staging(folder, lock)
        with contextlib.suppress(OSError):
            folder.rmdir()  # where nothing was to be done, nothing is left


@contextlib.contextmanager
def alone(folder: Path, name: str) -> Generator[int]:
    """Holds folder.lock, as a descriptor; the lock ends with the processes that hold it, however
    they end."""
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

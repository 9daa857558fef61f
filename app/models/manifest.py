"""manifest.json in an installed model's folder: its files and where they came from.

The installer writes it after all other files. Every load of the model compares the files' sizes
with it (milliseconds); `install --verify` and `--again` compare their contents (about a second per
gigabyte). Reads the disk; knows no hub.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.errors import NotInstalled
from app.models.model import Model

NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Content:
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Where a model's files came from, and the files (path -> size and hash). `like` is set for a
    model that no family lists: it names the listed model whose pipeline, defaults and limits are
    used for it."""

    model: str
    reference: str  # what was asked for: a model's name, a hub repository or a path
    repository: str | None
    revision: str | None
    format: str | None  # fp16, int8, int4; None: as the repository had it
    converted: bool  # or downloaded as it is
    like: str | None
    files: dict[str, Content]

    @property
    def bytes(self) -> int:
        return sum(content.size for content in self.files.values())

    def write(self, folder: Path) -> None:
        temporary = folder / (NAME + ".part")
        with temporary.open("w") as file:
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / NAME)


def read(folder: Path) -> Manifest | None:
    """The manifest of an installed model; None where there is none (bundled weights, a user's own
    folder)."""
    try:
        record: dict[str, Any] = json.loads((folder / NAME).read_text())
        files = {path: Content(**content) for path, content in record.pop("files").items()}
        return Manifest(**record, files=files)
    except OSError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        # The installer writes it by one rename, so it was edited since: treated as no manifest.
        return None


def contents(folder: Path, on_bytes: Callable[[int], None]) -> dict[str, Content]:
    """The files below a folder with sizes and hashes; `on_bytes` is called with each count of bytes
    read."""
    files: dict[str, Content] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != NAME:
            digest = sha256(path, on_bytes)
            files[path.relative_to(folder).as_posix()] = Content(
                size=path.stat().st_size, sha256=digest
            )
    return files


def missing(folder: Path) -> list[str]:
    """A sentence for each file that is missing or has another size; [] for a whole model, and for a
    folder without a manifest."""
    manifest = read(folder)
    if manifest is None:
        return []
    wrong: list[str] = []
    for path, content in manifest.files.items():
        try:
            size = (folder / path).stat().st_size
        except OSError:
            wrong.append(f"{path} is missing")
            continue
        if size != content.size:
            wrong.append(f"{path} has {size} bytes instead of {content.size}")
    return wrong


def size(model: Model) -> int:
    """Bytes a model takes on the disk; 0 where it is not installed. Reads the disk."""
    facts = read(model.weights_dir)
    if facts is not None:
        return facts.bytes
    return sum(path.stat().st_size for path in model.weights_dir.rglob("*") if path.is_file())


def check(model: Model) -> None:
    """Raises NotInstalled, naming the command that repairs it, when the model's folder or files in
    it are missing or have another size than the manifest says."""
    model.require_installed()
    wrong = missing(model.weights_dir)
    if wrong:
        raise NotInstalled(
            f"{model.name} is damaged: {', '.join(wrong[:3])}. "
            f"`python -m app install {model.name}` repairs it.",
            field="model",
        )


def changed(folder: Path, on_bytes: Callable[[int], None]) -> list[str]:
    """The paths of files that are missing or have another content than was installed."""
    manifest = read(folder)
    wrong: list[str] = []
    for path, content in manifest.files.items() if manifest else ():
        file = folder / path
        if not file.is_file() or sha256(file, on_bytes) != content.sha256:
            wrong.append(path)
    return wrong


def sha256(path: Path, on_bytes: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()

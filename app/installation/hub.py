"""Files of the model hub: what a repository holds, and fetching one so that an interrupted download
goes on.

huggingface_hub knows the endpoint, the token, the cache and the offline switch, and asks for the
listing. The bytes are fetched here, because its own download begins a file anew after every
interruption, and a file of weights has up to 10 GB. Only the installer imports this.
"""

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from app.errors import InstallFailed
from app.installation.progress import Meter

T = TypeVar("T")

TIMEOUT = 30.0  # seconds without a byte
WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds between fruitless attempts, before giving up
_LONGEST_WAIT = 300.0  # seconds a busy hub may ask for
_BUSY = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a repository. Large ones carry their SHA-256, the others the id of their git
    blob."""

    path: str
    size: int  # bytes
    sha256: str | None = None
    git: str | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A repository at one commit: what `main` means may change while a download is interrupted."""

    repository: str
    revision: str
    files: tuple[RemoteFile, ...]

    def find(self, path: str) -> RemoteFile | None:
        return next((file for file in self.files if file.path == path), None)


class Stopped(Exception):
    """Another file's download failed, or the person gave up."""


def look(repository: str, revision: str | None, token: str | None) -> Snapshot:
    """The files of a repository; without network (HF_HUB_OFFLINE=1) those in the hub's own cache.

    Raises InstallFailed in words: unknown, gated, out of reach.
    """
    try:
        info = _patiently(
            lambda: HfApi(token=token).model_info(
                repository, revision=revision, files_metadata=True, timeout=TIMEOUT
            ),
            repository,
            token,
        )
    except OfflineModeIsEnabled:
        return _look_into_cache(repository, revision)
    files = [
        RemoteFile(
            path=_safe(sibling.rfilename),
            size=sibling.size or 0,
            sha256=sibling.lfs.sha256 if sibling.lfs else None,
            git=None if sibling.lfs else sibling.blob_id,
        )
        for sibling in info.siblings or []
    ]
    return Snapshot(
        repository=repository, revision=info.sha or revision or "main", files=tuple(files)
    )


def _look_into_cache(repository: str, revision: str | None) -> Snapshot:
    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise InstallFailed(
            f"{repository} is not on this machine, and HF_HUB_OFFLINE=1 forbids to fetch it. "
            f"Unset it, or copy the repository into the hub's cache ({constants.HF_HUB_CACHE})."
        ) from None
    files = [
        RemoteFile(path=path.relative_to(folder).as_posix(), size=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return Snapshot(repository=repository, revision=folder.name, files=tuple(files))


def fetch(
    snapshot: Snapshot,
    file: RemoteFile,
    folder: Path,
    *,
    token: str | None,
    meter: Meter,
    stop: threading.Event,
) -> None:
    """Brings one file to folder/path, going on from what an earlier call left in folder/path.part.

    The content is compared with the hub's hash before the file gets its name. Raises InstallFailed,
    Stopped and OSError.
    """
    target = folder / file.path
    if target.is_file() and target.stat().st_size == file.size:
        meter.found(file.size)
        return
    part = partial(target)
    part.parent.mkdir(parents=True, exist_ok=True)
    for last in (False, True):
        if not _from_cache(snapshot, file, part, meter):
            meter.found(_size(part))
            _patiently(
                lambda: _stream(snapshot, file, part, token, meter, stop),
                snapshot.repository,
                token,
                stop=stop,
                progress=lambda: _size(part),
            )
        if _matches(part, file):
            break
        # Cut or mixed up by something on the way: from the start, once.
        meter.found(-_size(part))
        part.unlink()
        if last:
            raise InstallFailed(
                f"{file.path} of {snapshot.repository} arrived twice with a content that is not "
                "the hub's. Something between here and the hub changes files: a proxy, or the "
                "mirror in HF_ENDPOINT."
            )
    with part.open("rb") as opened:
        os.fsync(opened.fileno())
    part.replace(target)


def partial(target: Path) -> Path:
    """Where the beginning of a file lies until all of it is there."""
    return target.with_name(target.name + ".part")


def size_here(file: RemoteFile, folder: Path) -> int:
    """Bytes of a file that need not be fetched any more."""
    target = folder / file.path
    return _size(target) or _size(partial(target))


def _from_cache(snapshot: Snapshot, file: RemoteFile, part: Path, meter: Meter) -> bool:
    """Takes the file from the hub's cache, where another program may have left it; costs no space
    if it can."""
    cached = try_to_load_from_cache(snapshot.repository, file.path, revision=snapshot.revision)
    if not isinstance(cached, str) or Path(cached).stat().st_size != file.size:
        return False
    part.unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(cached), part)
    except OSError:  # another disk
        shutil.copyfile(cached, part)
    meter.found(file.size)
    return True


def _stream(
    snapshot: Snapshot,
    file: RemoteFile,
    part: Path,
    token: str | None,
    meter: Meter,
    stop: threading.Event,
) -> None:
    """One request for what is missing of a file. The address is the hub's own each time: it
    redirects to a storage whose signed addresses live for minutes only."""
    have = _size(part)
    if have > file.size:
        part.unlink()
        meter.found(-have)
        have = 0
    if have == file.size and part.exists():
        return
    url = hf_hub_url(snapshot.repository, file.path, revision=snapshot.revision)
    headers = build_hf_headers(token=token) | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
        hf_raise_for_status(response)
        if have and response.status_code != 206:  # the range was ignored: all of it comes again
            meter.found(-have)
            have = 0
        with part.open("ab" if have else "wb") as opened:
            for chunk in response.iter_bytes():
                if stop.is_set():
                    raise Stopped
                opened.write(chunk)
                meter.add(len(chunk))
    if _size(part) < file.size:  # a server that closes early without saying how much there was
        raise httpx2.RemoteProtocolError("the connection ended early")


def _patiently(
    ask: Callable[[], T],
    repository: str,
    token: str | None,
    *,
    stop: threading.Event | None = None,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """Asks again while the hub is busy or the line is bad, and gives up in words after as many
    attempts as there are WAITS, between which `progress` has not changed."""
    stop = stop or threading.Event()
    waits, reached = iter(WAITS), progress()
    while True:
        try:
            return ask()
        except (HfHubHTTPError, httpx2.TransportError) as error:
            if progress() != reached:
                waits, reached = iter(WAITS), progress()
            wait = next(waits, None)
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if wait is None or (status is not None and status not in _BUSY):
                raise InstallFailed(_words(error, repository, token)) from None
            if isinstance(error, HfHubHTTPError):
                asked = error.response.headers.get("Retry-After", "")
                wait = min(float(asked), _LONGEST_WAIT) if asked.isdigit() else wait
            if stop.wait(wait):
                raise Stopped from None


def _words(
    error: HfHubHTTPError | httpx2.TransportError, repository: str, token: str | None
) -> str:
    hub = constants.ENDPOINT
    later = "What has come is kept: run this again later and it goes on."
    match error:
        case GatedRepoError():
            return licence_needed(repository, has_token=_has_token(token))
        case RevisionNotFoundError():
            return f"{repository} has no such revision on the hub ({hub})."
        case RepositoryNotFoundError():
            return (
                f"The hub ({hub}) knows no repository {repository}, or it is private: then set "
                "HF_TOKEN to a token of an account that may read it."
            )
        case HfHubHTTPError():
            status = error.response.status_code
            if status in (401, 403):
                return (
                    f"The hub refuses HF_TOKEN for {repository}. Make a token that may read it on "
                    f"{hub}/settings/tokens."
                )
            return f"The hub ({hub}) answers {status} for {repository}. {later}"
        case httpx2.TransportError():
            return f"The hub ({hub}) cannot be reached: {error or type(error).__name__}. {later}"


def licence_needed(repository: str, *, has_token: bool) -> str:
    """What a person has to do before a gated repository can be fetched."""
    page = f"{constants.ENDPOINT}/{repository}"
    if has_token:
        return (
            f"{repository} is gated, and the account of HF_TOKEN has no access yet. Accept its "
            f"licence on {page} with that account, and see that the token may read gated "
            "repositories; then run this again."
        )
    return (
        f"{repository} is gated. Accept its licence on {page}, make a token on "
        f"{constants.ENDPOINT}/settings/tokens, set HF_TOKEN to it, and run this again."
    )


def _has_token(token: str | None) -> bool:
    return "authorization" in {key.lower() for key in build_hf_headers(token=token)}


def _matches(path: Path, file: RemoteFile) -> bool:
    if path.stat().st_size != file.size:
        return False
    if file.sha256 is not None:
        return sha256(path) == file.sha256
    if file.git is not None:
        blob = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
        blob.update(path.read_bytes())
        return blob.hexdigest() == file.git
    return True


def sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _safe(path: str) -> str:
    """A repository's author names its files; they stay inside the folder."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise InstallFailed(f"The repository holds a file of the name {path!r}; it is not touched.")
    return path

"""The model hub: which files a repository holds, when to ask again, and what the hub's errors mean
for a person. The bytes are fetched by download.py.

huggingface_hub knows the endpoint, the token, the cache and the offline switch.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers

from app.errors import InstallFailed

T = TypeVar("T")

TIMEOUT = 30.0  # seconds without a byte
WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds between fruitless attempts, before giving up
_LONGEST_WAIT = 300.0  # seconds a busy hub may ask for
_BUSY = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a repository. Large ones have a SHA-256, the others the id of their git blob; those
    of the local cache have neither."""

    path: str
    size: int  # bytes
    sha256: str | None = None
    git: str | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A repository at one commit, so that a download that goes on later gets files of the same
    commit even if `main` has moved."""

    repository: str
    revision: str
    files: tuple[RemoteFile, ...]

    def find(self, path: str) -> RemoteFile | None:
        return next((file for file in self.files if file.path == path), None)


class DownloadStopped(Exception):
    """This download ended because another one failed or the installer was interrupted."""


def look(repository: str, revision: str | None, token: str | None) -> Snapshot:
    """The files of a repository; without network (HF_HUB_OFFLINE=1) those in the hub's own cache.

    Raises InstallFailed where the repository is unknown, gated or out of reach.
    """
    try:
        info = patiently(
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


def patiently(
    ask: Callable[[], T],
    repository: str,
    token: str | None,
    *,
    stop: threading.Event | None = None,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """The result of `ask`, which is called again while the hub is busy or cannot be reached.

    `progress` counts bytes that arrived: while it grows, attempts are not counted. After one
    attempt for each of WAITS without growth, or an error that repeating does not cure, raises
    InstallFailed; raises DownloadStopped once `stop` is set.
    """
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
                raise InstallFailed(_message(error, repository, token)) from None
            if isinstance(error, HfHubHTTPError):
                asked = error.response.headers.get("Retry-After", "")
                wait = min(float(asked), _LONGEST_WAIT) if asked.isdigit() else wait
            if stop.wait(wait):
                raise DownloadStopped from None


def _message(
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


def _safe(path: str) -> str:
    """The path of a file as the repository states it; raises InstallFailed where it would leave the
    folder it is written to."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise InstallFailed(f"The repository holds a file of the name {path!r}; it is not touched.")
    return path

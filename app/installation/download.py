"""Downloading files of a repository, several at a time, so that an interrupted download goes on.

huggingface_hub's own download begins a file anew after every interruption, and a file of weights
has up to 10 GB; so the bytes are fetched here. Which files a repository has, and what the hub's
errors mean, is known by hub.py.
"""

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

import httpx2
from huggingface_hub import hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from app.errors import InstallFailed
from app.installation import hub
from app.installation.hub import DownloadStopped, RemoteFile, Snapshot
from app.installation.progress import Meter, OnProgress

_AT_ONCE = 4  # files


def fetch_all(
    snapshot: Snapshot,
    files: Sequence[RemoteFile],
    folder: Path,
    *,
    token: str | None,
    on_progress: OnProgress,
) -> None:
    """Brings files of a repository to `folder`, several at a time, the largest first.

    The first failure stops the others and is raised: InstallFailed or OSError. What has come stays.
    """
    total = sum(file.size for file in files)
    meter = Meter("downloading", f"Downloading {snapshot.repository}", total, on_progress)
    stop = threading.Event()
    pool = ThreadPoolExecutor(_AT_ONCE, "download")
    try:
        jobs = [
            pool.submit(fetch, snapshot, file, folder, token=token, meter=meter, stop=stop)
            for file in sorted(files, key=lambda file: -file.size)
        ]
        wait(jobs, return_when=FIRST_EXCEPTION)
    except BaseException:  # Ctrl-C: each thread ends at its next chunk or time-out
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    stop.set()
    pool.shutdown(cancel_futures=True)
    _raise_first(jobs)
    meter.end()


def fetch(
    snapshot: Snapshot,
    file: RemoteFile,
    folder: Path,
    *,
    token: str | None,
    meter: Meter,
    stop: threading.Event,
) -> None:
    """Brings one file to folder/path, continuing what an earlier call left in folder/path.part.

    The file gets its name only after its content matches the hub's hash. Raises InstallFailed,
    DownloadStopped and OSError.
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
            hub.patiently(
                lambda: _stream(snapshot, file, part, token, meter, stop),
                snapshot.repository,
                token,
                stop=stop,
                progress=lambda: _size(part),
            )
        if _matches(part, file):
            break
        # Damaged on the way: once more from the start.
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
    """Where the first bytes of a file are kept until it is complete."""
    return target.with_name(target.name + ".part")


def size_here(file: RemoteFile, folder: Path) -> int:
    """Bytes of a file that are on the disk already."""
    target = folder / file.path
    return _size(target) or _size(partial(target))


def _from_cache(snapshot: Snapshot, file: RemoteFile, part: Path, meter: Meter) -> bool:
    """Whether the file was taken from the hub's local cache, where another program may have left
    it: as a hard link, or a copy where the cache is on another disk."""
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
    """One request for the missing bytes of a file. It always goes to the hub's address, which
    redirects to the storage: the storage's signed addresses expire within minutes."""
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
    with get_session().stream("GET", url, headers=headers, timeout=hub.TIMEOUT) as response:
        hf_raise_for_status(response)
        if have and response.status_code != 206:  # the server ignored Range and sends all of it
            meter.found(-have)
            have = 0
        with part.open("ab" if have else "wb") as opened:
            for chunk in response.iter_bytes():
                if stop.is_set():
                    raise DownloadStopped
                opened.write(chunk)
                meter.add(len(chunk))
    if _size(part) < file.size:  # closed early, without a Content-Length that would have shown it
        raise httpx2.RemoteProtocolError("the connection ended early")


def _matches(path: Path, file: RemoteFile) -> bool:
    if path.stat().st_size != file.size:
        return False
    if file.sha256 is not None:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
    if file.git is not None:
        blob = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
        blob.update(path.read_bytes())
        return blob.hexdigest() == file.git
    return True


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _raise_first(jobs: list[Future[None]]) -> None:
    """Raises the failure because of which the other downloads were stopped, if there is one."""
    failures = [
        error for job in jobs if not job.cancelled() and (error := job.exception()) is not None
    ]
    for error in sorted(failures, key=lambda error: isinstance(error, DownloadStopped)):
        raise error

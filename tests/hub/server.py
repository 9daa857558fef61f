"""A model hub of the tests' own, on loopback: it speaks to huggingface_hub what the real one
speaks.

Listing, resolve with HEAD and ETag, large files on another host, ranges, gates, and every way to
fail.
"""

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_tests"
_LARGE = 10_000  # bytes from which a file counts as large, and lies on the other host
_BLOCK = 4096


@dataclass
class Repository:
    folder: Path
    gated: bool = False
    private: bool = False
    revision: str = "a" * 40
    unhashed: bool = False  # too large to hash in a test
    extra: list[str] = field(default_factory=list)  # names in the listing without a file

    def files(self) -> dict[str, Path]:
        return {
            path.relative_to(self.folder).as_posix(): path
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


@dataclass
class Fault:
    """What goes wrong with requests whose path contains `path`, so many times."""

    path: str
    times: int = 1
    status: int | None = None  # answered instead
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # bytes after which the connection ends
    garble: bool = False  # a flipped bit in the content
    no_ranges: bool = False  # ranges are ignored


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]


class Hub:
    """Use as a context manager; `url` is for HF_ENDPOINT."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.sent = 0  # bytes of content
        self.speed: float | None = None  # bytes a second for each connection
        self._servers = [_Server(("127.0.0.1", 0), _handler(self, role)) for role in (_hub, _store)]
        self.url = f"http://127.0.0.1:{self._servers[0].server_port}"
        # Another name of the same machine: to a client a foreign host, that must not see the token.
        self.store_url = f"http://localhost:{self._servers[1].server_port}"

    def __enter__(self) -> "Hub":
        for server in self._servers:
            threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
            ).start()
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, name: str, folder: Path, **facts: Any) -> Repository:
        self.repositories[name] = Repository(folder, **facts)
        return self.repositories[name]

    def asked(self, part: str, method: str = "GET") -> list[Seen]:
        return [seen for seen in self.seen if part in seen.path and seen.method == method]

    def fault_for(self, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.path in path and fault.times > 0:
                fault.times -= 1
                return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed: what these tests do all day."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    role: Callable[["_Handler", str, Fault | None], None]
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        # Little on its way, so that what was sent is nearly what has arrived.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append(Seen(self.command, self.path, dict(self.headers)))
        fault = self.hub.fault_for(path)
        if fault is not None and fault.status is not None:
            self.answer(fault.status, fault.headers)
            return
        self.role(path, fault)

    do_HEAD = do_GET

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value: Any) -> None:
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"X-Error-Code": code, "X-Error-Message": message})

    def content(self, file: Path, headers: dict[str, str], fault: Fault | None) -> None:
        data = file.read_bytes()
        if fault is not None and fault.garble:
            data = bytes([data[0] ^ 1]) + data[1:]
        start = 0
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes=") and not (fault and fault.no_ranges):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.answer(416, {"Content-Range": f"bytes */{len(data)}"})
                return
            headers |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self.send_response(206 if start else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        end = len(data) if fault is None or fault.cut is None else start + fault.cut
        for at in range(start, min(end, len(data)), _BLOCK):
            block = data[at : min(at + _BLOCK, end)]
            self.wfile.write(block)
            self.hub.sent += len(block)
            if self.hub.speed:
                time.sleep(len(block) / self.hub.speed)
        if end < len(data):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _handler(hub: Hub, role: Callable[..., None]) -> type[_Handler]:
    return type("Handler", (_Handler,), {"hub": hub, "role": role})


def _hub(self: _Handler, path: str, fault: Fault | None) -> None:
    parts = path.strip("/").split("/")
    listing = parts[:2] == ["api", "models"]
    owner, name, *rest = parts[2:] if listing else parts
    repository = self.hub.repositories.get(f"{owner}/{name}")
    token = self.headers.get("Authorization", "").removeprefix("Bearer ")
    if token and token != TOKEN:
        self.refuse(401, "", "Invalid credentials in Authorization header")
        return
    if repository is None or (repository.private and not token):
        self.refuse(401 if not token else 404, "RepoNotFound", "Repository not found")
        return
    revision = rest[1] if len(rest) > 1 else "main"
    if revision not in ("main", repository.revision):
        self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    elif listing and rest[:1] == ["tree"]:
        self.answer_json([_tree_entry(*item) for item in repository.files().items()])
    elif listing:
        blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        siblings = [
            _sibling(path, file, blobs, hashed=not repository.unhashed)
            for path, file in repository.files().items()
        ]
        siblings += [
            {"rfilename": path, "size": 1, "blobId": "0" * 40} for path in repository.extra
        ]
        self.answer_json(
            {"id": f"{owner}/{name}", "sha": repository.revision, "siblings": siblings, "tags": []}
        )
    elif repository.gated and not token:
        self.refuse(401, "GatedRepo", "Access to this model is restricted.")
    else:
        _resolve(self, repository, "/".join(rest[2:]), fault)


def _resolve(self: _Handler, repository: Repository, path: str, fault: Fault | None) -> None:
    file = repository.files().get(path)
    commit = {"X-Repo-Commit": repository.revision}
    if file is None:
        self.answer(404, commit | {"X-Error-Code": "EntryNotFound"})
    elif file.stat().st_size < _LARGE:
        self.content(file, commit | {"ETag": f'"{_git(file)}"'}, fault)
    else:
        linked = {"X-Linked-Etag": f'"{_sha256(file)}"', "X-Linked-Size": str(file.stat().st_size)}
        location = f"{self.hub.store_url}/{file.relative_to('/').as_posix()}"
        self.answer(302, commit | linked | {"Location": location})


def _store(self: _Handler, path: str, fault: Fault | None) -> None:
    if "Authorization" in self.headers:
        self.refuse(400, "", "the token was shown to another host")
        return
    file = Path(path)
    self.content(file, {"ETag": f'"{_sha256(file)}"'}, fault)


def _sibling(path: str, file: Path, blobs: bool, *, hashed: bool) -> dict[str, Any]:
    record: dict[str, Any] = {"rfilename": path}
    if blobs:
        size = file.stat().st_size
        large = size >= _LARGE
        record |= {"size": size, "blobId": "0" * 40 if large else _git(file)}
        if large:
            digest = _sha256(file) if hashed else "0" * 64
            record["lfs"] = {"sha256": digest, "size": size, "pointerSize": 134}
    return record


def _tree_entry(path: str, file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    record: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": _git(file)}
    if size >= _LARGE:
        record["lfs"] = {"oid": _sha256(file), "size": size, "pointerSize": 134}
    return record


def _git(file: Path) -> str:
    data = file.read_bytes()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

"""Makes the FastAPI application of the settings: engine, faces, gate. The face that owns a path
renders its errors. `Server` is uvicorn with an orderly end. Knows no route and no job."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from types import FrameType

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app import __version__, errors
from app.background import Background
from app.engine import Engine
from app.faces import faces
from app.faces.face import problem
from app.gate import Gate
from app.jobs.store import Store
from app.machine import Machine
from app.models.source import open_catalog
from app.settings import Settings

log = logging.getLogger(__name__)

_WELCOME = """
Easel listens on {url} (Ctrl-C ends it). To try it, from another terminal:

  curl -s {url}/jobs -H 'Content-Type: application/json' -H 'Prefer: wait=60' \\
    -d '{{"prompt": "a red circle on a blue background"}}'

The answer names the picture's address; all routes are at {url}/docs
"""


def create_app(settings: Settings) -> FastAPI:
    """The application for these settings; raises CatalogError, UnknownModel or StorageFailed."""
    # The store comes first because its error explains what is wrong with DATA_DIR.
    store = Store(
        settings.data_dir.resolve(),
        url=settings.database_url,
        min_free=settings.min_free_disk * 2**20,
    )
    catalog = open_catalog(settings)
    engine = Engine(settings, catalog, store, machine=Machine.of(settings))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        await engine.start()
        try:
            yield
        finally:
            await engine.stop()

    # FastAPIOffline serves the scripts of /docs itself, for browsers without internet access.
    app = FastAPIOffline(title="Easel", version=__version__, lifespan=lifespan)
    app.state.engine = engine
    mounted = faces()
    for face in mounted:
        app.include_router(face.router)

    def render(path: str, error: errors.EaselError) -> Response:
        face = next((face for face in mounted if face.owns(path)), None)
        return face.render_error(error) if face else problem(error)

    async def on_easel_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, errors.EaselError)
        return render(request.url.path, error)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return render(request.url.path, _from_validation_error(error))

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return render(request.url.path, _from_http_exception(error, request))

    app.add_exception_handler(errors.EaselError, on_easel_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_middleware(Gate, keys=settings.keys(), render=render)
    return app


_NOT_JSON = "The body is not valid JSON."


def _from_validation_error(error: RequestValidationError) -> errors.EaselError:
    """The first of pydantic's errors as a sentence that names the field."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    if first["type"] == "json_invalid":
        return errors.InvalidRequest(_NOT_JSON)
    if first["loc"] == ("body",) and first["type"] != "missing":
        return errors.InvalidRequest(
            "The body is not a JSON object; send one with Content-Type: application/json."
        )
    field = ".".join(path) or None
    messages = {
        "extra_forbidden": f"{field} is not a key of this request; remove it.",
        "missing": f"{field or 'The body'} is missing.",
    }
    why: str = messages.get(first["type"], f"{field or 'The body'}: {first['msg']}.")
    return errors.InvalidRequest(why.encode(errors="replace").decode(), field=field)


def _from_http_exception(error: HTTPException, request: Request) -> errors.EaselError:
    """What Starlette and FastAPI raise themselves (404, 405, an unreadable body) as an
    EaselError."""
    if isinstance(error.__cause__, errors.EaselError):
        return error.__cause__  # raised while a body was read: FastAPI wraps it into a plain 400
    if isinstance(error.__cause__, ValueError | RecursionError):
        return errors.InvalidRequest(_NOT_JSON)
    if error.status_code == 404:
        return errors.NotFound(
            f"There is nothing at {request.url.path[:200]}; /docs lists the routes."
        )
    if error.status_code == 405:
        allowed = ", ".join(_methods(request)) or (error.headers or {}).get("Allow", "GET, HEAD")
        message = f"{request.url.path} does not take {request.method}, only {allowed}."
        return errors.MethodNotAllowed(message, allow=allowed)
    return errors.InvalidRequest(str(error.detail))


def _methods(request: Request) -> list[str]:
    """All methods of the request's path. Starlette's own Allow header has those of one route
    only."""
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address; raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets that name their protocol; without it, every answer
    # waits 40 ms for the client's acknowledgement of its headers.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


class Server(uvicorn.Server):
    """uvicorn, except that on SIGTERM and Ctrl-C running jobs first get GRACE seconds to finish."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self._engine: Engine = app.state.engine
        self._grace = settings.grace
        # Bound before the engine starts, so that a port in use ends the start with one line.
        self._socket = listen(settings.host, settings.port)
        # 0.0.0.0 and :: mean every address, but a browser cannot open them: show the loopback one.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
        host = f"[{host}]" if ":" in host else host
        self._url = f"http://{host}:{self._socket.getsockname()[1]}"
        self._background = Background()
        self._draining: asyncio.Task[None] | None = None

    def serve_on(self) -> None:
        """Serves until SIGTERM or Ctrl-C."""
        self.run(sockets=[self._socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(_WELCOME.format(url=self._url), file=sys.stderr, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining is not None:  # the second signal ends it at once
            super().handle_exit(sig, frame)
            return
        log.info("stopping", extra={"signal": signal.Signals(sig).name, "grace": self._grace})
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self._begin_drain, sig)

    def _begin_drain(self, sig: int) -> None:
        self._draining = self._background.spawn(self._drain(sig))

    async def _drain(self, sig: int) -> None:
        try:
            await self._engine.drain(self._grace)
        finally:
            super().handle_exit(sig, None)  # whatever broke, the process ends

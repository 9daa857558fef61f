"""Middleware before every face: the request's id, the API key, the size of the body, one log line,
and an error response for whatever a route raised. Knows no route but /health.

Plain ASGI rather than Starlette's BaseHTTPMiddleware, which passes every stream through a queue.
"""

import base64
import binascii
import contextlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import EaselError, TooLarge, Unauthorized
from app.logs import request_id

log = logging.getLogger(__name__)

MAX_BODY = 32 * 2**20  # bytes


class Gate:
    """`render` makes the response to an error, in the dialect of the path that was requested."""

    def __init__(
        self, app: ASGIApp, *, keys: tuple[str, ...], render: Callable[[str, EaselError], Response]
    ) -> None:
        self._app = app
        self._keys = keys
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        path: str = scope["path"]
        headers = Headers(scope=scope)
        own_id = _request_id(headers)
        request_id.set(own_id)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = own_id
            await send(message)

        try:
            self._check_key(scope, path, headers)
            _check_length(headers)
            await self._app(scope, _limited(receive), send_with_id)
        except ClientDisconnect:
            pass  # while its request was still arriving: there is nobody to answer
        except Exception as error:
            if not isinstance(error, EaselError):
                log.exception("request broke", extra={"path": path})
                error = EaselError("Something inside Easel broke; the log says more.")
            if status == 0:
                await self._render(path, error)(scope, receive, send_with_id)
        finally:
            log.log(
                logging.DEBUG if _is_health(path) else logging.INFO,
                "request",
                extra={
                    "method": scope["method"],
                    "path": path,
                    "status": status,
                    "ms": round((time.perf_counter() - began) * 1000, 1),
                },
            )

    def _check_key(self, scope: Scope, path: str, headers: Headers) -> None:
        if not self._keys or _is_health(path):
            return
        for candidate in _keys_in(headers):
            for key in self._keys:
                if any(hmac.compare_digest(candidate, form) for form in _forms(key)):
                    scope["easel_key"] = key
                    return
        raise Unauthorized(
            "Show an API key: `Authorization: Bearer KEY`, `Authorization: KEY` or "
            "`X-API-Key: KEY`."
        )


def _is_health(path: str) -> bool:
    """Health routes need no key and are logged at DEBUG only, as probes ask them every few
    seconds."""
    return path == "/health" or path.startswith("/health/")


def _request_id(headers: Headers) -> str:
    """The client's X-Request-ID if it is short and safe to log, else a new one."""
    given = headers.get("x-request-id", "")
    return given if re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else uuid.uuid4().hex


def _forms(key: str) -> list[bytes]:
    """A key as clients send it: letters beyond ASCII as UTF-8, or as Latin-1 where that has
    them."""
    forms = [key.encode()]
    with contextlib.suppress(UnicodeEncodeError):
        forms.append(key.encode("latin-1"))
    return forms


def _keys_in(headers: Headers) -> list[bytes]:
    """Everything in a request that may be its API key: X-API-Key, a bearer token, a bare
    Authorization header, and of HTTP Basic password, user and both, as clients differ in that."""
    candidates: list[str] = []
    if "x-api-key" in headers:
        candidates.append(headers["x-api-key"])
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            pair = base64.b64decode(rest.strip(), validate=True).decode("latin-1")
        except (binascii.Error, ValueError):
            pair = ""
        user, _, password = pair.partition(":")
        candidates += [password, user, pair]
    elif scheme.lower() == "bearer":
        candidates.append(rest.strip())
    elif scheme:
        candidates.append(f"{scheme} {rest}".strip())
    # The bytes that were sent: Starlette reads headers as Latin-1.
    return [candidate.encode("latin-1") for candidate in candidates]


def _check_length(headers: Headers) -> None:
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > MAX_BODY:
        raise _too_large()


def _limited(receive: Receive) -> Receive:
    """`receive` that raises TooLarge past MAX_BODY: a chunked body has no Content-Length to
    check."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        if message["type"] == "http.request":
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise _too_large()
        return message

    return counted


def _too_large() -> TooLarge:
    return TooLarge(f"The body is larger than {MAX_BODY // 2**20} MiB; send smaller pictures.")

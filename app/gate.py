"""What stands before every face: the request's id, the API key, the size of the body, one log line.

Plain ASGI rather than Starlette's middleware class, which would put every stream through a queue.
"""

import base64
import binascii
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
_OPEN = ("/health",)


class Gate:
    """`render` puts an error into the dialect of the path it concerns."""

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
        current = _request_id(headers)
        request_id.set(current)
        status = 0

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = current
            await send(message)

        try:
            self._check_key(scope, path, headers)
            _check_length(headers)
            await self._app(scope, _limited(receive), tell)
        except ClientDisconnect:
            pass  # in the middle of its own request
        except Exception as error:
            if not isinstance(error, EaselError):
                log.exception("request broke", extra={"path": path})
                error = EaselError("Something inside Easel broke; the log says more.")
            if status == 0:
                await self._render(path, error)(scope, receive, tell)
        finally:
            health = any(path.startswith(prefix) for prefix in _OPEN)
            log.log(
                logging.DEBUG if health else logging.INFO,
                "request",
                extra={
                    "method": scope["method"],
                    "path": path,
                    "status": status,
                    "ms": round((time.perf_counter() - began) * 1000, 1),
                },
            )

    def _check_key(self, scope: Scope, path: str, headers: Headers) -> None:
        if not self._keys or path == "/health" or path.startswith("/health/"):
            return
        for shown in _shown_keys(headers):
            for key in self._keys:
                if hmac.compare_digest(shown.encode(), key.encode()):
                    scope["easel_key"] = key
                    return
        raise Unauthorized(
            "Show an API key: `Authorization: Bearer KEY`, `Authorization: KEY` or "
            "`X-API-Key: KEY`."
        )


def _request_id(headers: Headers) -> str:
    """The caller's id if it is a harmless one, else a new one."""
    given = headers.get("x-request-id", "")
    return given if re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else uuid.uuid4().hex


def _shown_keys(headers: Headers) -> list[str]:
    """Every key that a request shows: X-API-Key, a bearer token, a bare one, or either half of
    Basic."""
    shown: list[str] = []
    if "x-api-key" in headers:
        shown.append(headers["x-api-key"])
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            pair = base64.b64decode(rest.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return shown
        user, _, password = pair.partition(":")
        shown += [password, user, pair]
    elif scheme.lower() == "bearer":
        shown.append(rest.strip())
    elif scheme:
        shown.append(f"{scheme} {rest}".strip())
    return shown


def _check_length(headers: Headers) -> None:
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > MAX_BODY:
        raise _too_large()


def _limited(receive: Receive) -> Receive:
    """`receive`, counting, for bodies that do not say how long they are."""
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

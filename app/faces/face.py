"""What every face has, and the few things all of them need of a request. Faces never import each
other."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from app import errors
from app.engine import Engine

STATUS: dict[type[errors.EaselError], int] = {
    errors.InvalidRequest: 422,
    errors.TooLarge: 413,
    errors.Unauthorized: 401,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.Conflict: 409,
    errors.QueueFull: 429,
    errors.Unavailable: 503,
    errors.StorageFailed: 507,
    errors.EaselError: 500,
}


@dataclass(frozen=True, kw_only=True)
class Face:
    """A dialect: its routes, the paths they begin with, and how it puts an error into its own
    words."""

    name: str
    router: APIRouter
    paths: tuple[str, ...]
    render_error: Callable[[errors.EaselError], Response]

    def owns(self, path: str) -> bool:
        return any(path == own or path.startswith(f"{own}/") for own in self.paths)


def status_of(error: errors.EaselError) -> int:
    """The HTTP status of an error: its own or its nearest ancestor's."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def headers_of(error: errors.EaselError) -> dict[str, str]:
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, errors.Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def problem(error: errors.EaselError) -> Response:
    """An error as RFC 9457 problem+json, the native dialect and the one of paths that no face
    owns."""
    status = status_of(error)
    body: dict[str, object] = {
        "type": f"urn:easel:error:{error.code}",
        "title": error.title,
        "status": status,
        "detail": error.detail,
        "code": error.code,
    }
    if error.field is not None:
        body["field"] = error.field
    return JSONResponse(body, status, headers_of(error), media_type="application/problem+json")


def engine_of(request: Request) -> Engine:
    return request.app.state.engine


def owner_of(request: Request) -> str:
    """Whose request it is: a digest of the key it came with, empty where no keys are set."""
    key = request.scope.get("easel_key", "")
    return hashlib.sha256(key.encode()).hexdigest()[:32] if key else ""

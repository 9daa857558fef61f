"""What every face has, and what all of them need: errors as status codes, the caller of a request,
waiting for a job, reading a body leniently. Knows no dialect; faces import this and never each
other."""

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError

from app import errors
from app.caller import Caller
from app.engine import Engine
from app.jobs.job import Job, JobState
from app.logs import request_id
from app.request import ImageFormat

T = TypeVar("T")
B = TypeVar("B", bound=BaseModel)
KEEP_ALIVE = 15.0  # seconds without an event after which a stream sends a keep-alive

STATUS: dict[type[errors.EaselError], int] = {
    errors.InvalidRequest: 422,
    errors.TooLarge: 413,
    errors.Unauthorized: 401,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.Conflict: 409,
    errors.HungUp: 499,
    errors.QueueFull: 429,
    errors.Unavailable: 503,
    errors.StorageFailed: 507,
    errors.EaselError: 500,
}


@dataclass(frozen=True, kw_only=True)
class Face:
    """A dialect: its routes, the paths they begin with, and how it renders an error as a response.
    Requests below `paths` get their errors, 404 included, from `render_error`."""

    name: str
    router: APIRouter
    paths: tuple[str, ...]
    render_error: Callable[[errors.EaselError], Response]

    def owns(self, path: str) -> bool:
        return any(path == own or path.startswith(f"{own}/") for own in self.paths)


def entry_for(error: errors.EaselError, table: Mapping[type[Any], T]) -> T:
    """The table's value for the class of an error, or for its nearest base class in the table."""
    return next(table[kind] for kind in type(error).__mro__ if kind in table)


def status_of(error: errors.EaselError) -> int:
    """The HTTP status of an error, unless a dialect has a rule of its own."""
    return entry_for(error, STATUS)


def headers_of(error: errors.EaselError) -> dict[str, str]:
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, errors.MethodNotAllowed):
        headers["Allow"] = error.allow
    if isinstance(error, errors.Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def problem(error: errors.EaselError) -> Response:
    """An error as RFC 9457 problem+json: in the native dialect, and on paths that no face owns."""
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


def caller_of(request: Request, face: str) -> Caller:
    """Who sent the request. The owner is a digest of the API key that the gate accepted; empty
    where no keys are set."""
    key = request.scope.get("easel_key", "")
    owner = hashlib.sha256(key.encode()).hexdigest()[:32] if key else ""
    return Caller(face=face, owner=owner, request_id=request_id.get())


async def finished(request: Request, job: Job) -> tuple[Job, list[bytes]]:
    """Waits until the job has ended; returns it with the bytes of its pictures, or raises what it
    failed with.

    While this runs, the client counts as waiting for the job. When it closes the connection,
    HungUp is raised and it no longer counts, so that the engine may cancel the job.
    """
    engine = engine_of(request)
    hung_up = asyncio.ensure_future(_hung_up(request))
    with engine.waiting(job.id):
        ended = asyncio.ensure_future(engine.wait(job.id))
        try:
            await asyncio.wait([ended, hung_up], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                raise errors.HungUp("The client hung up.")
            job = succeeded(ended.result())
        finally:
            hung_up.cancel()
            ended.cancel()
    return job, await engine.pictures(job)


async def _hung_up(request: Request) -> None:
    """Returns when the client has closed its connection. The body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def with_keep_alive(events: AsyncIterator[T]) -> AsyncGenerator[T | None]:
    """The events, and None after each KEEP_ALIVE seconds in which there was none."""
    coming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            await asyncio.wait([coming], timeout=KEEP_ALIVE)
            if not coming.done():
                yield None
                continue
            event = coming.result()
            if event is None:
                return
            coming = asyncio.ensure_future(anext(events, None))
            yield event
    finally:
        coming.cancel()


def succeeded(job: Job) -> Job:
    """The job itself if it has succeeded; otherwise raises the error that says why not."""
    if job.state is JobState.SUCCEEDED:
        return job
    if job.state is JobState.CANCELED:
        raise errors.JobCanceled("The job was canceled before it had a result.")
    if job.error is None:
        raise errors.Unavailable(
            f"The service is shutting down; after its restart the result is at /jobs/{job.id}.",
            retry_after=5,
        )
    raise errors.from_code(job.error.code, job.error.message)


def picture_response(job: Job, data: bytes, warnings: Sequence[str]) -> Response:
    """A picture as the body; its seed and the warnings as the headers X-Seed and X-Warnings."""
    headers = {"X-Seed": str(job.recipe.seed)}
    if warnings:
        # A warning may repeat what a caller wrote; a line break in a header would end the answer.
        headers["X-Warnings"] = re.sub(r"[^\x20-\x7e]", "?", " ".join(warnings))[:2000]
    return Response(data, media_type=job.images[0].media_type, headers=headers)


def parse_leniently(kind: type[B], body: Mapping[str, Any]) -> tuple[B, list[str]]:
    """The body as `kind`, and a warning for each key that was left out because its value is not
    valid. A key with the value null counts as absent. Raises RequestValidationError where the
    prompt is not valid or a required key is missing."""
    known = {_printable(key): value for key, value in body.items() if value is not None}
    warnings: list[str] = []
    while True:
        try:
            return kind.model_validate(known), warnings
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            key = first["loc"][0] if first["loc"] else ""
            if key not in known or key == "prompt":
                raise RequestValidationError([first]) from None
            del known[str(key)]
            warnings.append(f"{key} ignored: {first['msg']}.")


def warn_of_unknown(
    extra: Mapping[str, Any] | None, *, harmless: frozenset[str] = frozenset()
) -> list[str]:
    """At most one warning, which names the keys of a body that the dialect does not know. Not
    named: keys with the value null, and `harmless` ones, which change nothing about a picture."""
    present = sorted(key for key, value in (extra or {}).items() if value is not None)
    names = [_printable(name) for name in present if name not in harmless]
    if not names:
        return []
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return [f"Not honoured here: {', '.join(names[:20])}{more}."]


def _printable(name: str) -> str:
    """A key cut to 60 characters, with what UTF-8 cannot encode (lone surrogates) replaced."""
    return name[:60].encode(errors="replace").decode()


def wanted_format(request: Request) -> ImageFormat | None:
    """The picture format that the Accept header names; png for any other image type, None where it
    names no image type."""
    for part in request.headers.get("accept", "").lower().split(","):
        kind, _, name = part.partition(";")[0].strip().partition("/")
        if kind == "image":
            formats: dict[str, ImageFormat] = {"jpeg": "jpeg", "jpg": "jpeg", "webp": "webp"}
            return formats.get(name, "png")
    return None

"""The native API's routes below /jobs: jobs, their events and their pictures. docs/api.md is the
contract. Models, devices and health are in native_server.py."""

import hashlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field

from app.caller import Idempotency, Terms
from app.engine import Engine
from app.faces.face import Face, caller_of, engine_of, problem
from app.jobs.job import Job, JobEvent, JobQuery, JobState
from app.pictures import data_uri
from app.request import MAX_PROMPT, MAX_SEED, ImageFormat, ImageRequest

MAX_WAIT = 600  # seconds of `Prefer: wait`
_REFERENCE = re.compile(r"/jobs/([0-9a-f-]{36})/(?:inputs/(init_image|mask)|images/(\d{1,3}))")

router = APIRouter()


class JobBody(BaseModel):
    """A job: text to image, with init_image image to image, with a mask inpainting."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str = Field(description=f"what the picture shows, 1 to {MAX_PROMPT} characters")
    negative_prompt: str | None = Field(default=None, description="what it should not show")
    model: str | None = Field(default=None, description="name or alias; default: the serving model")
    width: int | None = Field(default=None, description="pixels")
    height: int | None = Field(default=None, description="pixels")
    steps: int | None = Field(default=None, description="denoising steps")
    guidance: float | None = Field(default=None, description="how strictly the prompt is followed")
    seed: int | None = Field(default=None, description=f"0 to {MAX_SEED}; default: drawn at random")
    images: int | None = Field(default=None, description="how many pictures; image n uses seed + n")
    sampler: str | None = Field(default=None, description="one of the model's samplers")
    init_image: str | None = Field(
        default=None, description="base64, data URI or a picture's path here"
    )
    strength: float | None = Field(default=None, description="how far from init_image, 0 < s <= 1")
    mask: str | None = Field(default=None, description="as init_image; white = repaint")
    mask_padding: int | None = Field(
        default=None,
        description="redraw only the masked part and so many pixels around it, at width x height",
    )
    format: ImageFormat | None = Field(default=None, description="png, jpeg or webp; default: png")
    quality: int | None = Field(default=None, description="of JPEG and WebP, 1 to 100; default: 90")


async def to_request(body: JobBody, engine: Engine) -> ImageRequest:
    values = body.model_dump(exclude={"init_image", "mask"})
    return ImageRequest(
        **values,
        init_image=await _picture(body.init_image, "init_image", engine),
        mask=await _picture(body.mask, "mask", engine),
    )


async def _picture(text: str | None, field: str, engine: Engine) -> bytes | None:
    """The bytes of a picture in a body: base64, a data URI, or a path of this API such as
    /jobs/ID/images/0. Recipes name their pictures by such paths and can be posted again as they
    are."""
    if text is None:
        return None
    if found := _REFERENCE.fullmatch(text):
        job_id, name, n = found.groups()
        if name is not None:
            return await engine.input_image(job_id, name)
        return (await engine.image(job_id, int(n)))[1]
    return data_uri.from_base64(text, field)


def to_response(job: Job, engine: Engine) -> dict[str, Any]:
    base = f"/jobs/{job.id}"
    recipe = asdict(job.recipe)
    for field in ("init_image", "mask"):
        if recipe[field] is not None:
            recipe[field] = f"{base}/inputs/{field}"
    progress = job.progress
    return {
        "id": job.id,
        "state": job.state.value,
        "model": job.model,
        "device": job.device,
        "recipe": recipe,
        "progress": {**asdict(progress), "fraction": round(progress.fraction, 4)},
        "queue_position": engine.queue_position(job.id),
        "created": _time(job.created),
        "started": _time(job.started),
        "finished": _time(job.finished),
        "timings_ms": job.timings_ms,
        "warnings": list(job.warnings),
        "error": asdict(job.error) if job.error else None,
        "images": [
            {
                "url": f"{base}/images/{n}",
                "width": file.width,
                "height": file.height,
                "bytes": file.bytes,
                "media_type": file.media_type,
                "seed": file.seed,
            }
            for n, file in enumerate(job.images)
        ],
    }


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return (
        datetime.fromtimestamp(seconds, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


@router.post("/jobs", status_code=202, tags=["jobs"])
async def post_job(
    request: Request,
    body: JobBody,
    prefer: Annotated[str | None, Header()] = None,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Response:
    """Hands a job in. `Prefer: wait=N` answers with the ended job if it ends within N seconds."""
    engine, caller = engine_of(request), caller_of(request, face.name)
    job, idempotency = None, None
    if idempotency_key is not None:
        # json.dumps escapes to ASCII: strings in JSON may hold lone surrogates, which UTF-8 cannot.
        canonical = json.dumps(body.model_dump(), sort_keys=True)
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        idempotency = Idempotency(key=idempotency_key, digest=digest)
        # Looked up before the body's pictures are read: a repeated request must find its job even
        # if the pictures that it refers to were deleted since.
        job = await engine.known(caller, idempotency)
    if job is None:
        wanted = await to_request(body, engine)
        job = await engine.submit(wanted, caller, Terms(idempotency=idempotency))
    headers = {"Location": f"/jobs/{job.id}"}
    seconds = _wait_seconds(prefer)
    if seconds is not None:
        headers["Preference-Applied"] = f"wait={seconds}"
        job = await engine.wait(job.id, seconds)
    return JSONResponse(to_response(job, engine), 200 if job.state.ended else 202, headers)


def _wait_seconds(prefer: str | None) -> int | None:
    """The seconds of a Prefer header (RFC 7240), at most MAX_WAIT; None if it does not ask to
    wait."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})", prefer or "", re.IGNORECASE)
    return min(int(found[1]), MAX_WAIT) if found else None


@router.get("/jobs", tags=["jobs"])
async def get_jobs(
    request: Request,
    state: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: str | None = None,
) -> dict[str, Any]:
    """The history, newest first. `next` is the value of `before` for the page that follows."""
    engine = engine_of(request)
    jobs = await engine.jobs(JobQuery(state=state, limit=limit + 1, before=before))
    page = jobs[:limit]
    return {
        "jobs": [to_response(job, engine) for job in page],
        "next": page[-1].id if len(jobs) > limit else None,
    }


@router.get("/jobs/{job_id}", tags=["jobs"])
async def get_job(request: Request, job_id: str) -> dict[str, Any]:
    engine = engine_of(request)
    return to_response(await engine.job(job_id), engine)


@router.delete("/jobs/{job_id}", tags=["jobs"])
async def delete_job(request: Request, job_id: str) -> Response:
    """Cancels an active job (202, with the job); removes an ended one with its pictures (204)."""
    engine = engine_of(request)
    job = await engine.job(job_id)
    if job.state.ended:
        await engine.delete(job_id)
        return Response(status_code=204)
    return JSONResponse(to_response(await engine.cancel(job_id), engine), 202)


async def _known_job(request: Request, job_id: str) -> Job:
    return await engine_of(request).job(job_id)


@router.get("/jobs/{job_id}/events", response_class=EventSourceResponse, tags=["jobs"])
async def get_events(
    request: Request,
    job: Annotated[Job, Depends(_known_job)],
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[ServerSentEvent]:
    """What happens to the job as server-sent events: state, progress, preview, done."""
    engine = engine_of(request)
    after = int(last_event_id) if last_event_id and re.fullmatch(r"\d{1,9}", last_event_id) else 0
    async for event in engine.events(job.id, after):
        yield ServerSentEvent(event=event.kind, id=str(event.id), data=_event_data(event, engine))


def _event_data(event: JobEvent, engine: Engine) -> dict[str, Any]:
    match event.kind:
        case "progress":
            return {**asdict(event.job.progress), "fraction": round(event.job.progress.fraction, 4)}
        case "preview":
            return {"image": data_uri.to_data_uri(event.preview or b"", "image/jpeg")}
        case "state":
            position = engine.queue_position(event.job.id)
            return {"state": event.job.state.value, "queue_position": position}
        case _:
            return to_response(event.job, engine)


@router.get("/jobs/{job_id}/images/{n}", tags=["jobs"])
async def get_image(
    request: Request, job_id: str, n: int, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """The file itself. It never changes, so that caches may keep it for ever."""
    file, data = await engine_of(request).image(job_id, n)
    etag = f'"{file.etag}"'
    headers = {"ETag": etag, "Cache-Control": "private, max-age=31536000, immutable"}
    if if_none_match and (etag in if_none_match or if_none_match.strip() == "*"):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=file.media_type, headers=headers)


@router.get("/jobs/{job_id}/inputs/{field}", tags=["jobs"])
async def get_input(request: Request, job_id: str, field: str) -> Response:
    """The init_image or mask of a job, as the pipeline was given it."""
    return Response(await engine_of(request).input_image(job_id, field), media_type="image/png")


face = Face(name="native", router=router, paths=("/jobs",), render_error=problem)

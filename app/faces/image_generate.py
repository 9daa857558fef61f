"""/image/generate and /server/status of an older service: POST starts a generation and answers at
once, GET lists the results, newest first. One generation at a time: another is refused with 429."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

from app.caller import Terms
from app.engine import Engine
from app.errors import Busy, EaselError, Unavailable, UnknownJob
from app.faces.face import STATUS, Face, caller_of, engine_of, entry_for, headers_of
from app.jobs.job import Job, JobQuery, JobState
from app.pictures import data_uri
from app.request import ImageRequest

NAME = "image_generate"
BUSY = "The server is not available for a generation now; come back later."

# The older service's document knows one refusal, 429: used for everything that means "not now".
_STATUS = STATUS | {Busy: 429, Unavailable: 429}

router = APIRouter(tags=["image_generate"])


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str


async def _available(engine: Engine) -> bool:
    if engine.readiness.status != "ready":
        return False
    last = await engine.jobs(JobQuery(face=NAME, limit=1))
    return not last or last[0].state.ended


@router.get("/server/status")
async def status(request: Request) -> dict[str, bool]:
    return {"is_available": await _available(engine_of(request))}


@router.post("/image/generate")
async def post_generate(request: Request, body: Body) -> dict[str, str]:
    """Starts a generation; 429 while one is running or no pipeline is ready."""
    engine = engine_of(request)
    if engine.readiness.status != "ready":
        raise Busy(BUSY)
    job = await engine.submit(
        ImageRequest(prompt=body.prompt), caller_of(request, NAME), Terms(one_at_a_time=True)
    )
    return {"generation_uuid": job.id}


@router.get("/image/generate")
async def get_generate(
    request: Request,
    generation_uuid: UUID | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: UUID | None = None,
) -> Response:
    """The results, newest first; a Link header names the next page. One that has not ended is not a
    result yet."""
    engine = engine_of(request)
    if generation_uuid is not None:
        job = await engine.job(str(generation_uuid))
        if job.face != NAME:
            raise UnknownJob(f"There is no generation {generation_uuid}.")
        return JSONResponse([await to_response(request, job)] if job.state.ended else [])
    page = await engine.jobs(
        JobQuery(face=NAME, limit=limit + 1, before=str(before) if before else None)
    )
    listed = page[:limit]
    results = [await to_response(request, job) for job in listed if job.state.ended]
    headers: dict[str, str] = {}
    if len(page) > limit:
        headers["Link"] = f'</image/generate?limit={limit}&before={listed[-1].id}>; rel="next"'
    return JSONResponse(results, headers=headers)


async def to_response(request: Request, job: Job) -> dict[str, Any]:
    errors = [job.error.message] if job.error else []
    if job.state is JobState.CANCELED:
        errors = ["The generation was canceled."]
    data: str | None = None
    try:
        for picture in await engine_of(request).pictures(job):
            data = data_uri.to_base64(picture)
    except EaselError as error:
        errors.append(error.detail)
    return {
        "uuid": job.id,
        "prompt": job.recipe.prompt,
        "created_time": datetime.fromtimestamp(job.created, UTC).isoformat(),
        "errors": errors,
        "data": data,
    }


def render_error(error: EaselError) -> Response:
    detail = BUSY if isinstance(error, Busy) else error.detail
    return JSONResponse({"detail": detail}, entry_for(error, _STATUS), headers_of(error))


face = Face(
    name=NAME,
    router=router,
    paths=("/image", "/server"),
    render_error=render_error,
)

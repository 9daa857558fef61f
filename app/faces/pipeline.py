"""The /pipeline routes of the service that Easel supersedes: one run at a time, and its state. A
run is an ordinary job; "the last run" is the newest job that came through this face."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from app.caller import Terms
from app.errors import Busy, EaselError, LoadFailed, NotEnded
from app.faces.face import Face, caller_of, engine_of, headers_of, status_of
from app.jobs.job import Job, JobQuery, JobState
from app.pictures import data_uri
from app.request import ImageRequest

NAME = "pipeline"
BUSY = "Pipeline execution is already running or pipeline is not initialized."
NOT_COMPLETE = "Pipeline execution is not yet complete."

router = APIRouter(prefix="/pipeline", tags=["pipeline"])


class DeviceBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    device: str
    model: str | None = None


class RunBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    seed: int | None = None
    strength: float | None = None
    image: str | None = Field(default=None, description="base64 or data URI: image to image")


def to_request(body: RunBody) -> ImageRequest:
    return ImageRequest(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        width=body.width,
        height=body.height,
        steps=body.num_inference_steps,
        guidance=body.guidance_scale,
        seed=body.seed,
        strength=body.strength,
        init_image=data_uri.from_base64(body.image, "image") if body.image is not None else None,
    )


async def _last(request: Request) -> Job | None:
    """The newest job of this face, from the job records, so that a restart does not forget it."""
    jobs = await engine_of(request).jobs(JobQuery(face=NAME, limit=1))
    return jobs[0] if jobs else None


LastRun = Annotated[Job | None, Depends(_last)]


@router.post("/select-device")
async def select_device(request: Request, body: DeviceBody, last: LastRun) -> dict[str, str]:
    """Prepares the pipeline on a device; the one that serves goes on serving if that fails."""
    engine = engine_of(request)
    if last is not None and not last.state.ended:
        raise Busy("Pipeline execution is running; select the device when it has ended.")
    _, device = await engine.load(body.model, body.device.upper())
    return {"status": "success", "message": f"Pipeline prepared on {device}."}


@router.post("/run")
async def run(request: Request, body: RunBody) -> dict[str, str]:
    """Starts a run in the background; 409 while one is running or no pipeline is ready."""
    engine = engine_of(request)
    if engine.readiness.status != "ready":
        raise Busy(BUSY)
    try:
        caller = caller_of(request, NAME)
        job = await engine.submit(to_request(body), caller, Terms(one_at_a_time=True))
    except Busy:
        raise Busy(BUSY) from None
    return {
        "status": "success",
        "message": "Pipeline execution started in background.",
        "job": job.id,
    }


@router.get("/status")
async def status(request: Request, last: LastRun) -> dict[str, Any]:
    """About the last run only. Reading it changes nothing."""
    serving = engine_of(request).readiness
    return {
        "running": last is not None and not last.state.ended,
        "completed": last is not None and last.state is JobState.SUCCEEDED,
        "job": last.id if last else None,
        "step": last.progress.step if last else 0,
        "steps": last.progress.steps if last else 0,
        "device": (last.device if last else None) or serving.device,
        "model": last.model if last else serving.model,
        "error": last.error.message if last and last.error else None,
    }


@router.get("/image")
async def get_image(request: Request, last: LastRun) -> Response:
    """The picture of the last run, as often as it is asked for."""
    if last is None or last.state is not JobState.SUCCEEDED:
        raise NotEnded(NOT_COMPLETE)
    _, data = await engine_of(request).image(last.id, 0)
    return Response(data, media_type="image/png")


@router.post("/cancel")
async def cancel(request: Request, last: LastRun) -> dict[str, str]:
    if last is None or last.state.ended:
        return {"status": "success", "message": "Nothing is running."}
    await engine_of(request).cancel(last.id)
    return {"status": "success", "message": "Pipeline execution canceled."}


def render_error(error: EaselError) -> Response:
    """{"status": "error", "message": ...} with the status codes of the original's document."""
    status = status_of(error)
    if isinstance(error, LoadFailed):
        status = 500
    elif error.field in ("device", "model"):
        status = 400
    return JSONResponse({"status": "error", "message": error.detail}, status, headers_of(error))


face = Face(name=NAME, router=router, paths=("/pipeline",), render_error=render_error)

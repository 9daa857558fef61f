"""POST /hf/{model}, as huggingface_hub's InferenceClient calls a model by its URL: the body is JSON
with inputs and parameters, or a picture's bytes; the answer is a picture's bytes. Strict: unknown
keys and values outside the limits are refused."""

import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, ValidationError

from app.errors import EaselError, InvalidRequest, Unavailable
from app.faces.face import (
    Face,
    caller_of,
    engine_of,
    finished,
    headers_of,
    picture_response,
    status_of,
    wanted_format,
)
from app.pictures import data_uri
from app.request import ImageFormat, ImageRequest
from app.samplers import from_diffusers

router = APIRouter(tags=["hub"])


class Size(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: int
    height: int


class Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    target_size: Size | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    seed: int | None = None
    strength: float | None = None


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inputs: str
    parameters: Parameters = Parameters()


def to_request(model: str, body: Body | bytes, form: ImageFormat | None) -> ImageRequest:
    """`inputs` is the prompt, unless parameters.prompt is given or it decodes to a picture: then it
    is the picture to start from, in base64."""
    parameters = body.parameters if isinstance(body, Body) else Parameters()
    prompt, init = parameters.prompt, None
    if isinstance(body, bytes):
        init = body
    elif prompt is not None or data_uri.is_picture(body.inputs):
        init = data_uri.from_base64(body.inputs, "inputs")
    else:
        prompt = body.inputs
    size = parameters.target_size
    return ImageRequest(
        prompt=prompt,
        negative_prompt=parameters.negative_prompt,
        model=model,
        width=size.width if size else parameters.width,
        height=size.height if size else parameters.height,
        steps=parameters.num_inference_steps,
        guidance=parameters.guidance_scale,
        sampler=from_diffusers(parameters.scheduler) if parameters.scheduler else None,
        seed=parameters.seed,
        init_image=init,
        strength=parameters.strength,
        format=form,
    )


@router.post("/hf/{model:path}")
async def run(request: Request, model: str) -> Response:
    """text_to_image and image_to_image; parameters.prompt tells them apart."""
    data = await request.body()
    kind = request.headers.get("content-type", "")
    is_json = "json" in kind or data.lstrip()[:1] == b"{"
    wanted = to_request(model, _parse(data) if is_json else data, wanted_format(request))
    job = await engine_of(request).submit(wanted, caller_of(request, face.name))
    job, [data] = await finished(request, job)
    return picture_response(job, data, job.warnings)


def _parse(data: bytes) -> Body:
    try:
        return Body.model_validate(json.loads(data))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is neither JSON nor a picture.") from None


def render_error(error: EaselError) -> Response:
    """The client shows `error` to its user. On 503 `estimated_time` says in how many seconds to
    retry."""
    body: dict[str, Any] = {"error": error.detail, "error_type": error.code}
    if isinstance(error, Unavailable):
        body["estimated_time"] = error.retry_after or 5
    return JSONResponse(body, status_of(error), headers_of(error))


face = Face(name="hub", router=router, paths=("/hf",), render_error=render_error)

"""POST /inference of an older service: one picture in base64; `uid`, the client's name for the
request, is repeated in the answer. Strict."""

import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from app.caller import Terms
from app.errors import EaselError
from app.faces.face import (
    Face,
    caller_of,
    engine_of,
    finished,
    headers_of,
    status_of,
)
from app.pictures import data_uri
from app.request import ImageRequest

NO_GUIDANCE = 1.0  # classifier-free guidance at 1 is the prediction for the prompt alone

router = APIRouter(tags=["inference"])


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str
    uid: str | None = Field(default=None, max_length=200, description="default: a new one")
    negative_prompt: str | None = None
    model: str | None = None
    steps: int | None = None
    seed: int | None = None
    do_scale: bool = Field(default=True, description="false: no guidance")
    scale: float | None = Field(default=None, description="the guidance")
    strength: float | None = Field(default=None, description="how far from the image")
    width: int | None = None
    height: int | None = None
    image: str | None = Field(
        default=None,
        validation_alias=AliasChoices("image", "init_image", "input_image"),
        description="base64 or data URI: image to image",
    )


def to_request(body: Body) -> ImageRequest:
    init_image = data_uri.from_base64(body.image, "image") if body.image is not None else None
    return ImageRequest(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        model=body.model,
        steps=body.steps,
        seed=body.seed,
        guidance=body.scale if body.do_scale else NO_GUIDANCE,
        width=body.width,
        height=body.height,
        init_image=init_image,
        # Clients send a strength with every request; text to image would refuse it.
        strength=body.strength if init_image is not None else None,
    )


@router.post("/inference")
async def inference(request: Request, body: Body) -> dict[str, Any]:
    uid = body.uid or uuid.uuid4().hex
    job = await engine_of(request).submit(
        to_request(body), caller_of(request, face.name), Terms(tag=uid)
    )
    job, [data] = await finished(request, job)
    return {
        "message": "success",
        "uid": uid,
        "image": data_uri.to_base64(data),
        "seed": job.recipe.seed,
        "warnings": list(job.warnings),
    }


def render_error(error: EaselError) -> Response:
    return JSONResponse(
        {"message": "error", "error": error.detail}, status_of(error), headers_of(error)
    )


face = Face(name="inference", router=router, paths=("/inference",), render_error=render_error)

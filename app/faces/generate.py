"""POST /generate, a route that two older services had with different contracts. Without model_type:
lenient (values are moved inside the model's limits, with `warnings`), answered in JSON. With
model_type, which names the model: strict, answered with the picture's bytes."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from app.caller import Terms
from app.errors import EaselError, InvalidRequest
from app.faces.face import (
    Face,
    caller_of,
    engine_of,
    finished,
    headers_of,
    parse_leniently,
    picture_response,
    status_of,
    wanted_format,
    warn_of_unknown,
)
from app.pictures import data_uri
from app.request import ImageFormat, ImageRequest, Resize

_RESIZE: dict[int, Resize] = {0: "stretch", 1: "crop", 2: "pad"}

router = APIRouter(tags=["generate"])


class Body(BaseModel):
    """What both documents name, and how clients of AUTOMATIC1111 spell it."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    prompt: str
    mode: Literal["txt2img", "img2img"] | None = None
    model_type: str | None = None
    negative_prompt: str | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = Field(
        default=None, validation_alias=AliasChoices("steps", "num_inference_steps")
    )
    guidance: float | None = Field(
        default=None, validation_alias=AliasChoices("cfg_scale", "guidance_scale")
    )
    sampler: str | None = Field(
        default=None, validation_alias=AliasChoices("sampler", "sampler_name")
    )
    init_image: str | None = None
    strength: float | None = Field(
        default=None, validation_alias=AliasChoices("strength", "denoising_strength")
    )
    resize_mode: Literal[0, 1, 2] = 0


def to_request(body: Body, form: ImageFormat | None) -> ImageRequest:
    from_picture = body.mode == "img2img" or (body.mode is None and body.init_image is not None)
    if from_picture and body.init_image is None:
        raise InvalidRequest("img2img needs an init_image.", field="init_image")
    return ImageRequest(
        prompt=body.prompt,
        model=body.model_type,
        negative_prompt=body.negative_prompt,
        seed=None if body.seed == -1 else body.seed,
        width=body.width,
        height=body.height,
        steps=body.steps,
        guidance=body.guidance,
        sampler=body.sampler,
        init_image=data_uri.from_base64(body.init_image or "", "init_image")
        if from_picture
        else None,
        strength=body.strength,
        resize=_RESIZE[body.resize_mode],
        format=form,
    )


@router.post("/generate")
async def generate(request: Request, body: dict[str, Any]) -> Response:
    """A picture: JSON with base64, or its bytes if the body has a model_type or Accept asks for an
    image."""
    known, warnings = parse_leniently(Body, body)
    warnings += warn_of_unknown(known.model_extra)
    if known.mode == "txt2img" and known.init_image is not None:
        warnings.append("init_image ignored: the mode is txt2img.")
    strict = known.model_type is not None
    if strict and warnings:
        raise InvalidRequest(warnings[0])
    form = wanted_format(request) or ("jpeg" if strict else None)
    job = await engine_of(request).submit(
        to_request(known, form), caller_of(request, face.name), Terms(lenient=not strict)
    )
    job, [data] = await finished(request, job)
    warnings += job.warnings
    if form is not None:
        return picture_response(job, data, warnings)
    return JSONResponse(
        {
            "status": "ok",
            "base64": data_uri.to_base64(data),
            "text_time_ms": job.timings_ms.get("text", 0.0),
            "total_time_ms": job.timings_ms["total"],
            "seed": job.recipe.seed,
            "warnings": warnings,
        }
    )


def render_error(error: EaselError) -> Response:
    return JSONResponse(
        {"status": "error", "error": error.detail}, status_of(error), headers_of(error)
    )


face = Face(name="generate", router=router, paths=("/generate",), render_error=render_error)

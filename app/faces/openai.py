"""OpenAI's images API under /v1, and the same routes under /v3, where clients of OpenVINO Model
Server look for them. Strict: values outside the limits are refused; unknown keys are named in
`warnings`."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from app import errors
from app.caller import Terms
from app.faces.face import (
    Face,
    caller_of,
    engine_of,
    entry_for,
    finished,
    headers_of,
    status_of,
    succeeded,
    warn_of_unknown,
    with_keep_alive,
)
from app.jobs.job import Job
from app.pictures import data_uri
from app.request import ImageFormat, ImageRequest

# OpenAI's type of an error, and its code; None: the code of Easel's own error class.
_INVALID = ("invalid_request_error", None)
_ERRORS: dict[type[errors.EaselError], tuple[str, str | None]] = {
    errors.InvalidRequest: _INVALID, errors.TooLarge: _INVALID, errors.NotFound: _INVALID,
    errors.MethodNotAllowed: _INVALID, errors.Conflict: _INVALID,
    errors.Unauthorized: ("invalid_request_error", "invalid_api_key"),
    errors.UnknownModel: ("invalid_request_error", "model_not_found"),
    errors.QueueFull: ("rate_limit_error", "rate_limit_exceeded"),
    errors.EaselError: ("server_error", None),
}  # fmt: skip
_WORTH_A_RETRY = (errors.QueueFull, errors.Unavailable)
_PARAMS = {  # ImageRequest's field: the key of this dialect that an error names in `param`
    "width": "size", "height": "size", "images": "n", "init_image": "image",
    "steps": "num_inference_steps", "guidance": "guidance_scale",
    "format": "output_format", "quality": "output_compression",
}  # fmt: skip
# Keys that only OpenAI's own service acts on: ignored here without a warning.
_HARMLESS = frozenset({"quality", "style", "moderation", "user", "safety_identifier"})

_routes = APIRouter(tags=["openai"])


def _aliases(*names: str) -> Any:
    """An optional field that may come under any of these keys."""
    return Field(default=None, validation_alias=AliasChoices(*names))


class Body(BaseModel):
    """Of all three routes. Numbers may come as text: multipart knows no other."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    prompt: str | None = None
    model: str | None = None
    n: int | None = _aliases("n", "num_images_per_prompt")
    size: str | None = Field(default=None, pattern=r"^(auto|[0-9]{1,6}x[0-9]{1,6})$")
    response_format: Literal["url", "b64_json"] | None = None
    output_format: ImageFormat | None = None
    output_compression: int | None = None
    background: Literal["opaque", "auto"] | None = None
    input_fidelity: Literal["low"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0, le=3)
    steps: int | None = _aliases("num_inference_steps", "steps")
    guidance: float | None = _aliases("guidance_scale", "cfg_scale")
    negative_prompt: str | None = None
    seed: int | None = _aliases("seed", "rng_seed")
    strength: float | None = None


def to_request(body: Body, files: dict[str, bytes]) -> ImageRequest:
    size = re.fullmatch(r"(\d+)x(\d+)", body.size or "")
    return ImageRequest(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        model=body.model or None,
        width=int(size[1]) if size else None,
        height=int(size[2]) if size else None,
        steps=body.steps,
        guidance=body.guidance,
        seed=body.seed,
        images=body.n,
        init_image=files.get("image"),
        strength=body.strength,
        mask=files.get("mask"),
        mask_means="transparent",
        format=body.output_format,
        quality=max(1, body.output_compression) if body.output_compression is not None else None,
    )


@_routes.post("/images/generations")
async def generations(request: Request, body: Body) -> Response:
    return await _answer(request, body, {}, "image_generation")


@_routes.post("/images/edits")
async def edits(request: Request) -> Response:
    body, files = await _form(request)
    if body.prompt is None:
        raise errors.InvalidRequest("prompt is missing.", field="prompt")
    return await _answer(request, body, files, "image_edit")


@_routes.post("/images/variations")
async def variations(request: Request) -> Response:
    body, files = await _form(request)
    return await _answer(request, body, files, "image_edit")


async def _form(request: Request) -> tuple[Body, dict[str, bytes]]:
    """The fields and files of a multipart body. A list of pictures comes as image[]."""
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    async with request.form() as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if not isinstance(value, UploadFile):
                fields[key] = value
            elif name in files or name not in ("image", "mask"):
                raise errors.InvalidRequest("One image and one mask can be used.", field=name)
            else:
                files[name] = await value.read()
    if "image" not in files:
        raise errors.InvalidRequest("image is missing: send it as a file.", field="image")
    try:
        return Body.model_validate(fields), files
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


async def _answer(request: Request, body: Body, files: dict[str, bytes], kind: str) -> Response:
    job = await engine_of(request).submit(
        to_request(body, files),
        caller_of(request, face.name),
        Terms(repeatable=True, watched=bool(body.stream and body.partial_images)),
    )
    if body.stream:
        return EventSourceResponse(_stream(request, body, job, kind))
    job, drawn = await finished(request, job)
    # OpenAI's default: url for dall-e models, b64_json for all others.
    default = "url" if (body.model or "").startswith("dall-e") else "b64_json"
    by_url = (body.response_format or default) == "url"
    data = [
        {"url": f"{request.base_url}jobs/{job.id}/images/{n}", "seed": file.seed}
        if by_url
        else {"b64_json": data_uri.to_base64(drawn[n]), "seed": file.seed}
        for n, file in enumerate(job.images)
    ]
    metadata = {"created": int(job.created), **_picture_facts(job), **_warnings(body, job)}
    return JSONResponse(metadata | {"data": data, "usage": _usage(job)})


def _picture_facts(job: Job) -> dict[str, str]:
    recipe = job.recipe
    size = f"{recipe.width}x{recipe.height}"
    return {"size": size, "output_format": recipe.format, "background": "opaque"}


def _warnings(body: Body, job: Job) -> dict[str, list[str]]:
    warnings = [*warn_of_unknown(body.model_extra, harmless=_HARMLESS), *job.warnings]
    return {"warnings": warnings} if warnings else {}


def _usage(job: Job) -> dict[str, Any]:
    """Estimates in OpenAI's unit: four characters of text and 16x16 pixels count as a token."""
    recipe = job.recipe
    pixels = recipe.width * recipe.height // 256
    text = -(-len(recipe.prompt + (recipe.negative_prompt or "")) // 4)
    seen = pixels if recipe.init_image else 0
    made = pixels * recipe.images
    return {
        "input_tokens": text + seen,
        "input_tokens_details": {"text_tokens": text, "image_tokens": seen},
        "output_tokens": made,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": made},
        "total_tokens": text + seen + made,
    }


async def _stream(request: Request, body: Body, job: Job, kind: str) -> AsyncIterator[bytes]:
    """Server-sent events: as many previews as `partial_images` says, evenly spread over the steps,
    then the finished pictures, or one error event. Comments keep the connection open meanwhile."""
    engine = engine_of(request)
    partial_images = body.partial_images or 0
    sent = 0
    metadata: dict[str, Any] = {
        **_picture_facts(job),
        "created_at": int(job.created),
        "quality": "auto",
    }
    try:
        events = with_keep_alive(engine.events(job.id))
        with engine.waiting(job.id):
            async for event in events:
                if event is None:
                    yield KEEPALIVE_COMMENT
                    continue
                job = event.job
                due = (sent + 1) / (partial_images + 1)
                if event.preview and sent < partial_images and job.progress.fraction >= due:
                    yield _event(
                        f"{kind}.partial_image",
                        # A preview is a small JPEG, whatever the finished picture will be.
                        {**metadata, "output_format": "jpeg"},
                        b64_json=data_uri.to_base64(event.preview),
                        partial_image_index=sent,
                    )
                    sent += 1
        metadata |= {"usage": _usage(job), **_warnings(body, job)}
        for picture in await engine.pictures(succeeded(job)):
            yield _event(f"{kind}.completed", metadata, b64_json=data_uri.to_base64(picture))
    except errors.EaselError as error:
        yield format_sse_event(event="error", data_str=json.dumps(_error(error)))


def _event(kind: str, metadata: dict[str, Any], **more: Any) -> bytes:
    return format_sse_event(event=kind, data_str=json.dumps({"type": kind, **metadata, **more}))


@_routes.get("/models")
async def get_models(request: Request) -> dict[str, Any]:
    """The installed models, also under the names of MODEL_ALIASES."""
    engine = engine_of(request)
    installed = (name for name in engine.model_names() if engine.model(name).installed)
    return {"object": "list", "data": [_model(name) for name in installed]}


@_routes.get("/models/{name:path}")
async def get_model(request: Request, name: str) -> dict[str, Any]:
    engine_of(request).model(name)
    return _model(name)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "easel"}


def _error(error: errors.EaselError) -> dict[str, Any]:
    kind, code = entry_for(error, _ERRORS)
    param = _PARAMS.get(error.field, error.field) if error.field else None
    body = {"message": error.detail, "type": kind, "code": code or error.code, "param": param}
    return {"error": body}


def render_error(error: errors.EaselError) -> Response:
    """By itself the SDK retries 409, 429 and 5xx. The header x-should-retry overrides that: true
    only for a full queue and for a service or model that is not ready yet."""
    retry = "true" if isinstance(error, _WORTH_A_RETRY) else "false"
    headers = {**headers_of(error), "x-should-retry": retry}
    return JSONResponse(_error(error), status_of(error), headers)


router = APIRouter()
for _prefix in ("/v1", "/v3"):
    router.include_router(_routes, prefix=_prefix)
face = Face(name="openai", router=router, paths=("/v1", "/v3"), render_error=render_error)

"""AUTOMATIC1111's API: models, options, samplers, tasks, and routes that read or enlarge a picture.
Owns no paths: sdapi.py owns /sdapi and /internal, and so renders the errors of these routes."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import psutil
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from app.faces.face import Face, caller_of, engine_of, parse_leniently, problem, warn_of_unknown
from app.jobs.job import JobQuery, JobState
from app.pictures import codec, data_uri
from app.pictures.transform import enlarge
from app.samplers import title_of

# Answers that never change: lists of features that Easel lacks or has in one form only.
_UPSCALERS = ("None", "Lanczos", "Nearest")
_FIXED: dict[str, Any] = {
    "upscalers": [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4}
        for name in _UPSCALERS
    ],
    "schedulers": [
        {"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1,
         "need_inner_model": False}
    ],
    "scripts": {"txt2img": [], "img2img": []},
    "cmd-flags": {},
    "embeddings": {"loaded": {}, "skipped": {}},
} | dict.fromkeys(
    ("latent-upscale-modes", "sd-vae", "loras", "script-info", "extensions", "hypernetworks",
     "face-restorers", "realesrgan-models", "prompt-styles", "sd-modules"), ()
)  # fmt: skip

router = APIRouter(tags=["sdapi"])


def _endpoint_for(value: Any) -> Callable[[], Any]:
    return lambda: value


for _name, _value in _FIXED.items():
    router.add_api_route(f"/sdapi/v1/{_name}", _endpoint_for(_value), name=_name)


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    image: str
    resize_mode: int = 0
    upscaling_resize: float = Field(default=2, gt=0, le=16)
    upscaling_resize_w: int = Field(default=512, gt=0, le=codec.MAX_PIXELS)
    upscaling_resize_h: int = Field(default=512, gt=0, le=codec.MAX_PIXELS)
    upscaling_crop: bool = True
    upscaler_1: str = "None"


def _json(content: Any) -> Response:
    # json.dumps escapes to ASCII: texts inside pictures may hold lone surrogates, which
    # JSONResponse cannot encode.
    return Response(json.dumps(content), media_type="application/json")


@router.get("/sdapi/v1/options")
async def get_options(request: Request) -> dict[str, Any]:
    name = engine_of(request).serving_model.name
    return {"sd_model_checkpoint": name, "sd_checkpoint_hash": None, "sd_vae": "Automatic",
            "samples_format": "png", "CLIP_stop_at_last_layers": 1}  # fmt: skip


@router.post("/sdapi/v1/options")
async def post_options(request: Request, body: dict[str, Any]) -> dict[str, Any]:
    """sd_model_checkpoint switches the serving model; clients post all other options back as they
    got them."""
    name = body.get("sd_model_checkpoint")
    if isinstance(name, str) and name:
        await engine_of(request).load(name)
    return {}


@router.get("/sdapi/v1/sd-models")
async def sd_models(request: Request) -> list[dict[str, Any]]:
    return [
        {"title": model.name, "model_name": model.name, "hash": None, "sha256": None,
         "filename": model.name, "config": None}
        for model in engine_of(request).models() if model.installed
    ]  # fmt: skip


@router.get("/sdapi/v1/samplers")
async def samplers(request: Request) -> list[dict[str, Any]]:
    names = engine_of(request).serving_model.samplers
    return [{"name": title_of(name), "aliases": [name], "options": {}} for name in names]


@router.get("/sdapi/v1/memory")
async def memory() -> dict[str, Any]:
    ram = psutil.virtual_memory()
    return {"ram": {"free": ram.available, "used": ram.used, "total": ram.total},
            "cuda": {"error": "There is no CUDA here."}}  # fmt: skip


@router.post("/sdapi/v1/png-info")
async def png_info(body: dict[str, Any]) -> Response:
    data = data_uri.from_base64(str(body.get("image", "")), "image")
    text, pairs = await asyncio.to_thread(codec.describe, data, "image")
    items = {"parameters": text} if text else {}
    return _json({"info": text, "items": items, "parameters": pairs})


@router.post("/sdapi/v1/extra-single-image")
async def extra_single_image(body: dict[str, Any]) -> Response:
    """A larger picture, by plain resampling."""
    known, warnings = parse_leniently(Extra, body)
    off = {key for key, value in (known.model_extra or {}).items() if value in (0, "None")}
    harmless = {"show_extras_results", "upscale_first", "codeformer_weight"}
    warnings += warn_of_unknown(known.model_extra, harmless=frozenset(harmless | off))
    if known.upscaler_1 not in _UPSCALERS:
        warnings.append("upscaler_1 set to Lanczos: the others are not here.")
    size = (known.upscaling_resize_w, known.upscaling_resize_h) if known.resize_mode == 1 else None
    large = await asyncio.to_thread(
        enlarge,
        data_uri.from_base64(known.image, "image"),
        "image",
        factor=known.upscaling_resize,
        size=size,
        crop=known.upscaling_crop,
        smooth=known.upscaler_1 != "Nearest",
    )
    return _json({"html_info": " ".join(warnings), "image": data_uri.to_base64(large)})


@router.post("/internal/progress")
async def task_progress(request: Request, body: dict[str, Any]) -> dict[str, Any]:
    """Of the job that came with this force_task_id."""
    engine, caller = engine_of(request), caller_of(request, "sdapi")
    tag = str(body.get("id_task", ""))
    job = next((job for job in engine.active(caller) if job.tag == tag), None)
    past = [] if job else await engine.jobs(JobQuery(face=caller.face, limit=100))
    ended = any((other.tag, other.owner) == (tag, caller.owner) for other in past)
    preview = engine.preview(job.id) if job and body.get("live_preview", True) else None
    running = job is not None and job.state is JobState.RUNNING
    return {
        "active": running,
        "queued": job is not None and not running,
        "completed": ended,
        "progress": job.progress.fraction if job else None,
        "eta": job.progress.eta_seconds if job else None,
        "live_preview": data_uri.to_data_uri(preview, "image/jpeg") if preview else None,
        "id_live_preview": job.progress.step if job and preview else -1,
        "textinfo": "Waiting..." if job and not running else None,
    }


@router.get("/internal/pending-tasks")
async def pending_tasks(request: Request) -> dict[str, Any]:
    active = engine_of(request).active(caller_of(request, "sdapi"))
    tags = [job.tag for job in active if job.tag]
    return {"size": len(tags), "tasks": tags}


face = Face(name="sdapi_server", router=router, paths=(), render_error=problem)

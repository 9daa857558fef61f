"""AUTOMATIC1111's API: txt2img, img2img, progress, interrupt. Lenient, as its clients send some 45
keys with every request: what cannot be done is left out and named in `info`, under `warnings`. Its
routes about the server and about existing pictures are in sdapi_server.py."""

import json
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from app import __version__, errors
from app.caller import Terms
from app.faces.face import (
    Face,
    caller_of,
    engine_of,
    finished,
    headers_of,
    parse_leniently,
    status_of,
    warn_of_unknown,
)
from app.jobs.job import Job, JobState
from app.pictures import data_uri
from app.pictures.infotext import parameters
from app.request import ImageFormat, ImageRequest, Resize
from app.samplers import from_title, title_of

NAME = "sdapi"
_RESIZE: dict[int, Resize] = {0: "stretch", 1: "crop", 2: "pad"}
_FORMATS: dict[str, ImageFormat] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
# Keys that change nothing here, or only together with another key: ignored without a warning.
_HARMLESS = frozenset(
    """url auth subseed s_tmax script_args save_images do_not_save_samples do_not_save_grid
    image_cfg_scale include_init_images sampler_index infotext refiner_switch_at comments
    disable_extra_networks firstphase_width firstphase_height latent_mask""".split()  # noqa: SIM905
)
# Keys of features that Easel lacks, with the values that mean the feature is off. Such a value is
# ignored without a warning.
_OFF: dict[str, tuple[Any, ...]] = {
    "enable_hr": (False,), "restore_faces": (False,), "tiling": (False,), "styles": ([],),
    "subseed_strength": (0,), "seed_resize_from_h": (0, -1), "seed_resize_from_w": (0, -1),
    "script_name": ("",), "alwayson_scripts": ({},), "eta": (0, 1), "s_churn": (0,),
    "s_tmin": (0,), "s_noise": (1,), "s_min_uncond": (0,), "initial_noise_multiplier": (1,),
    "scheduler": ("", "automatic", "Automatic"), "refiner_checkpoint": ("", "None"),
    "sd_vae": ("", "Automatic", "None"), "CLIP_stop_at_last_layers": (0, 1), "clip_skip": (0, 1),
}  # fmt: skip

router = APIRouter(tags=["sdapi"])


class Body(BaseModel):
    """txt2img and img2img: what is understood of either."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    prompt: str = ""
    negative_prompt: str | None = None
    seed: int | None = None
    sampler_name: str | None = Field(
        default=None, validation_alias=AliasChoices("sampler_name", "sampler_index")
    )
    batch_size: int = 1
    n_iter: int = 1
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    override_settings: dict[str, Any] = {}
    override_settings_restore_afterwards: bool = True
    send_images: bool = True
    force_task_id: str = ""
    init_images: list[str] = []
    denoising_strength: float | None = None
    resize_mode: int = 0
    mask: str | None = None
    mask_blur: int = 0
    inpainting_mask_invert: int = 0
    inpainting_fill: int = 1
    inpaint_full_res: bool = False
    inpaint_full_res_padding: int = 0


def to_request(body: Body, settings: dict[str, Any], warnings: list[str]) -> ImageRequest:
    first = body.init_images[0] if body.init_images else None
    model = settings.pop("sd_model_checkpoint", None)
    if len(body.init_images) > 1:
        warnings.append("init_images: only the first one was used.")
    if body.resize_mode not in _RESIZE:
        warnings.append("resize_mode set to 0: 0, 1 and 2 are known.")
    if body.mask and body.inpainting_fill != 1:
        warnings.append("inpainting_fill set to 1: repainting starts from the original.")
    return ImageRequest(
        prompt=body.prompt if body.prompt.strip() or first is None else None,
        negative_prompt=body.negative_prompt,
        model=str(model) if model else None,
        width=body.width,
        height=body.height,
        steps=body.steps,
        guidance=body.cfg_scale,
        seed=None if body.seed == -1 else body.seed,
        images=body.batch_size * body.n_iter,
        sampler=from_title(body.sampler_name) if body.sampler_name else None,
        init_image=data_uri.from_base64(first, "init_images") if first is not None else None,
        strength=body.denoising_strength if first is not None else None,
        resize=_RESIZE.get(body.resize_mode, "stretch"),
        mask=data_uri.from_base64(body.mask, "mask") if body.mask else None,
        mask_means="black" if body.inpainting_mask_invert else "white",
        mask_blur=body.mask_blur,
        mask_padding=body.inpaint_full_res_padding if body.mask and body.inpaint_full_res else None,
        format=_FORMATS.get(str(settings.pop("samples_format", "png")).lower()),
    )


@router.post("/sdapi/v1/txt2img")
@router.post("/sdapi/v1/img2img")
async def generate(request: Request, body: dict[str, Any]) -> Response:
    engine = engine_of(request)
    known, warnings = parse_leniently(Body, body)
    from_picture = request.url.path.endswith("img2img")
    if from_picture and not known.init_images:
        raise errors.InvalidRequest("init_images is empty.", field="init_images")
    if known.init_images and not from_picture:
        known = known.model_copy(update={"init_images": [], "mask": None})
        warnings.append("init_images ignored: txt2img starts from none.")
    settings = dict(known.override_settings)
    wanted = to_request(known, settings, warnings)
    rest = (known.model_extra or {}) | settings
    off = {key for key in rest if key.startswith("hr_") or rest[key] in _OFF.get(key, ())}
    warnings += warn_of_unknown(rest, harmless=_HARMLESS | off)
    if wanted.model and not known.override_settings_restore_afterwards:
        await engine.load(wanted.model)
    terms = Terms(lenient=True, tag=known.force_task_id)
    job = await engine.submit(wanted, caller_of(request, NAME), terms)
    try:
        job, files = await finished(request, job)
    except errors.JobCanceled:
        job, files = await engine.job(job.id), []  # an answer without pictures
        warnings.append("interrupted.")
    answer = {
        "images": [data_uri.to_base64(file) for file in files if known.send_images],
        "parameters": known.model_dump(include=set(Body.model_fields) - {"init_images", "mask"}),
        "info": json.dumps(to_info(job, [*warnings, *job.warnings], known)),
    }
    # json.dumps escapes to ASCII: the answer repeats the client's strings, and those may hold lone
    # surrogates, which JSONResponse cannot encode.
    return Response(json.dumps(answer), media_type="application/json")


def to_info(job: Job, warnings: list[str], body: Body) -> dict[str, Any]:
    recipe, count = job.recipe, job.recipe.images
    seeds = [recipe.image_seed(n) for n in range(count)]
    negative = recipe.negative_prompt or ""
    return {
        "prompt": recipe.prompt, "all_prompts": [recipe.prompt] * count,
        "negative_prompt": negative, "all_negative_prompts": [negative] * count,
        "seed": seeds[0], "all_seeds": seeds,
        "subseed": seeds[0], "all_subseeds": seeds, "subseed_strength": 0,
        "width": recipe.width, "height": recipe.height,
        "sampler_name": title_of(recipe.sampler) if recipe.sampler else None,
        "cfg_scale": recipe.guidance, "steps": recipe.steps,
        "batch_size": body.batch_size, "restore_faces": False, "face_restoration_model": None,
        "sd_model_name": recipe.model, "sd_model_hash": None, "sd_vae_name": None,
        "sd_vae_hash": None, "seed_resize_from_w": -1, "seed_resize_from_h": -1,
        "denoising_strength": recipe.strength, "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [parameters(recipe, seed) for seed in seeds],
        "styles": [], "job_timestamp": _timestamp(job.created), "clip_skip": 1,
        "is_using_inpainting_conditioning": False, "version": f"Easel {__version__}",
        "warnings": warnings,
    }  # fmt: skip


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(seconds))


def _current(request: Request) -> Job | None:
    """The caller's running job of this face, or else the queued one that comes next."""
    return next(iter(engine_of(request).active(caller_of(request, NAME))), None)


@router.get("/sdapi/v1/progress")
async def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
    """Of the caller's own job; 0 and no job when there is none."""
    job = _current(request)
    if job is None:
        return {"progress": 0.0, "eta_relative": 0.0, "state": _state(None),
                "current_image": None, "textinfo": None}  # fmt: skip
    preview = None if skip_current_image else engine_of(request).preview(job.id)
    return {
        "progress": job.progress.fraction,
        "eta_relative": job.progress.eta_seconds or 0.0,
        "state": _state(job),
        "current_image": data_uri.to_base64(preview) if preview else None,
        "textinfo": "Waiting..." if job.state is JobState.QUEUED else None,
    }


def _state(job: Job | None) -> dict[str, Any]:
    done = job.progress.step if job else 0
    steps = job.recipe.steps if job else 0
    return {
        "skipped": False, "interrupted": False, "stopping_generation": False,
        "job": job.tag or job.id if job else "", "job_count": job.recipe.images if job else 0,
        "job_timestamp": _timestamp(job.created) if job else "0",
        "job_no": done // steps if steps else 0,
        "sampling_step": done % steps if steps else 0, "sampling_steps": steps,
    }  # fmt: skip


@router.post("/sdapi/v1/interrupt")
@router.post("/sdapi/v1/skip")
async def interrupt(request: Request) -> dict[str, Any]:
    """Ends what the caller's own key has running through this face, or else what is next."""
    engine, first = engine_of(request), _current(request)
    active = engine.active(caller_of(request, NAME))
    for job in [job for job in active if job.state is JobState.RUNNING or job is first]:
        await engine.cancel(job.id)
    return {}


def render_error(error: errors.EaselError) -> Response:
    body = {"error": error.code, "detail": error.detail, "body": "", "errors": error.detail}
    return JSONResponse(body, status_of(error), headers_of(error))


face = Face(name=NAME, router=router, paths=("/sdapi", "/internal"), render_error=render_error)

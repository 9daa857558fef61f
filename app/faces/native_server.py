"""The native API's other routes: models, devices, health. docs/api.md is the contract. Jobs are in
native.py."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from app.engine import Engine
from app.faces.face import Face, engine_of, problem
from app.models.model import Model

router = APIRouter()


class LoadBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    device: str | None = Field(
        default=None, description="default: the serving device, if the model runs there"
    )


@router.get("/models", tags=["models"])
async def get_models(request: Request) -> dict[str, Any]:
    engine = engine_of(request)
    return {"models": [await _model(model, engine) for model in engine.models()]}


@router.get("/models/{name}", tags=["models"])
async def get_model(request: Request, name: str) -> dict[str, Any]:
    engine = engine_of(request)
    return await _model(engine.model(name), engine)


async def _model(model: Model, engine: Engine) -> dict[str, Any]:
    loaded_on, installation = engine.model_state(model)
    return {
        "name": model.name,
        "title": model.title,
        "aliases": list(model.aliases),
        "family": model.family,
        "licence": model.licence,
        "installed": model.installed,
        "installing": installation,
        "bytes": await engine.model_size(model) or model.weights.bytes,
        "loaded": loaded_on,
        "devices": list(model.devices),
        "defaults": asdict(model.defaults),
        "limits": asdict(model.limits),
        "samplers": list(model.samplers),
    }


@router.post("/models/{name}/load", tags=["models"])
async def load_model(request: Request, name: str, body: LoadBody | None = None) -> dict[str, Any]:
    """Makes the model the serving pipeline; answers when it is ready. Until then the old one
    serves."""
    engine = engine_of(request)
    device = body.device.upper() if body and body.device is not None else None
    model, _ = await engine.load(name, device)
    return await _model(model, engine)


@router.delete("/models/{name}/load", status_code=204, tags=["models"])
async def unload_model(request: Request, name: str) -> Response:
    """Frees the model's memory. The next job for it loads it again."""
    await engine_of(request).unload(name)
    return Response(status_code=204)


@router.get("/devices", tags=["devices"])
async def get_devices(request: Request) -> list[dict[str, Any]]:
    return [asdict(device) for device in await engine_of(request).devices()]


@router.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Answers as long as the process lives."""
    return {"status": "healthy"}


@router.get("/health/ready", tags=["health"])
async def ready(request: Request) -> Response:
    """200 when a job handed in now would be worked on, else 503 and why not yet."""
    readiness = engine_of(request).readiness
    if readiness.status == "ready":
        body = {"status": "ready", "model": readiness.model, "device": readiness.device}
        return JSONResponse(body)
    body: dict[str, Any] = {"status": readiness.status, "detail": readiness.detail}
    if readiness.progress is not None:
        body["progress"] = readiness.progress
    return JSONResponse(body, 503)


face = Face(
    name="native_server",
    router=router,
    paths=("/models", "/devices", "/health"),
    render_error=problem,
)

"""The API dialects, one file each. A new one is its file and its name here."""

from importlib import import_module

from app.faces.face import Face

NAMES = (
    "native",
    "native_server",
    "pipeline",
    "generate",
    "image_generate",
    "inference",
    "openai",
    "sdapi",
    "sdapi_server",
    "hub",
)


def faces() -> list[Face]:
    return [import_module(f"app.faces.{name}").face for name in NAMES]

"""The HTTP routes: one file per API dialect, which translates between its own JSON and the engine's
ImageRequest and Job. Knows no queue, worker or file; nothing outside knows a dialect.

A new dialect is a new file that defines `face`, and its name in NAMES.
"""

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

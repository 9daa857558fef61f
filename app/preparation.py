"""Turns an ImageRequest into what a worker needs: the recipe and its input pictures.

Decoding and resizing pictures takes milliseconds and so runs on a thread, not on the event loop.
"""

import asyncio
from dataclasses import dataclass

from app.models.model import Model
from app.pictures.inputs import fit_inputs, open_inputs
from app.request import ImageRequest, Recipe


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """`inputs` are the PNG files that the recipe names; `warnings` are sentences about what was
    changed or left out."""

    recipe: Recipe
    inputs: dict[str, bytes]
    warnings: tuple[str, ...]


async def prepare(request: ImageRequest, model: Model, *, lenient: bool = False) -> Prepared:
    """Decodes the pictures, fills in the model's defaults and checks its limits; raises
    InvalidRequest. With `lenient`, values outside the limits are moved inside, with a warning.
    """
    if request.init_image is None:
        recipe, warnings = model.complete(request, lenient=lenient)
        return Prepared(recipe=recipe, inputs={}, warnings=tuple(warnings))
    pictures = await asyncio.to_thread(open_inputs, request)
    size = pictures["init_image"].size
    recipe, warnings = model.complete(request, lenient=lenient, init_size=size)
    inputs = await asyncio.to_thread(fit_inputs, pictures, recipe, request)
    return Prepared(recipe=recipe, inputs=inputs, warnings=tuple(warnings))

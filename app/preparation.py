"""From a request to what a worker needs: the recipe, and the pictures it starts from.

Decoding and fitting pictures takes a while and runs on a thread.
"""

import asyncio
from dataclasses import dataclass

from app.models.model import Model
from app.pictures.inputs import fit_inputs, open_inputs
from app.request import ImageRequest, Recipe


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """`inputs` are the PNG files that the recipe names, `warnings` what is not honoured, in
    words."""

    recipe: Recipe
    inputs: dict[str, bytes]
    warnings: tuple[str, ...]


async def prepare(request: ImageRequest, model: Model, *, lenient: bool = False) -> Prepared:
    """Opens the pictures, fills the gaps and checks the limits; raises InvalidRequest.

    Lenient, what is outside the limits is moved inside, with a warning.
    """
    if request.init_image is None:
        recipe, warnings = model.complete(request, lenient=lenient)
        return Prepared(recipe=recipe, inputs={}, warnings=tuple(warnings))
    pictures = await asyncio.to_thread(open_inputs, request)
    size = pictures["init_image"].size
    recipe, warnings = model.complete(request, lenient=lenient, init_size=size)
    inputs = await asyncio.to_thread(fit_inputs, pictures, recipe, request)
    return Prepared(recipe=recipe, inputs=inputs, warnings=tuple(warnings))

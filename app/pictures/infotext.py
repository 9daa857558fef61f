"""AUTOMATIC1111's "infotext": the recipe of a picture as text inside its file. Writes it, parses
it, and finds it in a picture that was read; codec.py puts it into files.
"""

import contextlib
import json
import re
from typing import Any

from PIL import ExifTags, Image

from app import __version__
from app.request import MAX_PROMPT, Recipe
from app.samplers import title_of

_PAIR = re.compile(r'([A-Za-z][\w /-]{0,60}): ("(?:[^"\\]|\\.)*"|[^,]*)(?:, |$)')


def parameters(recipe: Recipe, seed: int) -> str:
    """The recipe as AUTOMATIC1111 writes it: prompt, negative prompt, then `key: value` pairs."""
    pairs: dict[str, Any] = {"Steps": recipe.steps}
    if recipe.sampler:
        pairs["Sampler"] = title_of(recipe.sampler)
    if recipe.guidance is not None:
        pairs["CFG scale"] = f"{recipe.guidance:g}"
    pairs |= {"Seed": seed, "Size": f"{recipe.width}x{recipe.height}", "Model": recipe.model}
    if recipe.strength is not None:
        pairs["Denoising strength"] = f"{recipe.strength:g}"
    pairs["Version"] = f"Easel {__version__}"
    lines = [recipe.prompt]
    if recipe.negative_prompt:
        lines.append(f"Negative prompt: {recipe.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items()))
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def parse_parameters(text: str) -> dict[str, str]:
    """The inverse of `parameters`, also for texts that AUTOMATIC1111 wrote: its last line's pairs,
    and before them `Prompt` and `Negative prompt`."""
    *lines, last = text.strip().split("\n")
    found = _PAIR.findall(last[:MAX_PROMPT])
    if len(found) < 3:
        lines, found = [*lines, last], []
    prompt, _, negative = "\n".join(["", *lines]).partition("\nNegative prompt:")
    pairs = {"Prompt": prompt.strip(), "Negative prompt": negative.strip()}
    for key, value in found:
        if value.startswith('"'):
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        pairs[key] = value
    return pairs if text else {}


def read_parameters(image: Image.Image) -> str | None:
    """The recipe text of a picture made by Easel or AUTOMATIC1111, if it carries one."""
    text = image.info.get("parameters")
    if isinstance(text, str):
        return text
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        return comment[8:].decode("utf-16-be", errors="replace")
    return None

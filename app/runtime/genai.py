"""The one OpenVINO GenAI pipeline that the OpenVINO families share: text to image, image to image,
inpainting.

Loaded in a worker process only. The runtime aborts the process, or answers with a wrong picture,
where one would expect an error; what is known of that is handled here, each with its reason.
"""

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from numpy.typing import NDArray

from app.errors import GenerationFailed, LoadFailed
from app.request import Recipe
from app.runtime.protocol import Canceled, Generated, Inputs, LoadOptions, OnStep, Pixels

_SCHEDULERS = {
    "euler": "EULER_DISCRETE",
    "euler_ancestral": "EULER_ANCESTRAL_DISCRETE",
    "ddim": "DDIM",
    "pndm": "PNDM",
    "lcm": "LCM",
    "flow_match_euler": "FLOW_MATCH_EULER_DISCRETE",
}
# With timestep_spacing "trailing" the runtime's rounding gives one step too many at other counts,
# and NaN.
_TRAILING_IS_SAFE = {*range(1, 9), 10, 20, 25, 50}
# Which argument carries the prompt of the T5 encoder, which takes more than CLIP's 77 tokens.
_LONG_PROMPT = {"StableDiffusion3Pipeline": "prompt_3", "FluxPipeline": "prompt_2"}


def load(
    weights: Path, device: str, options: LoadOptions, *, preview: NDArray[np.float32] | None = None
) -> "OpenVINOPipeline":
    """Compiles the pipeline in `weights` for a device; raises LoadFailed in words.

    `preview` is a linear map from latents to RGB, float [channels + 1, 3 * p * p]: a latent value
    and a constant 1 become p x p pixels (row, column, rgb) in 0..1.
    """
    properties: dict[str, Any] = {}
    if options.cache_dir is not None:
        options.cache_dir.mkdir(parents=True, exist_ok=True)
        properties["CACHE_DIR"] = str(options.cache_dir)
    if options.threads and device == "CPU":
        properties["INFERENCE_NUM_THREADS"] = options.threads
    try:
        _check_tokenizers(weights)
        # The path alone first: the constructor that takes a device holds the GIL until all is
        # compiled.
        pipeline = genai.InpaintingPipeline(weights)
        pipeline.compile(device, **properties)
        return OpenVINOPipeline(pipeline, weights, options, preview)
    except RuntimeError as error:
        raise LoadFailed(
            f"{options.model.name} cannot be loaded on {device}: {_words(error)}"
        ) from error


def _check_tokenizers(weights: Path) -> None:
    """The runtime misses a tokenizer only when the first prompt comes."""
    for encoder in sorted(weights.glob("text_encoder*")):
        folder = weights / encoder.name.replace("text_encoder", "tokenizer")
        if not (folder / "openvino_tokenizer.xml").is_file():
            raise RuntimeError(f"{folder} has no openvino_tokenizer.xml.")


class OpenVINOPipeline:
    """One set of weights, serving all three kinds of job."""

    def __init__(
        self,
        inpainting: genai.InpaintingPipeline,
        weights: Path,
        options: LoadOptions,
        preview: NDArray[np.float32] | None,
    ) -> None:
        self._weights = weights
        self._model = options.model
        self._preview = preview
        self._class: str = json.loads((weights / "model_index.json").read_text())["_class_name"]
        self._inpainting = inpainting
        # Derived pipelines share the weights: three kinds of job for the memory of one.
        self._image_to_image = genai.Image2ImagePipeline(inpainting)
        self._text_to_image = genai.Text2ImagePipeline(inpainting)
        self._tokenizer = genai.Tokenizer(weights / "tokenizer")
        text_config: dict[str, Any] = json.loads(
            (weights / "text_encoder" / "config.json").read_text()
        )
        self._positions: int = text_config["max_position_embeddings"]
        self._schedulers: dict[tuple[str | None, bool], genai.Scheduler] = {}

    def generate(self, recipe: Recipe, seed: int, inputs: Inputs, on_step: OnStep) -> Generated:
        warnings: list[str] = []
        arguments = self._prompts(recipe, warnings) | {
            "width": recipe.width,
            "height": recipe.height,
            "num_inference_steps": recipe.steps,
            "rng_seed": seed,
            # Left out, the runtime takes a guidance of its own; 1 switches it off.
            "guidance_scale": 1.0 if recipe.guidance is None else recipe.guidance,
        }
        callback = _Callback(on_step, self._preview_of(recipe))
        pipeline, pictures = self._pipeline_for(inputs)
        if pictures:
            arguments["strength"] = recipe.strength
        else:
            # Caching between steps is on by default for flow-match models and changes the picture.
            arguments["taylorseer_config"] = None
        pipeline.set_scheduler(self._scheduler(recipe))
        began = time.perf_counter()
        try:
            result = pipeline.generate(
                arguments.pop("prompt"), *pictures, callback=callback.called, **arguments
            )
        except RuntimeError as error:
            raise GenerationFailed(f"The runtime failed: {_words(error)}") from error
        took = (time.perf_counter() - began) * 1000
        callback.raise_if_stopped()
        # A copy at once: the next run overwrites the memory behind the result.
        pixels = np.array(result.data[0], dtype=np.uint8)
        if inputs.mask is not None and inputs.init_image is not None:
            pixels = _composited(pixels, inputs.init_image, inputs.mask)
        return Generated(
            pixels=pixels,
            timings_ms=_timings(pipeline.get_performance_metrics(), took),
            warnings=tuple(warnings),
        )

    def _pipeline_for(self, inputs: Inputs) -> tuple[Any, tuple[ov.Tensor, ...]]:
        if inputs.init_image is None:
            return self._text_to_image, ()
        image = ov.Tensor(np.ascontiguousarray(inputs.init_image[None]))
        if inputs.mask is None:
            return self._image_to_image, (image,)
        return self._inpainting, (
            image,
            ov.Tensor(np.ascontiguousarray(inputs.mask[None, :, :, None])),
        )

    def _prompts(self, recipe: Recipe, warnings: list[str]) -> dict[str, Any]:
        arguments: dict[str, Any] = {"prompt": self._fitting(recipe.prompt, "prompt", warnings)}
        long = _LONG_PROMPT.get(self._class)
        if long and (self._weights / f"text_encoder_{long[-1]}").is_dir():
            arguments[long] = recipe.prompt
            warnings.clear()
        # The runtime refuses a negative prompt where it has no use for one.
        guided = recipe.guidance is not None and recipe.guidance > 1
        if recipe.negative_prompt is not None and guided and self._model.limits.negative_prompt:
            arguments["negative_prompt"] = self._fitting(
                recipe.negative_prompt, "negative_prompt", warnings
            )
        return arguments

    def _fitting(self, text: str, field: str, warnings: list[str]) -> str:
        """The text cut to what the CLIP encoder takes; a longer one would lose its end token
        unnoticed."""
        ids = self._tokenizer.encode(text).input_ids.data[0]
        if len(ids) <= self._positions:
            return text
        warnings.append(
            f"{field} has {len(ids)} tokens; the model reads {self._positions}, the rest was cut."
        )
        return str(self._tokenizer.decode(ids[1 : self._positions - 1]))

    def _scheduler(self, recipe: Recipe) -> genai.Scheduler:
        trailing = recipe.steps in _TRAILING_IS_SAFE
        key = (recipe.sampler, trailing)
        if key not in self._schedulers:
            config: dict[str, Any] = json.loads(
                (self._weights / "scheduler" / "scheduler_config.json").read_text()
            )
            config |= {
                "clip_sample": False,
                "skip_prk_steps": True,
            }  # else DDIM and PNDM are refused
            config.pop("time_shift_type", None)  # the runtime applies "exponential" wrongly
            if not trailing and config.get("timestep_spacing") == "trailing":
                config["timestep_spacing"] = "linspace"
            kind = getattr(
                genai.Scheduler.Type, _SCHEDULERS[recipe.sampler] if recipe.sampler else "AUTO"
            )
            with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
                json.dump(config, file)
                file.flush()
                self._schedulers[key] = genai.Scheduler.from_config(file.name, kind)
        return self._schedulers[key]

    def _preview_of(self, recipe: Recipe) -> Callable[[NDArray[np.float32]], Pixels] | None:
        factors = self._preview
        if factors is None:
            return None
        return lambda latent: latent_to_rgb(latent, factors, recipe.height / recipe.width)


class _Callback:
    """The runtime's step callback. Whatever it raises would abort the process, so it raises
    nothing."""

    def __init__(
        self, on_step: OnStep, preview: Callable[[NDArray[np.float32]], Pixels] | None
    ) -> None:
        self._on_step = on_step
        self._preview = preview
        self._stopped: BaseException | None = None

    def called(self, step: int, steps: int, latent: ov.Tensor) -> bool:
        if self._stopped is not None:
            return True
        try:
            values = np.array(latent.data)  # the runtime goes on in the same memory
            if not np.isfinite(values).all():
                raise GenerationFailed(
                    "The model's values are no numbers any more (NaN). Unload it and try again; if "
                    "it stays, try another size or device."
                )
            preview = self._preview
            self._on_step(step + 1, steps, partial(preview, values) if preview else None)
        except BaseException as error:  # noqa: BLE001 - see the class
            self._stopped = error
        return self._stopped is not None

    def raise_if_stopped(self) -> None:
        if isinstance(self._stopped, Canceled | GenerationFailed):
            raise self._stopped
        if self._stopped is not None:
            raise GenerationFailed("A step's report failed.") from self._stopped


def latent_to_rgb(
    latent: NDArray[np.float32], factors: NDArray[np.float32], aspect: float
) -> Pixels:
    """A small picture of a latent [n, channels, h, w], or of a packed one (FLUX),
    [n, h/2 * w/2, 4 * channels].

    `factors` as in load(); `aspect` is height / width, which a packed latent does not know.
    """
    if latent.ndim == 3:
        count, packed = latent.shape[1:]
        wide = max(1, round((count / aspect) ** 0.5))
        # Packing puts each 2x2 block of positions into the channels: c, row, column.
        blocks = latent[0].reshape(count // wide, wide, packed // 4, 2, 2)
        latent = blocks.transpose(2, 0, 3, 1, 4).reshape(1, packed // 4, -1, 2 * wide)
    channels, height, width = latent.shape[1:]
    side = int((factors.shape[1] // 3) ** 0.5)
    flat = latent[0].reshape(channels, -1).T @ factors[:-1] + factors[-1]
    rgb = flat.reshape(height, width, side, side, 3).transpose(0, 2, 1, 3, 4)
    return (rgb.reshape(height * side, width * side, 3).clip(0, 1) * 255).astype(np.uint8)


def _composited(pixels: Pixels, init: Pixels, mask: NDArray[np.uint8]) -> Pixels:
    """The new picture where the mask is white, the old one elsewhere: kept pixels pass through the
    VAE and would otherwise change."""
    alpha = mask[:, :, None].astype(np.float32) / 255
    return (pixels * alpha + init * (1 - alpha)).round().astype(np.uint8)


def _timings(metrics: Any, took: float) -> dict[str, float]:
    text = sum(metrics.get_text_encoder_infer_duration().values())
    decode = metrics.get_vae_decoder_infer_duration()
    return {"text": text, "denoise": max(0.0, took - text - decode), "decode": decode}


def _words(error: Exception) -> str:
    """The telling part of a runtime error, without the source lines it was thrown from."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [
        line
        for line in lines
        if line and not line.startswith("Exception from") and not line.startswith("Check '")
    ]
    return " ".join(told)[:400] or str(error)[:400] or type(error).__name__

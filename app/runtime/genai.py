"""OpenVINO GenAI: one pipeline for text to image, image to image and inpainting, which all families
on OpenVINO share. Knows the runtime; what is particular to a family comes as arguments.

Where one would expect an error, the runtime may abort the process or answer with a wrong picture.
Each known case is handled here, with its reason.
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
from app.runtime.previews import LatentToRgb, latent_to_rgb
from app.runtime.protocol import Canceled, Generated, Inputs, LoadOptions, OnStep, Pixels

# Our name of a sampler -> the runtime's type of scheduler.
_SCHEDULERS = {
    "euler": "EULER_DISCRETE",
    "euler_ancestral": "EULER_ANCESTRAL_DISCRETE",
    "ddim": "DDIM",
    "pndm": "PNDM",
    "lcm": "LCM",
    "flow_match_euler": "FLOW_MATCH_EULER_DISCRETE",
}
# The numbers of steps at which timestep_spacing "trailing" works. At others the runtime's rounding
# gives one timestep too many, and the latent becomes NaN.
_STEPS_SAFE_TO_TRAIL = {*range(1, 9), 10, 20, 25, 50}
# The argument that carries the prompt for the T5 encoder, which reads more than CLIP's 77 tokens.
_T5_PROMPT = {"StableDiffusion3Pipeline": "prompt_3", "FluxPipeline": "prompt_2"}


def load(
    weights: Path, device: str, options: LoadOptions, *, preview: LatentToRgb | None = None
) -> "OpenVINOPipeline":
    """Compiles the pipeline in `weights`, a folder of OpenVINO models as optimum-intel writes it,
    for a device; raises LoadFailed. Without `preview` its steps are reported without pictures."""
    properties: dict[str, Any] = {}
    if options.cache_dir is not None:
        options.cache_dir.mkdir(parents=True, exist_ok=True)
        properties["CACHE_DIR"] = str(options.cache_dir)
    if options.threads and device == "CPU":
        properties["INFERENCE_NUM_THREADS"] = options.threads
    try:
        _check_tokenizers(weights)
        # In two calls, because the constructor that takes a device holds the GIL until all is
        # compiled: the thread that listens to the service could not end the process meanwhile.
        pipeline = genai.InpaintingPipeline(weights)
        pipeline.compile(device, **properties)
        return OpenVINOPipeline(pipeline, weights, options, preview)
    except RuntimeError as error:
        raise LoadFailed(
            f"{options.model.name} cannot be loaded on {device}: {_reason(error)}"
        ) from error


def _check_tokenizers(weights: Path) -> None:
    """Raises RuntimeError for a text encoder without its tokenizer, which the runtime itself would
    miss only at the first prompt."""
    for encoder in sorted(weights.glob("text_encoder*")):
        folder = weights / encoder.name.replace("text_encoder", "tokenizer")
        if not (folder / "openvino_tokenizer.xml").is_file():
            raise RuntimeError(f"{folder} has no openvino_tokenizer.xml.")


class OpenVINOPipeline:
    """One set of compiled weights for all three kinds of job."""

    def __init__(
        self,
        inpainting: genai.InpaintingPipeline,
        weights: Path,
        options: LoadOptions,
        preview: LatentToRgb | None,
    ) -> None:
        self._weights = weights
        self._model = options.model
        self._preview = preview
        self._class: str = json.loads((weights / "model_index.json").read_text())["_class_name"]
        self._inpainting = inpainting
        # Pipelines made from another one share its weights, so all three take the memory of one.
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
            # 1 switches guidance off; left out, the runtime would take a default of its own.
            "guidance_scale": 1.0 if recipe.guidance is None else recipe.guidance,
        }
        callback = _Callback(on_step, self._preview_of(recipe))
        pipeline, pictures = self._pipeline_for(inputs)
        if pictures:
            arguments["strength"] = recipe.strength
        else:
            # None switches TaylorSeer off: it forecasts steps instead of evaluating them, is on by
            # default for flow-match models, and changes the picture.
            arguments["taylorseer_config"] = None
        pipeline.set_scheduler(self._scheduler(recipe))
        began = time.perf_counter()
        try:
            result = pipeline.generate(
                arguments.pop("prompt"), *pictures, callback=callback.called, **arguments
            )
        except RuntimeError as error:
            raise GenerationFailed(f"The runtime failed: {_reason(error)}") from error
        took = (time.perf_counter() - began) * 1000
        callback.raise_if_stopped()
        # Copied, because the next run overwrites the memory behind the result.
        pixels = np.array(result.data[0], dtype=np.uint8)
        if inputs.mask is not None and inputs.init_image is not None:
            pixels = _composited(pixels, inputs.init_image, inputs.mask)
        return Generated(
            pixels=pixels,
            timings_ms=_timings(pipeline.get_performance_metrics(), took),
            warnings=tuple(warnings),
        )

    def _pipeline_for(self, inputs: Inputs) -> tuple[Any, tuple[ov.Tensor, ...]]:
        """The pipeline for this kind of job and the pictures it takes: NHWC, one in a batch."""
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
        """The runtime's arguments for the prompts; adds to `warnings` what was cut off."""
        arguments: dict[str, Any] = {"prompt": self._fitting(recipe.prompt, "prompt", warnings)}
        t5_prompt = _T5_PROMPT.get(self._class)
        if t5_prompt and (self._weights / f"text_encoder_{t5_prompt[-1]}").is_dir():
            arguments[t5_prompt] = recipe.prompt
            warnings.clear()  # T5 reads what was cut for CLIP
        # The runtime refuses a negative prompt where it does not use it.
        guided = recipe.guidance is not None and recipe.guidance > 1
        if recipe.negative_prompt is not None and guided and self._model.limits.negative_prompt:
            arguments["negative_prompt"] = self._fitting(
                recipe.negative_prompt, "negative_prompt", warnings
            )
        return arguments

    def _fitting(self, text: str, field: str, warnings: list[str]) -> str:
        """The text, cut to as many tokens as the CLIP encoder reads. The runtime would cut off a
        longer one's end token as well, without an error."""
        ids = self._tokenizer.encode(text).input_ids.data[0]
        if len(ids) <= self._positions:
            return text
        warnings.append(
            f"{field} has {len(ids)} tokens; the model reads {self._positions}, the rest was cut."
        )
        return str(self._tokenizer.decode(ids[1 : self._positions - 1]))

    def _scheduler(self, recipe: Recipe) -> genai.Scheduler:
        """The recipe's sampler with the model's own settings, corrected where the runtime fails."""
        trailing = recipe.steps in _STEPS_SAFE_TO_TRAIL
        key = (recipe.sampler, trailing)
        if key not in self._schedulers:
            config: dict[str, Any] = json.loads(
                (self._weights / "scheduler" / "scheduler_config.json").read_text()
            )
            # The runtime's DDIM and PNDM refuse other values than these.
            config |= {"clip_sample": False, "skip_prk_steps": True}
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
        to_rgb = self._preview
        if to_rgb is None:
            return None
        return lambda latent: latent_to_rgb(latent, to_rgb, recipe.height / recipe.width)


class _Callback:
    """What the runtime calls after each step. An exception that reached the runtime would abort the
    process, so it is kept, the runtime is told to stop, and `raise_if_stopped` raises it."""

    def __init__(
        self, on_step: OnStep, preview: Callable[[NDArray[np.float32]], Pixels] | None
    ) -> None:
        self._on_step = on_step
        self._preview = preview
        self._stopped: BaseException | None = None

    def called(self, step: int, steps: int, latent: ov.Tensor) -> bool:
        """Whether the runtime is to stop; `step` counts from 0."""
        if self._stopped is not None:
            return True
        try:
            values = np.array(latent.data)  # copied: the next step overwrites this memory
            if not np.isfinite(values).all():
                raise GenerationFailed(
                    "The model's values are no numbers any more (NaN). Unload it and try again; if "
                    "it stays, try another size or device."
                )
            preview = self._preview
            self._on_step(step + 1, steps, partial(preview, values) if preview else None)
        except BaseException as error:  # noqa: BLE001 - none may reach the runtime
            self._stopped = error
        return self._stopped is not None

    def raise_if_stopped(self) -> None:
        if isinstance(self._stopped, Canceled | GenerationFailed):
            raise self._stopped
        if self._stopped is not None:
            raise GenerationFailed("A step's report failed.") from self._stopped


def _composited(pixels: Pixels, init: Pixels, mask: NDArray[np.uint8]) -> Pixels:
    """The new picture where the mask is white, the old one elsewhere. The runtime's own answer has
    passed through the VAE as a whole, which changes the pixels that were to be kept, too."""
    alpha = mask[:, :, None].astype(np.float32) / 255
    return (pixels * alpha + init * (1 - alpha)).round().astype(np.uint8)


def _timings(metrics: Any, took: float) -> dict[str, float]:
    """Milliseconds; `took` is the whole call, of which the runtime does not say the denoiser's."""
    text = sum(metrics.get_text_encoder_infer_duration().values())
    decode = metrics.get_vae_decoder_infer_duration()
    return {"text": text, "denoise": max(0.0, took - text - decode), "decode": decode}


def _reason(error: Exception) -> str:
    """What a runtime error says, without the lines that name the C++ source it was thrown from."""
    lines = (line.strip() for line in str(error).splitlines())
    said = (line for line in lines if line and not line.startswith(("Exception from", "Check '")))
    return " ".join(said)[:400] or str(error)[:400] or type(error).__name__

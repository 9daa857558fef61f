"""Stable Diffusion 1.5 with LCM-LoRA on an Axera NPU: an LCM loop in NumPy over compiled graphs.

Knows the files, tensors and timesteps of the hub's axmodel sets; needs no torch.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import GenerationFailed, LoadFailed
from app.request import Recipe
from app.runtime.axera import Graph, hold_card
from app.runtime.clip_tokenizer import POSITIONS, ClipTokenizer
from app.runtime.protocol import Generated, Inputs, LoadOptions, OnStep, Pixels

Floats = NDArray[np.float32]

TIMESTEPS = (999, 759, 499, 259)  # LCMScheduler's for 4 steps; the time files hold only these
# Strength -> steps of an image-to-image run: the first pair whose strength is not exceeded counts.
# It takes the last steps of the four.
STRENGTHS = ((0.35, 1), (0.60, 2), (0.85, 3), (1.00, 4))
# The UNet was compiled without its time embedding; this input takes what the embedding would give.
TIME_INPUT = "/down_blocks.0/resnets.0/act_1/Mul_output_0"
LATENT_SCALE = np.float32(0.18215)
# Latent [4] to RGB in -1..1, a linear fit ("Decoding latents to RGB without upscaling", hub forum).
LATENT_TO_RGB: Floats = np.array(
    [
        [0.298, 0.207, 0.208],
        [0.187, 0.286, 0.173],
        [-0.158, 0.189, 0.264],
        [-0.184, -0.271, -0.473],
    ],
    dtype=np.float32,
)
# The environment variable that may name another place for a file -> its name in the weights folder.
FILES = {
    "UNET_MODEL": "unet.axmodel",
    "VAE_DECODER_MODEL": "vae_decoder.axmodel",
    "VAE_ENCODER_MODEL": "vae_encoder.axmodel",
    "TIME_INPUT_TXT2IMG": "time_input_txt2img.npy",
    "TIME_INPUT_IMG2IMG": "time_input_img2img.npy",
}
OPTIONAL = ("VAE_ENCODER_MODEL", "TIME_INPUT_IMG2IMG")  # the portrait set has neither


def load(weights: Path, device: str, options: LoadOptions) -> "LcmPipeline":
    """Opens the graphs in `weights` on AXERA or AXERA.n.

    A file that the model's `places` name is opened there. Raises LoadFailed where axengine, the
    driver or the card is missing, and for files that are missing or not what this loop drives.
    """
    places = options.model.places
    files = {key: places.get(key, weights / name) for key, name in FILES.items()}
    text = weights / "text_encoder" / "sd15_text_encoder_sim.axmodel"
    for key, path in (*files.items(), ("TEXT_MODEL_DIR", text)):
        # An optional file may be absent from the weights folder, but not from a place that was
        # named for it.
        if not path.exists() and (key not in OPTIONAL or key in places):
            raise LoadFailed(f"{path} is missing. Install {options.model.name}, or set {key}.")
    encoder = files["VAE_ENCODER_MODEL"]
    hold_card(device)
    return LcmPipeline(
        tokenizer=ClipTokenizer(weights / "tokenizer"),
        embeddings=_embeddings(files["TIME_INPUT_TXT2IMG"], files["TIME_INPUT_IMG2IMG"]),
        text_encoder=Graph("text encoder", text, device),
        unet=Graph("UNet", files["UNET_MODEL"], device),
        vae_decoder=Graph("VAE decoder", files["VAE_DECODER_MODEL"], device),
        vae_encoder=Graph("VAE encoder", encoder, device) if encoder.exists() else None,
        sizes=options.model.limits.sizes or (),
    )


def _embeddings(text_to_image: Path, image_to_image: Path) -> dict[int, Floats]:
    """Timestep -> its embedding [1, 1280] behind the UNet's SiLU.

    The image-to-image file holds the last two timesteps once more. In the hub's set its rows differ
    by less than 1e-6; where the file exists its rows are used, for sets in which they differ more.
    """
    rows = dict(zip(TIMESTEPS, _rows(text_to_image, 4), strict=True))
    if image_to_image.exists():
        rows |= dict(zip(TIMESTEPS[2:], _rows(image_to_image, 2), strict=True))
    return {timestep: row[None] for timestep, row in rows.items()}


def _rows(path: Path, count: int) -> Floats:
    try:
        table: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise LoadFailed(f"{path} cannot be read as a NumPy file: {error}") from error
    if table.ndim != 2 or table.shape[0] < count or table.shape[1] != 1280:
        raise LoadFailed(f"{path} is {table.shape}; time embeddings are ({count}, 1280).")
    return table[:count].astype(np.float32)


class LcmPipeline:
    """The four graphs, and how they make a picture."""

    def __init__(
        self,
        *,
        tokenizer: ClipTokenizer,
        embeddings: Mapping[int, Floats],
        text_encoder: Graph,
        unet: Graph,
        vae_decoder: Graph,
        vae_encoder: Graph | None,
        sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        """`sizes` (width, height) are those the model may make; none means any.

        Raises LoadFailed where the graphs make another size, or do not belong together.
        """
        self._tokenizer = tokenizer
        self._embeddings = embeddings
        self._text_encoder = text_encoder
        self._unet = unet
        self._vae_decoder = vae_decoder
        self._vae_encoder = vae_encoder
        self._steps = schedule(TIMESTEPS)
        tensors = {"sample", TIME_INPUT, "encoder_hidden_states"}
        if set(unet.inputs) != tensors:
            raise LoadFailed(f"The UNet takes {sorted(unet.inputs)}, not {sorted(tensors)}.")
        self._shape = unet.inputs["sample"]
        height, width = vae_decoder.output[2:]
        size = f"{width}x{height}"
        if self._shape != (1, 4, height // 8, width // 8):
            raise LoadFailed(f"The UNet works on {self._shape}, the VAE on {size}: two sets mixed.")
        if sizes and (width, height) not in sizes:
            allowed = ", ".join(f"{w}x{h}" for w, h in sizes)
            raise LoadFailed(f"These files make pictures of {size}; the model's are {allowed}.")

    def generate(self, recipe: Recipe, seed: int, inputs: Inputs, on_step: OnStep) -> Generated:
        # RandomState's streams never change between NumPy versions, so a seed keeps its picture.
        random = np.random.RandomState(seed)

        def noise() -> Floats:
            return random.standard_normal(self._shape).astype(np.float32)

        times = [time.perf_counter()]
        ids, count = self._tokenizer.encode(recipe.prompt)
        text = self._text_encoder({self._text_encoder.input: np.array([ids])})
        times.append(time.perf_counter())
        steps = self._steps
        if inputs.init_image is None:
            latent = noise()
        else:
            steps = steps[-steps_for(recipe.strength) :]
            latent = steps[0].noised(self._encoded(inputs.init_image, noise), noise())
        latent = self._denoised(latent, text, steps, noise, on_step)
        times.append(time.perf_counter())
        pixels = self._decoded(latent)
        times.append(time.perf_counter())
        laps = (1000 * (end - start) for start, end in pairwise(times))
        cut = f"prompt has {count} tokens; the model reads {POSITIONS}, the rest was cut off."
        return Generated(
            pixels=pixels,
            timings_ms=dict(zip(("text", "denoise", "decode"), laps, strict=True)),
            warnings=(cut,) if count > POSITIONS else (),
        )

    def _encoded(self, image: Pixels, noise: Callable[[], Floats]) -> Floats:
        """A picture as a latent [1, 4, h/8, w/8], drawn from the encoder's distribution."""
        if self._vae_encoder is None:
            raise GenerationFailed("These files have no VAE encoder to start from a picture with.")
        values = image.transpose(2, 0, 1)[None] / np.float32(127.5) - np.float32(1)
        moments = self._vae_encoder({self._vae_encoder.input: values})
        mean, log_variance = np.split(moments, 2, axis=1)
        return LATENT_SCALE * (mean + np.exp(log_variance.clip(-30, 20) / 2) * noise())

    def _denoised(
        self,
        latent: Floats,
        text: Floats,
        steps: Sequence["Step"],
        noise: Callable[[], Floats],
        on_step: OnStep,
    ) -> Floats:
        """Multistep sampling of a latent consistency model (arXiv 2310.04378): estimate the clean
        latent, add the noise of the next timestep, estimate again."""
        for done, step in enumerate(steps, start=1):
            embedding = self._embeddings[step.timestep]
            feed = {"sample": latent, TIME_INPUT: embedding, "encoder_hidden_states": text}
            clean = step.cleaned(latent, self._unet(feed))
            on_step(done, len(steps), partial(preview, clean))
            latent = clean if done == len(steps) else steps[done].noised(clean, noise())
        return latent

    def _decoded(self, latent: Floats) -> Pixels:
        values = self._vae_decoder({self._vae_decoder.input: latent / LATENT_SCALE})[0]
        levels = (values / 2 + np.float32(0.5)).clip(0, 1) * np.float32(255)
        return np.ascontiguousarray(levels.round().astype(np.uint8).transpose(1, 2, 0))


@dataclass(frozen=True, kw_only=True)
class Step:
    """A timestep t. A latent at t is signal * clean + noise * gaussian, with signal = sqrt(abar_t)
    and noise = sqrt(1 - abar_t). `skip` and `out` weigh that latent and the estimate made of it."""

    timestep: int
    signal: np.float32
    noise: np.float32
    skip: np.float32
    out: np.float32

    def cleaned(self, latent: Floats, predicted: Floats) -> Floats:
        """The clean latent, estimated from the noise that the UNet predicts in this one."""
        estimate = (latent - self.noise * predicted) / self.signal
        return (self.out * estimate + self.skip * latent).astype(np.float32, copy=False)

    def noised(self, clean: Floats, noise: Floats) -> Floats:
        """A clean latent brought to this timestep."""
        return (self.signal * clean + self.noise * noise).astype(np.float32, copy=False)


def schedule(timesteps: Sequence[int]) -> tuple[Step, ...]:
    """The steps as diffusers' LCMScheduler has them for Stable Diffusion 1.5: scaled-linear betas
    0.00085..0.012 over 1000 timesteps, sigma_data 0.5, timesteps scaled by 10."""
    ends = np.float32(0.00085**0.5), np.float32(0.012**0.5)
    betas = np.linspace(*ends, 1000, dtype=np.float32) ** 2
    # In float64, as torch's cumprod multiplies.
    kept = np.cumprod(np.float32(1) - betas, dtype=np.float64).astype(np.float32)
    return tuple(
        Step(
            timestep=t,
            signal=np.sqrt(kept[t]),
            noise=np.sqrt(np.float32(1) - kept[t]),
            skip=np.float32(0.25 / ((10 * t) ** 2 + 0.25)),
            out=np.float32(10 * t / ((10 * t) ** 2 + 0.25) ** 0.5),
        )
        for t in timesteps
    )


def steps_for(strength: float | None) -> int:
    """How many of the four steps an image-to-image run takes."""
    asked = 1.0 if strength is None else strength
    return next((count for most, count in STRENGTHS if asked <= most), len(TIMESTEPS))


def preview(latent: Floats) -> Pixels:
    """A small picture, one pixel for each position of a latent [1, 4, h, w]."""
    rgb = np.tensordot(latent[0], LATENT_TO_RGB, axes=(0, 0))
    return ((rgb + 1) * np.float32(127.5)).clip(0, 255).astype(np.uint8)

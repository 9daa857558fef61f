"""Puts the trained parts together as a Stable Diffusion and writes it as OpenVINO files, int8.

python -m demo.training.export
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import nncf
import numpy as np
import openvino
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from optimum.exporters.openvino import main_export

from demo.training import denoiser, tokenizer, vae
from demo.training.run import RUNS
from demo.training.scenes import draw

WEIGHTS = Path(__file__).parent.parent / "weights"
PARTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def assemble(runs: Path, side: int) -> StableDiffusionPipeline:
    words = tokenizer.load(runs / "tokenizer")
    text, unet = denoiser.build(words)
    state = torch.load(runs / "denoiser-final.pt", map_location="cpu")
    text.load_state_dict(state["text"])
    unet.load_state_dict(state["unet"])
    return StableDiffusionPipeline(
        vae=vae.load(runs, side),
        text_encoder=text,
        tokenizer=words,
        unet=unet,
        scheduler=denoiser.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write(pipeline: StableDiffusionPipeline, out: Path) -> None:
    """The OpenVINO folder; nothing in it tells where it was made."""
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        done = Path(folder) / "openvino"
        main_export(folder, done, task="text-to-image", convert_tokenizer=True)
        for part in PARTS:
            file = done / part / "openvino_model.xml"
            small = nncf.compress_weights(core.read_model(file))
            openvino.save_model(small, file, compress_to_fp16=True)
        for file in done.rglob("*.json"):
            facts = json.loads(file.read_text())
            if isinstance(facts, dict) and facts.pop("_name_or_path", None) is not None:
                file.write_text(json.dumps(facts, indent=2) + "\n")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(done, out)


@torch.no_grad()
def preview(eye: AutoencoderKL, patch: int = 8, pictures: int = 150, seed: int = 77) -> np.ndarray:
    """A picture to look at while another is made, without decoding: the linear map from a latent
    value (as the denoiser sees it, and a 1) to a patch of colours in 0..1, by least squares.

    float32 [latent channels + 1, patch * patch * 3], the patch as (row, column, colour).
    """
    side, factor = eye.config.sample_size, eye.config.scaling_factor
    left, right, chance = 0.0, 0.0, torch.Generator().manual_seed(seed)
    for k in range(pictures):
        x = vae.pixels_to_values(draw(seed, k, side)[0][None])
        z = eye.encode(x).latent_dist.mean * factor
        z = z + (0, 0.1, 0.3)[k % 3] * torch.randn(z.shape, generator=chance)
        y = eye.decode(z / factor).sample[0].clamp(-1, 1) / 2 + 0.5
        _, _, h, w = z.shape
        small = torch.nn.functional.adaptive_avg_pool2d(y, (h * patch, w * patch))
        tiles = small.reshape(3, h, patch, w, patch).permute(1, 3, 2, 4, 0).reshape(h * w, -1)
        known = torch.cat([z[0].flatten(1).T, torch.ones(h * w, 1)], 1)
        left, right = left + (known.T @ known).double(), right + (known.T @ tiles).double()
    ridge = 1e-3 * torch.eye(len(left), dtype=torch.float64)
    return torch.linalg.solve(left + ridge, right).float().numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=256, help="of the autoencoder to put in")
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    a = parser.parse_args()
    whole = assemble(a.runs, a.side)
    write(whole, a.out)
    np.save(a.out / "preview.npy", preview(vae.load(a.runs)))  # small enough for the small one
    size = sum(f.stat().st_size for f in a.out.rglob("*") if f.is_file())
    print(f"{a.out}: {size / 1e6:.1f} MB")

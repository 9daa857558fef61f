"""Puts the trained parts together as a Stable Diffusion and writes it as OpenVINO files, int8.

python -m demo.training.export
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from optimum.exporters.openvino import main_export
from optimum.intel import OVConfig, OVWeightQuantizationConfig

from demo.training import denoiser, tokenizer, vae
from demo.training.run import RUNS
from demo.training.scenes import draw

WEIGHTS = Path(__file__).parent.parent / "weights"


def assemble(runs: Path) -> StableDiffusionPipeline:
    words = tokenizer.load(runs / "tokenizer")
    text, unet = denoiser.build(words)
    state = torch.load(runs / "denoiser-final.pt", map_location="cpu")
    text.load_state_dict(state["text"])
    unet.load_state_dict(state["unet"])
    eye = vae.load(runs)
    return StableDiffusionPipeline(
        vae=eye,
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
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        done = Path(folder) / "openvino"
        main_export(
            folder,
            done,
            task="text-to-image",
            convert_tokenizer=True,
            ov_config=OVConfig(quantization_config=OVWeightQuantizationConfig(bits=8)),
        )
        for file in done.rglob("*.json"):
            facts = json.loads(file.read_text())
            if isinstance(facts, dict) and facts.pop("_name_or_path", None) is not None:
                file.write_text(json.dumps(facts, indent=2) + "\n")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(done, out)


@torch.no_grad()
def preview(eye: AutoencoderKL, patch: int = 8, pictures: int = 600, seed: int = 77) -> np.ndarray:
    """The linear map from a latent value (as the denoiser sees it, and a 1) to a patch of colours:
    float32 [latent channels + 1, patch * patch * 3], by least squares over decoded pictures."""
    left, right, chance = 0.0, 0.0, np.random.default_rng(seed)
    for k in range(pictures):
        x = vae.pixels_to_values(draw(seed, k, 256)[0][None])
        z = eye.encode(x).latent_dist.mean * eye.config.scaling_factor
        z = z + (0, 0.1, 0.3)[k % 3] * torch.from_numpy(chance.standard_normal(z.shape)).float()
        y = eye.decode(z / eye.config.scaling_factor).sample[0].clamp(-1, 1) / 2 + 0.5
        _, h, w = z.shape[1:]
        small = torch.nn.functional.adaptive_avg_pool2d(y, (h * patch, w * patch))
        tiles = small.reshape(3, h, patch, w, patch).permute(1, 3, 2, 4, 0).reshape(h * w, -1)
        known = torch.cat([z[0].flatten(1).T, torch.ones(h * w, 1)], 1)
        left, right = left + (known.T @ known).double(), right + (known.T @ tiles).double()
    ridge = 1e-3 * torch.eye(len(left), dtype=torch.float64)
    return torch.linalg.solve(left + ridge, right).float().numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    a = parser.parse_args()
    whole = assemble(a.runs)
    write(whole, a.out)
    np.save(a.out / "preview.npy", preview(whole.vae))
    size = sum(f.stat().st_size for f in a.out.rglob("*") if f.is_file())
    print(f"{a.out}: {size / 1e6:.1f} MB")

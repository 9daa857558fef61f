"""Writes the tiny Stable Diffusion 1.5 as one file, as checkpoints were in 2022.

Runs in the convert environment:  python tests/models/single_file.py FOLDER
FILE.safetensors|FILE.ckpt The names of the tensors are those of the original training code; the
file's ending decides the format. A .ckpt carries, like many of the time, an object of the trainer,
and something that must never run.
"""

import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

LAYERS = 1  # resnets in a block, of both the tiny UNet and the tiny VAE
LEVELS = 4  # of the VAE

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}


def unet_name(name: str) -> str:
    """The UNet numbers its blocks through: a resnet with its attention, or a change of
    resolution."""
    for new, old in UNET.items():
        name = name.replace(new + ".", old + ".") if name.startswith(new + ".") else name
    found = re.match(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)", name
    )
    if found:
        way, block, kind, n = found[1], int(found[2]), found[3], int(found[4])
        stride = LAYERS + 1
        if kind == "downsamplers":
            place = f"input_blocks.{(block + 1) * stride}.0"
        elif kind == "upsamplers":  # in the same place as the last resnet and its attention
            place = f"output_blocks.{(block + 1) * stride - 1}.{2 if block == 0 else 1}"
        else:
            number = block * stride + n + (1 if way == "down" else 0)
            side = "input_blocks" if way == "down" else "output_blocks"
            place = f"{side}.{number}.{0 if kind == 'resnets' else 1}"
        name = place + name[found.end() :]
        name = name.replace(".0.conv.", ".0.op.") if kind == "downsamplers" else name
    for new, old in RESNET.items():
        name = re.sub(
            rf"^((?:in|out)put_blocks\.\d+\.0|middle_block\.\d)\.{new}\.", rf"\1.{old}.", name
        )
    return "model.diffusion_model." + name


def vae_name(name: str) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    # The decoder's levels were counted from the picture's side.
    up = r"up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)"
    found = re.search(up, name)
    if found:
        level = LEVELS - 1 - int(found[1])
        part = f"block.{found[3]}" if found[2] == "resnets" else "upsample"
        name = name.replace(found[0], f"up.{level}.{part}")
    for new, old in VAE.items():
        name = name.replace(new + ".", old + ".")
    return "first_stage_model." + name


def text_name(name: str) -> str:
    return "cond_stage_model.transformer.text_model." + name.removeprefix("text_model.")


def original(pipeline: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    tensors = {unet_name(name): value for name, value in pipeline.unet.state_dict().items()}
    for name, value in pipeline.vae.state_dict().items():
        linear = "attentions" in name and value.ndim == 2  # were 1x1 convolutions
        tensors[vae_name(name)] = value[:, :, None, None] if linear else value
    tensors |= {
        text_name(name): value for name, value in pipeline.text_encoder.state_dict().items()
    }
    return {name: value.contiguous() for name, value in tensors.items()}


class Hostile:
    """Writes a file when it is unpickled as usual."""

    def __init__(self, witness: str) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


def trainer_state() -> Any:
    """An object of a module that is not there when the file is read."""
    module = types.ModuleType("some_trainer")
    kind = type("Callback", (), {"__module__": "some_trainer"})
    module.Callback = kind  # type: ignore[attr-defined]
    sys.modules["some_trainer"] = module
    return kind()


if __name__ == "__main__":
    source, target = sys.argv[1], Path(sys.argv[2])
    tensors = original(StableDiffusionPipeline.from_pretrained(source))
    if target.suffix == ".safetensors":
        save_file(tensors, target)
    else:
        witness = target.with_name("executed")
        record = {
            "state_dict": tensors,
            "callbacks": {"a": trainer_state()},
            "x": Hostile(str(witness)),
        }
        torch.save(record, target)

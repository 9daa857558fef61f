"""Reads the shipped OpenVINO files back into weights to train on, so that nobody has to begin at
nothing.

    python -m demo.training.restore

What int8 rounded stays rounded; some minutes of training make up for it.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import openvino
import torch
from torch import nn

from demo.training import denoiser, tokenizer, vae
from demo.training.export import WEIGHTS
from demo.training.run import RUNS


def value_of(output: openvino.Output) -> np.ndarray:
    """What int8 values, their zero points and scales come to: float32."""
    node = output.get_node()
    parts = [value_of(node.input_value(k)) for k in range(node.get_input_size())]
    match node.get_type_name(), parts:
        case "Constant", []:
            return np.array(node.data, np.float32)
        case "Convert" | "Reshape", [inner, *_]:
            return inner
        case "Subtract", [inner, zero]:
            return inner - zero
        case "Multiply", [inner, scale]:
            return inner * scale
        case kind, _:
            raise ValueError(f"{kind} is not part of a compressed weight")


def weights_of(file: Path) -> dict[str, torch.Tensor]:
    """The weights in an OpenVINO file by the names their modules had.

    Operations are named __module.PATH/aten::KIND/OPERATION.
    """
    core, found = openvino.Core(), {}
    core.set_property({"ENABLE_MMAP": False})
    for operation in core.read_model(file).get_ops():
        name = operation.get_friendly_name()
        if not name.startswith("__module.") or name.count("/") != 2:
            continue
        module, kind, _ = name.removeprefix("__module.").split("/")
        match kind.removeprefix("aten::"), operation.get_type_name():
            case ("_convolution", "Convolution") | ("linear", "MatMul"):
                parts = {"weight": 1}
            case ("embedding", "Gather"):
                parts = {"weight": 0}
            case ("layer_norm", "Multiply"):
                parts = {"weight": 1}
            case ("group_norm", "GroupNormalization"):
                parts = {"weight": 1, "bias": 2}
            case ("_convolution" | "linear" | "layer_norm", "Add"):
                parts = {"bias": 1}
            case ("add", "Add") if module == "add_embedding.pool":
                parts = {"positional_embedding": 1}
            case _:
                continue
        for part, index in parts.items():
            found[f"{module}.{part}"] = torch.from_numpy(value_of(operation.input_value(index)))
    return found


def fill(module: nn.Module, found: dict[str, torch.Tensor], besides: tuple[str, ...] = ()) -> None:
    """Loads the weights; a bias that is missing was zero. Raises KeyError for any other gap."""
    state = module.state_dict()
    for name, mine in state.items():
        if name in found:
            mine.copy_(found[name].reshape(mine.shape))
        elif name.endswith(".bias"):
            mine.zero_()
        elif not name.startswith(besides):
            raise KeyError(name)


def restore(shipped: Path, runs: Path) -> None:
    """Fills a new folder of a training with the tokenizer, the autoencoder and where to start.

    Raises SystemExit for a folder with a training in it: what it has learned speaks of other
    latents.
    """
    if any(runs.glob("*.pt")):
        raise SystemExit(f"{runs} holds a training; name another folder with --runs.")
    runs.mkdir(parents=True, exist_ok=True)
    shutil.copytree(shipped / "tokenizer", runs / "tokenizer", dirs_exist_ok=True)
    words = tokenizer.load(runs / "tokenizer")
    text, unet = denoiser.build(words)
    eye = vae.build(denoiser.SIDE)
    fill(text, weights_of(shipped / "text_encoder" / "openvino_model.xml"))
    fill(unet, weights_of(shipped / "unet" / "openvino_model.xml"))
    halves = weights_of(shipped / "vae_encoder" / "openvino_model.xml")
    halves |= weights_of(shipped / "vae_decoder" / "openvino_model.xml")
    fill(eye, halves, besides=("quant_conv.", "post_quant_conv."))
    torch.save(eye.state_dict(), runs / f"vae-{denoiser.SIDE}.pt")
    known = {"text": text.state_dict(), "unet": unet.state_dict(), "vocab": words.get_vocab()}
    torch.save(known, runs / "start.pt")
    print(f"Go on with: python -m demo.training.denoiser --start {runs / 'start.pt'} --runs {runs}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--runs", type=Path, default=RUNS)
    a = parser.parse_args()
    restore(a.weights, a.runs)

"""Converts a checkpoint to an OpenVINO pipeline. convert.py starts it in the convert environment:

    python -m app.installation.convert_main OUTPUT FORMAT --view V --work W [--variant fp16]
    [--checkpoint FILE]

VIEW is a diffusers folder. With a checkpoint in a single file it has no weights, and says how the
file is built; the unpacked one goes to WORK. Nothing of the network is used.
"""

import argparse
import json
import os
import pickle
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("format", choices=("fp16", "int8", "int4"))
    parser.add_argument("--view", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--variant")
    parser.add_argument("--checkpoint", type=Path)
    given = parser.parse_args()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    view: Path = given.view
    if given.checkpoint:
        view = unpack(given.checkpoint, view, given.work)
    sys.argv = ["optimum-cli", "export", "openvino", "--model", str(view), "--library", "diffusers"]
    sys.argv += ["--task", "text-to-image", "--weight-format", given.format]
    if given.format == "int4":
        # Groups of 128 weights share a scale, smaller ones where a layer's width is no multiple.
        sys.argv += ["--group-size", "128", "--group-size-fallback", "adjust"]
    sys.argv += ["--variant", given.variant] if given.variant else []
    sys.argv.append(str(given.output))
    from optimum.commands.optimum_cli import main as optimum  # pyright: ignore[reportMissingImports]

    optimum()


def unpack(checkpoint: Path, config: Path, work: Path) -> Path:
    """The diffusers folder of a single-file checkpoint."""
    import diffusers  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    from safetensors.torch import save_file  # pyright: ignore[reportMissingImports]

    if checkpoint.suffix != ".safetensors":
        record = torch.load(
            checkpoint, map_location="cpu", weights_only=False, pickle_module=_Inert
        )
        state: dict[str, Any] = record.get("state_dict", record)
        tensors = {
            name: value.contiguous()
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
        }
        del record, state
        checkpoint = work / "checkpoint.safetensors"
        save_file(tensors, checkpoint)
    kind = getattr(diffusers, json.loads((config / "model_index.json").read_text())["_class_name"])
    pipeline = kind.from_single_file(
        str(checkpoint),
        config=str(config),
        local_files_only=True,
        safety_checker=None,
        torch_dtype=torch.float16,
    )
    folder = work / "unpacked"
    pipeline.save_pretrained(folder)
    return folder


class _Placeholder:
    """Stands for an object of a checkpoint that is no tensor; takes anything and does nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _Inert:
    """A stand-in for the module pickle. Checkpoints of those years hold the trainer's own objects,
    which torch's safe loader refuses; unpickled as usual they could run anything. Here only tensors
    come to life."""

    __name__ = "inert_pickle"
    load = staticmethod(pickle.load)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            rebuilds = (
                name in ("_rebuild_tensor_v2", "_rebuild_parameter") and module == "torch._utils"
            )
            storage = module in ("torch", "torch.storage") and name.endswith("Storage")
            if rebuilds or storage or (module, name) == ("collections", "OrderedDict"):
                return super().find_class(module, name)
            return _Placeholder


def _end_with(parent: int) -> None:
    """Ends this process when the installer that wanted its result is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()

"""What the files of a model are: the kind of a folder or single file, its parts, the names of its
tensors, which of its files are needed and whether all of them are there.

Reads file names, headers and small JSON files only. Knows no family, hub or runtime; recognition.py
decides which family runs the files.
"""

import json
import pickletools
import re
import zipfile
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from app.errors import InstallFailed

Kind = Literal["openvino", "diffusers"]
Index = dict[str, Any]  # a model_index.json: the name of each part -> its library and class

CHECKPOINTS = (".safetensors", ".ckpt")  # endings of a whole model in a single file
INDEX = "model_index.json"
# Parts of a diffusers pipeline that text-to-image does not need; never downloaded or converted.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")

# Top-level files of an OpenVINO repository that the pipeline does not read.
_BESIDES = (
    ".md",
    ".txt",
    ".pdf",
    ".png",
    ".jpg",
    ".jpeg",
    ".gif",
    ".webp",
    "license",
    *CHECKPOINTS,
)
# A file of weights as diffusers and transformers name it: model.fp16-00001-of-00002.safetensors.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<before>\w+))?(?:-\d+-of-\d+)?(?:\.(?P<after>\w+))?\.(?P<kind>safetensors|bin)"
)


def kind_of(paths: Iterable[str]) -> Kind:
    """Whether these files of a folder or repository are an OpenVINO or a diffusers pipeline.

    Raises InstallFailed where they are neither.
    """
    paths = list(paths)
    if INDEX not in paths:
        single = [path for path in paths if path.endswith(CHECKPOINTS)]
        hint = f" Fetch one of its files ({single[0]}) and give its path." if single else ""
        raise InstallFailed(
            f"It has no {INDEX}, so it is no text-to-image pipeline of diffusers or OpenVINO.{hint}"
        )
    return (
        "openvino" if any(path.endswith("/openvino_model.xml") for path in paths) else "diffusers"
    )


def kind_at(path: Path) -> Kind | Literal["checkpoint"]:
    """Like kind_of, for a path on this machine; a file counts as a checkpoint."""
    if path.is_file():
        return "checkpoint"
    # The index first: without it the folder is not searched, as it may be the whole disk.
    return kind_of(paths_in(path) if (path / INDEX).is_file() else [])


def paths_in(folder: Path) -> list[str]:
    """The files below a folder, relative to it, sorted."""
    return [
        path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()
    ]


def read_index(folder: Path) -> Index:
    """The model_index.json of a folder; raises InstallFailed where it lists no networks."""
    index = read_json(folder / INDEX)
    if not models_in(index):
        raise InstallFailed(f"{folder / INDEX} lists no parts of a pipeline.")
    return index


def models_in(index: Index) -> list[str]:
    """The names of the parts that are networks: neither tokenizers nor the scheduler."""
    return [
        name
        for name, value in index.items()
        if _is_part(name, value) and not name.startswith(("tokenizer", "scheduler"))
    ]


def without_unused(index: Index) -> Index:
    """The index with UNUSED parts set to [None, None], which diffusers reads as absent."""
    return {
        name: [None, None] if name in UNUSED and isinstance(value, list) else value
        for name, value in index.items()
    }


def _is_part(name: str, value: Any) -> bool:
    return isinstance(value, list) and value[0] is not None and name not in UNUSED


def tensor_names(path: Path) -> frozenset[str]:
    """The names of the tensors in a .safetensors or .ckpt file.

    The pickle in a .ckpt is only scanned for strings, never executed. Raises InstallFailed where
    the file cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > 100_000_000:
                    raise ValueError("an impossible header")
                return frozenset(json.loads(file.read(length)))
        with zipfile.ZipFile(path) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            operations = pickletools.genops(archive.read(pickled))
            return frozenset(argument for _, argument, _ in operations if isinstance(argument, str))
    except (ValueError, zipfile.BadZipFile, StopIteration):
        raise InstallFailed(
            f"{path.name} cannot be read: it is damaged, or no checkpoint (.safetensors, or .ckpt "
            "as PyTorch has written it since 2020)."
        ) from None


def needed(paths: Iterable[str], index: Index) -> tuple[list[str], str | None]:
    """Which files of a diffusers repository a conversion reads, and the variant of the weights
    among them.

    Repositories hold the same weights several times: in 32 and 16 bits, as .safetensors and .bin,
    for other frameworks, in one file. One form of each part is chosen: .safetensors before .bin,
    and the variant "fp16" where every part has it, since a conversion writes 16 bits at most.
    Raises InstallFailed where a part has no weights that can be converted.
    """
    chosen = [INDEX]
    weights: dict[str, dict[tuple[str, str | None], list[str]]] = {
        part: {} for part in models_in(index)
    }
    for path in paths:
        part, _, file = path.rpartition("/")
        match = _WEIGHTS.fullmatch(file)
        if match and part in weights:
            form = (match["kind"], match["before"] or match["after"])
            weights[part].setdefault(form, []).append(path)
        elif _is_part(part, index.get(part)) and file.endswith((".json", ".txt", ".model")):
            chosen.append(path)
    variant = (
        "fp16" if all(("safetensors", "fp16") in forms for forms in weights.values()) else None
    )
    for part, forms in weights.items():
        files = forms.get(("safetensors", variant)) or forms.get(("bin", None))
        if not files:
            raise InstallFailed(f"Its part {part} has no weights in a form that can be converted.")
        chosen += files
    return chosen, variant


def needed_ready(paths: Iterable[str]) -> list[str]:
    """Which files of an OpenVINO repository make the pipeline: all but hidden files, and at the top
    level documents, sample pictures and single-file checkpoints."""
    return [
        path
        for path in paths
        if path[0] != "." and ("/" in path or not path.lower().endswith(_BESIDES))
    ]


def matching(paths: Iterable[str], folder: str, patterns: Iterable[str]) -> list[str]:
    """The paths below `folder` ("" for the whole repository) that, relative to it, match one of the
    shell patterns."""
    inside = folder + "/" if folder else ""
    patterns = tuple(patterns)
    return [
        path
        for path in paths
        if path.startswith(inside)
        and any(fnmatchcase(path.removeprefix(inside), pattern) for pattern in patterns)
    ]


def is_weights(path: str) -> bool:
    """Whether the file's name is one that diffusers and transformers give to weights."""
    return _WEIGHTS.fullmatch(path.rpartition("/")[2]) is not None


def weights_size(path: Path) -> int:
    """Bytes of weights that a conversion of this diffusers folder or single file reads."""
    if path.is_file():
        return path.stat().st_size
    chosen, _ = needed(paths_in(path), read_index(path))
    return sum((path / file).stat().st_size for file in chosen if is_weights(file))


def check_complete(paths: Iterable[str], index: Index) -> None:
    """Raises InstallFailed when an OpenVINO pipeline with these files lacks one. The runtime would
    report it at the first picture only, or not at all."""
    there = set(paths)
    for part, value in index.items():
        if not _is_part(part, value):
            continue
        if part.startswith("tokenizer"):
            expected = [f"{part}/openvino_tokenizer.xml", f"{part}/openvino_tokenizer.bin"]
        elif part == "scheduler":
            expected = [f"{part}/scheduler_config.json"]
        else:
            folders = ("vae_decoder", "vae_encoder") if part == "vae" else (part,)
            files = ("openvino_model.xml", "openvino_model.bin")
            expected = [f"{folder}/{file}" for folder in folders for file in files]
        for file in expected:
            if file not in there:
                raise InstallFailed(
                    f"The OpenVINO pipeline has no {file}. Export it again with a recent "
                    "optimum-intel, or take the checkpoint it was made from."
                )


def native_side(folder: Path) -> int | None:
    """The side in pixels of the pictures that the UNet or transformer in a folder was trained on;
    None where its files do not say."""
    for part in ("unet", "transformer"):
        latent = read_json(folder / part / "config.json").get("sample_size")
        levels = read_json(folder / "vae_decoder" / "config.json").get("block_out_channels")
        if isinstance(latent, int) and isinstance(levels, list):
            return latent * 2 ** (len(levels) - 1)
    return None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; {} where the file is missing or holds something else."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}

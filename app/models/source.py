"""What a repository, folder or file holds, and which family can run it: told by its files, never by
its name.

A family's model.toml says in [[accepts]] what it can run beyond the models it lists. Reads headers
and small JSON files only; imports neither the hub nor the runtime.
"""

import hashlib
import json
import pickletools
import re
import tomllib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from app.errors import InstallFailed, UnknownModel
from app.models import manifest
from app.models.catalog import HOME, Catalog, CatalogError
from app.models.model import Model, Weights
from app.settings import Settings

Kind = Literal["openvino", "diffusers"]
Index = dict[str, Any]  # a model_index.json: the name of each part -> its library and class

CHECKPOINTS = (".safetensors", ".ckpt")
INDEX = "model_index.json"
# Parts of a diffusers checkpoint that text to image does without.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")

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
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<before>\w+))?(?:-\d+-of-\d+)?(?:\.(?P<after>\w+))?\.(?P<kind>safetensors|bin)"
)


@dataclass(frozen=True, kw_only=True)
class Accepts:
    """One [[accepts]] of a family: what is told by the class in model_index.json and by other JSON
    files (`config`: path -> key -> value), or by the names of the tensors in a single file."""

    like: str  # the model whose adapter, defaults and limits hold
    pipeline: str | None = None
    config: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    tensors: tuple[str, ...] = ()


setattr(Accepts, "__pydantic_config__", ConfigDict(extra="forbid"))  # noqa: B010 - read by pydantic
_ACCEPTS = TypeAdapter(Accepts)


def is_reference(name: str) -> bool:
    """Whether a name that no family lists can mean a hub repository or something on this
    machine."""
    return bool(_REPOSITORY.fullmatch(name)) or name.endswith(CHECKPOINTS) or _is_path(name)


def is_local(reference: str) -> bool:
    return _is_path(reference) or reference.endswith(CHECKPOINTS)


def _is_path(reference: str) -> bool:
    if not reference:
        return False
    return reference.startswith(("/", "./", "../", "~")) or Path(reference).exists()


def local_path(reference: str) -> Path:
    """Raises InstallFailed when there is nothing."""
    path = Path(reference).expanduser().resolve()
    if not path.exists():
        raise InstallFailed(f"There is no file or folder {path}.")
    return path


def name_of(reference: str) -> str:
    """The name under which a model lives that no family lists: owner--name, or
    local--NAME--DIGEST: files of one name in two folders are two models."""
    if not is_local(reference):
        return reference.replace("/", "--")
    path = Path(reference).expanduser().resolve()
    stem = path.stem if path.suffix in CHECKPOINTS else path.name
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return "--".join(("local", re.sub(r"[^\w.-]+", "-", stem), digest))


def find(reference: str, catalog: Catalog) -> Model | None:
    """The model of a name, repository or path, as far as it is known already; None: install it
    first.

    An OpenVINO folder is used where it lies. Raises UnknownModel where the name can mean nothing.
    """
    try:
        return catalog.get(reference)
    except UnknownModel:
        if not is_reference(reference):
            raise
    try:
        return catalog.get(name_of(reference))
    except UnknownModel:
        pass
    if not is_local(reference):
        return None
    folder = local_path(reference)
    if kind_at(folder) != "openvino":
        return None
    check_complete(paths_in(folder), read_index(folder))
    model = stranger(reference, recognise(folder, catalog), catalog, weights_dir=folder)
    catalog.add(model)
    return model


def open_catalog(settings: Settings) -> Catalog:
    """The models of all families, and what was installed beside them; raises CatalogError."""
    models_dir = settings.data_dir.resolve() / "models"
    catalog = Catalog([HOME, *settings.models_path], models_dir, settings.model_aliases)
    adopt_installed(catalog, models_dir)
    return catalog


def adopt_installed(catalog: Catalog, models_dir: Path) -> None:
    """Enters the installed models that no family lists into the catalog."""
    for file in sorted(models_dir.glob(f"[!.]*/{manifest.NAME}")):
        facts = manifest.read(file.parent)
        if facts is None or facts.like is None or facts.model in catalog.models:
            continue
        if facts.like in catalog.models:
            weights = Weights(
                repository=facts.repository,
                revision=facts.revision,
                format=facts.format or "fp16",
                bytes=facts.bytes,
            )
            catalog.add(
                stranger(
                    facts.reference, facts.like, catalog, weights_dir=file.parent, weights=weights
                )
            )


def stranger(
    reference: str,
    like: str,
    catalog: Catalog,
    *,
    weights_dir: Path,
    weights: Weights | None = None,
) -> Model:
    """A model that no family lists, made after one that is."""
    pattern = catalog.get(like)
    side = _native_side(weights_dir)
    limits = pattern.limits
    defaults = pattern.defaults
    if side and limits.side[0] <= side <= limits.side[1]:
        defaults = replace(defaults, width=side, height=side)
    return replace(
        pattern,
        name=name_of(reference),
        title=reference,
        licence=f"that of {reference}",
        aliases=(reference,),
        weights=weights or Weights(format="fp16"),
        defaults=defaults,
        weights_dir=weights_dir,
    )


def _native_side(folder: Path) -> int | None:
    """The side in pixels of the pictures a UNet or transformer was trained on, where its files say
    it."""
    for part in ("unet", "transformer"):
        latent = _json(folder / part / "config.json").get("sample_size")
        levels = _json(folder / "vae_decoder" / "config.json").get("block_out_channels")
        if isinstance(latent, int) and isinstance(levels, list):
            return latent * 2 ** (len(levels) - 1)
    return None


def kind_of(paths: Iterable[str]) -> Kind:
    """What a folder or repository with these files is; raises InstallFailed for what cannot be
    used."""
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
    """What a folder or file on this machine is; raises InstallFailed for what cannot be used."""
    if path.is_file():
        return "checkpoint"
    # Asked before the folder is searched: it might be the whole disk.
    return kind_of(paths_in(path) if (path / INDEX).is_file() else [])


def paths_in(folder: Path) -> list[str]:
    return [
        path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()
    ]


def recognise(path: Path, catalog: Catalog) -> str:
    """The listed model that the pipeline in a folder, or the checkpoint in a file, is like.

    Raises InstallFailed, naming what was found and what can be run.
    """
    known = list(accepted(catalog))
    if path.is_file():
        names = tensor_names(path)
        for accepts in known:
            if accepts.tensors and names.issuperset(accepts.tensors):
                return accepts.like
        likes = ", ".join(accepts.like for accepts in known if accepts.tensors)
        raise InstallFailed(
            f"{path.name} is no whole checkpoint that can be run. Known are those in the manner "
            f"of: {likes}. Files with a part only (a UNet, a LoRA, a VAE) cannot be a model of "
            "their own."
        )
    found = _json(path / INDEX).get("_class_name", "")
    pipeline = str(found).removeprefix("OV")
    for accepts in known:
        if accepts.pipeline == pipeline and all(
            _json(path / file).get(key) == value
            for file, wanted in accepts.config.items()
            for key, value in wanted.items()
        ):
            return accepts.like
    can = ", ".join(sorted({accepts.pipeline for accepts in known if accepts.pipeline}))
    raise InstallFailed(
        f"It is a {pipeline or 'pipeline of no class'}; no family runs that. Known are: {can}."
    )


def accepted(catalog: Catalog) -> Iterable[Accepts]:
    """Every family's [[accepts]], in the order of the file; the first that fits counts. Somebody's
    own families are asked before those of Easel."""
    folders = dict.fromkeys(model.folder for model in catalog)
    for folder in sorted(folders, key=lambda folder: folder.parent == HOME):
        facts = folder / "model.toml"
        for record in tomllib.loads(facts.read_text()).get("accepts", []):
            try:
                accepts = _ACCEPTS.validate_python(record)
            except ValidationError as error:
                first = error.errors()[0]
                raise CatalogError(f"{facts}: accepts: {first['loc'][0]}: {first['msg']}") from None
            if accepts.like not in catalog.models:
                raise CatalogError(f"{facts}: accepts: there is no model {accepts.like!r}")
            yield accepts


def tensor_names(path: Path) -> frozenset[str]:
    """The names of the tensors in a .safetensors or .ckpt file; nothing in it is executed."""
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
    for other frameworks, in one file. Taken is one of each part: .safetensors before .bin, 16 bits
    ("fp16") if they are there for every part, because what is made from them has 16 bits at most.
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
    """Which files of an OpenVINO repository make the pipeline: all but what is for people, and
    whole checkpoints in a single file."""
    return [
        path
        for path in paths
        if path[0] != "." and ("/" in path or not path.lower().endswith(_BESIDES))
    ]


def matching(paths: Iterable[str], folder: str, patterns: Iterable[str]) -> list[str]:
    """The paths below a folder of a repository that fit one of the patterns."""
    inside = folder + "/" if folder else ""
    patterns = tuple(patterns)
    return [
        path
        for path in paths
        if path.startswith(inside)
        and any(fnmatchcase(path.removeprefix(inside), pattern) for pattern in patterns)
    ]


def is_weights(path: str) -> bool:
    return _WEIGHTS.fullmatch(path.rpartition("/")[2]) is not None


def weights_size(path: Path) -> int:
    """Bytes of weights that a conversion of this diffusers folder or single file reads."""
    if path.is_file():
        return path.stat().st_size
    chosen, _ = needed(paths_in(path), read_index(path))
    return sum((path / file).stat().st_size for file in chosen if is_weights(file))


def read_index(folder: Path) -> Index:
    """What model_index.json says; raises InstallFailed."""
    index = _json(folder / INDEX)
    if not models_in(index):
        raise InstallFailed(f"{folder / INDEX} lists no parts of a pipeline.")
    return index


def models_in(index: Index) -> list[str]:
    """The parts that are networks."""
    return [
        name
        for name, value in index.items()
        if _is_part(name, value) and not name.startswith(("tokenizer", "scheduler"))
    ]


def without_unused(index: Index) -> Index:
    """A model_index.json without the parts that text to image does without."""
    return {
        name: [None, None] if name in UNUSED and isinstance(value, list) else value
        for name, value in index.items()
    }


def _is_part(name: str, value: Any) -> bool:
    return isinstance(value, list) and value[0] is not None and name not in UNUSED


def check_complete(paths: Iterable[str], index: Index) -> None:
    """Raises InstallFailed when an OpenVINO pipeline with these files lacks one: the runtime would
    tell it at the first picture only, or not at all."""
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


def _json(path: Path) -> dict[str, Any]:
    """What a small JSON file says; nothing, where there is none or it is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}

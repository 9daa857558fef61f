"""What a name, a hub repository or a path on this machine refers to: a model in the catalog, an
OpenVINO folder that is used where it lies, or something that has to be installed first.

Also enters installed models that no family lists into the catalog. Does not contact the hub.
"""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from app.errors import InstallFailed, UnknownModel
from app.models import manifest
from app.models.catalog import HOME, Catalog
from app.models.checkpoint import (
    CHECKPOINTS,
    check_complete,
    kind_at,
    native_side,
    paths_in,
    read_index,
)
from app.models.model import Model, Weights
from app.models.recognition import recognise
from app.settings import Settings

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_reference(name: str) -> bool:
    """Whether the text has the form of a hub repository (owner/name) or of a path on this machine.

    Says nothing of whether it exists.
    """
    return bool(_REPOSITORY.fullmatch(name)) or name.endswith(CHECKPOINTS) or _is_path(name)


def is_local(reference: str) -> bool:
    """Whether it is a path on this machine; what exists as a path is not looked for on the hub."""
    return _is_path(reference) or reference.endswith(CHECKPOINTS)


def _is_path(reference: str) -> bool:
    if not reference:
        return False
    return reference.startswith(("/", "./", "../", "~")) or Path(reference).exists()


def local_path(reference: str) -> Path:
    """The absolute path of a file or folder; raises InstallFailed when there is none."""
    path = Path(reference).expanduser().resolve()
    if not path.exists():
        raise InstallFailed(f"There is no file or folder {path}.")
    return path


def name_of(reference: str) -> str:
    """The name of a model that no family lists: owner--name for a repository, local--NAME--DIGEST
    for a path. The digest is that of the path: files of one name in two folders are two models."""
    if not is_local(reference):
        return reference.replace("/", "--")
    path = Path(reference).expanduser().resolve()
    stem = path.stem if path.suffix in CHECKPOINTS else path.name
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return "--".join(("local", re.sub(r"[^\w.-]+", "-", stem), digest))


def find(reference: str, catalog: Catalog) -> Model | None:
    """The model that a name, repository or path refers to; None where it has to be installed first.

    An OpenVINO folder needs no installation: it enters the catalog and is used where it lies.
    Raises UnknownModel where the text can refer to nothing, InstallFailed where a path holds
    nothing that can be used.
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
    model = unlisted_model(reference, recognise(folder, catalog), catalog, weights_dir=folder)
    catalog.add(model)
    return model


def open_catalog(settings: Settings) -> Catalog:
    """The models of all families and the installed ones that no family lists; raises
    CatalogError."""
    models_dir = settings.data_dir.resolve() / "models"
    catalog = Catalog([HOME, *settings.models_path], models_dir, settings.model_aliases)
    adopt_installed(catalog, models_dir)
    return catalog


def read_installed(catalog: Catalog, models_dir: Path) -> list[Model]:
    """The installed models below `models_dir` that no family lists and the catalog does not have
    yet, as their manifests describe them.

    Reads the disk and changes nothing, so it may run on a thread; the caller enters them with
    `catalog.add`. A model whose family is gone is left out.
    """
    found: dict[str, Model] = {}
    for file in sorted(models_dir.glob(f"[!.]*/{manifest.NAME}")):
        facts = manifest.read(file.parent)
        if facts is None or facts.like is None or facts.like not in catalog.models:
            continue
        if facts.model in catalog.models or facts.model in found:
            continue
        weights = Weights(
            repository=facts.repository,
            revision=facts.revision,
            format=facts.format or "fp16",
            bytes=facts.bytes,
        )
        model = unlisted_model(
            facts.reference, facts.like, catalog, weights_dir=file.parent, weights=weights
        )
        found[model.name] = model
    return list(found.values())


def adopt_installed(catalog: Catalog, models_dir: Path) -> None:
    """Reads the installed models that no family lists and enters them into the catalog."""
    for model in read_installed(catalog, models_dir):
        catalog.add(model)


def unlisted_model(
    reference: str,
    like: str,
    catalog: Catalog,
    *,
    weights_dir: Path,
    weights: Weights | None = None,
) -> Model:
    """A model that no family lists: the facts of the listed model `like` with its own name, weights
    and, where its files say on which size it was trained, that size as the default."""
    listed = catalog.get(like)
    side = native_side(weights_dir)
    limits = listed.limits
    defaults = listed.defaults
    if side and limits.side[0] <= side <= limits.side[1]:
        defaults = replace(defaults, width=side, height=side)
    return replace(
        listed,
        name=name_of(reference),
        title=reference,
        licence=f"that of {reference}",
        aliases=(reference,),
        weights=weights or Weights(format="fp16"),
        defaults=defaults,
        weights_dir=weights_dir,
    )

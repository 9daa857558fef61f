"""Finds the family that can run a model which no family lists, by its files, never by its name.

A family's model.toml says in its [[accepts]] tables which files it can run. checkpoint.py reads the
files; this module compares.
"""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from app.errors import InstallFailed
from app.models.catalog import HOME, Catalog, CatalogError
from app.models.checkpoint import INDEX, read_json, tensor_names


@dataclass(frozen=True, kw_only=True)
class Accepts:
    """One [[accepts]] table: the files that a family can run beyond the models it lists.

    A folder fits by the class in its model_index.json (`pipeline`) and by values in other JSON
    files (`config`: path -> key -> value), a single file by the names of tensors in it.
    """

    like: str  # the listed model whose pipeline.py, defaults and limits are used
    pipeline: str | None = None
    config: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    tensors: tuple[str, ...] = ()


setattr(Accepts, "__pydantic_config__", ConfigDict(extra="forbid"))  # noqa: B010 - read by pydantic
_ACCEPTS = TypeAdapter(Accepts)


def recognise(path: Path, catalog: Catalog) -> str:
    """The name of the listed model as which a folder or a single file can be run.

    Raises InstallFailed with what was found and what can be run.
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
    found = read_json(path / INDEX).get("_class_name", "")
    pipeline = str(found).removeprefix("OV")
    for accepts in known:
        if accepts.pipeline == pipeline and all(
            read_json(path / file).get(key) == value
            for file, wanted in accepts.config.items()
            for key, value in wanted.items()
        ):
            return accepts.like
    can = ", ".join(sorted({accepts.pipeline for accepts in known if accepts.pipeline}))
    raise InstallFailed(
        f"It is a {pipeline or 'pipeline of no class'}; no family runs that. Known are: {can}."
    )


def accepted(catalog: Catalog) -> Iterable[Accepts]:
    """The [[accepts]] of all families, in the order of the files; the first that fits decides.

    Families in MODELS_PATH come before those of Easel, so that a user's family can run files that
    Easel's would accept, too. Raises CatalogError.
    """
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

"""Finds the family folders, reads their model.toml and gives a Model by its name or alias.

pydantic checks what people write into model.toml: unknown keys, missing keys and wrong types are
errors. Does not look at weights; models that no family lists are added by source.py.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from app.errors import UnknownModel
from app.models.limits import Limits
from app.models.model import Defaults, Model, Weights
from app.settings import place_named

HOME = Path(__file__).resolve().parent.parent.parent  # the folder that holds app/ and the families

for _table in (Model, Weights, Defaults, Limits):
    setattr(_table, "__pydantic_config__", ConfigDict(extra="forbid"))  # noqa: B010 - read by pydantic
_MODEL = TypeAdapter(Model)
_FAMILY_KEYS = {"title", "models", "accepts"}  # every other top-level key holds for all its models


class CatalogError(Exception):
    """A model.toml that cannot be used; the message names the file, the key and why."""


class Catalog:
    """The models of all families below `roots`; weights of installed models lie in
    `models_dir`/NAME. `outside` are the further names in MODEL_ALIASES (name -> model). Raises
    CatalogError."""

    def __init__(
        self, roots: list[Path], models_dir: Path, outside: Mapping[str, str] | None = None
    ) -> None:
        self.outside = dict(outside or {})
        self.models: dict[str, Model] = {}
        self._names: dict[str, str] = {}
        for root in roots:
            for facts in sorted(root.glob("*/model.toml")):
                for model in read_family(facts, models_dir):
                    self.add(model)
        for name, target in self.outside.items():
            if name in self._names:
                raise CatalogError(f"MODEL_ALIASES: the name {name!r} is a model's own")
            if target not in self._names:
                raise CatalogError(f"MODEL_ALIASES: there is no model {target!r}")
        self._names |= {name: self._names[target] for name, target in self.outside.items()}

    def add(self, model: Model) -> None:
        """Enters a model; raises CatalogError when its name or one of its aliases is taken."""
        for name in (model.name, *model.aliases):
            if name in self._names:
                facts = model.folder / "model.toml"
                raise CatalogError(f"{facts}: the name {name!r} is taken by {self._names[name]!r}")
            self._names[name] = model.name
        self.models[model.name] = model

    def __iter__(self) -> Iterator[Model]:
        return iter(self.models.values())

    def get(self, name: str) -> Model:
        """The model of this name or alias; raises UnknownModel."""
        try:
            return self.models[self._names[name]]
        except KeyError:
            known = ", ".join(self.models)
            raise UnknownModel(
                f"There is no model {name[:100]!r}; known are: {known}.", field="model"
            ) from None


def read_family(facts: Path, models_dir: Path) -> list[Model]:
    """The models of one model.toml: its top-level keys, overridden by those of each [models.NAME].

    Raises CatalogError.
    """
    try:
        table = tomllib.loads(facts.read_text())
    except (OSError, ValueError) as error:
        raise CatalogError(f"{facts}: {error}") from None
    shared = {key: value for key, value in table.items() if key not in _FAMILY_KEYS}
    models: list[Model] = []
    tables = table.get("models")
    if not isinstance(tables, dict) or not all(isinstance(own, dict) for own in tables.values()):
        raise CatalogError(f"{facts}: it describes each model in a table [models.NAME]")
    for name, own in tables.items():
        record = _merged(shared, own)
        weights = record.get("weights")
        weights = weights if isinstance(weights, dict) else {}
        bundled = weights.get("path")
        elsewhere = place_named(str(weights.get("variable", "")))
        record |= {
            "name": name,
            "family": facts.parent.name,
            "folder": facts.parent,
            "weights_dir": elsewhere
            or (facts.parent / str(bundled) if bundled else models_dir / name),
            "places": {
                variable: place
                for variable in record.get("places", ())
                if (place := place_named(variable)) is not None
            },
        }
        try:
            models.append(_MODEL.validate_python(record))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise CatalogError(f"{facts}: models.{name}: {key}: {first['msg']}") from None
    return models


def _merged(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`shared` with the values of `own` in their place; tables are merged key by key."""
    merged = dict(shared)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged

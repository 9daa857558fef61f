"""What is to be installed: a model's origin, weight format and name, decided before anything is
fetched. Does not contact the hub."""

from dataclasses import dataclass, replace

from app.errors import InstallFailed, UnknownModel
from app.models import manifest, source
from app.models.model import Model, Weights


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be installed, and under which name."""

    name: str
    reference: str  # a model's name, a hub repository or a path
    repository: str | None = None  # None: `reference` is a path
    revision: str | None = None
    format: str  # fp16, int8 or int4
    listed: bool  # by a family; else recognition.py finds the family
    folder: str = ""  # inside the repository
    # Shell patterns of files taken without conversion; none: an OpenVINO or diffusers pipeline.
    patterns: tuple[str, ...] = ()


def what_to_install(
    reference: str, model: Model | None, weight_format: str | None, machine_format: str
) -> Wanted:
    """What installing `reference` means: where from, in which weight format, under which name.

    `model` is the one it refers to, if it is known; `machine_format` is used where neither the
    caller nor the family says one. Raises UnknownModel and InstallFailed.
    """
    facts = manifest.read(model.weights_dir) if model is not None else None
    if model is not None and (facts is None or facts.like is None):
        weights = model.weights
        chosen = weight_format or _format_for(weights, machine_format)
        ready = (weights.openvino or {}).get(chosen)
        origin = ready or weights.repository
        if origin is None:
            raise InstallFailed(
                f"{model.folder / 'model.toml'} does not say where {model.name} comes from."
            )
        wanted = _from(origin, model.name, chosen, listed=True)
        if ready is not None:
            return wanted
        return replace(
            wanted,
            revision=weights.revision,
            folder=weights.folder or "",
            patterns=weights.files,
        )
    origin = facts.reference if facts is not None else reference
    if not source.is_reference(origin):
        raise UnknownModel(f"There is no model {reference!r}.", field="model")
    chosen = weight_format or (facts.format if facts else None) or machine_format
    return _from(origin, source.name_of(origin), chosen, listed=False)


def _format_for(weights: Weights, machine_format: str) -> str:
    """The family's own format; without one the machine's, or another that the hub has converted
    already where it does not have the machine's: downloading beats converting."""
    ready = weights.openvino or {}
    if weights.format is not None:
        return weights.format
    return machine_format if machine_format in ready else next(iter(ready), machine_format)


def _from(origin: str, name: str, weight_format: str, *, listed: bool) -> Wanted:
    if source.is_local(origin):
        path = str(source.local_path(origin))
        return Wanted(name=name, reference=path, format=weight_format, listed=listed)
    return Wanted(
        name=name, reference=origin, repository=origin, format=weight_format, listed=listed
    )

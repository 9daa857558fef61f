"""From a model to its pipeline, by its family's pipeline.py. Knows no runtime."""

import importlib.util
import sys
from pathlib import Path
from typing import cast

from app.errors import LoadFailed
from app.models import manifest
from app.models.model import Model
from app.runtime.protocol import Family, LoadOptions, Pipeline


def load(
    model: Model, device: str = "CPU", *, cache_dir: Path | None = None, threads: int = 0
) -> Pipeline:
    """The model on a device, ready to draw, in this process.

    `cache_dir` is where the runtime keeps compiled models, `threads` the inference threads on the
    CPU (0: the runtime decides). Raises NotInstalled where the model's files are missing or not
    whole, LoadFailed where the runtime refuses them or the device, and whatever else the family's
    code raises.
    """
    manifest.check(model)
    options = LoadOptions(model=model, cache_dir=cache_dir, threads=threads)
    return load_family(model).load(model.weights_dir, device, options)


def load_family(model: Model) -> Family:
    """The family's pipeline.py as a module, opened by its path: a family's folder may have hyphens
    and dots in its name, which `import` does not take. Raises LoadFailed where there is none."""
    path = model.folder / "pipeline.py"
    name = f"easel_family_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise LoadFailed(f"The family {model.family} has no pipeline.py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up by name
    spec.loader.exec_module(module)
    return cast(Family, module)

"""Which device a model's jobs run on, and the worker there. Knows the pool; knows no job."""

from app.errors import LoadFailed, UnknownModel
from app.models.catalog import Catalog
from app.models.model import Model
from app.settings import Settings
from app.workers.pool import Pool
from app.workers.worker import Worker


class Placement:
    """`preferred` is the device of the settings (DEVICE)."""

    def __init__(self, pool: Pool, catalog: Catalog, *, preferred: str) -> None:
        self._pool = pool
        self._catalog = catalog
        self._preferred = preferred
        self._chosen: tuple[str, str] | None = None  # the serving model and its device

    def choose(self, model: Model, device: str) -> None:
        """From now on the serving model is this one, and its jobs run on this device."""
        self._chosen = (model.name, device)

    async def worker_for(self, name: str, device: str) -> Worker:
        """The worker that draws a model's jobs on a device, loaded if need be and reserved then
        (Pool.get); raises UnknownModel, NotInstalled, LoadFailed."""
        if worker := self._pool.ready(name, device):
            return worker
        try:
            return await self._pool.get(self._catalog.get(name), device)
        except LoadFailed as error:
            self._pool.note_failure(name, error.detail)
            raise

    def device_for(self, name: str) -> str:
        """The device that was chosen for the model, else the one on which it is loaded, else its
        usual one. For a model that is gone it is the preferred one: the job fails there."""
        if self._chosen is not None and name == self._chosen[0]:
            return self._chosen[1]
        if worker := self._pool.loaded(name):
            return worker.device
        try:
            return self._catalog.get(name).usual_device(self._preferred)
        except UnknownModel:
            return self._preferred


def device_for(model: Model, settings: Settings, asked: str | None = None) -> str:
    """The device that is asked for, by a caller or by DEVICE, else the model's usual one; raises
    UnknownDevice where the model does not run on what was asked for."""
    if asked is None and "device" in settings.model_fields_set:
        asked = settings.device
    if asked is None:
        return model.usual_device(settings.device)
    model.check_device(asked.upper())
    return asked.upper()

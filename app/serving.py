"""Which model serves where none is named: installed, loaded, ready, or why not yet.

Knows the catalog, the installer and the pool; knows no request and no job.
"""

import asyncio
import itertools
import logging
from dataclasses import dataclass, replace
from typing import Any

from app.device import Devices
from app.errors import Busy, EaselError, InstallFailed, Unavailable, UnknownDevice
from app.installation.child import install
from app.jobs.dispatcher import Dispatcher
from app.models import manifest
from app.models.catalog import Catalog
from app.models.model import Model
from app.models.source import find, read_installed
from app.settings import Settings
from app.workers.placement import Placement, device_for
from app.workers.pool import RETRY_LOAD, Pool

log = logging.getLogger(__name__)

RETRY_INSTALL = (60, 300, 900)  # seconds between attempts to install MODEL


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """status is installing, loading, ready or failed; detail says why, for the person who waits."""

    status: str
    detail: str
    model: str
    device: str
    progress: dict[str, Any] | None = None


class Serving:
    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        pool: Pool,
        placement: Placement,
        dispatcher: Dispatcher,
        devices: Devices,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._pool = pool
        self._placement = placement
        self._dispatcher = dispatcher
        self._devices = devices
        self._sizes: dict[str, int] = {}  # by model: bytes on the disk
        self._models_dir_changed = 0  # mtime (ns) of the folder of installed models, as last read
        self._current: tuple[Model, str] | None = None  # None until MODEL is known for what it is
        self.installing: dict[str, dict[str, Any]] = {}  # by model or reference: how far it is
        self._readiness = Readiness(
            status="loading", detail="Starting.", model=settings.model, device=settings.device
        )
        if (model := find(settings.model, catalog)) is not None:
            self._expect(model)

    @property
    def readiness(self) -> Readiness:
        ready = self._readiness.status == "ready"
        if not ready and self._current is not None:
            model, device = self._current
            if self._pool.ready(model.name, device):  # a job has loaded what failed at the start
                self._serve(model, device)
        return self._readiness

    @property
    def current(self) -> tuple[Model, str]:
        """The model that is used where none is named, and its device; raises Unavailable while
        MODEL is not known for what it is."""
        if self._current is None:
            raise Unavailable(self._readiness.detail, retry_after=round(RETRY_LOAD))
        return self._current

    def _expect(self, model: Model) -> None:
        """Makes a model the serving one, loaded or not."""
        self._put(model, device_for(model, self._settings))
        self._readiness = replace(self._readiness, model=model.name, device=self.current[1])

    def _put(self, model: Model, device: str) -> None:
        self._current = (model, device)
        self._placement.choose(model, device)

    def loaded_on(self, name: str) -> str | None:
        """The device on which a model is loaded."""
        worker = self._pool.loaded(name)
        return worker.device if worker else None

    async def size(self, model: Model) -> int:
        """Bytes of the model on the disk; 0 where it is not installed. Read once."""
        if model.name not in self._sizes:
            self._sizes[model.name] = await asyncio.to_thread(manifest.size, model)
        return self._sizes[model.name]

    async def load(self, name: str, device: str | None = None) -> tuple[Model, str]:
        """Makes a model the serving one when it is loaded; until then, and if that fails, the old
        one serves. Raises UnknownModel, NotInstalled, UnknownDevice, LoadFailed."""
        model = self._installed(self._catalog.get(name))
        device = self._placement.device_for(model.name) if device is None else device
        model.check_device(device)
        absent = await self._devices.why_absent(device)
        if absent is not None:
            raise UnknownDevice(f"{device} is not available here: {absent}.", field="device")
        self._pool.release(await self._pool.get(model, device))
        self._serve(model, device)
        self._dispatcher.pump()  # the jobs of the model run there from now on
        return model, device

    async def unload(self, name: str) -> None:
        """Frees a model's memory; the next job for it loads it again. Raises Busy."""
        await self._pool.unload(self._catalog.get(name).name)

    async def bring_up(self) -> None:
        """Installs MODEL if it is not here, and loads it. What fails is tried again: the network of
        a machine that just started, or its memory, may not be there yet."""
        for pause in itertools.chain(RETRY_INSTALL, itertools.repeat(RETRY_INSTALL[-1])):
            name = self._settings.model
            if self.readiness.status == "ready":
                return  # another model was loaded meanwhile
            try:
                model = find(name, self._catalog)
                if model is None or not model.installed or await self._is_damaged(model):
                    model = await self._install(name)
                name, device = model.name, self.current[1]
                self._not_ready("loading", f"Loading {name} on {device}.")
                await self.load(name, device)
                return
            except (InstallFailed, Busy) as error:  # Busy: another process installs it just now
                log.error("not installed", extra={"model": name, "detail": error.detail})
                self._not_ready("failed", f"{error.detail} It is tried again in {pause} seconds.")
            except Exception as error:  # noqa: BLE001 - whatever it is, the service tells it
                broke = f"Loading {name} broke: {error!r}."
                detail = error.detail if isinstance(error, EaselError) else broke
                log.error("load failed", extra={"model": name, "detail": detail})
                self._pool.note_failure(name, detail)
                self._not_ready("failed", detail)
            await asyncio.sleep(pause)

    async def adopt(self) -> None:
        """Makes known what another process (`app install`) has installed meanwhile."""
        models_dir = self._settings.data_dir.resolve() / "models"
        changed = models_dir.stat().st_mtime_ns if models_dir.is_dir() else 0
        if changed == self._models_dir_changed:
            return
        self._models_dir_changed = changed
        self._sizes.clear()
        for model in await asyncio.to_thread(read_installed, self._catalog, models_dir):
            if model.name not in self._catalog.models:
                self._catalog.add(model)

    async def _is_damaged(self, model: Model) -> bool:
        return bool(await asyncio.to_thread(manifest.missing, model.weights_dir))

    async def _install(self, reference: str) -> Model:
        """Gets a model's weights in a child process, and tells how far it is; raises
        InstallFailed."""
        known = find(reference, self._catalog)
        name = known.name if known else reference

        def on_progress(figures: dict[str, Any]) -> None:
            self.installing[name] = figures
            self._not_ready("installing", f"{figures['detail']}.", figures)

        log.info("installing", extra={"model": name})
        on_progress({"state": "checking", "detail": f"Looking for {name}"})
        try:
            await install(reference, on_progress)
        finally:
            del self.installing[name]
        await self.adopt()
        model = find(reference, self._catalog)
        if model is None or not model.installed:
            raise InstallFailed(f"{reference} was installed, but cannot be found.")
        self._expect(model)
        return model

    def _serve(self, model: Model, device: str) -> None:
        """Whatever names no model goes to this one from now on."""
        self._put(model, device)
        self._readiness = Readiness(
            status="ready", detail="The pipeline is ready.", model=model.name, device=device
        )

    def _not_ready(self, status: str, detail: str, progress: dict[str, Any] | None = None) -> None:
        if self.readiness.status != "ready":  # another model may have been loaded meanwhile
            self._readiness = replace(
                self._readiness, status=status, detail=detail, progress=progress
            )

    def servable(self, name: str | None) -> Model:
        """The model of this name, or the serving one, if a job for it can be accepted; raises
        UnknownModel, NotInstalled, or Unavailable where it is not ready or has just failed to
        load."""
        model = self._installed(self._catalog.get(name) if name is not None else self.current[0])
        if why := self._pool.failure(model.name):
            raise Unavailable(f"{model.name} cannot serve: {why}", retry_after=round(RETRY_LOAD))
        return model

    def _installed(self, model: Model) -> Model:
        if not model.installed and model.name in self.installing:
            raise Unavailable(self._readiness.detail, retry_after=round(RETRY_LOAD))
        model.require_installed()
        return model

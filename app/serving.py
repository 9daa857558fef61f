"""Which model serves: installed, loaded, ready, or why not; and which worker and device a job gets.

Knows the pool, the catalog and the installer; knows no queue and no record.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from app.device import Devices
from app.errors import (
    Busy,
    EaselError,
    InstallFailed,
    LoadFailed,
    NotInstalled,
    Unavailable,
    UnknownDevice,
)
from app.installation.child import install
from app.jobs.job import Job
from app.models.catalog import Catalog
from app.models.manifest import missing
from app.models.model import Model
from app.models.source import adopt_installed, find
from app.settings import Settings
from app.workers.pool import Pool
from app.workers.worker import Worker

log = logging.getLogger(__name__)

RETRY_INSTALL = (60, 300, 900)  # seconds between attempts to install MODEL
RETRY_LOAD = 30.0  # seconds after which a job may try a model again that failed to load


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """status is installing, loading, ready or failed; detail says why, for the person who waits."""

    status: str
    detail: str
    model: str
    device: str
    progress: dict[str, Any] | None = None


class Serving:
    """`on_change` is called when another model serves: jobs may have become possible."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        pool: Pool,
        devices: Devices,
        on_change: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._pool = pool
        self._devices = devices
        self._on_change = on_change
        self.installing: dict[str, dict[str, Any]] = {}  # by model or reference: how far it is
        self._failed_loads: dict[str, tuple[float, str]] = {}
        self._adopted = 0  # when the folder of installed models had last changed
        self._current: tuple[Model, str] | None = None  # None until MODEL is known for what it is
        self.readiness = Readiness(
            status="loading", detail="Starting.", model=settings.model, device=settings.device
        )
        if (model := find(settings.model, catalog)) is not None:
            self._expect(model)

    @property
    def current(self) -> tuple[Model, str]:
        """The model that is used where none is named, and its device."""
        if self._current is None:
            raise Unavailable(self.readiness.detail, retry_after=round(RETRY_LOAD))
        return self._current

    def _expect(self, model: Model) -> None:
        """Makes a model the serving one, loaded or not."""
        if "device" in self._settings.model_fields_set:
            model.check_device(self._settings.device)
        self._current = (model, self._default_device(model))
        self.readiness = replace(self.readiness, model=model.name, device=self._current[1])

    def loaded_on(self, name: str) -> str | None:
        """The device on which a model is warm."""
        worker = self._pool.warm(name)
        return worker.device if worker else None

    async def load(self, name: str, device: str | None = None) -> tuple[Model, str]:
        """Makes a model the serving pipeline when it is ready; until then, and if that fails, the
        old one serves."""
        model = self._installed(self._catalog.get(name))
        device = self._device_of(model) if device is None else device
        model.check_device(device)
        absent = await self._devices.why_absent(device)
        if absent is not None:
            raise UnknownDevice(f"{device} is not available here: {absent}.", field="device")
        self._pool.give_up(await self._pool.get(model, device))
        self._serve(model, device)
        self._on_change()
        return model, device

    async def unload(self, name: str) -> None:
        """Frees a model's memory; the next job for it loads it again."""
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
                if model is None or not model.installed or missing(model.weights_dir):
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
                words = error.detail if isinstance(error, EaselError) else broke
                log.error("load failed", extra={"model": name, "detail": words})
                self._failed_loads[name] = (time.monotonic(), words)
                self._not_ready("failed", words)
            await asyncio.sleep(pause)

    def adopt(self) -> None:
        """Makes known what another process (`app install`) has installed meanwhile."""
        models_dir = self._settings.data_dir.resolve() / "models"
        changed = models_dir.stat().st_mtime_ns if models_dir.is_dir() else 0
        if changed != self._adopted:
            self._adopted = changed
            adopt_installed(self._catalog, models_dir)

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
        self.adopt()
        model = find(reference, self._catalog)
        if model is None or not model.installed:
            raise NotInstalled(f"{reference} was installed, but cannot be found.", field="model")
        self._expect(model)
        return model

    def _serve(self, model: Model, device: str) -> None:
        """Whatever names no model goes to this one from now on."""
        self._failed_loads.pop(model.name, None)
        self._current = (model, device)
        self.readiness = Readiness(
            status="ready", detail="The pipeline is ready.", model=model.name, device=device
        )

    def _not_ready(self, status: str, detail: str, progress: dict[str, Any] | None = None) -> None:
        if self.readiness.status != "ready":  # another model may have been loaded meanwhile
            self.readiness = replace(
                self.readiness, status=status, detail=detail, progress=progress
            )

    async def worker_for(self, job: Job, device: str) -> Worker:
        """The worker for a job, loaded if need be."""
        model = self._installed(self._catalog.get(job.model))
        try:
            worker = await self._pool.get(model, device)
        except LoadFailed as error:
            self._failed_loads[model.name] = (time.monotonic(), error.detail)
            raise
        if self.readiness.status != "ready" and (model, device) == self._current:
            self._serve(model, device)  # what failed at the start works by now
        return worker

    def place(self, job: Job) -> str:
        """The device for a job: where its model is serving or warm, else the model's usual one."""
        try:
            return self._device_of(self._catalog.get(job.model))
        except EaselError:
            return self.readiness.device  # the model is gone; the job fails there

    def _device_of(self, model: Model) -> str:
        if self._current is not None and model.name == self._current[0].name:
            return self._current[1]
        return self.loaded_on(model.name) or self._default_device(model)

    def _default_device(self, model: Model) -> str:
        device = self._settings.device
        return device if model.supports(device) else model.devices[0]

    def servable(self, name: str | None) -> Model:
        model = self._installed(self._catalog.get(name) if name is not None else self.current[0])
        when, why = self._failed_loads.get(model.name, (0.0, ""))
        if why and time.monotonic() - when < RETRY_LOAD:
            raise Unavailable(f"{model.name} cannot serve: {why}", retry_after=round(RETRY_LOAD))
        return model

    def _installed(self, model: Model) -> Model:
        if not model.installed and model.name in self.installing:
            raise Unavailable(self.readiness.detail, retry_after=round(RETRY_LOAD))
        if not model.installed:
            raise NotInstalled(
                f"{model.name} is not installed; `python -m app install {model.name}` installs it.",
                field="model",
            )
        return model

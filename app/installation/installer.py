"""Getting a model's weights: download or convert, compare, then appear in one rename.

MODELS/NAME appears whole, with its manifest, or not at all; until then everything is in
staging.py's folder.
"""

import contextlib
import threading
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from app.errors import InstallFailed, UnknownModel
from app.installation import convert, hub, room
from app.installation.hub import RemoteFile, Snapshot
from app.installation.progress import Meter, OnProgress, Progress
from app.installation.staging import Staging, Wanted, alone, open_staging
from app.models import checkpoint, manifest, recognition, source
from app.models.catalog import Catalog
from app.models.manifest import Manifest
from app.models.model import Model, Weights

T = TypeVar("T")

FORMATS = ("fp16", "int8", "int4")
_AT_ONCE = 4  # files


class Installer:
    """Installs into `models_dir`; `environment` is the folder of the convert environment, and
    `weight_format` what is taken where neither the caller nor the family decides."""

    def __init__(
        self,
        catalog: Catalog,
        models_dir: Path,
        environment: Path,
        *,
        weight_format: str = "int8",
        token: str | None = None,
        on_progress: OnProgress = lambda progress: None,
    ) -> None:
        self._catalog = catalog
        self._models_dir = models_dir.resolve()
        self._environment = environment.resolve()
        self._format = weight_format
        self._token = token
        self._tell = on_progress

    def install(
        self, reference: str, weight_format: str | None = None, *, again: bool = False
    ) -> Path:
        """The folder of the installed model; does nothing where it is installed and whole.

        `again` compares contents, too, and gets anew what differs. Raises UnknownModel,
        InstallFailed in words, and Busy when another process installs the same model.
        """
        if weight_format is not None and weight_format not in FORMATS:
            raise InstallFailed(f"A weight format is {', '.join(FORMATS)}, not {weight_format!r}.")
        model = source.find(reference, self._catalog)
        if model is not None and not self._is_ours(model):
            if not model.installed:
                named = f", which {model.weights.variable} names" if model.weights.variable else ""
                raise InstallFailed(f"There is no folder {model.weights_dir}{named}.")
            return model.weights_dir  # bundled, or somebody's own folder used where it lies
        if model is not None and not again and self._is_whole(model.weights_dir, weight_format):
            self._tell(Progress(state="installed", detail=f"{model.name} is installed."))
            return model.weights_dir
        wanted = self._wanted(reference, model, weight_format)
        target = self._models_dir / wanted.name
        with self._disk_errors(), open_staging(self._models_dir, wanted.name) as staging:
            if again or not self._is_whole(target, weight_format):
                self._install(wanted, target, staging)
        self._tell(Progress(state="installed", detail=f"{wanted.name} is installed."))
        return target

    def remove(self, reference: str) -> int:
        """Removes an installed model and what an interrupted installation left; bytes freed."""
        model = source.find(reference, self._catalog)
        if model is not None and not self._is_ours(model):
            raise InstallFailed(
                f"{model.name} was not installed by Easel; its files are in {model.weights_dir}."
            )
        name = model.name if model is not None else source.name_of(reference)
        target = self._models_dir / name
        with self._disk_errors(), open_staging(self._models_dir, name) as staging:
            if target.exists():
                staging.put_away(target)
            freed = _size_of(staging.folder)
            staging.clear()
        return freed

    def verify(self, reference: str) -> list[str]:
        """The files of an installed model whose content is not what was installed."""
        model = source.find(reference, self._catalog)
        facts = manifest.read(model.weights_dir) if model is not None else None
        if model is None or facts is None:
            raise InstallFailed(
                f"{reference} was not installed by Easel: there is nothing to compare it with."
            )
        return self._changed(model.weights_dir, facts)

    @contextlib.contextmanager
    def _disk_errors(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise InstallFailed(
                f"Writing to {self._models_dir} failed: {error.strerror or error}. What has come "
                "is kept: when the disk is in order, run this again and it goes on."
            ) from error

    def _is_ours(self, model: Model) -> bool:
        return model.weights_dir.parent.resolve() == self._models_dir

    def _is_whole(self, target: Path, weight_format: str | None) -> bool:
        facts = manifest.read(target)
        return (
            facts is not None
            and weight_format in (None, facts.format)
            and not manifest.missing(target)
        )

    def _wanted(self, reference: str, model: Model | None, weight_format: str | None) -> Wanted:
        facts = manifest.read(model.weights_dir) if model is not None else None
        if model is not None and (facts is None or facts.like is None):
            weights = model.weights
            chosen = weight_format or self._format_for(weights)
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
        chosen = weight_format or (facts.format if facts else None) or self._format
        return _from(origin, source.name_of(origin), chosen, listed=False)

    def _format_for(self, weights: Weights) -> str:
        """What the family says; else the machine's format, unless another one is ready-made: a
        download beats a conversion."""
        ready = weights.openvino or {}
        if weights.format is not None:
            return weights.format
        return self._format if self._format in ready else next(iter(ready), self._format)

    def _install(self, wanted: Wanted, target: Path, staging: Staging) -> None:
        self._tell(Progress(state="checking", detail=f"Looking at {wanted.reference}"))
        staging.begin(wanted)
        self._take_back(wanted, target, staging)
        revision = None
        folder = Path(wanted.reference)
        if wanted.repository is not None:
            snapshot = self._download(wanted, staging)
            folder, revision = staging.download / wanted.folder, snapshot.revision
        kind = "as it is" if wanted.patterns else checkpoint.kind_at(folder)
        like = wanted.name if wanted.listed else recognition.recognise(folder, self._catalog)
        if kind in ("diffusers", "checkpoint"):
            self._convert(wanted, folder, staging, like)
            folder = staging.output
        elif wanted.repository is None:
            raise InstallFailed(f"{folder} is an OpenVINO pipeline already: set MODEL to it.")
        if kind != "as it is":
            checkpoint.check_complete(checkpoint.paths_in(folder), checkpoint.read_index(folder))
        meter = Meter("verifying", "Computing checksums", _size_of(folder), self._tell)
        Manifest(
            model=wanted.name,
            reference=wanted.reference,
            repository=wanted.repository,
            revision=revision,
            format=wanted.format,
            converted=kind in ("diffusers", "checkpoint"),
            like=None if wanted.listed else like,
            files=manifest.contents(folder, meter.add),
        ).write(folder)
        staging.appear(folder, target)

    def _take_back(self, wanted: Wanted, target: Path, staging: Staging) -> None:
        """A damaged model that was downloaded as it is goes back to be completed: what is whole of
        it need not come again."""
        facts = manifest.read(target)
        if facts is None or facts.converted or staging.download.exists():
            return
        if (facts.repository, facts.format) == (wanted.repository, wanted.format):
            for path in self._changed(target, facts):
                (target / path).unlink(missing_ok=True)
            (target / manifest.NAME).unlink()
            target.rename(staging.download)

    def _changed(self, folder: Path, facts: Manifest) -> list[str]:
        meter = Meter("verifying", f"Comparing {facts.model}", facts.bytes, self._tell)
        changed = manifest.changed(folder, meter.add)
        meter.end()
        return changed

    def _download(self, wanted: Wanted, staging: Staging) -> Snapshot:
        """Brings what is needed of a repository to staging.download."""
        assert wanted.repository is not None
        snapshot = staging.snapshot() or hub.look(wanted.repository, wanted.revision, self._token)
        staging.remember(snapshot)
        converts, files = self._needed(wanted, snapshot, staging)
        size = sum(file.size for file in files)
        here = sum(hub.size_here(file, staging.download) for file in files)
        extra = room.written(size, wanted.format) if converts else 0
        room.check_disk(staging.folder, size - here + extra, wanted.name)
        if converts:
            convert.check_environment(self._environment, wanted.name)
            room.check_memory(size, wanted.name)
        if not wanted.listed:
            self._fetch(
                snapshot, [file for file in files if file.path.endswith(".json")], staging.download
            )
            _about(wanted, lambda: recognition.recognise(staging.download, self._catalog))
        self._fetch(snapshot, files, staging.download)
        return snapshot

    def _needed(
        self, wanted: Wanted, snapshot: Snapshot, staging: Staging
    ) -> tuple[bool, list[RemoteFile]]:
        """Whether a conversion is needed, and which files are."""
        paths = [file.path for file in snapshot.files]
        if wanted.patterns:
            chosen = checkpoint.matching(paths, wanted.folder, wanted.patterns)
            converts = False
        else:
            converts = _about(wanted, lambda: checkpoint.kind_of(paths)) == "diffusers"
            # The list of parts first: a gated repository refuses it at once.
            index = self._index(snapshot, staging.download)
            chosen = checkpoint.needed_ready(paths)
            if converts:
                chosen, _ = _about(wanted, lambda: checkpoint.needed(paths, index))
            else:
                _about(wanted, lambda: checkpoint.check_complete(chosen, index))
        files = [file for file in snapshot.files if file.path in chosen]
        if not files:
            raise InstallFailed(f"{wanted.reference} has none of the files this model consists of.")
        return converts, files

    def _index(self, snapshot: Snapshot, folder: Path) -> checkpoint.Index:
        self._fetch(
            snapshot, [file for file in snapshot.files if file.path == checkpoint.INDEX], folder
        )
        return checkpoint.read_index(folder)

    def _fetch(self, snapshot: Snapshot, files: list[RemoteFile], folder: Path) -> None:
        total = sum(file.size for file in files)
        meter = Meter("downloading", f"Downloading {snapshot.repository}", total, self._tell)
        stop = threading.Event()
        pool = ThreadPoolExecutor(_AT_ONCE, "download")
        try:
            jobs = [
                pool.submit(
                    hub.fetch, snapshot, file, folder, token=self._token, meter=meter, stop=stop
                )
                for file in sorted(files, key=lambda file: -file.size)
            ]
            wait(jobs, return_when=FIRST_EXCEPTION)
        except BaseException:  # Ctrl-C: the threads see it within a chunk, or at their time-out
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        stop.set()
        pool.shutdown(cancel_futures=True)
        _raise_first(jobs)
        meter.end()

    def _convert(self, wanted: Wanted, given: Path, staging: Staging, like: str) -> None:
        """Makes staging.output from a diffusers folder or a checkpoint in a single file."""
        convert.check_environment(self._environment, wanted.name)
        size = checkpoint.weights_size(given)
        room.check_memory(size, wanted.name)
        if wanted.repository is None:
            needed = room.written(size, wanted.format, unpacked=given.is_file())
            room.check_disk(staging.folder, needed, wanted.name)
        self._prepare_environment(staging)
        config = self._blueprint(like, staging) if given.is_file() else None
        convert.convert(
            given,
            staging.output,
            wanted.format,
            environment=self._environment,
            work=staging.work,
            config=config,
            on_progress=self._tell,
            keep_open=(staging.lock,),
        )

    def _prepare_environment(self, staging: Staging) -> None:
        if convert.environment_is_ready(self._environment):
            return
        room.check_disk(
            self._environment, convert.ENVIRONMENT_BYTES, "the environment for conversions"
        )
        with alone(self._environment, "The environment for conversions"):
            convert.make_environment(
                self._environment, staging.folder / "environment.log", self._tell
            )

    def _blueprint(self, like: str, staging: Staging) -> Path:
        """How a checkpoint in a single file is built, and its tokenizer: the small files of the
        repository that its like comes from."""
        repository = self._catalog.get(like).weights.repository
        if repository is None:
            raise InstallFailed(
                f"The family of {like} names no repository that says how the file is built."
            )
        if source.is_local(repository):
            return source.local_path(repository)
        snapshot = hub.look(repository, None, self._token)
        index = self._index(snapshot, staging.blueprint)
        chosen, _ = checkpoint.needed([file.path for file in snapshot.files], index)
        small = [
            file
            for file in snapshot.files
            if file.path in chosen and not checkpoint.is_weights(file.path)
        ]
        self._fetch(snapshot, small, staging.blueprint)
        return staging.blueprint


def _from(origin: str, name: str, weight_format: str, *, listed: bool) -> Wanted:
    if source.is_local(origin):
        path = str(source.local_path(origin))
        return Wanted(name=name, reference=path, format=weight_format, listed=listed)
    return Wanted(
        name=name, reference=origin, repository=origin, format=weight_format, listed=listed
    )


def _raise_first(jobs: list[Future[None]]) -> None:
    """The failure that made the others stop, if there is one."""
    failures = [
        error for job in jobs if not job.cancelled() and (error := job.exception()) is not None
    ]
    for error in sorted(failures, key=lambda error: isinstance(error, hub.Stopped)):
        raise error


def _about(wanted: Wanted, check: Callable[[], T]) -> T:
    """A finding about files, said of the repository they are from."""
    try:
        return check()
    except InstallFailed as error:
        raise InstallFailed(f"{wanted.reference} cannot be used. {error.detail}") from None


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

"""Installs, verifies and removes models: the order of the steps. What each does is in wanted.py,
download.py, convert.py, room.py.

Until all is there, everything is in the folder of staging.py; then MODELS/NAME appears complete,
with its manifest, in one rename.
"""

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

from app.errors import InstallFailed
from app.installation import convert, hub, room
from app.installation.download import fetch_all, size_here
from app.installation.hub import RemoteFile, Snapshot
from app.installation.progress import Meter, OnProgress, Progress
from app.installation.staging import Staging, locked, open_staging
from app.installation.wanted import Wanted, what_to_install
from app.models import checkpoint, manifest, recognition, source
from app.models.catalog import Catalog
from app.models.manifest import Manifest
from app.models.model import Model

T = TypeVar("T")

FORMATS = ("fp16", "int8", "int4")


class Installer:
    """Installs into `models_dir`. `environment` is the folder of the convert environment;
    `weight_format` is used where neither the caller nor the family says one."""

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
        self._report = on_progress

    def install(
        self, reference: str, weight_format: str | None = None, *, again: bool = False
    ) -> Path:
        """The folder of the installed model; does nothing where all its files have their sizes.

        `again` compares contents, too, and fetches what differs. Raises UnknownModel,
        InstallFailed, and Busy while another process installs the same model.
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
            self._report(Progress(state="installed", detail=f"{model.name} is installed."))
            return model.weights_dir
        wanted = what_to_install(reference, model, weight_format, self._format)
        target = self._models_dir / wanted.name
        with self._disk_errors(), open_staging(self._models_dir, wanted.name) as staging:
            if again or not self._is_whole(target, weight_format):
                self._install(wanted, target, staging)
        self._report(Progress(state="installed", detail=f"{wanted.name} is installed."))
        return target

    def remove(self, reference: str) -> int:
        """Removes an installed model and what an interrupted installation left; returns the bytes
        freed. Raises UnknownModel, InstallFailed and Busy."""
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
        """The paths of files whose content differs from what was installed; raises InstallFailed
        where Easel did not install the model."""
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

    def _install(self, wanted: Wanted, target: Path, staging: Staging) -> None:
        self._report(Progress(state="checking", detail=f"Looking at {wanted.reference}"))
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
        meter = Meter("verifying", "Computing checksums", _size_of(folder), self._report)
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
        """Moves a damaged model that was downloaded without conversion back to staging, without its
        damaged files: only those are fetched again."""
        facts = manifest.read(target)
        if facts is None or facts.converted or staging.download.exists():
            return
        if (facts.repository, facts.format) == (wanted.repository, wanted.format):
            for path in self._changed(target, facts):
                (target / path).unlink(missing_ok=True)
            (target / manifest.NAME).unlink()
            target.rename(staging.download)

    def _changed(self, folder: Path, facts: Manifest) -> list[str]:
        meter = Meter("verifying", f"Comparing {facts.model}", facts.bytes, self._report)
        changed = manifest.changed(folder, meter.add)
        meter.end()
        return changed

    def _download(self, wanted: Wanted, staging: Staging) -> Snapshot:
        """Fetches the needed files of a repository to staging.download, once it is sure that
        disk and memory suffice."""
        assert wanted.repository is not None
        snapshot = staging.snapshot() or hub.look(wanted.repository, wanted.revision, self._token)
        staging.remember(snapshot)
        converts, files = self._needed(wanted, snapshot, staging)
        size = sum(file.size for file in files)
        here = sum(size_here(file, staging.download) for file in files)
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
        """Whether the repository has to be converted, and which of its files are needed."""
        paths = [file.path for file in snapshot.files]
        if wanted.patterns:
            chosen = checkpoint.matching(paths, wanted.folder, wanted.patterns)
            converts = False
        else:
            converts = _about(wanted, lambda: checkpoint.kind_of(paths)) == "diffusers"
            # model_index.json first: a gated repository refuses it at once.
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
        fetch_all(snapshot, files, folder, token=self._token, on_progress=self._report)

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
            on_progress=self._report,
            keep_open=(staging.lock,),
        )

    def _prepare_environment(self, staging: Staging) -> None:
        if convert.environment_is_ready(self._environment):
            return
        room.check_disk(
            self._environment, convert.ENVIRONMENT_BYTES, "the environment for conversions"
        )
        with locked(self._environment, "The environment for conversions"):
            convert.make_environment(
                self._environment, staging.folder / "environment.log", self._report
            )

    def _blueprint(self, like: str, staging: Staging) -> Path:
        """A folder with the configuration and tokenizer that a single-file checkpoint lacks: the
        small files of the repository of the listed model `like`."""
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


def _about(wanted: Wanted, check: Callable[[], T]) -> T:
    """The result of `check`; its InstallFailed is raised with the reference in front."""
    try:
        return check()
    except InstallFailed as error:
        raise InstallFailed(f"{wanted.reference} cannot be used. {error.detail}") from None


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

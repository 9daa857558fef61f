"""Job records (SQLAlchemy) and picture files: what was accepted here is not lost.

Every method blocks; the ledger calls them on one thread of its own. Nothing outside this file
touches a job's record or files.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError

from app.caller import Idempotency
from app.disk import sync
from app.errors import StorageFailed, UnknownJob
from app.jobs.job import Job, JobQuery, JobState

_metadata = sa.MetaData()
_jobs = sa.Table(
    "jobs",
    _metadata,
    sa.Column(
        "number", sa.Integer, primary_key=True, autoincrement=True
    ),  # the order of acceptance
    sa.Column("id", sa.String(36), nullable=False, unique=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("device", sa.String(32)),
    sa.Column("face", sa.String(32), nullable=False),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("finished", sa.Float),
    sa.Column("record", sa.JSON, nullable=False),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("digest", sa.String(64)),
    sa.UniqueConstraint("owner", "idempotency_key"),
    sqlite_autoincrement=True,
)
_COLUMNS = ("id", "state", "device", "face", "owner", "attempts", "created", "started", "finished")
# Built once: putting a statement together takes SQLAlchemy longer than running it.
_INSERT = sa.insert(_jobs)
_UPDATE = sa.update(_jobs).where(_jobs.c.id == sa.bindparam("job_id"))
_SELECT = sa.select(_jobs).where(_jobs.c.id == sa.bindparam("job_id"))


class Store:
    """Records in a database (SQLite in `folder` unless `url` says otherwise), files under
    `folder`/jobs/ID."""

    def __init__(self, folder: Path, *, url: str | None = None, min_free: int = 0) -> None:
        self._folder = folder / "jobs"
        self._min_free = min_free
        with _storage_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder / ".lock")
        # As parts, not as text: a folder's name may hold what has a meaning in an address (? % #).
        address = url or sa.URL.create("sqlite", database=str(folder / "easel.db"))
        try:
            self._database = sa.create_engine(address)
        except (ArgumentError, ImportError) as error:  # its text may hold a password
            raise StorageFailed(
                f"DATABASE_URL cannot be used ({type(error).__name__}); "
                "it looks like postgresql+psycopg://user:password@host/name."
            ) from None
        # Connections with `synchronous=NORMAL`: a power cut may lose the last commits. Used only
        # for a job's success, which a restart repeats (docs/decisions/2026-11-25-durability.md).
        self._unsynced = self._database
        if self._database.dialect.name == "sqlite":
            self._unsynced = sa.create_engine(address)
            event.listen(self._database, "connect", partial(_configure_sqlite, "FULL"))
            event.listen(self._unsynced, "connect", partial(_configure_sqlite, "NORMAL"))
        with _storage_errors():
            _metadata.create_all(self._database)

    def close(self) -> None:
        self._unsynced.dispose()
        self._database.dispose()
        self._lock.close()

    def add(
        self,
        job: Job,
        inputs: Mapping[str, bytes],
        idempotency: Idempotency | None = None,
    ) -> None:
        """Keeps a new job durably: when this returns, a power cut does not lose it.

        Raises KeyError when the owner has used the idempotency key, StorageFailed when there is no
        room.
        """
        with _storage_errors():
            free = shutil.disk_usage(self._folder).free
            if free < self._min_free:
                raise StorageFailed(
                    f"Only {free // 2**20} MB are free under DATA_DIR, "
                    f"{self._min_free // 2**20} MB are needed (MIN_FREE_DISK). "
                    "Delete old jobs or give it more room."
                )
            if os.statvfs(self._folder).f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self._folder))
            try:
                self._write(job.id, inputs)
                values = _values(job) | {
                    "idempotency_key": idempotency.key if idempotency else None,
                    "digest": idempotency.digest if idempotency else None,
                }
                with self._database.begin() as connection:
                    connection.execute(_INSERT, values)
            except BaseException as error:
                shutil.rmtree(self._folder / job.id, ignore_errors=True)
                if isinstance(error, IntegrityError):
                    raise KeyError(idempotency) from None
                raise

    def find_key(self, owner: str, key: str) -> tuple[Job, str] | None:
        """The job that an idempotency key gave, and the digest of the body it came with."""
        where = (_jobs.c.owner == owner) & (_jobs.c.idempotency_key == key)
        with _storage_errors(), self._database.connect() as connection:
            row = connection.execute(sa.select(_jobs).where(where)).first()
        return (_job(row), str(row.digest)) if row else None

    def update(self, job: Job) -> None:
        """Records a job as it is now. A power cut may lose the record of a first attempt's success:
        then the restart draws the same pictures again. All other records survive it."""
        repeatable = job.state is JobState.SUCCEEDED and job.attempts < 2
        database = self._unsynced if repeatable else self._database
        with _storage_errors(), database.begin() as connection:
            connection.execute(_UPDATE, _values(job) | {"job_id": job.id})
        if job.state is JobState.RUNNING:
            with _storage_errors():
                self._make_folder(job.id)  # while it is drawn, so that its pictures need not wait

    def finish(self, job: Job, pictures: Mapping[str, bytes]) -> None:
        """Keeps the pictures, then the record: a record never names a missing file."""
        with _storage_errors():
            self._write(job.id, pictures)
        self.update(job)

    def get(self, job_id: str) -> Job:
        with _storage_errors(), self._database.connect() as connection:
            row = connection.execute(_SELECT, {"job_id": job_id}).first()
        if row is None:
            raise UnknownJob(f"There is no job {job_id[:64]!r}; it may have been deleted.")
        return _job(row)

    def page(self, wanted: JobQuery) -> list[Job]:
        """Newest first; raises UnknownJob when there is none to page from."""
        query = sa.select(_jobs).order_by(_jobs.c.number.desc()).limit(wanted.limit)
        if wanted.state is not None:
            query = query.where(_jobs.c.state == wanted.state)
        if wanted.face is not None:
            query = query.where(_jobs.c.face == wanted.face)
        before = wanted.before
        with _storage_errors(), self._database.connect() as connection:
            if before is not None:
                number = connection.scalar(sa.select(_jobs.c.number).where(_jobs.c.id == before))
                if number is None:
                    raise UnknownJob(
                        f"There is no job {before[:64]!r} to page from.", field="before"
                    )
                query = query.where(_jobs.c.number < number)
            return [_job(row) for row in connection.execute(query)]

    def unfinished(self) -> list[Job]:
        """Queued and running jobs, oldest first."""
        states = [state for state in JobState if not state.ended]
        query = sa.select(_jobs).where(_jobs.c.state.in_(states)).order_by(_jobs.c.number)
        with _storage_errors(), self._database.connect() as connection:
            return [_job(row) for row in connection.execute(query)]

    def delete(self, job_id: str) -> None:
        with _storage_errors():
            with self._database.begin() as connection:
                connection.execute(sa.delete(_jobs).where(_jobs.c.id == job_id))
            shutil.rmtree(self._folder / job_id, ignore_errors=True)

    def read(self, job_id: str, name: str) -> bytes:
        with _storage_errors():
            return (self._folder / job_id / name).read_bytes()

    def _make_folder(self, job_id: str) -> Path:
        folder = self._folder / job_id
        with suppress(FileExistsError):
            folder.mkdir()
            sync(self._folder)
        return folder

    def _write(self, job_id: str, files: Mapping[str, bytes]) -> None:
        """Files that are there whole or not at all, also after a power cut."""
        if not files:
            return
        folder = self._make_folder(job_id)
        parts = {name: folder / f".{name}.part" for name in files}
        try:
            for name, part in parts.items():
                part.write_bytes(files[name])
            for part in parts.values():
                sync(part)
            for name, part in parts.items():
                part.rename(folder / name)
            sync(folder)
        except OSError:
            for name, part in parts.items():
                part.unlink(missing_ok=True)
                (folder / name).unlink(missing_ok=True)
            raise


def _locked(path: Path) -> IO[bytes]:
    """A lock on the folder while the file is open: two services would run each job twice."""
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise StorageFailed(
            f"DATA_DIR {path.parent} is in use by another Easel; give this one its own."
        ) from None
    return file


def _values(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in _COLUMNS} | {"record": job.to_record()}


def _job(row: Any) -> Job:
    columns = {name: getattr(row, name) for name in _COLUMNS}
    return Job.from_record(row.record, **columns | {"state": JobState(row.state)})


def _configure_sqlite(synchronous: str, connection: Any, _: Any) -> None:
    """With FULL a commit survives a power cut, with NORMAL the end of the process only."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute(f"PRAGMA synchronous={synchronous}")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()


@contextmanager
def _storage_errors() -> Generator[None]:
    """Whatever disk and database raise, as StorageFailed in words."""
    try:
        yield
    except DatabaseError as error:
        raise StorageFailed(f"The job records cannot be used: {error.orig}.") from error
    except OSError as error:
        reason = {errno.ENOSPC: "the disk is full", errno.EROFS: "the disk is read-only"}.get(
            error.errno or 0, os.strerror(error.errno) if error.errno else str(error)
        )
        where = f" ({error.filename})" if error.filename else ""
        raise StorageFailed(f"DATA_DIR cannot be used: {reason}{where}.") from error

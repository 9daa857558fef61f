"""The record of a job, as it is kept and as callers see it, and the events that tell of it. Plain
data: live_job.py changes it while the job is alive."""

import time
import uuid
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from app.caller import Caller
from app.request import Recipe


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def ended(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Denoising steps done over all pictures of the job; eta_seconds is None until a second step
    has been reported."""

    step: int = 0
    steps: int = 0
    eta_seconds: float | None = None

    @property
    def fraction(self) -> float:
        return self.step / self.steps if self.steps else 0.0


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One picture of a job, as it lies in the store."""

    name: str  # the file's name inside the job's folder
    width: int
    height: int
    bytes: int
    media_type: str
    seed: int
    etag: str


@dataclass(frozen=True, kw_only=True)
class JobError:
    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """The record of a job. Times are seconds since the epoch (UTC), timings_ms milliseconds."""

    id: str
    recipe: Recipe
    created: float
    state: JobState = JobState.QUEUED
    device: str | None = None
    face: str = "native"  # the dialect it came through
    owner: str = ""  # a digest of the caller's key
    tag: str = ""  # the caller's own name for it
    attempts: int = 0
    started: float | None = None
    finished: float | None = None
    progress: Progress = Progress()
    timings_ms: dict[str, float] = field(default_factory=dict[str, float])
    warnings: tuple[str, ...] = ()
    error: JobError | None = None
    images: tuple[ImageFile, ...] = ()

    @property
    def model(self) -> str:
        return self.recipe.model

    def requeued(self, **values: Any) -> "Job":
        """The job as it waits again, without the steps of an attempt that came to nothing."""
        progress = Progress(steps=self.progress.steps)
        return replace(self, state=JobState.QUEUED, progress=progress, **values)

    def to_record(self) -> dict[str, Any]:
        """The parts of the job that are kept as JSON beside its searchable columns."""
        return {
            "tag": self.tag,
            "recipe": asdict(self.recipe),
            "timings_ms": self.timings_ms,
            "warnings": list(self.warnings),
            "error": asdict(self.error) if self.error else None,
            "images": [asdict(image) for image in self.images],
            "progress": asdict(self.progress),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any], **columns: Any) -> "Job":
        return cls(
            tag=record.get("tag", ""),
            recipe=Recipe(**record["recipe"]),
            timings_ms=record["timings_ms"],
            warnings=tuple(record["warnings"]),
            error=JobError(**record["error"]) if record["error"] else None,
            images=tuple(ImageFile(**image) for image in record["images"]),
            progress=Progress(**record["progress"]),
            **columns,
        )


def new_job(recipe: Recipe, caller: Caller, *, tag: str, warnings: tuple[str, ...]) -> Job:
    """A job that begins its life now. `tag` is the caller's own name for it."""
    return Job(
        id=str(uuid.uuid4()),
        recipe=recipe,
        created=time.time(),
        face=caller.face,
        owner=caller.owner,
        tag=tag,
        progress=Progress(steps=recipe.steps * recipe.images),
        warnings=warnings,
    )


@dataclass(frozen=True, kw_only=True)
class JobQuery:
    """A page of the history, newest first: at most `limit` jobs, of one state or one face if named,
    older than the job `before`."""

    state: JobState | None = None
    face: str | None = None
    before: str | None = None
    limit: int = 50


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """Something that happened to a job: state, progress, preview or done. Ids count up from 1."""

    id: int
    kind: str
    job: Job
    preview: bytes | None = None  # a small JPEG

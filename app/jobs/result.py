"""What a worker made of a job, as it is kept: the files, and what the record says of them."""

import hashlib
import time
from typing import Any

from app.jobs.job import ImageFile, Job, Progress
from app.pictures import codec
from app.workers.message import Drawn, Encoded


def files_of(job: Job, encoded: Encoded) -> dict[str, bytes]:
    """The pictures by the names of their files."""
    return {f"{n}.{job.recipe.format}": data for n, data in enumerate(encoded.pictures)}


def record_of(
    job: Job, drawn: Drawn, encoded: Encoded, files: dict[str, bytes], *, load_ms: float
) -> dict[str, Any]:
    """What changes in the job's record; times in milliseconds."""
    recipe = job.recipe
    timings = {
        "queue": ((job.started or job.created) - job.created) * 1000,
        "load": load_ms,
        **drawn.timings_ms,
        "encode": encoded.milliseconds,
        "total": (time.time() - job.created) * 1000,
    }
    width, height = encoded.size
    return {
        "images": tuple(
            ImageFile(
                name=name,
                width=width,
                height=height,
                bytes=len(data),
                media_type=codec.MEDIA_TYPES[recipe.format],
                seed=recipe.image_seed(n),
                etag=hashlib.sha256(data).hexdigest()[:32],
            )
            for n, (name, data) in enumerate(files.items())
        ),
        "timings_ms": {name: round(value, 2) for name, value in timings.items()},
        "warnings": (*job.warnings, *drawn.warnings),
        "progress": Progress(step=job.progress.steps, steps=job.progress.steps, eta_seconds=0.0),
    }

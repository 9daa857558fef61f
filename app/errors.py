"""Every error that a client may get, as one tree. Knows no HTTP: each face chooses the status code
and the shape of the body.

EaselError
├── InvalidRequest      the request cannot be honoured as written; `field` names the key
│   └── UnknownDevice   no such device here, or the model does not run on it
├── TooLarge            a body over its limit
├── Unauthorized        no key, or a wrong one
├── NotFound
│   ├── UnknownModel
│   ├── UnknownJob
│   └── UnknownImage
├── MethodNotAllowed    the path is known, the method is not
├── Conflict            not in the present state
│   ├── NotInstalled    the model is known, its weights are not here
│   ├── NotEnded        the job has no result yet
│   ├── JobCanceled     it was canceled before it had a result
│   └── Busy            it allows one run at a time, and one is in progress
├── HungUp              the client closed the connection; nobody reads this answer
├── QueueFull           try again after `retry_after` seconds
├── Unavailable         nothing can serve this now: still loading, or shutting down
│   └── LoadFailed      the runtime refused the weights or the device
├── StorageFailed       the disk is full, read-only or failing
├── InstallFailed       a model's weights could not be installed; says what to do
└── GenerationFailed    the pipeline could not make the picture
    └── WorkerDied      the worker process ended during the job
"""


class EaselError(Exception):
    """`detail` says what was wrong, what is allowed and what to do, for the person who asked."""

    code = "error"
    title = "Something went wrong"

    def __init__(
        self, detail: str, *, field: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.retry_after = retry_after


class InvalidRequest(EaselError):
    code = "invalid_request"
    title = "The request cannot be honoured"


class UnknownDevice(InvalidRequest):
    code = "unknown_device"
    title = "Unknown device"


class TooLarge(EaselError):
    code = "too_large"
    title = "Too large"


class Unauthorized(EaselError):
    code = "unauthorized"
    title = "An API key is needed"


class NotFound(EaselError):
    code = "not_found"
    title = "Not found"


class UnknownModel(NotFound):
    code = "unknown_model"
    title = "Unknown model"


class UnknownJob(NotFound):
    code = "unknown_job"
    title = "Unknown job"


class UnknownImage(NotFound):
    code = "unknown_image"
    title = "Unknown image"


class MethodNotAllowed(EaselError):
    code = "method_not_allowed"
    title = "Method not allowed"

    def __init__(self, detail: str, *, allow: str = "") -> None:
        super().__init__(detail)
        self.allow = allow  # the methods the path does take, separated by commas


class Conflict(EaselError):
    code = "conflict"
    title = "Not possible now"


class NotInstalled(Conflict):
    code = "not_installed"
    title = "The model is not installed"


class NotEnded(Conflict):
    code = "not_ended"
    title = "The job has not ended"


class JobCanceled(Conflict):
    code = "canceled"
    title = "The job was canceled"


class Busy(Conflict):
    code = "busy"
    title = "Busy"


class HungUp(EaselError):
    code = "hung_up"
    title = "The client hung up"


class QueueFull(EaselError):
    code = "queue_full"
    title = "The queue is full"


class Unavailable(EaselError):
    code = "unavailable"
    title = "Nothing can serve this now"


class LoadFailed(Unavailable):
    code = "load_failed"
    title = "The pipeline could not be loaded"


class StorageFailed(EaselError):
    code = "storage_failed"
    title = "The storage cannot take it"


class InstallFailed(EaselError):
    code = "install_failed"
    title = "The model could not be installed"


class GenerationFailed(EaselError):
    code = "generation_failed"
    title = "The picture could not be made"


class WorkerDied(GenerationFailed):
    code = "worker_died"
    title = "The worker process ended"


def from_code(code: str, detail: str) -> EaselError:
    """The error of the class with this code, for errors that another process sent or a job's record
    kept; GenerationFailed where no class has it."""
    kinds: list[type[EaselError]] = [EaselError]
    for kind in kinds:
        if kind.code == code:
            return kind(detail)
        kinds.extend(kind.__subclasses__())
    return GenerationFailed(detail)

"""What a face passes to the engine beside the ImageRequest: who calls, and the dialect's rules for
the job. Knows no HTTP."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Caller:
    """`face` is the dialect a request came through, `owner` a digest of the caller's key (empty
    where no keys are set), `request_id` the id of the HTTP request."""

    face: str
    owner: str = ""
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Idempotency:
    """The Idempotency-Key of a request and a digest of its body. A request with a known key gets
    the job of the first one; with another body it is refused."""

    key: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a dialect asks for beside the picture.

    lenient: values outside the model's limits are moved inside, with a warning, not refused.
    one_at_a_time: refused as Busy while another job of the same face has not ended.
    repeatable: a request that comes again within RETRY_WINDOW after its client hung up gets the
    job of the first time.
    watched: somebody will follow the job, so that previews are made from the first step on.
    tag: the caller's own name for the job.
    """

    lenient: bool = False
    one_at_a_time: bool = False
    repeatable: bool = False
    watched: bool = False
    tag: str = ""
    idempotency: Idempotency | None = None


USUAL_TERMS = Terms()

"""The one error tree of Forebay.

Every class carries four facts that any face of the system can answer with:

``code``         the stable word a program may switch on
``http_status``  what an HTTP surface answers
``close_code``   what a WebSocket is closed with when the error ends it
``retryable``    whether the same request may succeed later, unchanged

::

    ForebayError
    ├── BadRequest ............ what the client sent cannot be accepted
    │   ├── TooLarge            a body, frame, text or number is over its limit
    │   ├── Unsupported         a format, rate, type or feature is not offered
    │   ├── BadAudio            bytes that are not the audio they claim to be
    │   ├── PromptTooLong       prompt tokens over the model's context
    │   └── ModelNotFound       no pool of that name
    ├── Unauthorized            no key, or a wrong one
    ├── Forbidden               a good key without the scope, a foreign Origin
    ├── NotFound                no such job, session, room for this tenant
    ├── Superseded              a newer connection took this session over
    ├── ResumeNotAvailable      the stream cannot answer from that position
    ├── Refused ............... nothing was begun; the answer came at once
    │   ├── QueueFull           the pool's queue is at its limit
    │   ├── WaitTooLong         predicted wait is past the job's deadline
    │   ├── QuotaExceeded       this tenant is over its own share
    │   ├── TooManyConnections  connection limit of the process or address
    │   ├── NoWorkers           nobody serves that pool now
    │   ├── Draining            this gateway is shutting down
    │   ├── StoreFull           the broker's memory or disk is at its limit
    │   └── StoreDown           the broker does not answer in time
    ├── SlowClient              the reader fell behind past the kind's bound
    ├── JobFailed ............. a job began and could not end well
    │   ├── WorkerLost          its process died and the model cannot go on
    │   ├── KernelLost          a notebook's kernel ended while its cell ran
    │   ├── Poison              it crashed every worker that stepped it
    │   ├── EngineFailed        the model raised or returned nonsense
    │   ├── DeadlineExceeded    queue, run or total deadline passed
    │   └── UpstreamFailed      a remote model server refused or broke
    │       ├── UpstreamRefused its settings or ours are wrong; asking again will not help
    │       ├── UpstreamCut     it stopped after the first token
    │       └── UpstreamTimeout it sent nothing for too long
    ├── StateLost               the store lost this stream
    ├── Fenced ................ a write came from somebody no longer in charge
    │   └── OffsetGap           a write skipped an offset
    ├── ProtocolError           a peer inside the system broke the contract
    ├── ConfigError             a setting is unknown, malformed or contradictory
    └── CannotBoot ............ a process cannot start; restarting will not help
        └── MissingEngine       an optional engine's packages are not installed

Messages are lower case, without a final period, and give the actual value and the
limit: ``read 70000 bytes, expected no more than 65536``.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "BadAudio",
    "BadImage",
    "BadRequest",
    "CannotBoot",
    "ConfigError",
    "DeadlineExceeded",
    "Draining",
    "EngineFailed",
    "Fenced",
    "Forbidden",
    "ForebayError",
    "JobFailed",
    "KernelLost",
    "MissingEngine",
    "ModelNotFound",
    "NoWorkers",
    "NotFound",
    "OffsetGap",
    "Poison",
    "PromptTooLong",
    "ProtocolError",
    "QueueFull",
    "QuotaExceeded",
    "Refused",
    "ResumeNotAvailable",
    "SlowClient",
    "StateLost",
    "StoreDown",
    "StoreFull",
    "Superseded",
    "TooLarge",
    "TooManyConnections",
    "Unauthorized",
    "Unsupported",
    "UpstreamCut",
    "UpstreamFailed",
    "UpstreamRefused",
    "UpstreamTimeout",
    "WaitTooLong",
    "WorkerLost",
    "by_code",
]


class ForebayError(Exception):
    """Base of every error that Forebay raises on purpose.

    ``details`` are JSON-able facts (actual value, limit, position); ``retry_after_s``
    is given where waiting would help.
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    close_code: ClassVar[int] = 1011
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_s: float | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.details = details

    def __reduce__(self) -> Any:
        return (_rebuild, (type(self), self.message, self.retry_after_s, self.details))


def _rebuild(
    cls: type[ForebayError], message: str, retry: float | None, details: dict[str, Any]
) -> ForebayError:
    return cls(message, retry_after_s=retry, **details)


class BadRequest(ForebayError):
    code = "bad_request"
    http_status = 400
    close_code = 4400


class TooLarge(BadRequest):
    code = "too_large"
    http_status = 413
    close_code = 1009


class Unsupported(BadRequest):
    code = "unsupported"
    http_status = 415


class BadAudio(BadRequest):
    """Broken, endless, empty of sound, or of an impossible rate or channel count."""

    code = "bad_audio"
    http_status = 422


class BadImage(BadRequest):
    """Bytes that are no picture of the type they are said to be, or a damaged one."""

    code = "bad_image"
    http_status = 422


class PromptTooLong(BadRequest):
    """``details``: ``tokens`` of the prompt and ``limit`` of the model."""

    code = "prompt_too_long"


class ModelNotFound(BadRequest):
    code = "model_not_found"
    http_status = 404
    close_code = 4404


class Unauthorized(ForebayError):
    code = "unauthorized"
    http_status = 401
    close_code = 4401


class Forbidden(ForebayError):
    code = "forbidden"
    http_status = 403
    close_code = 4403


class NotFound(ForebayError):
    code = "not_found"
    http_status = 404
    close_code = 4404


class Superseded(ForebayError):
    code = "superseded"
    http_status = 409
    close_code = 4409


class ResumeNotAvailable(ForebayError):
    """``details["reason"]``: window_expired, state_lost, unknown or ahead_of_head."""

    code = "resume_not_available"
    http_status = 410
    close_code = 4410


class Refused(ForebayError):
    code = "refused"
    http_status = 503
    close_code = 1013
    retryable = True


class QueueFull(Refused):
    code = "queue_full"


class WaitTooLong(Refused):
    code = "wait_too_long"


class QuotaExceeded(Refused):
    code = "quota_exceeded"
    http_status = 429


class TooManyConnections(Refused):
    code = "too_many_connections"


class NoWorkers(Refused):
    code = "no_workers"


class Draining(Refused):
    code = "draining"
    close_code = 1012


class StoreFull(Refused):
    code = "store_full"


class StoreDown(Refused):
    """Redis did not answer within the deadline. What was written may have landed."""

    code = "store_down"


class SlowClient(ForebayError):
    code = "backpressure"
    http_status = 408
    close_code = 4408
    retryable = True


class JobFailed(ForebayError):
    code = "job_failed"
    http_status = 500


class WorkerLost(JobFailed):
    code = "worker_lost"
    http_status = 502
    retryable = True


class KernelLost(JobFailed):
    """``details["reason"]``: died, memory, restarted, or in words why we ended it. What the
    notebook held in memory is gone; its files are not."""

    code = "kernel_lost"
    http_status = 502


class Poison(JobFailed):
    code = "poison"


class EngineFailed(JobFailed):
    code = "engine_failed"


class DeadlineExceeded(JobFailed):
    """``details["deadline"]``: queue, run or total."""

    code = "deadline_exceeded"
    http_status = 504
    retryable = True


class UpstreamFailed(JobFailed):
    """``details["status"]``: the upstream's HTTP status, where it gave one."""

    code = "upstream_failed"
    http_status = 502
    retryable = True


class UpstreamRefused(UpstreamFailed):
    """``details["hint"]`` says which setting to look at: key, model name, address."""

    code = "upstream_refused"
    retryable = False


class UpstreamCut(UpstreamFailed):
    code = "upstream_cut"


class UpstreamTimeout(UpstreamFailed):
    code = "upstream_timeout"
    http_status = 504


class StateLost(ForebayError):
    code = "state_lost"
    http_status = 410
    close_code = 4410


class Fenced(ForebayError):
    code = "fenced"
    http_status = 409


class OffsetGap(Fenced):
    code = "offset_gap"


class ProtocolError(ForebayError):
    code = "protocol_error"


class ConfigError(ForebayError):
    code = "config_error"


class CannotBoot(ForebayError):
    """``details["stage"]`` names the load stage that failed."""

    code = "cannot_boot"


class MissingEngine(CannotBoot):
    """``details["install"]`` is the exact command that installs what is missing."""

    code = "missing_engine"


def _tree(cls: type[ForebayError]) -> dict[str, type[ForebayError]]:
    found = {cls.code: cls}
    for sub in cls.__subclasses__():
        found.update(_tree(sub))
    return found


def by_code(code: str, message: str, **details: Any) -> ForebayError:
    """Rebuild an error that crossed a process boundary as (code, message, details).

    An unknown code (a newer peer's) becomes a plain ``ForebayError``.
    """
    return _tree(ForebayError).get(code, ForebayError)(message, **details)

"""Who is alive, and what dying inside a job costs that job: beats and strikes.

The attempt number of `core.job.Job` is the fence; `holds` is the one comparison. *Strikes*
fall only on jobs that were inside ``open`` or ``step`` when their worker's process exited
abnormally: a job that crashes whatever steps it must not take the whole pool with it.

*Beats* know for each worker until when it counts as alive. A worker whose time has passed is
first a *suspect*: the caller reads everything that is pending, then asks again. After a pause
of the caller itself everybody gets a fresh time-to-live: a frozen broker is no mass death.
"""

from __future__ import annotations

from forebay.core.job import Job, Phase
from forebay.errors import Fenced

__all__ = [
    "BEAT_S",
    "CREDIT_BYTES",
    "CREDIT_LUMP_BYTES",
    "EXCLUSIVE_AFTER",
    "PAUSE_S",
    "SECOND_LOOK_S",
    "SUPERVISOR_WORD_S",
    "TTL_S",
    "Beats",
    "ByteCredit",
    "cleared",
    "exclusive",
    "holds",
    "strike",
]

BEAT_S = 0.25
"""A worker says that it lives this often, from a thread the model cannot block."""

TTL_S = 0.8
"""A worker not heard of for so long is given up."""

PAUSE_S = 0.25
"""A timer later than this means that the broker itself stood still: everybody gets grace."""

SECOND_LOOK_S = 0.02
"""Between suspecting a worker and giving it up; pending beats are read meanwhile."""

SUPERVISOR_WORD_S = 0.25
"""How long the two signs of a death (socket, supervisor) wait for each other. A supervisor says
its word in milliseconds; on a busy machine it may need longer, and without it a crash is no
strike against the job that caused it."""

EXCLUSIVE_AFTER = 2
"""Strikes after which nothing else is stepped beside a job; the next one ends it."""

CREDIT_BYTES = 256 * 1024
"""Output a worker may send ahead of what the broker has stored, per lease."""

CREDIT_LUMP_BYTES = 16 * 1024
"""Byte credit goes back in lumps of at least this, so that small commits cost no answer."""


def holds(job: Job, worker: str, attempt: int) -> None:
    """Raises `Fenced` unless ``worker`` holds the job's lease on that attempt."""
    if job.phase is not Phase.RUNNING or job.attempt != attempt or job.worker != worker:
        raise Fenced(
            f"attempt {attempt} is no longer in charge, the newest is {job.attempt}",
            attempt=attempt,
            newest=job.attempt,
        )


def exclusive(job: Job) -> bool:
    """Whether the next lease must be stepped alone."""
    return job.strikes >= EXCLUSIVE_AFTER


def strike(job: Job, attempt: int) -> bool:
    """Count one strike for dying inside ``attempt``; True when the job is poison now.

    A word about an attempt that is not the newest counts for nothing. The caller then ends
    the job as failed(poison) or lets it recover.
    """
    if job.over or attempt != job.attempt:
        return False
    job.strikes += 1
    return job.strikes > EXCLUSIVE_AFTER


def cleared(job: Job) -> bool:
    """A commit arrived: the job gets through steps after all. True if that changed it."""
    had = job.strikes > 0
    job.strikes = 0
    return had


class ByteCredit:
    """The broker's account of one lease's byte credit.

    ``left`` is what the worker may still send, never less than what the worker thinks.
    """

    __slots__ = ("left", "owed")

    def __init__(self, limit_bytes: int = CREDIT_BYTES) -> None:
        self.left = limit_bytes
        self.owed = 0

    def spend(self, size_bytes: int) -> bool:
        """Account for a commit that arrived; False when it is over the credit."""
        if size_bytes > self.left:
            return False
        self.left -= size_bytes
        self.owed += size_bytes
        return True

    def lump(self) -> int:
        """Bytes to give back now, 0 while it is not worth a message. Push what is returned."""
        if self.owed < CREDIT_LUMP_BYTES:
            return 0
        lump, self.owed = self.owed, 0
        self.left += lump
        return lump


class Beats:
    """Until when each worker counts as alive. ``ttl_s``: time-to-live of one beat."""

    __slots__ = ("_until", "ttl_s")

    def __init__(self, ttl_s: float = TTL_S) -> None:
        self.ttl_s = ttl_s
        self._until: dict[str, float] = {}

    def __contains__(self, worker: str) -> bool:
        return worker in self._until

    def heard(self, worker: str, now: float) -> None:
        self._until[worker] = now + self.ttl_s

    def forget(self, worker: str) -> None:
        self._until.pop(worker, None)

    def grace(self, now: float) -> None:
        """Everybody has a full time-to-live again."""
        for worker in self._until:
            self._until[worker] = now + self.ttl_s

    def overdue(self, now: float) -> list[str]:
        """Workers whose time has passed. Read what is pending and ask again before acting."""
        return [worker for worker, until in self._until.items() if until <= now]

    @property
    def deadline(self) -> float | None:
        """When to ask `overdue` next; None while nobody is watched."""
        return min(self._until.values(), default=None)

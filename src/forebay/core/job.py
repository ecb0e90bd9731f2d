"""A job: its record, its state machine, its deadlines, and what a new attempt begins with.

Pure: no clock, no streams, no queue. The broker asks the record what is allowed, carries it
out on the streams and the queue, and writes the outcome back with `move`.

The machine is the table `MOVES`. *Idle* has been given no input yet and waits in no queue;
*queued* waits for a credit; *running* has a lease; *parked* had one, gave it back because it
ran out of input, and waits in no queue. The last four are ends and have no way out.

To the outside (`JobState`) idle and queued are "queued", running and parked are "running".

**Input competition.** A job competes for a credit only while it has unread input, or an end,
to work on. What is read whole by one step (a prompt, a cell) is unread until the job is over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from forebay.core.events import Consumed, Ended, InputItem, Sound, Text
from forebay.core.kinds import Cut, Recovery, Row
from forebay.core.spec import JobSpec, JobState
from forebay.errors import ProtocolError

__all__ = [
    "LIVE",
    "MOVES",
    "OVER",
    "Job",
    "Move",
    "Phase",
    "Recover",
    "competes",
    "move",
    "over_deadline",
    "recover",
    "remaining_input",
    "run_left_s",
    "waits_until",
]


class Phase(StrEnum):
    IDLE = "idle"
    QUEUED = "queued"
    RUNNING = "running"
    PARKED = "parked"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Move(StrEnum):
    FEED = "feed"  # there is something to work on
    LEASE = "lease"  # a credit was found; the attempt rises
    PARK = "park"  # the lease was given back, or lost, with nothing left to work on
    REQUEUE = "requeue"  # the lease was given back, or lost, with work left
    COMPLETE = "completed"  # the four ends, by the words of `Ended.state`
    FAIL = "failed"
    CANCEL = "cancelled"
    EXPIRE = "expired"


LIVE = frozenset({Phase.IDLE, Phase.QUEUED, Phase.RUNNING, Phase.PARKED})
OVER = frozenset(Phase) - LIVE

MOVES: dict[tuple[Phase, Move], Phase] = {
    (Phase.IDLE, Move.FEED): Phase.QUEUED,
    (Phase.PARKED, Move.FEED): Phase.QUEUED,
    (Phase.QUEUED, Move.LEASE): Phase.RUNNING,
    (Phase.RUNNING, Move.PARK): Phase.PARKED,
    (Phase.RUNNING, Move.REQUEUE): Phase.QUEUED,
    **{
        (phase, end): Phase(end.value)
        for phase in LIVE
        for end in (Move.COMPLETE, Move.FAIL, Move.CANCEL, Move.EXPIRE)
    },
}

_STATES: dict[Phase, JobState] = {
    Phase.IDLE: "queued",
    Phase.QUEUED: "queued",
    Phase.RUNNING: "running",
    Phase.PARKED: "running",
    Phase.COMPLETED: "completed",
    Phase.FAILED: "failed",
    Phase.CANCELLED: "cancelled",
    Phase.EXPIRED: "expired",
}


@dataclass(slots=True, kw_only=True)
class Job:
    """The record. Times are the broker's monotonic seconds.

    ``attempt``: of the newest lease, 0 before the first; the fence. ``worker``: who holds the
    lease; ``last_worker``: who held the one before, preferred for the next. ``waiting_s``:
    when it last began to wait in the queue. ``exposed``: the last output offset that may have
    been seen outside the broker. ``seq``: newest client number in the input. ``tools``: the
    output holds tool calls; ``answered``: it holds the usage that closes an answer.
    """

    spec: JobSpec
    row: Row
    created_s: float
    phase: Phase = Phase.IDLE
    attempt: int = 0
    worker: str = ""
    last_worker: str = ""
    strikes: int = 0
    input_head: int = 0
    input_ended: bool = False
    consumed: Consumed = field(default_factory=Consumed)
    exposed: int = 0
    seq: int = 0
    units: int = 0
    tools: bool = False
    answered: bool = False
    waiting_s: float = 0.0
    leased_s: float = 0.0
    started_s: float | None = None
    ended_s: float | None = None
    model_s: float = 0.0
    ended: Ended | None = None

    @property
    def state(self) -> JobState:
        return _STATES[self.phase]

    @property
    def over(self) -> bool:
        return self.phase in OVER


def move(job: Job, what: Move) -> None:
    """Take one step of the table. Raises `ProtocolError` for a step it does not have, and
    changes nothing then. The caller puts the job into, or takes it out of, the queue."""
    phase = MOVES.get((job.phase, what))
    if phase is None:
        raise ProtocolError(f"a {job.phase} job has no move {what}")
    job.phase = phase


def competes(job: Job) -> bool:
    """Whether the job has anything a worker could do now."""
    if job.phase in OVER:
        return False
    if job.input_ended or (job.row.cut is Cut.WHOLE and job.input_head > 0):
        return True
    return job.input_head > max(job.consumed.offset, job.consumed.heard)


# ----------------------------------------------------------------------- recovery


class Recover(StrEnum):
    """What becomes of a job whose lease ended before it did."""

    GO_ON = "go_on"  # same streams, next attempt (replay, or continue with a prefix)
    RESTART = "restart"  # nobody has seen the output: forget it and begin again
    FINISH = "finish"  # the answer was whole, only the terminal event is missing
    FAIL = "fail"  # ends by name: worker_lost, or kernel_lost


def recover(job: Job, *, prefix: bool, kept_whole: bool, head: int) -> Recover:
    """The one failover rule (architecture, section 3), for a job without its lease.

    ``prefix``: the pool's engine can continue a given text. ``kept_whole``: the output is
    still complete from offset 1. ``head``: last output offset. The caller then parks or
    queues the job by `competes` (GO_ON), empties its output first (RESTART), or ends it.
    """
    match job.row.recovery:
        case Recovery.REPLAY:
            return Recover.GO_ON
        case Recovery.NONE:
            return Recover.FAIL
    if head == 0:
        return Recover.GO_ON
    if job.answered:
        return Recover.FINISH
    closed_form = job.tools or bool(job.spec.params.get("response_format"))
    if prefix and kept_whole and not closed_form:
        return Recover.GO_ON
    return Recover.RESTART if job.exposed == 0 else Recover.FAIL


def lost_code(job: Job) -> str:
    """The error code of `Recover.FAIL`."""
    return "kernel_lost" if job.row.recovery is Recovery.NONE else "worker_lost"


def remaining_input(items: list[InputItem], consumed: Consumed) -> list[InputItem]:
    """What a new job must be given to do what this one left undone (`retry`).

    Items already wholly consumed are expected to be gone or are dropped here; text is cut at
    ``consumed.fine`` and counted from unit 0 again, and so is plain sound that begins inside
    an item; a container is given whole. Offsets are cleared.
    """
    left: list[InputItem] = []
    base: int | None = None
    skip_samples = max(0, consumed.fine - consumed.at)
    for item in items:
        if item.offset <= consumed.offset:
            continue
        if isinstance(item, Text):
            skip = min(max(0, consumed.fine - item.unit), len(item.text))
            if skip == len(item.text) and skip > 0:
                continue
            base = item.unit + skip if base is None else base
            item = Text(text=item.text[skip:], unit=item.unit + skip - base, seq=item.seq)
        elif isinstance(item, Sound) and item.form == "pcm16":
            # Of another rate than the position counts in, the first item is given whole.
            skip = min(2 * skip_samples, len(item.data)) if item.rate == 16_000 else 0
            skip_samples -= skip // 2
            item = Sound(data=item.data[skip:], rate=item.rate, seq=item.seq, more=item.more)
        left.append(item)
    return left


# ---------------------------------------------------------------------- deadlines


def waits_until(job: Job) -> tuple[float, Literal["queue", "total"]] | None:
    """When a queued job's wait must end, and by which deadline; None if never.

    The queue deadline runs anew each time the job begins to wait.
    """
    queue_s = job.spec.deadlines.queue_s
    queue = job.waiting_s + (job.row.queue_s if queue_s is None else queue_s)
    total = total_until(job)
    if total is not None and total < queue:
        return total, "total"
    return queue, "queue"


def total_until(job: Job) -> float | None:
    total_s = job.spec.deadlines.total_s
    return None if total_s is None else job.created_s + total_s


def run_limit_s(job: Job) -> float | None:
    run_s = job.spec.deadlines.run_s
    return job.row.run_s if run_s is None else run_s


def run_left_s(job: Job) -> float | None:
    """Model time left before the run deadline, over all attempts; None if there is none."""
    limit = run_limit_s(job)
    return None if limit is None else max(0.0, limit - job.model_s)


def over_deadline(which: str, limit_s: float) -> Ended:
    """The terminal event of a job that passed its ``which`` deadline."""
    words = {
        "queue": f"no worker was free within {limit_s:g} s",
        "run": f"the model worked for more than {limit_s:g} s",
        "total": f"not finished within {limit_s:g} s",
    }
    return Ended(
        state="expired",
        code="deadline_exceeded",
        message=words[which],
        retryable=True,
        details={"deadline": which, "limit_s": limit_s},
    )

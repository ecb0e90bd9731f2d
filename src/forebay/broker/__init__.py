"""The broker contract: what gateways and workers may ask, and what they are promised.

One contract, two homes: `broker.local.LocalBroker` (plain structures in the gateway's
process; workers attach through `broker.link`) and `broker.redis.RedisBroker`. One suite,
``tests/contract``, runs on both.

Promises that hold for every implementation:

* *Submit* is idempotent by ``spec.id``, and by ``(tenant, dialect, name)`` while that job
  is not over.
* *Output* appends are fenced by attempt and numbered by offset: an older attempt's raise
  `Fenced`, one at or below the head by the current attempt is "already there" (a retried
  write) and changes nothing, one past head + 1 raises `OffsetGap`.
* *Input* appends are fenced by attachment number; the store assigns the offset and records
  the client position in the same step. A client position at or below the one recorded when
  this attachment began is a repeat and is dropped; within one attachment repeated or
  falling positions are accepted.
* *Commit* (append + consumed) is one atomic step. The output stream ends with exactly one
  `Ended`, and nothing is appended after it.
* *Push* is a hint given in order per stream; the stream is the truth. A sink takes a push
  only at cursor + 1 and otherwise reads.
* Matching jobs to credits happens inside submit, append, credit, finish, park and reap:
  assignment is a push at the moment either side changes. There is no polling.

Sinks are plain functions called in the event loop of the process that registered them;
they must not block and must not raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from forebay.broker.affinity import Control, What
from forebay.broker.rooms import GonePush, PreviewPush
from forebay.core.audio_quota import Slots
from forebay.core.events import Consumed, Ended, InputItem, OutputEvent
from forebay.core.spec import (
    JobSpec,
    JobView,
    Lease,
    LoadStage,
    PipeSpec,
    PoolView,
    QueuePlace,
    WorkerInfo,
    WorkerView,
)

__all__ = [
    "HOLD_S",
    "Assign",
    "Attachment",
    "CancelJob",
    "Control",
    "Credit",
    "Delivered",
    "Drain",
    "FreedPush",
    "GatewayBroker",
    "GatewayPush",
    "GatewaySink",
    "GonePush",
    "InputAck",
    "InputPush",
    "LeaseLost",
    "LeasePush",
    "OutputPush",
    "PlacePush",
    "PreviewPush",
    "StatePush",
    "SupersededPush",
    "WorkerBroker",
    "WorkerPush",
    "WorkerSink",
]


# ------------------------------------------------------------ pushes to a gateway


class OutputPush(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="out"):
    """New events at the end of a watched job's output, offsets contiguous."""

    job: str
    epoch: str
    events: list[OutputEvent]


class PlacePush(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="place"):
    """A watched job's queue place changed (at most once a second). Unstored."""

    job: str
    place: QueuePlace


class LeasePush(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="lease"):
    """A watched job was leased (``running``) or lost its lease and waits again. Unstored."""

    job: str
    running: bool


class SupersededPush(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="superseded"):
    """Attachment ``number`` of a job is no longer the one that may write."""

    job: str
    number: int


class StatePush(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="state"):
    """A pool, a worker or its loading changed: look again at `pools`."""

    pool: str


class FreedPush(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="freed"):
    """The worker of a cancelled job has let go of it: its slot is free, ``after_s`` seconds
    after the cancel. Goes to every gateway, whoever watched the job."""

    job: str
    pool: str
    after_s: float


GatewayPush = (
    OutputPush
    | PlacePush
    | LeasePush
    | SupersededPush
    | StatePush
    | FreedPush
    | PreviewPush
    | GonePush
)
GatewaySink = Callable[[GatewayPush], None]


# ------------------------------------------------------------- pushes to a worker


class Assign(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="assign"):
    lease: Lease


class InputPush(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="in"):
    """New input of a leased job, offsets contiguous with what the lease carried."""

    job: str
    attempt: int
    items: list[InputItem]


class Delivered(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="delivered"):
    """How far readers are: cumulative samples (or chars) sent, and whether anyone reads."""

    job: str
    attempt: int
    delivered: int
    attached: bool


class Credit(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="bytes"):
    """``add`` bytes of this job's output have been stored: so many more may be sent."""

    job: str
    attempt: int
    add: int


class CancelJob(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="cancel"):
    """Stop this attempt and finish it with ``ended`` (or ``park``/``drop``: forget it)."""

    job: str
    attempt: int
    ended: Ended


class LeaseLost(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="lost"):
    """This attempt is fenced: drop the session, write nothing more."""

    job: str
    attempt: int


class Drain(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="drain"):
    """Take no new job; hand back what can be parked; exit within ``limit_s``."""

    limit_s: float


HOLD_S = 0.02
"""The most that `WorkerBroker.hold` may delay what a busy worker is told, cancels included."""

WorkerPush = Assign | InputPush | Delivered | Credit | CancelJob | LeaseLost | Drain | Control
WorkerSink = Callable[[WorkerPush], None]


# ----------------------------------------------------------------------- answers


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A connection's hold on a job. ``number`` fences its input; None for a reader only."""

    job: str
    gateway: str
    number: int | None
    view: JobView


class InputAck(msgspec.Struct, frozen=True, kw_only=True):
    """What the store has: last input offset, last client position, units so far.

    ``over`` is true while the job's unheard input is over its kind's bound: read no more
    from that client until `GatewayBroker.input_room` returns.
    """

    offset: int
    client_pos: int
    units: int
    repeats: int = 0  # how many of the items given were repeats, and dropped
    over: bool = False


class GatewayBroker(Protocol):
    """What a gateway may ask. Every call has a deadline of 1 s in a remote home."""

    def open(self, gateway: str, sink: GatewaySink) -> None:
        """Name this gateway and where its pushes go. Once, before anything else."""

    async def submit(
        self,
        spec: JobSpec,
        items: Sequence[InputItem] = (),
        *,
        gateway: str = "",
        promised: bool = False,
    ) -> JobView:
        """Make the job and its two streams; append ``items`` in the same step.

        Refuses before anything exists: `QueueFull`, `WaitTooLong`, `NoWorkers`,
        `QuotaExceeded`, `StoreFull`, `Draining`, `ModelNotFound`. A job whose input is still
        empty waits in no queue. With ``gateway`` given it is watched from its first event.
        ``promised``: the connection gate kept a place, so the queue's limits do not refuse it.
        """

    async def find(self, tenant: str, dialect: str, name: str) -> JobView | None:
        """The newest job of that client name, live or inside its window after the end."""

    async def status(self, job: str) -> JobView:
        """Raises `NotFound` once the job's window after its end has passed."""

    async def attach(self, job: str, *, gateway: str, write: bool) -> Attachment:
        """Watch a job's output from here; with ``write``, become the one who may feed it.

        Raises the attachment number and pushes `SupersededPush` to the previous holder's
        gateway. Several readers (``write=False``) may be attached at once.
        """

    async def detach(self, attachment: Attachment) -> None:
        """This connection is gone. With nobody left, the job's ``detach_s`` begins to run."""

    async def append(
        self,
        job: str,
        items: Sequence[InputItem],
        *,
        attachment: int,
        client_pos: int | None = None,
        units: int | None = None,
    ) -> InputAck:
        """Append input as this attachment. Raises `Fenced` for an older attachment,
        `BadRequest` after `End` or after the job is over, `TooLarge` over the item bound."""

    async def append_from_pipe(
        self, pipe: str, items: Sequence[InputItem], *, source_offset: int, ended: bool = False
    ) -> InputAck:
        """Append to a pipe's target as the pipe. ``source_offset`` must rise; an equal or
        lower one is a repeat and is dropped. ``ended`` marks the pipe as done."""

    async def input_room(self, job: str) -> None:
        """Return when the job's unheard input is under its bound again (or the job is over)."""

    async def read_after(
        self, job: str, offset: int, *, epoch: str | None = None, limit: int = 256
    ) -> list[OutputEvent]:
        """Events after ``offset``, oldest first, at most ``limit``; [] at the head.

        Raises `ResumeNotAvailable` with the reason: window_expired, state_lost (another
        epoch), ahead_of_head, unknown."""

    async def read_after_mark(
        self, job: str, counter: str, value: int, *, limit: int = 256
    ) -> list[OutputEvent]:
        """The same, from the first event whose cumulative ``counter`` passes ``value``."""

    async def delivered(self, gateway: str, positions: Mapping[str, int]) -> None:
        """Last output offset sent per job, in one batch, at most 4 times a second."""

    async def cancel(self, job: str, *, reason: str = "") -> JobView:
        """Idempotent. The terminal event is in the stream when this returns, unless the job
        had ended before; the worker is told to stop, its slot frees when it has."""

    async def control(
        self, pool: str, affinity: str, what: What, args: Mapping[str, Any] | None = None
    ) -> bool:
        """Tell the owner of ``affinity`` to do ``what`` to what it keeps (`Control`). False:
        nobody owns it, so there is nothing to do it to. No answer comes: what a running cell
        says, and how it ends, is in its output. Raises `ModelNotFound` for an unknown pool."""

    async def forget(self, job: str) -> None:
        """Forget a job that is over, at once and not when its window has passed: no gateway
        finds it any more, not as a dead letter either, nor after a restart. Nothing happens
        when it is not known. Raises `BadRequest` while it is not over."""

    async def expire(self, job: str, ended: Ended) -> None:
        """End the job with ``ended`` (failed or expired) on the gateway's word, such as
        a slow client; the same fence and the same worker stop as cancel."""

    async def pipe(self, spec: PipeSpec, *, gateway: str = "") -> PipeSpec:
        """Record a pipe (idempotent by id) and return it as it stands, ``copied`` included.
        ``gateway`` carries it: it watches the source while the pipe is not done, which does
        not count as anybody being attached.

        A target that is cancelled cancels the source (one that fails does not); the source's
        end is carried by the gateway."""

    async def pipes(self, gateway: str) -> list[PipeSpec]:
        """Pipes nobody carries any more; the caller is now their carrier."""

    async def jobs(self, *, dead: bool = False, limit: int = 200) -> list[JobView]:
        """Jobs now known, newest first; with ``dead`` the dead-letter list."""

    async def retry(self, job: str) -> JobView:
        """Put a dead or failed job's input into the queue again, as a new job."""

    async def audio(self, tenant: str, totals: Mapping[str, float]) -> Slots:
        """Count ``tenant``'s audio: each job of ``totals`` has brought so many seconds in all,
        at whatever gateway; less than is known is no news, so saying it twice counts once.
        Returns what came within the hour, from all gateways."""

    async def keep_ticket(self, ticket: str, holder: str, *, life_s: float, limit: int) -> None:
        """Remember for ``life_s``, at every gateway, on whose behalf whoever shows ``ticket``
        (a digest: the store never sees the ticket) may come. Of more than ``limit`` the
        oldest go."""

    async def take_ticket(self, ticket: str) -> str | None:
        """The holder of a ticket, which is used up by asking, whichever gateway asks. None:
        it is unknown, used or expired."""

    def pools(self, kind: str = "") -> list[PoolView]:
        """What serves now, of one kind or of all, from memory: cheap, for every request."""

    def workers(self) -> list[WorkerView]:
        """Who serves now and how each is doing, from memory."""

    def place_for(self, pool: str, tenant: str, cost_s: float) -> QueuePlace:
        """Where a new job of this cost would stand now: what admission predicts from."""

    async def drain(self) -> None:
        """Refuse new jobs from now on with `Draining`."""

    async def close(self) -> None:
        """Give back everything; jobs not durable end as failed(worker_lost)."""


class WorkerBroker(Protocol):
    """What a worker may ask. Through the link or Redis, the promises are the same.

    Writes are plain functions: they are queued in order, sent in one batch per loop tick,
    and never block. What comes back (leases, input, credit, lost leases) arrives through
    the sink. A worker whose connection to the broker ends drops every lease.
    """

    async def connect(self, sink: WorkerSink) -> None: ...

    def stage(self, worker: str, pools: Sequence[str], stage: LoadStage) -> None:
        """Report loading; may be called before `register`."""

    def register(self, info: WorkerInfo) -> None:
        """Ready to work: ``info.sessions`` credits are free from now on."""

    def commit(
        self,
        job: str,
        attempt: int,
        events: Sequence[OutputEvent],
        consumed: Consumed,
        *,
        model_s: float = 0.0,
    ) -> None:
        """Append ``events`` (offsets stamped) and record ``consumed``, as one step.

        ``events`` may be empty. The last may be an `Ended`: then lease and credit are given
        back. ``model_s``: model time used since the previous commit. The caller keeps its
        own account of byte credit and must not exceed it."""

    def park(self, job: str, attempt: int) -> None:
        """Give back lease and credit of an idle session; its next input queues it again."""

    def keeps(self, affinity: str, *, held: bool) -> None:
        """Something lives on for ``affinity`` (``held``), or does not any more: its credit is
        back then. Leasing a cell implies it; a new connection says again what is held."""

    def hold(self, held: bool) -> None:
        """The worker has no slot free (``held``), or has one again: what comes meanwhile may
        be delivered up to `HOLD_S` later, so that it costs no wake-up of its own. Nothing is
        held back from a worker that could begin with it."""

    def beat(self, worker: str, load: Mapping[str, Any]) -> None:
        """Still alive. Safe to call from a thread of its own."""

    async def drained(self) -> None:
        """Return when everything queued has been sent."""

    async def close(self) -> None: ...


class SupervisorBroker(Protocol):
    """What a supervisor may say about the processes it started."""

    def exited(
        self, worker: str, *, abnormal: bool, stepping: Iterable[tuple[str, int]], reason: str
    ) -> None:
        """A worker process is gone. ``stepping``: (job, attempt) it was inside of, read from
        the runner's shared-memory table; with ``abnormal`` each takes a strike."""

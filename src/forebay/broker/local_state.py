"""What LocalBroker remembers: one `Entry` per job, one record per pool and per worker.

Plain data with the few questions that need only the data itself. Who changes it, and in which
order, is in `local_core` (jobs), `local_workers` (workers) and `local` (gateways).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from forebay.broker import GatewaySink, WorkerSink
from forebay.broker.affinity import Affinities
from forebay.broker.timers import Timer
from forebay.core.admission import Drain, Service, forecast
from forebay.core.events import (
    End,
    Final,
    Heard,
    InputItem,
    OutputEvent,
    Prompt,
    Sound,
    Text,
    TextDelta,
    Tile,
    ToolCalls,
    Usage,
    blobs_of,
    marks,
)
from forebay.core.fairness import FairQueue, Ticket
from forebay.core.job import Job, Phase
from forebay.core.kinds import Cut, Recovery, Row
from forebay.core.lease import ByteCredit
from forebay.core.spec import (
    JobView,
    LoadStage,
    PipeSpec,
    PoolView,
    QueuePlace,
    WorkerInfo,
    WorkerView,
    counts_of,
)
from forebay.core.stream import IdentityFence, InputFence, StreamLog
from forebay.core.transcript import Transcript

__all__ = ["DeadLetter", "Entry", "Held", "PipeRecord", "Pool", "Worker"]

ASSUMED_S = 10.0
"""Sound in a recognition session, until one was measured."""

ENTRY_BYTES = 4096
"""What a job counts for in the store beside its streams."""


@dataclass(slots=True)
class PipeRecord:
    spec: PipeSpec
    fence: IdentityFence
    carried: bool = True
    done: bool = False
    carrier: str = ""  # the gateway that is pushed what the source says


class DeadLetter(msgspec.Struct, frozen=True):
    """A job that crashed every worker that stepped it: what it was, what was left to do."""

    view: JobView
    items: list[InputItem]


@dataclass(slots=True)
class Held:
    """One credit that a worker holds for (job, attempt)."""

    pool: Pool
    since_s: float
    cancelled_s: float | None = None  # when its job was cancelled under it
    affinity: str = ""
    beside: bool = False


@dataclass(slots=True, eq=False)
class Worker:
    """A connected worker process. ``order``: of its registration, for promoting standbys.
    ``silent``: connected, but given up for lack of beats until the next one."""

    id: str
    sink: WorkerSink | None
    order: int = 0
    info: WorkerInfo | None = None
    held: dict[tuple[str, int], Held] = field(default_factory=dict)
    pools: set[str] = field(default_factory=set)
    silent: bool = False
    link_gone: bool = False
    word: tuple[bool, list[tuple[str, int]], str] | None = None  # the supervisor's, on exit
    load: Mapping[str, Any] = field(default_factory=dict)  # what its newest beat carried
    behind: set[str] = field(default_factory=set)  # jobs that catch up with their clients
    affine: int = 0  # of `held`: jobs whose affinity holds the credit, not they
    kept: int = 0  # affinities that hold one
    rtf: Service = field(default_factory=Service)
    burial: Timer | None = None

    @property
    def usable(self) -> bool:
        """May be given work: registered, heard of, taking new jobs."""
        return (
            self.info is not None
            and self.info.sessions > 0
            and not self.silent
            and not self.link_gone
            and self.word is None
        )

    @property
    def free(self) -> int:
        """Credits to give. None while as many sessions as it has slots catch up: another one
        would only wait inside the worker, where nobody tells its client how long."""
        if self.info is None or len(self.behind) >= max(1, self.info.slots):
            return 0
        return max(0, self.info.sessions - len(self.held) + self.affine - self.kept)

    def view(self) -> WorkerView:
        info, load = self.info, self.load
        return WorkerView(
            id=self.id,
            pools=sorted(self.pools),
            slots=info.slots if info is not None else 0,
            sessions=info.sessions if info is not None else 0,
            held=len(self.held),
            standby=info is not None and info.standby,
            silent=self.silent,
            pid=info.pid if info is not None else 0,
            busy=int(load.get("busy", 0)),
            busy_s=float(load.get("busy_s", 0.0)),
            cpu_s=float(load.get("cpu_s", 0.0)),
            resident_bytes=int(load.get("resident_bytes", 0)),
            gpu_bytes=int(load.get("gpu_bytes", 0)),
            gpu_busy=load.get("gpu_busy"),
            counts=counts_of(load),
            rtf=self.rtf.mean_s if self.rtf.known else None,
        )


@dataclass(slots=True, eq=False)
class Pool:
    """A queue and those who serve it. ``want``: as many regular workers as it is used to.
    ``active``: who may be given work now. ``hold``: how long a credit is held. ``busy_since_s``:
    from when on ``running`` has not been 0."""

    name: str
    row: Row
    queue: FairQueue
    clock: Callable[[], float]
    workers: dict[str, Worker] = field(default_factory=dict)
    active: list[Worker] = field(default_factory=list)
    want: int = 0
    hold: Service = field(default_factory=Service)
    model: Service = field(default_factory=Service)
    rtf: Service = field(default_factory=Service)
    drain: Drain = field(default_factory=Drain)
    stages: dict[str, LoadStage] = field(default_factory=dict)
    info: WorkerInfo | None = None
    expected_until_s: float = 0.0
    running: int = 0
    busy_since_s: float = 0.0
    parked: int = 0
    detached: int = 0
    affinities: Affinities = field(default_factory=Affinities)
    affine: bool = False  # a job with an affinity has waited here
    places: Timer | None = None
    places_at_s: float = -1e9

    @property
    def credits(self) -> int:
        return sum(w.info.sessions for w in self.active if w.info is not None)

    @property
    def free(self) -> int:
        return sum(w.free for w in self.active)

    @property
    def slots(self) -> int:
        return sum(w.info.slots for w in self.active if w.info is not None)

    @property
    def work(self) -> Service:
        """Model seconds of a job: measured, or, for a model that says its real-time factor,
        those of a session of `ASSUMED_S`."""
        rtf = self.info.facts.get("rtf") if self.info is not None else None
        if self.model.known or self.row.cut is not Cut.SPAN or not isinstance(rtf, int | float):
            return self.model
        return Service(count=1, mean_s=float(rtf) * ASSUMED_S)

    def elect(self) -> None:
        """Decide again who may be given work: all regular workers, and as many standbys as
        regular ones are missing (at least one where there is no regular worker)."""
        usable = [w for w in self.workers.values() if w.usable]
        regular = [w for w in usable if w.info is not None and not w.info.standby]
        spare = sorted((w for w in usable if w not in regular), key=lambda w: w.order)
        self.want = max(self.want, len(regular))
        missing = max(1, self.want) - len(regular)
        self.active = regular + spare[: max(0, missing)]

    def serving(self, now: float) -> int:
        """Workers that serve, load, or are expected: whether waiting makes sense."""
        loading = sum(1 for s in self.stages.values() if s.stage not in ("failed", "ready"))
        return len(self.active) + loading + (1 if now < self.expected_until_s else 0)

    def begin(self) -> None:
        """One more job runs."""
        if not self.running:
            self.busy_since_s = self.clock()
        self.running += 1

    def place(self, position: int) -> QueuePlace:
        return forecast(
            position,
            self.hold,
            self.credits,
            self.work,
            self.slots,
            running=self.running,
            busy_s=self.clock() - self.busy_since_s,
        )

    def view(self, now: float) -> PoolView:
        info = self.info
        return PoolView(
            name=self.name,
            kind=self.row.kind,
            workers=len(self.workers),
            ready=len(self.active),
            slots=self.slots,
            free_credits=self.free,
            queued=len(self.queue),
            running=self.running,
            parked=self.parked,
            detached=self.detached,
            service_s=self.model.mean_s if self.model.known else None,
            rtf=self.rtf.mean_s if self.rtf.known else None,
            drain_rate=self.drain.rate(now),
            synthetic=info.synthetic if info is not None else False,
            engine=info.engine if info is not None else "",
            model=info.model if info is not None else self.name.partition("/")[2],
            facts=info.facts if info is not None else {},
            stages=dict(self.stages),
        )


@dataclass(slots=True, eq=False)
class Entry:
    """A job, its two streams, and everybody attached to it.

    ``writer``: (gateway, number) that may feed it. ``readers``: read attachments per gateway.
    ``submitter``: the gateway that watches since `submit`, until it attaches. ``sinks``: where
    output is pushed. ``charged_s``: model seconds its tenant has been charged.
    """

    job: Job
    pool: Pool
    out: StreamLog[OutputEvent]
    inp: StreamLog[InputItem]
    fence: InputFence = field(default_factory=InputFence)
    writer: tuple[str, int] | None = None
    readers: dict[str, int] = field(default_factory=dict)
    submitter: str = ""
    sinks: tuple[GatewaySink, ...] = ()
    delivered: int = 0
    delivered_marks: dict[str, int] = field(default_factory=dict)
    credit: ByteCredit = field(default_factory=ByteCredit)
    ticket: Ticket | None = None
    told_place: QueuePlace | None = None
    charged_s: float = 0.0
    lease_model_s: float = 0.0
    lease_media: int = 0
    said: Transcript = field(default_factory=Transcript)
    prefix: bool = False
    counted_detached: bool = False
    wait_timer: Timer | None = None
    total_timer: Timer | None = None
    away_timer: Timer | None = None
    room: list[asyncio.Future[None]] = field(default_factory=list)
    pipes: list[PipeRecord] = field(default_factory=list)  # those that feed this job
    feeds: list[PipeRecord] = field(default_factory=list)  # those that it feeds
    accounted_bytes: int = 0
    blobs: set[str] = field(default_factory=set)  # named by its input and output

    @property
    def id(self) -> str:
        return self.job.spec.id

    @property
    def attached(self) -> bool:
        return self.writer is not None or bool(self.readers) or bool(self.submitter)

    def gateways(self) -> set[str]:
        names = set(self.readers)
        if self.writer is not None:
            names.add(self.writer[0])
        if self.submitter:
            names.add(self.submitter)
        names.update(pipe.carrier for pipe in self.feeds if not pipe.done)
        return names

    # ------------------------------------------------------------------- input

    @property
    def keeps_input(self) -> bool:
        """Input that a later attempt needs from its beginning."""
        return self.job.row.recovery is Recovery.CONTINUE

    def unheard(self) -> tuple[int, int]:
        """(bytes, items) of input that nobody has worked on yet."""
        at = self.job.consumed
        if self.keeps_input and at.offset >= self.inp.head:
            return 0, 0
        taken = max(at.offset, at.heard, self.inp.first - 1)
        size = self.inp.bytes if taken < self.inp.first else self.inp.bytes_after(taken)
        return size, self.inp.head - taken

    @property
    def is_behind(self) -> bool:
        """Its client is far ahead of what was heard: a worker is to catch up first."""
        limit = self.job.row.behind_bytes
        return limit is not None and self.unheard()[0] > limit

    def over_bound(self, waiting: tuple[int, int] | None = None) -> bool:
        """Whether more input is unheard than the kind's bound. ``waiting``: `unheard`, where
        it is known."""
        row = self.job.row
        size, items = self.unheard() if waiting is None else waiting
        return size > row.input_bytes or (row.input_items is not None and items > row.input_items)

    def note_input(self, items: list[InputItem]) -> None:
        """Bring the record up to what the input stream now holds."""
        job = self.job
        job.input_head = self.inp.head
        job.input_ended = self.inp.ended
        for item in items:
            if isinstance(item, Sound):  # most of all input
                if item.seq > job.seq:
                    job.seq = item.seq
                if item.blob:
                    self.blobs.add(item.blob)
                continue
            self.blobs.update(blobs_of(item))
            if isinstance(item, Prompt):
                job.units += 1
            elif isinstance(item, Text):
                job.seq = max(job.seq, item.seq)
                job.units = max(job.units, item.unit + len(item.text))
            elif isinstance(item, End):
                job.seq = max(job.seq, item.seq)

    def unread(self) -> list[InputItem]:
        """What the next lease must carry."""
        start = 0 if self.keeps_input else self.job.consumed.offset
        return self.inp.after(max(start, self.inp.first - 1))

    # ------------------------------------------------------------------ output

    def note_output(self, events: list[OutputEvent]) -> None:
        """Remember what decides how an answer recovers, and what was said."""
        for event in events:
            if isinstance(event, Heard):  # most of all output of recognition
                continue
            named = blobs_of(event)
            if named:
                self.blobs.update(named)
            if isinstance(event, ToolCalls):
                self.job.tools = True
            elif isinstance(event, Usage):
                self.job.answered = True
            elif isinstance(event, Final):
                self.said.add(event.text)

    def text_so_far(self) -> str:
        """The committed text: for an engine that can go on after it, and of a transcript."""
        if self.said.chars:
            return self.said.text
        if self.job.row.recovery is not Recovery.CONTINUE or self.out.first != 1:
            return ""
        if not self.out.head:
            return ""
        return "".join(e.text for e in self.out.after(0) if isinstance(e, TextDelta))

    def tiles(self) -> list[Tile]:
        """The committed tiles of a picture: a new attempt leaves them out."""
        if not self.out.marks.get("tiles"):
            return []
        return [e for e in self.out.after(self.out.first - 1) if isinstance(e, Tile)]

    def media_delivered(self) -> int:
        counts = self.delivered_marks
        return counts.get("samples", counts.get("chars", 0))

    def note_delivered(self, offset: int) -> bool:
        """A reader was sent everything up to ``offset``; True if that is news."""
        offset = min(offset, self.out.head)
        if offset <= self.delivered:
            return False
        start = max(self.delivered, self.out.first - 1)
        for event in self.out.after(start, max(0, offset - start)):
            self.delivered_marks.update(marks(event))
        self.delivered = offset
        return True

    # -------------------------------------------------------------------- view

    def place(self) -> QueuePlace | None:
        if self.job.phase is not Phase.QUEUED:
            return None
        return self.pool.place(self.pool.queue.rank(self.id) + 1)

    def view(self) -> JobView:
        job = self.job
        ended = job.ended
        return JobView(
            spec=job.spec,
            state=job.state,
            epoch=self.out.epoch,
            head=self.out.head,
            first=self.out.first,
            delivered=self.delivered,
            marks=dict(self.out.marks),
            delivered_marks=dict(self.delivered_marks),
            input_head=job.input_head,
            client_pos=self.fence.client_pos,
            units=job.units,
            input_ended=job.input_ended,
            attempts=job.attempt,
            strikes=job.strikes,
            place=self.place(),
            code=ended.code if ended is not None else "",
            message=ended.message if ended is not None else "",
            created_s=job.created_s,
            started_s=job.started_s,
            ended_s=job.ended_s,
            model_s=job.model_s,
        )

"""The state of LocalBroker, its settings, and the bookkeeping every part of it needs.

`Base` holds; `local_dispatch.Dispatch` queues and leases; `local_core.Core` recovers and ends.
Everything is synchronous and runs in one event loop. Each step first brings the state up to
date (durable jobs: the journal before anything else), then pushes; matching comes last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog

from forebay.broker import Delivered, FreedPush, GatewayPush, GatewaySink, StatePush
from forebay.broker.journal import Journal
from forebay.broker.local_state import ENTRY_BYTES, DeadLetter, Entry, PipeRecord, Pool, Worker
from forebay.broker.rooms import RoomSettings
from forebay.broker.timers import CallLater, Timers
from forebay.core.admission import JobLimits
from forebay.core.events import Ended, OutputEvent
from forebay.core.fairness import FairQueue
from forebay.core.job import Phase, over_deadline, total_until
from forebay.core.kinds import KINDS, Kind, Row
from forebay.core.lease import PAUSE_S, Beats
from forebay.core.spec import JobView
from forebay.core.stream import StreamLog, Window
from forebay.errors import ModelNotFound, ProtocolError

__all__ = ["Base", "Settings"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operator may change.

    ``store_bytes``: streams of all jobs together, over it new jobs are refused. ``weights``:
    share per tenant. ``rows``: the kind table, where numbers of it were changed.
    ``expect_s``: how long a pool that was announced may take to show its first worker.
    ``respawn_s``: how long jobs are still taken after the last worker has gone.
    """

    store_bytes: int = 256 * 1024 * 1024
    limits: JobLimits = JobLimits()
    weights: dict[str, float] = field(default_factory=dict)
    rows: dict[Kind, Row] = field(default_factory=lambda: dict(KINDS))
    expect_s: float = 60.0
    respawn_s: float = 10.0
    rooms: RoomSettings = RoomSettings()


class Base(ABC):
    """What LocalBroker knows, and the steps that are no decision."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float],
        call_later: CallLater,
        ids: Callable[[], str],
        jitter: Callable[[], float],
        journal: Journal | None,
        drop_blobs: Callable[[Iterable[str]], None] = lambda names: None,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.ids = ids
        self.jitter = jitter
        self.journal = journal
        self.drop_blobs = drop_blobs
        self.timers = Timers(clock, call_later, pause_s=PAUSE_S, on_pause=self._on_pause)
        self.beats = Beats()
        self.entries: dict[str, Entry] = {}
        self.names: dict[tuple[str, str, str], str] = {}
        self.tenant_jobs: dict[str, int] = {}
        self.pools: dict[str, Pool] = {}
        self.workers: dict[str, Worker] = {}
        self.gateways: dict[str, GatewaySink] = {}
        self.pipes: dict[str, PipeRecord] = {}
        self.dead: dict[str, DeadLetter] = {}
        self.used_bytes = 0
        self.live_jobs = 0
        self.draining = False

    # ------------------------------------------------------------------- pools

    def pool(self, name: str) -> Pool:
        """The pool of that name; raises `ModelNotFound` if there is none."""
        pool = self.pools.get(name)
        if pool is None:
            raise ModelNotFound(f"no pool is called {name!r}", pools=sorted(self.pools))
        return pool

    def make_pool(self, name: str) -> Pool:
        """The pool of that name, made if it is new. Raises `ProtocolError` for a bad name."""
        pool = self.pools.get(name)
        if pool is None:
            kind, slash, model = name.partition("/")
            if not slash or not model or kind not in self.settings.rows:
                raise ProtocolError(f"pool {name!r} is not kind/model")
            row = self.settings.rows[Kind(kind)]
            pool = self.pools[name] = Pool(name, row, FairQueue(self.settings.weights), self.clock)
        return pool

    def tell_state(self, pool: str) -> None:
        for sink in list(self.gateways.values()):
            sink(StatePush(pool=pool))

    def freed(self, job: str, pool: str, after_s: float) -> None:
        """A cancelled job's worker has let go of it."""
        for sink in list(self.gateways.values()):
            sink(FreedPush(job=job, pool=pool, after_s=after_s))

    def _on_pause(self, now: float) -> None:
        log.warning("broker.paused", grace_s=self.beats.ttl_s)
        self.beats.grace(now)

    # ----------------------------------------------------------------- entries

    def new_log(self, row: Row, params: dict[str, object], epoch: str) -> StreamLog[OutputEvent]:
        rate = params.get("sample_rate")
        window = Window.of(row, rate=rate if isinstance(rate, int) else 16_000)
        return StreamLog(epoch, window)

    def account(self, entry: Entry) -> None:
        """Bring the store's size up to date after any change of an entry's streams."""
        size = entry.out.bytes + entry.inp.bytes + ENTRY_BYTES
        self.used_bytes += size - entry.accounted_bytes
        entry.accounted_bytes = size

    def tell(self, entry: Entry, push: GatewayPush) -> None:
        for sink in entry.sinks:
            sink(push)

    def watch(self, entry: Entry) -> None:
        """Who is attached changed: who is pushed to, whether the job's absence clock runs,
        and what its worker knows about it."""
        was = entry.counted_detached
        gateways = entry.gateways()
        entry.sinks = tuple(s for g, s in self.gateways.items() if g in gateways)
        away = not entry.attached and not entry.job.over
        if away != was:
            entry.counted_detached = away
            entry.pool.detached += 1 if away else -1
            self.tell_delivered(entry)
        if away:
            return
        if entry.away_timer is not None:
            entry.away_timer.cancel()
            entry.away_timer = None

    def leave_in(self, entry: Entry, seconds: float) -> None:
        """Cancel the job unless somebody attaches within ``seconds``."""
        if seconds <= 0:
            self.end(entry, Ended(state="cancelled", message="the client went away"))
            return
        if entry.away_timer is not None:
            entry.away_timer.cancel()
        ended = Ended(state="cancelled", message=f"the client was away for {seconds:g} s")
        entry.away_timer = self.timers.at(self.clock() + seconds, lambda: self.end(entry, ended))

    def tell_delivered(self, entry: Entry) -> None:
        job = entry.job
        if job.phase is not Phase.RUNNING:
            return
        worker = self.workers.get(job.worker)
        if worker is not None and worker.sink is not None:
            worker.sink(
                Delivered(
                    job=entry.id,
                    attempt=job.attempt,
                    delivered=entry.media_delivered(),
                    attached=entry.attached,
                )
            )

    def input_moved(self, entry: Entry) -> None:
        """Wake whoever waits for input room, if there is some."""
        if entry.room and (entry.job.over or not entry.over_bound()):
            waiting, entry.room = entry.room, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    # ------------------------------------------------------------------- births

    def add(self, entry: Entry) -> None:
        """A job exists from now on; its deadlines run."""
        spec = entry.job.spec
        self.entries[entry.id] = entry
        if spec.name:
            self.names[(spec.tenant, spec.dialect, spec.name)] = entry.id
        self.account(entry)
        if entry.job.over:
            return
        self.live_jobs += 1
        self._count_tenant(spec.tenant, 1)
        total = total_until(entry.job)
        if total is not None:
            ended = over_deadline("total", spec.deadlines.total_s or 0.0)
            entry.total_timer = self.timers.at(total, lambda: self.end(entry, ended))

    def _count_tenant(self, tenant: str, change: int) -> None:
        count = self.tenant_jobs.get(tenant, 0) + change
        if count > 0:
            self.tenant_jobs[tenant] = count
        else:
            self.tenant_jobs.pop(tenant, None)

    def views(self, limit: int) -> list[JobView]:
        newest = reversed(self.entries.values())
        return [entry.view() for _, entry in zip(range(limit), newest, strict=False)]

    @abstractmethod
    def end(self, entry: Entry, ended: Ended) -> None:
        """End a job on the broker's word. Nothing happens to a job that is over."""

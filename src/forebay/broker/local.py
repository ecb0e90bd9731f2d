"""LocalBroker: the broker contract in plain structures, inside the gateway's process.

It is the whole broker of a single machine: gateways call `GatewayBroker` directly, workers
and the supervisor come in through `broker.link`, which calls the `WorkerHost` half. With a
`Journal`, durable jobs survive the process.

Everything happens synchronously in the event loop that uses it. The async methods do not
wait, except `input_room`; cancelling any of them loses nothing. No task is started: what
must happen later hangs on one timer that is armed only while something is due.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from forebay.broker import (
    Attachment,
    Control,
    GatewaySink,
    InputAck,
    SupersededPush,
    WorkerSink,
)
from forebay.broker.affinity import What
from forebay.broker.journal import Journal
from forebay.broker.local_base import Settings
from forebay.broker.local_core import Core
from forebay.broker.local_intake import Intake
from forebay.broker.local_restore import restore
from forebay.broker.local_rooms import LocalRooms
from forebay.broker.local_state import Entry, PipeRecord
from forebay.broker.local_workers import WorkerSide
from forebay.broker.tickets import TicketShelf
from forebay.broker.timers import CallLater, loop_call_later
from forebay.core.audio_quota import AudioBook, Slots
from forebay.core.events import Consumed, Ended, InputItem, OutputEvent, blobs_of
from forebay.core.job import remaining_input
from forebay.core.room import is_room
from forebay.core.spec import (
    JobSpec,
    JobView,
    LoadStage,
    PipeSpec,
    PoolView,
    QueuePlace,
    WorkerInfo,
    WorkerView,
)
from forebay.core.stream import IdentityFence
from forebay.errors import BadRequest, NotFound, ResumeNotAvailable

__all__ = ["LocalBroker", "Settings", "default_store_bytes"]


def default_store_bytes() -> int:
    """A quarter of this machine's memory, at least 256 MiB."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        memory = 0
    return max(256 * 1024 * 1024, memory // 4)


class LocalBroker:
    """`GatewayBroker`, `WorkerHost` and `SupervisorBroker` in one process.

    ``clock``: monotonic seconds. ``call_later``: how to sleep (the running loop's timer by
    default). ``ids``: 128 random bits in hex. ``jitter``: 0..1. All are given by tests that
    run in virtual time. ``drop_blobs``: called with the blobs that a cancelled or forgotten job
    had named; must not block. Durable jobs in ``journal`` are queued again by the constructor,
    which therefore must run inside the event loop.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        call_later: CallLater = loop_call_later,
        ids: Callable[[], str] = lambda: secrets.token_hex(16),
        jitter: Callable[[], float] = random.random,
        journal: Journal | None = None,
        drop_blobs: Callable[[Iterable[str]], None] = lambda names: None,
    ) -> None:
        self._core = core = Core(
            settings if settings is not None else Settings(),
            clock=clock,
            call_later=call_later,
            ids=ids,
            jitter=jitter,
            journal=journal,
            drop_blobs=drop_blobs,
        )
        self._workers = WorkerSide(core)
        self._intake = Intake(core)
        self._book = AudioBook()
        self._tickets = TicketShelf()
        self._closed = False
        if journal is not None:
            restore(core, journal)
        self.rooms = LocalRooms(core, core.settings.rooms)

    # ------------------------------------------------------------ for the gateway

    def open(self, gateway: str, sink: GatewaySink) -> None:
        self._core.gateways[gateway] = sink

    def expect(self, pools: Iterable[str]) -> None:
        """These pools will be served soon (their workers are being started): jobs for them
        may wait from now on, for `Settings.expect_s`."""
        for name in pools:
            pool = self._core.make_pool(name)
            pool.expected_until_s = self._core.clock() + self._core.settings.expect_s

    def _entry(self, job: str) -> Entry:
        entry = self._core.entries.get(job)
        if entry is None:
            raise NotFound(f"no job {job}")
        return entry

    async def submit(
        self,
        spec: JobSpec,
        items: Sequence[InputItem] = (),
        *,
        gateway: str = "",
        promised: bool = False,
    ) -> JobView:
        return self._intake.submit(spec, items, gateway, promised).view()

    async def find(self, tenant: str, dialect: str, name: str) -> JobView | None:
        job = self._core.names.get((tenant, dialect, name))
        return None if job is None else self._entry(job).view()

    async def status(self, job: str) -> JobView:
        return self._entry(job).view()

    async def attach(self, job: str, *, gateway: str, write: bool) -> Attachment:
        entry = self._entry(job)
        number: int | None = None
        if entry.submitter == gateway:
            entry.submitter = ""
        if write:
            before = entry.writer
            number = entry.fence.attach()
            entry.writer = (gateway, number)
            if before is not None and before[0] in self._core.gateways:
                self._core.gateways[before[0]](SupersededPush(job=job, number=before[1]))
        else:
            entry.readers[gateway] = entry.readers.get(gateway, 0) + 1
        entry.job.exposed = max(entry.job.exposed, entry.out.head)
        self._core.watch(entry)
        return Attachment(job=job, gateway=gateway, number=number, view=entry.view())

    async def detach(self, attachment: Attachment) -> None:
        entry = self._core.entries.get(attachment.job)
        if entry is None:
            return
        gateway, number = attachment.gateway, attachment.number
        if number is None:
            left = entry.readers.pop(gateway, 0) - 1
            if left > 0:
                entry.readers[gateway] = left
        elif entry.writer == (gateway, number):
            entry.writer = None
        else:
            return  # it had been superseded: it holds nothing any more
        self._core.watch(entry)
        if not entry.attached and not entry.job.over:
            self._core.leave_in(entry, entry.job.spec.detach_s)

    async def append(
        self,
        job: str,
        items: Sequence[InputItem],
        *,
        attachment: int,
        client_pos: int | None = None,
        units: int | None = None,
    ) -> InputAck:
        return self.append_now(
            job, items, attachment=attachment, client_pos=client_pos, units=units
        )

    def append_now(
        self,
        job: str,
        items: Sequence[InputItem],
        *,
        attachment: int,
        client_pos: int | None = None,
        units: int | None = None,
    ) -> InputAck:
        """`append`, for callers in this process that cannot wait. Raises as it does."""
        return self._intake.append(
            self._entry(job), items, attachment=attachment, client_pos=client_pos, units=units
        )

    async def append_from_pipe(
        self, pipe: str, items: Sequence[InputItem], *, source_offset: int, ended: bool = False
    ) -> InputAck:
        record = self._core.pipes.get(pipe)
        if record is None:
            raise NotFound(f"no pipe {pipe}")
        if is_room(record.spec.target):
            return self._into_room(record, source_offset, ended)
        return self._intake.append_from_pipe(record, items, source_offset, ended)

    async def input_room(self, job: str) -> None:
        entry = self._core.entries.get(job)
        while entry is not None and entry.over_bound() and not entry.job.over:
            future = asyncio.get_running_loop().create_future()
            entry.room.append(future)
            try:
                await future
            finally:
                if future in entry.room:
                    entry.room.remove(future)

    async def read_after(
        self, job: str, offset: int, *, epoch: str | None = None, limit: int = 256
    ) -> list[OutputEvent]:
        entry = self._readable(job)
        if epoch is not None and epoch != entry.out.epoch:
            raise ResumeNotAvailable("the stream was lost and begun anew", reason="state_lost")
        return self._seen(entry, entry.out.after(offset, limit))

    def at_head(self, job: str, offset: int, epoch: str) -> bool:
        """Whether `read_after` would find nothing, and pushes tell all that comes."""
        entry = self._core.entries.get(job)
        return entry is not None and (epoch, offset) == (entry.out.epoch, entry.out.head)

    async def read_after_mark(
        self, job: str, counter: str, value: int, *, limit: int = 256
    ) -> list[OutputEvent]:
        entry = self._readable(job)
        return self._seen(entry, entry.out.after_mark(counter, value, limit))

    def _readable(self, job: str) -> Entry:
        entry = self._core.entries.get(job)
        if entry is None:
            raise ResumeNotAvailable(f"no stream of job {job}", reason="unknown")
        return entry

    @staticmethod
    def _seen(entry: Entry, events: list[OutputEvent]) -> list[OutputEvent]:
        if events:
            entry.job.exposed = max(entry.job.exposed, events[-1].offset)
        return events

    async def delivered(self, gateway: str, positions: Mapping[str, int]) -> None:
        for job, offset in positions.items():
            entry = self._core.entries.get(job)
            if entry is None or not entry.note_delivered(offset):
                continue
            if entry.out.window.keep_undelivered:
                entry.out.trim(delivered=entry.delivered)
                self._core.account(entry)
            if entry.job.row.lead_s is not None:  # an engine that waits for nobody needs no word
                self._core.tell_delivered(entry)

    async def cancel(self, job: str, *, reason: str = "") -> JobView:
        entry = self._entry(job)
        self._core.end(entry, Ended(state="cancelled", message=reason))
        return entry.view()

    async def control(
        self, pool: str, affinity: str, what: What, args: Mapping[str, Any] | None = None
    ) -> bool:
        owner = self._core.pool(pool).affinities.owner(affinity)
        worker = None if owner is None else self._core.workers.get(owner)
        if worker is None or worker.sink is None:
            return False
        worker.sink(Control(pool=pool, affinity=affinity, what=what, args=dict(args or {})))
        return True

    async def forget(self, job: str) -> None:
        entry = self._core.entries.get(job)
        if entry is None:
            self._core.discard(job)
            return
        if entry.job.ended is None:
            raise BadRequest(f"job {job} is {entry.job.state}, expected one that is over")
        self._core.unbury(job)
        self._core.forget(entry)

    async def expire(self, job: str, ended: Ended) -> None:
        self._core.end(self._entry(job), ended)

    async def pipe(self, spec: PipeSpec, *, gateway: str = "") -> PipeSpec:
        core = self._core
        record = core.pipes.get(spec.id)
        if record is None:
            source = self._entry(spec.source)
            target = None if is_room(spec.target) else self._entry(spec.target)
            record = PipeRecord(spec, IdentityFence(spec.copied))
            core.pipes[spec.id] = record
            if target is not None:
                target.pipes.append(record)
            source.feeds.append(record)
            durable = source.job if target is None else target.job
            if core.journal is not None and durable.spec.durable:
                core.journal.piped(spec, done=False)
            if target is not None and target.job.state == "cancelled":
                core.end(source, Ended(state="cancelled", message="what it fed is over"))
        self._carries(record, gateway)
        return record.spec

    def _into_room(self, record: PipeRecord, source_offset: int, ended: bool) -> InputAck:
        """What a pipe brought is in its room already, which knows how far it is; the record
        is kept so that somebody goes on carrying it."""
        if record.fence.check(source_offset) == "append":
            record.spec = msgspec.structs.replace(record.spec, copied=source_offset)
        record.done = record.done or ended
        source = self._core.entries.get(record.spec.source)
        durable = source is not None and source.job.spec.durable
        if self._core.journal is not None and durable:
            self._core.journal.piped(record.spec, done=record.done)
        return InputAck(offset=0, client_pos=source_offset, units=0)

    def _carries(self, record: PipeRecord, gateway: str) -> None:
        source = self._core.entries.get(record.spec.source)
        if gateway and source is not None:
            record.carrier = gateway
            self._core.watch(source)

    async def pipes(self, gateway: str) -> list[PipeSpec]:
        orphans = [p for p in self._core.pipes.values() if not p.carried and not p.done]
        for record in orphans:
            record.carried = True
            self._carries(record, gateway)
        return [record.spec for record in orphans]

    async def jobs(self, *, dead: bool = False, limit: int = 200) -> list[JobView]:
        if dead:
            return [letter.view for letter in reversed(self._core.dead.values())][:limit]
        return self._core.views(limit)

    async def retry(self, job: str) -> JobView:
        letter = self._core.dead.get(job)
        if letter is not None:
            spec, items = letter.view.spec, letter.items
        else:
            entry = self._entry(job)
            if entry.job.state != "failed":
                raise BadRequest(f"job {job} is {entry.job.state}, expected failed")
            spec = entry.job.spec
            start = Consumed() if entry.keeps_input else entry.job.consumed
            items = remaining_input(entry.inp.after(entry.inp.first - 1), start)
        again = msgspec.structs.replace(spec, id=self._core.ids(), name="")
        view = await self.submit(again, items)
        self._core.unbury(job)
        failed = self._core.entries.get(job)
        if failed is not None:  # its input's blobs are the new job's now
            failed.blobs.difference_update(*map(blobs_of, items))
        return view

    async def audio(self, tenant: str, totals: Mapping[str, float]) -> Slots:
        return self._book.count(tenant, totals, self._core.clock())

    async def keep_ticket(self, ticket: str, holder: str, *, life_s: float, limit: int) -> None:
        now = self._core.clock()
        self._tickets.keep(ticket, holder, until_s=now + life_s, limit=limit, now=now)

    async def take_ticket(self, ticket: str) -> str | None:
        return self._tickets.take(ticket, self._core.clock())

    def pools(self, kind: str = "") -> list[PoolView]:
        now, pools = self._core.clock(), self._core.pools.values()
        return [pool.view(now) for pool in pools if not kind or pool.row.kind == kind]

    def workers(self) -> list[WorkerView]:
        return [w.view() for w in self._core.workers.values() if w.info is not None]

    def place_for(self, pool: str, tenant: str, cost_s: float) -> QueuePlace:
        return self._intake.place_for(self._core.pool(pool), tenant)

    async def drain(self) -> None:
        self._core.draining = True

    async def close(self) -> None:
        """Give back everything; jobs not durable end as failed(worker_lost). Idempotent."""
        if self._closed:
            return
        self._closed = True
        core = self._core
        core.draining = True
        for pool in core.pools.values():
            pool.active = []
        ended = Ended(
            state="failed", code="worker_lost", message="the gateway was stopped", retryable=True
        )
        for entry in list(core.entries.values()):
            if not entry.job.spec.durable or core.journal is None:
                core.end(entry, ended)
        core.timers.close()
        if core.journal is not None:
            core.journal.close()

    # ------------------------------------------------- for workers and supervisor

    def worker_connect(self, worker: str, sink: WorkerSink) -> None:
        self._workers.connect(worker, sink)

    def worker_stage(self, worker: str, pools: Sequence[str], stage: LoadStage) -> None:
        self._workers.stage(worker, pools, stage)

    def worker_register(self, info: WorkerInfo) -> None:
        self._workers.register(info)

    def worker_commit(
        self,
        worker: str,
        job: str,
        attempt: int,
        events: Sequence[OutputEvent],
        consumed: Consumed,
        *,
        model_s: float = 0.0,
    ) -> None:
        self._workers.commit(worker, job, attempt, events, consumed, model_s)

    def worker_park(self, worker: str, job: str, attempt: int) -> None:
        self._workers.park(worker, job, attempt)

    def worker_keeps(self, worker: str, affinity: str, *, held: bool) -> None:
        self._workers.keeps(worker, affinity, held)

    def worker_beat(self, worker: str, load: Mapping[str, Any]) -> None:
        self._workers.beat(worker, load)

    def worker_gone(self, worker: str, reason: str = "") -> None:
        self._workers.gone(worker, reason)

    def exited(
        self, worker: str, *, abnormal: bool, stepping: Iterable[tuple[str, int]], reason: str
    ) -> None:
        self._workers.exited(worker, abnormal=abnormal, stepping=stepping, reason=reason)

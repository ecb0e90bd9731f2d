"""What comes in from clients in LocalBroker: new jobs (the job gate) and their input."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from forebay.broker import InputAck, InputPush
from forebay.broker.local_core import Core
from forebay.broker.local_state import Entry, PipeRecord, Pool
from forebay.core.admission import JobFacts, at_once, refuse_job
from forebay.core.events import End, InputItem, size_of
from forebay.core.job import Job, Phase
from forebay.core.kinds import Row
from forebay.core.spec import JobSpec, QueuePlace
from forebay.core.stream import StreamLog
from forebay.errors import BadRequest, TooLarge

__all__ = ["Intake"]

HARD_BOUND = 2
"""Input of this many times the kind's bound is refused: somebody ignores `InputAck.over`."""


class Intake:
    """The gateway's writing half of the broker, on the shared `Core`."""

    def __init__(self, core: Core) -> None:
        self.core = core

    # --------------------------------------------------------------------- jobs

    def submit(
        self, spec: JobSpec, items: Sequence[InputItem], gateway: str, promised: bool = False
    ) -> Entry:
        core = self.core
        known = self._known(spec)
        if known is not None:
            return known
        pool = core.pool(spec.pool)
        if spec.kind is not pool.row.kind:
            raise BadRequest(f"pool {spec.pool} is of kind {pool.row.kind}, not {spec.kind}")
        _check(pool.row, items)
        self._gate(spec, pool, bool(items), promised)
        now, epoch = core.clock(), core.ids()
        entry = Entry(
            job=Job(spec=spec, row=pool.row, created_s=now),
            pool=pool,
            out=core.new_log(pool.row, spec.params, epoch),
            inp=StreamLog(epoch),
        )
        numbered = entry.inp.numbered(items)
        if core.journal is not None and spec.durable:
            core.journal.submitted(spec, epoch, numbered)
        entry.inp.append(numbered)
        entry.note_input(numbered)
        core.add(entry)
        entry.submitter = gateway
        core.watch(entry)
        if not gateway:
            core.leave_in(entry, max(spec.detach_s, pool.row.detach_s))
        core.feed(entry)
        return entry

    def _known(self, spec: JobSpec) -> Entry | None:
        """The job that submitting ``spec`` means, if it is there already."""
        entry = self.core.entries.get(spec.id)
        if entry is None and spec.name:
            name = self.core.names.get((spec.tenant, spec.dialect, spec.name))
            entry = self.core.entries.get(name) if name is not None else None
            if entry is not None and entry.job.over:
                return None
        return entry

    def _gate(self, spec: JobSpec, pool: Pool, will_wait: bool, promised: bool) -> None:
        core, now = self.core, self.core.clock()
        queue_s = spec.deadlines.queue_s
        facts = JobFacts(
            draining=core.draining,
            workers=pool.serving(now),
            live_jobs=core.live_jobs,
            tenant_jobs=core.tenant_jobs.get(spec.tenant, 0),
            queued=len(pool.queue),
            will_wait=will_wait,
            free=pool.free,
            place=self.place_for(pool, spec.tenant, spec.priority),
            queue_s=pool.row.queue_s if queue_s is None else queue_s,
            store_used=core.used_bytes / core.settings.store_bytes,
            drain_rate=pool.drain.rate(now),
            promised=promised or self._at_once(spec, pool),
        )
        refusal = refuse_job(facts, core.settings.limits, jitter=core.jitter())
        if refusal is not None:
            raise refusal

    @staticmethod
    def _at_once(spec: JobSpec, pool: Pool) -> bool:
        """Whether it would run now on the credit that its affinity holds, or needs none."""
        if not spec.affinity:
            return False
        free = {worker.id for worker in pool.active if worker.free > 0}
        there = {worker.id for worker in pool.active}
        return pool.affinities.may_run(spec.affinity, beside=spec.beside, free=free, there=there)

    def place_for(self, pool: Pool, tenant: str, priority: int = 0) -> QueuePlace:
        """Where a job that came now would stand."""
        if not pool.queue and pool.free > 0:
            return at_once(pool.place(1))
        rank = pool.queue.rank_of_new(tenant=tenant, priority=priority)
        return pool.place(rank + 1)

    # -------------------------------------------------------------------- input

    def append(
        self,
        entry: Entry,
        items: Sequence[InputItem],
        *,
        attachment: int,
        client_pos: int | None,
        units: int | None,
    ) -> InputAck:
        if entry.job.over:
            raise BadRequest(f"job {entry.id} is {entry.job.state}")
        sizes = _check(entry.job.row, items)
        waiting = _check_room(entry, sizes)
        if entry.fence.check(attachment, client_pos) == "repeat":
            return _ack(entry, repeats=len(items))
        if units is not None and units > entry.job.units:
            entry.job.units = units
        return self._store(entry, items, sizes, waiting)

    def append_from_pipe(
        self, record: PipeRecord, items: Sequence[InputItem], source_offset: int, ended: bool
    ) -> InputAck:
        entry = self.core.entries[record.spec.target]
        if entry.job.over:
            raise BadRequest(f"job {entry.id} is {entry.job.state}")
        sizes = _check(entry.job.row, items)
        waiting = _check_room(entry, sizes)
        if record.fence.check(source_offset) == "repeat":
            return _ack(entry, repeats=len(items))
        record.spec = msgspec.structs.replace(record.spec, copied=source_offset)
        record.done = record.done or ended
        if self.core.journal is not None and entry.job.spec.durable:
            self.core.journal.piped(record.spec, done=record.done)
        return self._store(entry, items, sizes, waiting)

    def _store(
        self,
        entry: Entry,
        items: Sequence[InputItem],
        sizes: Sequence[int],
        waiting: tuple[int, int],
    ) -> InputAck:
        """``waiting``: the bytes and the items that are unheard with these."""
        core, job = self.core, entry.job
        if items and entry.inp.ended:
            raise BadRequest("the input has ended")
        numbered = entry.inp.numbered(items)
        if core.journal is not None and job.spec.durable:
            core.journal.input(
                entry.id,
                numbered,
                client_pos=entry.fence.client_pos,
                number=entry.fence.number,
                units=job.units,
            )
        entry.inp.append(numbered, sizes)
        entry.note_input(numbered)
        core.account(entry)
        if job.phase is Phase.RUNNING:
            worker = core.workers.get(job.worker)
            if numbered and worker is not None and worker.sink is not None:
                worker.sink(InputPush(job=entry.id, attempt=job.attempt, items=numbered))
        else:
            core.feed(entry)
        return _ack(entry, waiting)


def _check(row: Row, items: Sequence[InputItem]) -> list[int]:
    """Refuse items that no stream may hold, before anything is recorded. Their sizes."""
    ended, sizes = False, []
    for item in items:
        size = size_of(item)
        if size > row.item_bytes and size > row.item_limit_bytes:
            raise TooLarge(
                f"one input item has {size} bytes, expected no more than {row.item_limit_bytes}",
                limit_bytes=row.item_limit_bytes,
            )
        if ended:
            raise BadRequest("the input has ended")
        ended = isinstance(item, End)
        sizes.append(size)
    return sizes


def _check_room(entry: Entry, sizes: Sequence[int]) -> tuple[int, int]:
    """The bytes and the items that will be unheard with these."""
    row = entry.job.row
    held, items = entry.unheard()
    size = held + sum(sizes)
    if size > HARD_BOUND * row.input_bytes and held > 0:
        limit = max(HARD_BOUND * row.input_bytes, row.input_bytes + row.item_limit_bytes)
        if size > limit:
            raise TooLarge(
                f"{size} bytes of input are waiting, expected no more than {limit}",
                limit_bytes=limit,
            )
    return size, items + len(sizes)


def _ack(entry: Entry, waiting: tuple[int, int] | None = None, *, repeats: int = 0) -> InputAck:
    return InputAck(
        offset=entry.inp.head,
        client_pos=entry.fence.client_pos,
        units=entry.job.units,
        repeats=repeats,
        over=entry.over_bound(waiting),
    )

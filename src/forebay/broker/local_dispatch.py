"""Who works on what: waiting, matching, leasing, and telling clients where they stand.

Matching runs whenever either side changes (a job begins to wait, a credit comes free, a worker
comes or is promoted), so an assignment is a push at that moment; nothing polls.
"""

from __future__ import annotations

from collections.abc import Callable

from forebay.broker import Assign, InputPush, LeasePush, PlacePush
from forebay.broker.local_base import Base
from forebay.broker.local_state import Entry, Held, Pool, Worker
from forebay.core.events import Consumed, InputItem, size_of
from forebay.core.job import Move, Phase, competes, move, over_deadline, run_left_s, waits_until
from forebay.core.lease import CREDIT_BYTES, ByteCredit, exclusive
from forebay.core.spec import Lease, QueuePlace

__all__ = ["Dispatch"]

INPUT_FRAME_BYTES = 256 * 1024
"""Input carried by one lease or one push; the rest follows in further pushes."""

PLACES_EVERY_S = 1.0
PLACES_SLICE = 256


class Dispatch(Base):
    """The queue's half of a job's life."""

    def feed(self, entry: Entry) -> None:
        """Queue a job that has something to work on and neither waits nor runs."""
        job = entry.job
        if job.phase not in (Phase.IDLE, Phase.PARKED) or not competes(job):
            return
        if job.phase is Phase.PARKED:
            entry.pool.parked -= 1
        move(job, Move.FEED)
        self.wait(entry)

    def wait(self, entry: Entry) -> None:
        job, pool = entry.job, entry.pool
        job.waiting_s = self.clock()
        if entry.ticket is None:
            spec = job.spec
            pool.affine = pool.affine or bool(spec.affinity)
            entry.ticket = pool.queue.push(
                entry.id, tenant=spec.tenant, cost_s=spec.cost_s, priority=spec.priority
            )
            entry.charged_s = spec.cost_s
        else:
            pool.queue.restore(entry.ticket)
        self.match(pool)
        if job.phase is Phase.QUEUED:
            until = waits_until(job)
            if until is not None:
                when, which = until
                limit_s = when - (job.waiting_s if which == "queue" else job.created_s)
                ended = over_deadline(which, limit_s)
                entry.wait_timer = self.timers.at(when, lambda: self.end(entry, ended))
            self._tell_place(entry)
            self.places_soon(pool)

    def _tell_place(self, entry: Entry) -> None:
        """Who begins to wait hears where at once; later news is told in rounds."""
        place = entry.place() if entry.sinks else None
        if place is not None and entry.told_place is None:
            entry.told_place = place
            self.tell(entry, PlacePush(job=entry.id, place=place))

    def match(self, pool: Pool) -> None:
        """Lease as many waiting jobs as there are free credits."""
        queue = pool.queue
        before = len(queue)
        while queue:
            free = [worker for worker in pool.active if worker.free > 0]
            if not free and not pool.affine:
                break
            ready = None if not pool.affine else self._affinity_ready(pool, free)
            name = queue.take(ready)
            if name is None:
                break
            entry = self.entries[name]
            self._lease(entry, self._choose(entry, free))
        if queue and len(queue) != before:
            self.places_soon(pool)

    def _affinity_ready(self, pool: Pool, free: list[Worker]) -> Callable[[str], bool]:
        ids = {worker.id for worker in free}
        there = {worker.id for worker in pool.active}

        def ready(name: str) -> bool:
            spec = self.entries[name].job.spec
            if not spec.affinity:
                return bool(free)
            return pool.affinities.may_run(spec.affinity, beside=spec.beside, free=ids, there=there)

        return ready

    def _choose(self, entry: Entry, free: list[Worker]) -> Worker:
        """Its affinity's owner, then who had it before, then who has most credits free."""
        job = entry.job
        owner = entry.pool.affinities.owner(job.spec.affinity) if job.spec.affinity else None
        if owner is not None:  # which needs no credit beside the one that its affinity holds
            return self.workers[owner]
        for worker in free:
            if worker.id == job.last_worker:
                return worker
        return max(free or entry.pool.active, key=lambda worker: worker.free)

    def _lease(self, entry: Entry, worker: Worker) -> None:
        job, pool, now = entry.job, entry.pool, self.clock()
        move(job, Move.LEASE)
        job.attempt += 1
        job.worker = worker.id
        job.leased_s = now
        if job.started_s is None:
            job.started_s = now
        if entry.wait_timer is not None:
            entry.wait_timer.cancel()
            entry.wait_timer = None
        spec = job.spec
        worker.held[(entry.id, job.attempt)] = Held(
            pool, now, affinity=spec.affinity, beside=spec.beside
        )
        if entry.is_behind:
            worker.behind.add(entry.id)
        pool.begin()
        if spec.affinity:
            pool.affinities.leased(spec.affinity, worker.id, beside=spec.beside)
            worker.affine += 1
            self.count_kept(worker)
        entry.credit = ByteCredit()
        entry.told_place = None
        entry.lease_model_s = job.model_s
        entry.lease_media = entry.out.marks.get(job.row.media, 0)
        entry.prefix = worker.info is not None and "prefix" in worker.info.capabilities
        if self.journal is not None and job.spec.durable:
            self.journal.leased(entry.id, job.attempt, job.strikes, entry.prefix)
        self._assign(entry, worker)
        self.tell(entry, LeasePush(job=entry.id, running=True))

    def _assign(self, entry: Entry, worker: Worker) -> None:
        if worker.sink is None:
            return
        job = entry.job
        first, *rest = _frames(entry.unread())
        worker.sink(
            Assign(
                lease=Lease(
                    spec=job.spec,
                    attempt=job.attempt,
                    last_offset=entry.out.head,
                    counts=dict(entry.out.counts),
                    marks=dict(entry.out.marks),
                    consumed=Consumed() if entry.keeps_input else job.consumed,
                    input=first,
                    text=entry.text_so_far(),
                    tiles=entry.tiles(),
                    exclusive=exclusive(job),
                    delivered=entry.media_delivered(),
                    attached=entry.attached,
                    run_left_s=run_left_s(job),
                    credit_bytes=CREDIT_BYTES,
                )
            )
        )
        for items in rest:
            worker.sink(InputPush(job=entry.id, attempt=job.attempt, items=items))

    def places_soon(self, pool: Pool) -> None:
        """Tell waiting clients where they stand, at most once a second."""
        if pool.places is None:
            when = max(self.clock(), pool.places_at_s + PLACES_EVERY_S)
            pool.places = self.timers.at(when, lambda: self._tell_places(pool, None))

    def _tell_places(self, pool: Pool, rest: list[str] | None) -> None:
        if rest is None:
            pool.places_at_s = self.clock()
            rest = [name for name in pool.queue if self.entries[name].sinks]
        for name in rest[:PLACES_SLICE]:
            entry = self.entries.get(name)
            place = entry.place() if entry is not None else None
            if entry is None or place is None or not _news(entry.told_place, place):
                continue
            entry.told_place = place
            self.tell(entry, PlacePush(job=name, place=place))
        rest = rest[PLACES_SLICE:]
        # A long queue is told in slices, so that commits get their turn in between.
        pool.places = (
            self.timers.at(self.clock() + 0.002, lambda: self._tell_places(pool, rest))
            if rest
            else None
        )

    def caught_up(self, worker: Worker, entry: Entry) -> None:
        """A session that had to catch up may have: then its worker takes another."""
        if entry.id in worker.behind and not entry.is_behind:
            worker.behind.discard(entry.id)
            for name in worker.pools:
                self.match(self.pools[name])

    def count_kept(self, worker: Worker) -> None:
        """Bring its account of credits that affinities hold up to date."""
        pools = (self.pools[name] for name in worker.pools)
        worker.kept = sum(pool.affinities.kept_by(worker.id) for pool in pools)

    def credit_back(self, worker: Worker, job: str, attempt: int) -> None:
        """A worker closed a session: its credit is free. Idempotent."""
        held = worker.held.pop((job, attempt), None)
        if held is None:
            return
        worker.behind.discard(job)
        now = self.clock()
        if held.affinity:
            worker.affine -= 1
            held.pool.affinities.let_go(held.affinity, worker.id, beside=held.beside)
            self.count_kept(worker)
        held.pool.hold.add(now - held.since_s)
        held.pool.drain.add(now)
        if held.cancelled_s is not None:
            self.freed(job, held.pool.name, now - held.cancelled_s)
        for name in worker.pools:
            self.match(self.pools[name])


def _news(told: QueuePlace | None, place: QueuePlace) -> bool:
    """Whether a waiting client would want to hear of ``place``."""
    if told is None or told.position != place.position:
        return True
    if told.eta_s is None or place.eta_s is None:
        return told.eta_s is not place.eta_s
    return abs(told.eta_s - place.eta_s) > max(1.0, 0.1 * told.eta_s)


def _frames(items: list[InputItem]) -> list[list[InputItem]]:
    """``items`` in runs of at most `INPUT_FRAME_BYTES` (one item at least); never empty."""
    if len(items) < 2:
        return [items]
    runs: list[list[InputItem]] = [[]]
    size = 0
    for item in items:
        item_bytes = size_of(item)
        if runs[-1] and size + item_bytes > INPUT_FRAME_BYTES:
            runs.append([])
            size = 0
        runs[-1].append(item)
        size += item_bytes
    return runs

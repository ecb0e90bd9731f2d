"""What workers and their supervisor say to LocalBroker (`broker.host.WorkerHost`).

A worker's death has two signs, the end of its socket and its supervisor's word, in either
order. `SUPERVISOR_WORD_S` they wait for each other: first everything it had written is read,
then strikes are counted, then its jobs are put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog

from forebay.broker import Control, Credit, WorkerSink
from forebay.broker.local_core import Core
from forebay.broker.local_state import Entry, Pool, Worker
from forebay.broker.timers import Timer
from forebay.core.events import Consumed, Ended, OutputEvent, size_of
from forebay.core.job import Phase, over_deadline, run_limit_s
from forebay.core.lease import SECOND_LOOK_S, SUPERVISOR_WORD_S, cleared, holds, strike
from forebay.core.spec import LoadStage, WorkerInfo
from forebay.core.stream import OutputFence
from forebay.errors import Fenced, ProtocolError

__all__ = ["WorkerSide"]

log = structlog.get_logger(__name__)

RUN_GRACE_S = 5.0
"""Model time past the run deadline at which the broker itself ends a job."""

MAX_STAGES = 64
"""Load stages remembered per pool; the oldest goes first."""


class WorkerSide:
    """The worker's half of the broker, on the shared `Core`."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._order = 0
        self._beat_timer: Timer | None = None
        self._suspects: set[str] = set()

    # --------------------------------------------------------- coming and going

    def connect(self, worker: str, sink: WorkerSink) -> None:
        old = self.core.workers.get(worker)
        if old is not None:
            old.sink = None
            self._bury(old, "connected again")
        self.core.workers[worker] = Worker(worker, sink)

    def stage(self, worker: str, pools: Sequence[str], stage: LoadStage) -> None:
        self._move_stages(worker, pools)
        for name in pools:
            pool = self.core.make_pool(name)
            pool.stages.pop(worker, None)
            pool.stages[worker] = stage
            while len(pool.stages) > MAX_STAGES:
                del pool.stages[next(iter(pool.stages))]
            self.core.tell_state(name)

    def _move_stages(self, worker: str, pools: Sequence[str]) -> None:
        """A worker that learns its model's name while it loads (from a model server) serves
        another pool from then on: the first is not loading any more, or was never one."""
        for pool in list(self.core.pools.values()):
            if pool.name in pools or pool.stages.pop(worker, None) is None:
                continue
            expected = pool.expected_until_s > self.core.clock()
            used = any(entry.pool is pool for entry in self.core.entries.values())
            if not (pool.stages or pool.workers or expected or used):
                del self.core.pools[pool.name]
            self.core.tell_state(pool.name)

    def register(self, info: WorkerInfo) -> None:
        worker = self.core.workers.get(info.id)
        if worker is None or worker.link_gone:
            raise ProtocolError(f"worker {info.id!r} registers without a connection")
        if info.sessions < 0 or not info.pools:
            raise ProtocolError(
                f"worker {info.id!r} offers {info.sessions} sessions in {len(info.pools)} pools"
            )
        pools = [self.core.make_pool(name) for name in info.pools]
        first = worker.info is None
        leaving = info.sessions == 0 and worker.usable
        if first:
            self._order += 1
            worker.order = self._order
        worker.info = info
        worker.pools = set(info.pools)
        self.core.beats.heard(info.id, self.core.clock())
        self._watch_beats()
        for pool in pools:
            pool.workers[info.id] = worker
            pool.info = info
            if leaving and not info.standby:
                pool.want = max(0, pool.want - 1)  # on purpose: nobody needs to stand in
            self._changed(pool)
        if first:
            log.info("worker.registered", worker=info.id, pools=info.pools, slots=info.slots)

    def _changed(self, pool: Pool) -> None:
        """Who serves this pool may have changed."""
        pool.elect()
        self.core.match(pool)
        self.core.tell_state(pool.name)

    def gone(self, name: str, reason: str) -> None:
        worker = self.core.workers.get(name)
        if worker is None or worker.link_gone:
            return
        worker.link_gone = True
        worker.sink = None
        self._signed(worker, reason)

    def exited(
        self, name: str, *, abnormal: bool, stepping: Iterable[tuple[str, int]], reason: str
    ) -> None:
        worker = self.core.workers.get(name)
        if worker is None or worker.word is not None:
            return
        worker.word = (abnormal, list(stepping), reason)
        self._signed(worker, reason)

    def _signed(self, worker: Worker, reason: str) -> None:
        """One of the two signs of death was seen: bury now, or wait for the other."""
        until_s = self.core.clock() + self.core.settings.respawn_s
        for pool in self.core.pools.values():
            if worker.id in pool.workers or worker.id in pool.stages:
                pool.expected_until_s = max(pool.expected_until_s, until_s)
        supervised = worker.info is not None and worker.info.supervised
        if worker.link_gone and (worker.word is not None or not supervised):
            self._bury(worker, reason)
            return
        for name in worker.pools:
            self.core.pools[name].elect()  # nothing more is given to it meanwhile
        worker.burial = self.core.timers.at(
            self.core.clock() + SUPERVISOR_WORD_S, lambda: self._bury(worker, reason)
        )

    def _bury(self, worker: Worker, reason: str) -> None:
        """It is dead: count strikes, give its jobs to others."""
        core = self.core
        if core.workers.get(worker.id) is not worker:
            return
        del core.workers[worker.id]
        core.beats.forget(worker.id)
        if worker.burial is not None:
            worker.burial.cancel()
        worker.link_gone = True
        abnormal, stepping, _ = worker.word or (True, [], "")
        held, worker.held = list(worker.held), {}
        self._leave_pools(worker, deliberate=not abnormal)
        log.info("worker.gone", worker=worker.id, reason=reason, jobs=len(held))
        struck = set(stepping) if abnormal else set()
        for job, attempt in held:
            entry = core.entries.get(job)
            if entry is not None and _current(entry, worker, attempt):
                self._lose(entry, struck=(job, attempt) in struck)
        for name in worker.pools:
            self._changed(core.pools[name])

    def _leave_pools(self, worker: Worker, *, deliberate: bool) -> None:
        for name in worker.pools:
            pool = self.core.pools[name]
            pool.workers.pop(worker.id, None)
            counted = worker.info is not None and worker.info.sessions > 0
            if deliberate and counted and worker.info is not None and not worker.info.standby:
                pool.want = max(0, pool.want - 1)
            pool.affinities.gone(worker.id)
            pool.elect()
        for pool in self.core.pools.values():
            stage = pool.stages.get(worker.id)
            if stage is not None and stage.stage != "failed":
                del pool.stages[worker.id]  # a failed boot stays visible: it says why
                self.core.tell_state(pool.name)

    def _lose(self, entry: Entry, *, struck: bool) -> None:
        job = entry.job
        if struck and strike(job, job.attempt):
            self.core.unlease(entry)
            self.core.finish(
                entry,
                Ended(
                    state="failed",
                    code="poison",
                    message=f"it crashed its worker {job.strikes} times",
                    details={"strikes": job.strikes},
                ),
            )
            return
        if struck and self.core.journal is not None and job.spec.durable:
            self.core.journal.struck(entry.id, job.strikes)
        self.core.put_back(entry)

    # --------------------------------------------------------------------- beats

    def beat(self, name: str, load: Mapping[str, Any]) -> None:
        worker = self.core.workers.get(name)
        if worker is None or worker.info is None or worker.link_gone:
            return
        self.core.beats.heard(name, self.core.clock())
        self._suspects.discard(name)
        worker.load = load
        if worker.silent:
            worker.silent = False
            log.info("worker.back", worker=name)
            self._watch_beats()
            for pool in worker.pools:
                self._changed(self.core.pools[pool])

    def _watch_beats(self) -> None:
        """Look again when the first time-to-live may have passed."""
        deadline = self.core.beats.deadline
        if self._beat_timer is None and deadline is not None:
            self._beat_timer = self.core.timers.at(deadline, self._check_beats)

    def _check_beats(self) -> None:
        self._beat_timer = None
        now = self.core.clock()
        overdue = set(self.core.beats.overdue(now))
        for name in overdue & self._suspects:
            self._silence(name)
        self._suspects = overdue - self._suspects
        if self._suspects:
            # Beats may be waiting in the sockets: read them before giving anybody up.
            self._beat_timer = self.core.timers.at(now + SECOND_LOOK_S, self._check_beats)
        else:
            self._watch_beats()

    def _silence(self, name: str) -> None:
        """Not heard of for too long: its jobs go to others. It may come back."""
        core = self.core
        core.beats.forget(name)
        worker = core.workers.get(name)
        if worker is None:
            return
        worker.silent = True
        log.warning("worker.silent", worker=name, ttl_s=core.beats.ttl_s)
        for pool in worker.pools:
            core.pools[pool].elect()
        for job, attempt in list(worker.held):
            entry = core.entries.get(job)
            if entry is not None and _current(entry, worker, attempt):
                core.revoke(entry, worker)
        for pool in worker.pools:
            self._changed(core.pools[pool])

    # ---------------------------------------------------------------------- work

    def commit(
        self,
        name: str,
        job_id: str,
        attempt: int,
        events: Sequence[OutputEvent],
        consumed: Consumed,
        model_s: float,
    ) -> None:
        core = self.core
        last = events[-1] if events else None
        entry = self._in_charge(name, job_id, attempt, ends=isinstance(last, Ended))
        job, out = entry.job, entry.out
        durable = core.journal is not None and job.spec.durable
        if events and (durable or events[0].offset != out.head + 1):
            offsets = [event.offset for event in events]
            if OutputFence.check(attempt, offsets, job.attempt, out.head) == "already":
                self._give_credit(entry, name, sum(map(size_of, events)))
                return
        if consumed.offset > job.input_head:
            raise ProtocolError(
                f"consumed input {consumed.offset}, there is {job.input_head}", job=job_id
            )
        batch = list(events)
        job.model_s += max(0.0, model_s)
        if core.journal is not None and durable:
            if any(isinstance(event, Ended) for event in batch[:-1]):
                raise ProtocolError("an event follows the terminal one", job=job_id)
            core.journal.output(job_id, batch, consumed, job.model_s)
        before = out.bytes
        out.append(batch)
        stored = out.bytes - before
        self._recorded(entry, batch, consumed)
        if batch:
            core.push_output(entry, batch)
            self._give_credit(entry, name, stored)
        if isinstance(last, Ended):
            self._completed(entry, core.workers[name], attempt, last)
        else:
            self._past_run_deadline(entry)

    def _in_charge(self, name: str, job: str, attempt: int, *, ends: bool) -> Entry:
        """The entry whose lease this is. Raises `Fenced` for any other; one that ``ends``
        says all the same that its session is closed."""
        entry = self.core.entries.get(job)
        try:
            if entry is None:
                raise Fenced(f"job {job} is not known", attempt=attempt)
            holds(entry.job, name, attempt)
        except Fenced:
            worker = self.core.workers.get(name)
            if ends and worker is not None:
                self.core.credit_back(worker, job, attempt)
            raise
        return entry

    def _recorded(self, entry: Entry, batch: list[OutputEvent], consumed: Consumed) -> None:
        """Bring record, windows and input up to a commit."""
        job = entry.job
        if job.strikes:
            cleared(job)
        entry.note_output(batch)
        if consumed != job.consumed:
            at, was = consumed, job.consumed
            if (at.offset, at.fine, at.heard) > (was.offset, was.fine, was.heard):
                job.consumed = consumed
                if not entry.keeps_input:
                    entry.inp.drop_through(consumed.offset)
                if entry.room:
                    self.core.input_moved(entry)
                worker = self.core.workers.get(job.worker)
                if worker is not None and worker.behind:
                    self.core.caught_up(worker, entry)
        window = entry.out.window
        if window.max_marks is not None or entry.out.bytes > (window.max_bytes or 0):
            entry.out.trim(delivered=entry.delivered)
        self.core.account(entry)

    def _give_credit(self, entry: Entry, name: str, stored_bytes: int) -> None:
        if not entry.credit.spend(stored_bytes):
            raise ProtocolError(
                f"{stored_bytes} bytes of output exceed the credit of {entry.credit.left}",
                job=entry.id,
            )
        lump = entry.credit.lump()
        if lump:
            worker = self.core.workers.get(name)
            if worker is not None and worker.sink is not None:
                worker.sink(Credit(job=entry.id, attempt=entry.job.attempt, add=lump))

    def _completed(self, entry: Entry, worker: Worker, attempt: int, ended: Ended) -> None:
        self.core.unlease(entry)
        self.core.over(entry, ended)
        self.core.credit_back(worker, entry.id, attempt)

    def _past_run_deadline(self, entry: Entry) -> None:
        """The runner enforces the run deadline; this is for one that does not."""
        limit_s = run_limit_s(entry.job)
        if limit_s is not None and entry.job.model_s > limit_s + RUN_GRACE_S:
            self.core.end(entry, over_deadline("run", limit_s))

    def keeps(self, name: str, affinity: str, held: bool) -> None:
        """What a worker says it keeps, or keeps no more."""
        worker = self.core.workers.get(name)
        if worker is None or worker.link_gone:
            return
        for word in worker.pools:
            pool = self.core.pools[word]
            if not pool.affinities.keeps(affinity, name, held=held) and held and worker.sink:
                # Another owns it by now: what this one kept is of no use to anybody.
                worker.sink(Control(pool=word, affinity=affinity, what="shutdown"))
        self.core.count_kept(worker)
        for word in worker.pools:
            self.core.match(self.core.pools[word])

    def park(self, name: str, job: str, attempt: int) -> None:
        worker = self.core.workers.get(name)
        if worker is None:
            return
        entry = self.core.entries.get(job)
        if entry is not None and _current(entry, worker, attempt):
            self.core.put_back(entry)
        self.core.credit_back(worker, job, attempt)


def _current(entry: Entry, worker: Worker, attempt: int) -> bool:
    job = entry.job
    return job.phase is Phase.RUNNING and job.worker == worker.id and job.attempt == attempt

"""Lease, feed, cut, step, stamp, commit, finish: what a worker does with its engine.

A session is a leased job. It becomes *ready* when its cutter has a step for it, its reader
is near enough (lead) and it is not stepping already. Ready sessions wait in the same fair
queue as the broker's jobs, by model seconds per tenant; `slots` of them step at once, each
in a task of its own, or in none where the engine allows (`worker.swift`). Idle sessions have
no task: a push or one timer wakes them.

Pushes arrive through `sink`, in order. A session whose fate is decided writes nothing more,
whatever its engine still yields.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import structlog

from forebay.blobs import Blobs
from forebay.broker import (
    Assign,
    CancelJob,
    Control,
    Credit,
    Delivered,
    Drain,
    InputPush,
    LeaseLost,
    WorkerBroker,
    WorkerPush,
)
from forebay.core.events import Ended, InputItem, OutputEvent, size_of
from forebay.core.fairness import FairQueue
from forebay.core.kinds import Cut, Kind, Recovery, Row
from forebay.core.spec import Lease, WorkerInfo
from forebay.core.stream import Stamper
from forebay.engines import Engine, EngineInfo
from forebay.errors import EngineFailed, ForebayError
from forebay.worker.failing import failure, out_of_time, where
from forebay.worker.quality import Quality, counts_in
from forebay.worker.session import Fate, Session
from forebay.worker.step import run_step
from forebay.worker.steps import StepsTable
from forebay.worker.swift import swift_of

__all__ = ["ITEM_BYTES", "Runner"]

ITEM_BYTES = 240 * 1024
"""Largest output event: byte credit comes back in lumps, so a full 256 KiB may never do."""
NUMBERS_BYTES = 64
"""What an event's numbers may add to its size when it is stamped."""

_NOWHERE: AbstractContextManager[None] = nullcontext()

log = structlog.get_logger(__name__)


class Runner:
    """Works on leases until it has drained. Make it in the loop it runs in.

    ``steps``: the table that the supervisor reads after a crash, where there is one.
    ``find_blob``: where a blob of the input lies; None if no folder is shared. ``blobs``: the
    shared folder itself, for kinds whose output is too large for a stream.
    """

    def __init__(
        self,
        broker: WorkerBroker,
        engine: Engine,
        info: EngineInfo,
        worker: WorkerInfo,
        row: Row,
        *,
        steps: StepsTable | None = None,
        find_blob: Callable[[str], Path] | None = None,
        blobs: Blobs | None = None,
    ) -> None:
        self.broker = broker
        self.engine = engine
        self.worker = worker
        self.steps = steps
        self._info = info
        self._row = row
        self._find_blob = find_blob
        self._blobs = blobs
        self._loop = asyncio.get_running_loop()
        # Once all that was read together is here: that is one step more then, not many.
        self._soon: Callable[..., Any] = getattr(broker, "soon", self._loop.call_soon)
        if hasattr(engine, "keeps"):
            engine.keeps = lambda affinity, held: broker.keeps(affinity, held=held)
        self._tasks: asyncio.TaskGroup | None = None
        self._sessions: dict[tuple[str, int], Session] = {}
        self._ready = FairQueue()
        self._waiting: dict[str, Session] = {}  # by session key: those in `_ready`
        self._busy = 0
        self._busy_s = 0.0
        self._quality = Quality() if row.kind is Kind.TEXT else None
        self._alone = False  # an exclusive step is running
        self._filling = False
        self._span = row.cut is Cut.SPAN
        self._held = False
        self.now = self._loop.time
        self._step_s = 1.0  # mean model seconds of a step, what one costs in the queue
        self._over = asyncio.Event()
        self._drain_timer: asyncio.TimerHandle | None = None
        self.draining = False

    # ----------------------------------------------------------------- its life

    async def run(self) -> None:
        """Register and work; returns when drained. Cancelling it stops every step."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                if not self.draining:
                    self.broker.register(self.worker)
                await self._over.wait()
        finally:
            self._tasks = None
            for session in self._sessions.values():
                session.sleep()
                if session.swift is not None:
                    session.swift.abandon()
            if self._drain_timer is not None:
                self._drain_timer.cancel()

    def drain(self, limit_s: float) -> None:
        """Take nothing new, hand idle sessions back now and busy ones after their step;
        after ``limit_s`` stop the steps too. `run` returns when all are gone."""
        if self.draining:
            return
        self.draining = True
        log.info("worker.draining", sessions=len(self._sessions), limit_s=limit_s)
        self.broker.register(
            WorkerInfo(id=self.worker.id, pools=self.worker.pools, slots=0, sessions=0)
        )
        self._drain_timer = self._loop.call_later(limit_s, self._stop_steps)
        for session in list(self._sessions.values()):
            self._check(session)
        self._maybe_over()

    def _stop_steps(self) -> None:
        for session in list(self._sessions.values()):
            self._leave(session, Fate.HANDED)

    def _maybe_over(self) -> None:
        if self.draining and not self._sessions:
            self._over.set()

    def load(self) -> dict[str, float]:
        """What beats carry. Safe from another thread: reads plain numbers. ``busy_s``: slot
        seconds of the steps that have ended."""
        return {
            "busy": self._busy,
            "sessions": len(self._sessions),
            "busy_s": round(self._busy_s, 3),
            **counts_in(
                () if self._quality is None else self._quality.counts,
                getattr(self.engine, "counts", ()),
            ),
        }

    # ------------------------------------------------------------------- pushes

    def sink(self, push: WorkerPush) -> None:
        if isinstance(push, InputPush):  # as nearly all are
            session = self._sessions.get((push.job, push.attempt))
            if session is not None:
                self._feed(session, push.items)
            return
        self._told(push)

    def _told(self, push: WorkerPush) -> None:
        match push:
            case Assign():
                self._assign(push.lease)
                return
            case Drain():
                self.drain(push.limit_s)
                return
            case Control():
                if self._tasks is not None:
                    self._tasks.create_task(self._control(push), name=f"control {push.what}")
                return
            case _:
                pass
        session = self._sessions.get((push.job, push.attempt))
        if session is None:
            return  # it ended while this was on its way
        match push:
            case Delivered():
                session.delivered = push.delivered
                session.attached = push.attached
                self._check(session)
            case Credit():
                self._credited(session, push.add)
            case CancelJob() | LeaseLost():
                self._leave(session, Fate.FENCED)

    async def _control(self, push: Control) -> None:
        """Pass a control message on to an engine that keeps something between jobs."""
        control = getattr(self.engine, "control", None)
        if control is None:
            self.broker.keeps(push.affinity, held=False)
            return
        try:
            await control(push.affinity, push.what, push.args)
        except Exception as exc:  # noqa: BLE001 - one notebook's boundary
            log.warning("control.failed", what=push.what, error=type(exc).__name__)

    def _assign(self, lease: Lease) -> None:
        key = (lease.spec.id, lease.attempt)
        if self._tasks is None or self.draining:
            self.broker.park(*key)
            return
        for old in [s for s in self._sessions.values() if s.job == lease.spec.id]:
            self._leave(old, Fate.FENCED)
        try:
            now = self._loop.time()
            session = Session(lease, self._row, self._info, now, self._find_blob, self._blobs)
            session.swift = swift_of(self, session)
        except (ForebayError, ValueError, TypeError) as exc:
            self._reject(lease, exc)
            return
        self._sessions[key] = session
        self._feed(session, lease.input)

    def _reject(self, lease: Lease, error: Exception) -> None:
        """The parameters make no session. The job fails; a lease is never left hanging."""
        ended = Stamper(lease.last_offset, lease.counts, lease.marks).stamp(failure(error))
        log.warning("job.rejected", job=lease.spec.id, error=type(error).__name__)
        self.broker.commit(lease.spec.id, lease.attempt, [ended], lease.consumed)

    def _feed(self, session: Session, items: Sequence[InputItem]) -> None:
        if session.fate is not Fate.LIVE:
            return
        try:
            session.feed(items, self.now())
        except ForebayError as exc:
            self.fail(session, exc)
            return
        self._check(session)

    def _credited(self, session: Session, add: int) -> None:
        session.credit += add
        session.room.set()
        if session.fate is Fate.ENDING and session.last_words is not None:
            self._say_last(session, session.last_words)

    # --------------------------------------------------------------- scheduling

    def _check(self, session: Session) -> None:
        """Find out what an idle session should do now; harmless at any time."""
        if session.stepping or session.fate is not Fate.LIVE:
            return
        now = self.now()
        if session.work is None:
            session.work = session.cutter.take(now)
        if session.work is None and session.cutter.done:
            self._complete(session)
        elif self.draining and self._row.recovery is not Recovery.NONE:
            self._leave(session, Fate.HANDED)
        elif session.work is None:
            self._arm(session, now)
        elif session.may_lead:
            self._enqueue(session)
        # Too far ahead of its reader: the next `Delivered` brings it back here.

    def _arm(self, session: Session, now: float) -> None:
        when = session.cutter.deadline
        if when is None and self._row.park_after_s is not None and not session.cutter.unread:
            when = session.idle_since + self._row.park_after_s
            if now >= when:
                self._leave(session, Fate.HANDED)
                return
        if when is None:
            return
        if session.wake is not None:
            if session.wake_s <= when:
                return  # early does no harm: it is looked at again then
            session.wake.cancel()
        session.wake, session.wake_s = self._loop.call_at(when, self._wake, session), when

    def _wake(self, session: Session) -> None:
        session.wake = None
        self._check(session)

    def _enqueue(self, session: Session) -> None:
        if session.lease.spec.beside:
            self._begin_beside(session)
            return
        if session.key not in self._waiting:
            tenant, priority = session.lease.spec.tenant, session.lease.spec.priority
            if self._starts_now(session):
                self._ready.pass_by(tenant=tenant, cost_s=self._step_s, priority=priority)
                self._reserve(session)
                self._soon(self._fill, session)
                return
            self._ready.push(session.key, tenant=tenant, cost_s=self._step_s, priority=priority)
            self._waiting[session.key] = session
        self._fill()

    def _starts_now(self, session: Session) -> bool:
        """Whether there is a slot and nobody to wait behind."""
        if self._waiting or self._filling or self._alone or session.lease.exclusive:
            return False
        return self._busy < self.worker.slots and self._tasks is not None

    def _begin_beside(self, session: Session) -> None:
        """What needs no credit needs no slot: the broker bounds how many there are."""
        if self._tasks is not None:
            name = f"beside {session.key}"
            session.stepping = True
            session.task = self._tasks.create_task(self._step_beside(session), name=name)

    async def _step_beside(self, session: Session) -> None:
        try:
            await run_step(self, session)
        finally:
            session.stepping = session.began = session.stopped = False
            session.work = None
            session.task = None
        if session.fate is Fate.LIVE:
            self._check(session)
        else:
            await self._close(session)

    def _fill(self, first: Session | None = None) -> None:
        """Give free slots to ready sessions, one to ``first`` before them."""
        if self._filling:  # a step that ended at once comes here again
            return
        if first is not None or self._waiting:
            self._filling = True
            try:
                if first is not None:
                    self._start(first)
                self._fill_slots()
            finally:
                self._filling = False
        if self._span:
            self._hold()

    def _hold(self) -> None:
        """While short steps fill all slots, nothing that comes need wake this process."""
        busy = self._busy >= self.worker.slots
        if busy or self._held:
            self._held = busy
            self.broker.hold(busy)

    def _fill_slots(self) -> None:
        """An exclusive session waits until all slots are free, and nothing starts while it
        waits in front or steps."""
        while self._busy < self.worker.slots and not self._alone and self._tasks is not None:
            key = next(iter(self._ready), None)
            if key is None:
                return
            alone = self._waiting[key].lease.exclusive
            if alone and self._busy:
                return
            self._ready.take()
            session = self._waiting.pop(key)
            self._alone = alone
            self._reserve(session)
            self._start(session)

    def _reserve(self, session: Session) -> None:
        self._busy += 1
        session.stepping = True

    def _start(self, session: Session) -> None:
        if session.swift is not None and session.swift.step(self.now()):
            return
        if self._tasks is not None:
            name = f"step {session.key}"
            session.task = self._tasks.create_task(self._step(session), name=name)

    async def _step(self, session: Session) -> None:
        began = self.now()
        try:
            await run_step(self, session)
        finally:
            self._slot_back(session, began)
        if session.fate is Fate.LIVE:
            self._check(session)
        else:
            await self._close(session)
        self._fill()

    def stepped(self, session: Session, began: float) -> None:
        """A step that had no task is over."""
        self._slot_back(session, began)
        if session.fate is not Fate.LIVE:
            self._let_go(session)
        elif session.wake is None or self.draining or session.ear is None or not session.ear.quiet:
            self._check(session)  # else it is idle, and will be looked at again
        self._fill()

    def go_on(self, session: Session, rest: Coroutine[Any, Any, None]) -> None:
        """The rest of a step has to wait: from here on it has a task."""
        if self._tasks is not None:
            session.task = self._tasks.create_task(rest, name=f"step {session.key}")
        else:
            rest.close()

    def _slot_back(self, session: Session, began: float) -> None:
        now = self.now()
        used = now - began
        self._busy_s += used
        self._ready.charge(session.lease.spec.tenant, used - self._step_s)
        self._step_s += (used - self._step_s) / 16
        self._busy -= 1
        self._alone = False
        if session.work is None or not session.work.idle:
            session.idle_since = now
        session.stepping = session.began = session.stopped = False
        session.work = None
        session.task = None

    def inside(self, session: Session) -> AbstractContextManager[None]:
        """Marks in the steps table that the session is inside the engine."""
        if self.steps is None:
            return _NOWHERE
        return self.steps.inside(session.job, session.attempt)

    # ------------------------------------------------------------------ writing

    async def write(self, session: Session, event: OutputEvent, *, together: bool = False) -> None:
        """Stamp and commit one event, after waiting for byte credit. Does nothing for a
        session whose fate is decided. Raises `EngineFailed` for what cannot be sent. An event
        that a newer one will replace does not wait: without credit it is left out.

        ``together``: more may follow in this turn of the loop, or a `flush`; what came by the
        end of the turn is one commit."""
        fits = self.fits(session, event)
        if fits is None:
            return
        size = size_of(event)
        while session.credit < size + NUMBERS_BYTES and session.fate is Fate.LIVE:
            self.flush(session)  # credit comes for what the broker has
            session.room.clear()
            session.clock.pause(self._loop.time())
            session.disarm()
            await session.room.wait()
            self.start_clock(session)
        if session.fate is Fate.LIVE:
            self.stamp(session, event)
            if not together:
                self.flush(session)
            elif not session.flush_due:
                session.flush_due = True
                self._loop.call_soon(self._flush_due, session)

    def fits(self, session: Session, event: OutputEvent) -> bool | None:
        """Whether there is byte credit for ``event``; None: another will say what it says.
        Raises `EngineFailed` for what cannot be sent."""
        size = size_of(event)
        fits = session.credit >= size + NUMBERS_BYTES
        if not fits and session.gives_way(event):
            return None
        if size > ITEM_BYTES:
            raise EngineFailed(f"output event of {size} bytes, expected at most {ITEM_BYTES}")
        return fits

    def stamp(self, session: Session, event: OutputEvent) -> None:
        stamped = session.stamper.stamp(event)
        if self._quality is not None:
            self._quality.hear(session.key, stamped)
        session.credit -= size_of(stamped)
        session.unsaid.append(stamped)

    def _commit(self, session: Session, event: OutputEvent) -> None:
        self.stamp(session, event)
        self.flush(session)

    def flush(self, session: Session) -> None:
        """Commit what was written and how much input is done with, if either is news."""
        position = session.cutter.consumed(session.stamper.marks.get("units", 0))
        if not session.unsaid and position == session.told:
            return
        events, session.unsaid = session.unsaid, []
        session.told = position
        model_s = session.clock.take(self.now())
        self.broker.commit(session.job, session.attempt, events, position, model_s=model_s)

    def _flush_due(self, session: Session) -> None:
        session.flush_due = False
        if session.unsaid:
            self.flush(session)

    def start_clock(self, session: Session) -> None:
        """Model time runs from now; at its end the job expires and its step is stopped."""
        session.disarm()
        deadline = session.clock.start(self._loop.time())
        if deadline is not None:
            session.timer = self._loop.call_at(deadline, self._expire, session)

    def _expire(self, session: Session) -> None:
        session.timer = None
        self.end(session, out_of_time(session.lease.spec, self._row, session.cutter.seq))

    def _complete(self, session: Session) -> None:
        self._flush_speech(session)
        seq, details = session.cutter.seq, session.details
        self.end(session, Ended(state="completed", seq=seq, details=details))

    def fail(self, session: Session, error: Exception) -> None:
        """End this job as failed; others are not touched. The log gets no user content."""
        ended = failure(error, seq=session.cutter.seq)
        log.warning(
            "job.failed",
            job=session.job,
            attempt=session.attempt,
            code=ended.code,
            error=type(error).__name__,
            where=where(error),
        )
        self.end(session, ended)

    def end(self, session: Session, ended: Ended) -> None:
        """Commit the terminal event, now or when there is credit for it, and let go."""
        if session.fate is not Fate.LIVE:
            return
        session.last_words = ended
        self._say_last(session, ended)
        if session.fate is Fate.LIVE:
            self._leave(session, Fate.ENDING)

    def _say_last(self, session: Session, ended: Ended) -> None:
        if session.credit >= size_of(ended) + NUMBERS_BYTES:
            session.last_words = None
            self._commit(session, ended)
            self._leave(session, Fate.ENDED)

    # ------------------------------------------------------------------ leaving

    def _leave(self, session: Session, fate: Fate) -> None:
        """Decide a session's fate: stop its step, close it, answer the broker after that."""
        if session.fate not in (Fate.LIVE, Fate.ENDING):
            return
        if fate is Fate.HANDED and not session.stepping:
            self._flush_speech(session)
        if fate is Fate.FENCED:
            session.unsaid = []  # nobody takes it any more
        elif session.unsaid:
            self.flush(session)
        session.fate = fate
        session.sleep()
        session.room.set()
        self._ready.remove(session.key)
        if self._waiting.pop(session.key, None) is not None:
            self._fill()
        if session.task is not None:
            self._stop(session, session.task)
        elif session.stepping and session.swift is not None:
            session.swift.cancel()
        else:
            self._let_go(session)

    def _let_go(self, session: Session) -> None:
        if session.opened and self._tasks is not None:
            self._tasks.create_task(self._close(session), name=f"close {session.key}")
        else:
            self._forget(session)

    def _stop(self, session: Session, task: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first line never runs its finally; one that has
        # not begun sees the fate by itself. And only once: a second cancel would break an
        # engine's wait for its own thread.
        if session.began and not session.stopped and task is not asyncio.current_task():
            session.stopped = True
            task.cancel()

    def _flush_speech(self, session: Session) -> None:
        tail = session.speech.flush() if session.speech is not None else None
        if tail is not None and session.credit >= size_of(tail) + NUMBERS_BYTES:
            self._commit(session, tail)

    async def _close(self, session: Session) -> None:
        if session.opened:
            session.opened = False
            try:
                await self.engine.close(session.engine_session)
            except Exception as exc:  # noqa: BLE001 - one job's boundary: the lease goes back
                log.warning("engine.close_failed", job=session.job, error=type(exc).__name__)
        self._forget(session)

    def _forget(self, session: Session) -> None:
        if session.fate is Fate.ENDING:
            return  # it waits for byte credit, then comes here again
        session.close()
        self._sessions.pop((session.job, session.attempt), None)
        if self._quality is not None:
            self._quality.forget(session.key)
        if session.fate is not Fate.ENDED:
            self.broker.park(session.job, session.attempt)
        self._maybe_over()

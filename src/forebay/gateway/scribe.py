"""Writes the history: what every recognition session and task of this gateway came to.

A session is written once, when its job is over, whoever is attached then: while somebody is,
the job's last event is pushed here; otherwise it is looked for once in a while. Nothing of
this is on the way of a session's own messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING

import structlog

from forebay.blobs import Blobs
from forebay.broker import GatewayBroker, GatewayPush, OutputPush
from forebay.core.events import Ended, InputItem, Sound
from forebay.core.spec import DELETED, JobSpec, JobView
from forebay.errors import ForebayError, NotFound, ResumeNotAvailable, StoreDown, StoreFull
from forebay.gateway.beside import drop_beside
from forebay.gateway.hub import Hub
from forebay.gateway.tape import Tape
from forebay.history import HistoryOptions, LateHistory, Recordings, SessionRecord, TaskRecord

if TYPE_CHECKING:
    from forebay.history import History

__all__ = ["STATUS", "Scribe"]

SWEEP_S = 2.0
WRITTEN_S = 3.0
EXPIRE_EVERY_S = 3600.0
STATUS = {"completed": "done", "cancelled": "cancelled"}
"""The history's words for how a job ended; any other end is "failed"."""
POISON = "poison"  # the code of a dead letter, which keeps its files for whoever tries it again

log = structlog.get_logger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class _Open:
    """One job whose end is to be written. ``task``: the task that it works on."""

    view: JobView
    created_at: datetime
    unlisten: Callable[[], None]
    task: TaskRecord | None = None
    ended: Ended | None = None
    beside: list[InputItem] = field(default_factory=list)  # input that names blobs
    taken_up: bool = False  # begun by an earlier process: what it named is not known here


class Scribe:
    """The history's writer in one gateway. Open it with ``async with``.

    ``wall`` gives the time of day; the broker's times are monotonic."""

    def __init__(
        self,
        hub: Hub,
        history: History | LateHistory,
        recordings: Recordings,
        options: HistoryOptions,
        wall: Callable[[], datetime] = _now,
        blobs: Blobs | None = None,
    ) -> None:
        self._blobs = blobs
        self.history = history
        self.recordings = recordings
        self.options = options
        self.wall = wall
        self.tape = Tape(recordings)
        self.on_ended: Callable[[str, Ended], None] | None = None
        self._hub = hub
        self._broker: GatewayBroker = hub.broker
        self._open: dict[str, _Open] = {}
        self._made: dict[str, tuple[JobSpec, str]] = {}  # recordings that came later
        self._kept: set[tuple[str, str]] = set()  # users who got one more recording
        self._writing: set[str] = set()
        self._forgotten: set[str] = set()  # of those, what was deleted meanwhile
        self._done: list[str] = []  # jobs whose broker may forget them once their end is written
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._caught_up = False

    async def __aenter__(self) -> Scribe:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._write_ended()
        for item in self._open.values():
            item.unlisten()
        await self.tape.close()
        with suppress(StoreFull):
            await self._write_made()

    # ------------------------------------------------------------------- what happens

    def began(self, view: JobView) -> None:
        """A session's job was begun or taken up here. Idempotent."""
        if view.spec.id not in self._open and view.ended_s is None:
            self._add(view, None)

    def began_task(self, view: JobView, task: TaskRecord, stored: Sequence[InputItem]) -> None:
        """A task's job was begun with this input."""
        self._add(view, task)
        self._beside(view.spec.id, stored)
        self.history.put(task)

    async def retried(self, old: JobView, new: JobView) -> None:
        """An operator repeats a job. Where it worked on a task, what comes of it is the
        task's, whose owner knows no job."""
        task = await self.history.task_of(old.spec.tenant, old.spec.id)
        if task is None:
            return
        again = replace(
            task,
            job=new.spec.id,
            status="queued",
            error="",
            text="",
            completed_at=None,
            model_s=0.0,
        )
        if await self.history.swap_task(task, again):
            self._add(new, again, taken_up=True)

    async def written(self) -> bool:
        """Wait until what was put is in the database, `WRITTEN_S` at most: an id that was
        given to a client is then known after a restart. Whether it is."""
        try:
            async with asyncio.timeout(WRITTEN_S):
                await self.history.flush()
        except Exception as error:  # noqa: BLE001 - the database's own; the row waits and is tried again
            log.warning("history.delayed", error=type(error).__name__)
            return False
        return True

    def heard(self, job: str, items: Sequence[InputItem], stored: Sequence[InputItem]) -> None:
        """Input that the store has taken: as the client sent it, and as it was stored."""
        if job not in self._open:
            return
        self._beside(job, stored)
        if self.options.recordings:
            self.tape.hear(job, items)

    def _beside(self, job: str, stored: Sequence[InputItem]) -> None:
        for item in stored:
            if isinstance(item, Sound) and item.blob:
                self._open[job].beside.append(item)

    async def settle(self, job: str) -> None:
        """Write the end of ``job`` now, if it is over."""
        known = self._open.get(job)
        if known is None:
            return
        await self._look()
        await self._write_ended()

    def created_at(self, view: JobView) -> datetime:
        """When the job was begun, in time of day."""
        known = self._open.get(view.spec.id)
        if known is not None:
            return known.created_at
        return self.wall() - timedelta(seconds=max(0.0, self._hub.clock() - view.created_s))

    async def forget(self, job: str) -> None:
        """Write nothing about this job, which was deleted."""
        if job in self._writing:
            self._forgotten.add(job)
        known = self._open.pop(job, None)
        if known is not None:
            known.unlisten()
            await self._drop(known)
        await self.tape.discard(job)

    async def _drop(self, known: _Open) -> None:
        if known.beside:
            await asyncio.to_thread(drop_beside, self._blobs, known.beside)

    def _add(self, view: JobView, task: TaskRecord | None, *, taken_up: bool = False) -> None:
        job = view.spec.id

        def hear(push: GatewayPush) -> None:
            if isinstance(push, OutputPush) and push.events:
                last = push.events[-1]
                if isinstance(last, Ended):
                    known.ended = last
                    self._news.set()

        stop = self._hub.listen(job, hear)
        known = _Open(view, self.created_at(view), stop, task, taken_up=taken_up)
        self._open[job] = known

    async def _catch_up(self) -> None:
        """Take up the tasks of an earlier process, once; those of this one are known."""
        for task in await self.history.unfinished():
            if task.job not in self._open:
                await self._take_up(task)
        self._caught_up = True

    async def _take_up(self, task: TaskRecord) -> None:
        """A task of an earlier process: its job may have come back from the journal."""
        try:
            view = await self._broker.status(task.job)
        except NotFound:
            self.history.put(
                replace(
                    task,
                    status="failed",
                    error="the gateway was stopped before it was done",
                    completed_at=self.wall(),
                )
            )
            return
        self._add(view, task, taken_up=True)

    # --------------------------------------------------------------------- the writing

    async def _run(self) -> None:
        expire_at = 0.0
        while True:
            looks = False
            try:
                async with asyncio.timeout(SWEEP_S):
                    await self._news.wait()
            except TimeoutError:
                looks = True
            self._news.clear()
            try:
                if looks:
                    await self._look()
                await self._write_ended()
                await self._let_go()
                await self._write_made()
                if not self._caught_up:
                    await self._catch_up()
                await self._prune()
                if self._hub.clock() >= expire_at:
                    expire_at = self._hub.clock() + EXPIRE_EVERY_S
                    await self._expire()
            except (StoreFull, StoreDown) as error:
                log.warning("history.delayed", code=error.code)

    async def _look(self) -> None:
        """Find jobs that ended while nobody was attached."""
        for job, known in list(self._open.items()):
            if known.ended is not None:
                continue
            try:
                view = await self._broker.status(job)
                if view.ended_s is not None:
                    known.ended = await self._end_of(view)
            except NotFound:
                if known.task is not None and await self._settled_elsewhere(known.task):
                    await self.forget(job)
                    continue
                known.ended = Ended(state="failed", code="state_lost", message="its end was lost")

    async def _settled_elsewhere(self, task: TaskRecord) -> bool:
        """Whether another gateway wrote the end of ``task``, deleted it or tried it again."""
        row = await self.history.task(task.tenant, task.id)
        return row is None or row.job != task.job or row.status in ("done", "failed")

    async def _end_of(self, view: JobView) -> Ended:
        try:
            events = await self._broker.read_after(view.spec.id, max(0, view.head - 1))
        except ResumeNotAvailable:
            events = []
        if events and isinstance(events[-1], Ended):
            return events[-1]
        return Ended(state="failed", code="state_lost", message="its end was lost")

    async def _write_ended(self) -> None:
        for job, known in list(self._open.items()):
            if known.ended is not None and self._open.pop(job, None) is not None:
                known.unlisten()
                self._writing.add(job)
                try:
                    await self._write(job, known, known.ended)
                finally:
                    self._writing.discard(job)
                    self._forgotten.discard(job)

    async def _let_go(self) -> None:
        """Of a task that an earlier process began only the broker knows the files: it drops
        them with the job, of which the row has all that is asked for."""
        if not self._done or not await self.written():
            return
        while self._done:
            await self._broker.forget(self._done[-1])
            self._done.pop()

    async def _write(self, job: str, known: _Open, ended: Ended) -> None:
        if self.on_ended is not None:
            self.on_ended(job, ended)
        view = known.view
        try:
            view = await self._broker.status(job)
        except ForebayError as error:
            log.debug("history.without_times", job=job, code=error.code)
        if ended.code != POISON:
            await self._drop(known)
        if job in self._forgotten or (ended.state == "cancelled" and ended.message == DELETED):
            await self.tape.discard(job)
            return
        if known.task is not None:
            self.history.put(self._task_record(known.task, view, ended))
            if known.taken_up and ended.code != POISON:
                self._done.append(job)
            return
        spec = view.spec
        user = str(spec.params.get("user", ""))

        def later(made: str) -> None:
            self._made[job] = (spec, made)
            self._news.set()

        path = await self.tape.finish(job, spec.tenant, user, later)
        if job in self._forgotten:
            await self.tape.discard(job)
            await self.tape.remove([path] if path else [])
            return
        if path:
            self._kept.add((spec.tenant, user))
        facts = ended.details
        lasted = (view.ended_s or self._hub.clock()) - view.created_s
        self.history.put(
            SessionRecord(
                name=spec.name,
                job=job,
                tenant=spec.tenant,
                user=user,
                created_at=known.created_at,
                completed_at=known.created_at + timedelta(seconds=max(0.0, lasted)),
                status=STATUS.get(ended.state, "failed"),
                text=str(facts.get("text", "")),
                chunks=int(facts.get("chunks", 0)),
                duration_s=round(max(0.0, lasted), 3),
                audio_path=path,
                audio_s=float(facts.get("audio_s", 0.0)),
                model_s=round(view.model_s, 4),
                error="" if ended.state == "completed" else ended.message or ended.code,
            )
        )

    async def _write_made(self) -> None:
        """Recordings that had to be decoded first: add them to their sessions, if these are
        still there."""
        while self._made:
            job, (spec, path) = next(iter(self._made.items()))
            record = await self.history.session(spec.tenant, spec.name)
            if record is None or record.job != job:
                await self.tape.remove([path])
            else:
                self.history.put(replace(record, audio_path=path))
                self._kept.add((record.tenant, record.user))
            self._made.pop(job, None)

    def _task_record(self, task: TaskRecord, view: JobView, ended: Ended) -> TaskRecord:
        facts = ended.details
        done = ended.state == "completed"
        return replace(
            task,
            status="done" if done else "failed",
            text=str(facts.get("text", "")),
            language=str(facts.get("language", "") or task.language),
            audio_s=float(facts.get("audio_s", 0.0)),
            model_s=round(view.model_s, 4),
            error="" if done else ended.message or ended.code or ended.state,
            completed_at=self.wall(),
        )

    async def _prune(self) -> None:
        """Keep each user's newest recordings only."""
        while self._kept:
            tenant, user = next(iter(self._kept))
            found = await self.history.recordings(tenant, user)
            too_many = found[self.options.recordings :]
            await self.tape.remove([record.audio_path for record in too_many])
            for record in too_many:
                self.history.put(replace(record, audio_path=""))
            self._kept.discard((tenant, user))

    async def _expire(self) -> None:
        if self._blobs is not None:
            await asyncio.to_thread(self._blobs.sweep)
        await asyncio.to_thread(self.recordings.clear_parts, self.wall().timestamp())
        if self.options.keep_days is not None:
            paths = await self.history.expire(self.options.keep_days, self.wall())
            await self.tape.remove(paths)

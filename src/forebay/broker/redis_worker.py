"""A worker's end of the Redis home: `WorkerBroker` straight on Redis.

Control (leases, cancels, lost leases) is a numbered stream per worker with a pushed copy. What
was pushed out of turn or not at all is fetched: a beat's answer carries the number of the newest
one, and once a second how far each leased job's input is. Writes carry positions that make
saying them twice harmless, so what was not answered is said again on the next connection; a
lease outlives a short break of it, and ends when somebody else was given the job.

Byte credit is given back by the answer to a commit; the account is kept here.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from forebay.broker import (
    Assign,
    CancelJob,
    Control,
    Credit,
    Delivered,
    InputPush,
    LeaseLost,
    WorkerSink,
)
from forebay.broker.keys import channel, prefix
from forebay.broker.redis_address import RedisUrl, parse_url
from forebay.broker.redis_beats import Beats
from forebay.broker.redis_checks import RedisOptions, prepare
from forebay.broker.redis_client import Server, Store
from forebay.broker.redis_commit import Batch, Held
from forebay.broker.redis_wire import (
    AssignFrame,
    BeatAnswer,
    CancelFrame,
    ControlFrame,
    DeliveredFrame,
    InputFrame,
    LostFrame,
    MoreInput,
    WorkerFrame,
    decoder,
    encode,
    numbered,
)
from forebay.core.events import (
    Consumed,
    Ended,
    OutputEvent,
    size_of,
)
from forebay.core.kinds import KINDS, Cut, Kind
from forebay.core.lease import CREDIT_BYTES
from forebay.core.spec import Lease, LoadStage, WorkerInfo
from forebay.errors import ForebayError

__all__ = ["RedisWorker", "worker_broker"]

ASSUMED_S = 10.0
"""Sound in a recognition session, until one was measured."""

IN_FLIGHT = 4
"""Calls with commits that may be unanswered; what comes meanwhile goes together in the next."""

CALL_EVENTS = 256
"""One call carries about so many events: the store does nothing else meanwhile."""

log = structlog.get_logger(__name__)

_frame = decoder(WorkerFrame)
_frames = decoder(list[WorkerFrame] | bool)
_beat = decoder(BeatAnswer | bool)
_more = decoder(MoreInput | bool)
_lost = decoder(list[bool])


def worker_broker(url: str, worker: str, *, options: RedisOptions | None = None) -> RedisWorker:
    """The broker of the worker called ``worker``, on the Redis at ``url``; `connect` it."""
    where = parse_url(url)
    return RedisWorker(where, worker, options=options or RedisOptions.of(where))


class RedisWorker:
    """`WorkerBroker` for one worker process."""

    def __init__(self, url: RedisUrl, worker: str, *, options: RedisOptions) -> None:
        self._url = url
        self._worker = worker
        self._me = {"worker": worker, "inc": secrets.token_hex(8)}
        self._options = options
        self._sink: WorkerSink | None = None
        self._store: Store | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leases: dict[str, Held] = {}
        self._control = 0  # newest control message taken
        self._fetching = False
        self._batches: list[Batch] = []
        self._open: dict[str, Batch] = {}  # the newest of each job in there
        self._unanswered = 0
        self._flushing = False
        self._beginning = False
        self._kept: set[str] = set()
        self._stage: tuple[list[str], LoadStage] | None = None
        self._info: WorkerInfo | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._beats = Beats(url, self._me, options)
        self._server = Server()
        self._closed = False

    # ---------------------------------------------------------------------- lifetime

    async def connect(self, sink: WorkerSink) -> None:
        """Connect and begin afresh: whatever this name held before counts as lost.

        Raises `StoreDown` when Redis does not answer, `CannotBoot` when it is not fit."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        await prepare(self._url, self._options)
        self._store = Store(
            self._url,
            prefix(self._options.shard),
            channels=lambda: [channel(self._options.shard, self._worker)],
            on_push=self._pushed,
            on_up=self._up,
            deadline_s=self._options.deadline_s,
            wait_replicas=self._options.wait_replicas,
        )
        await self._store.open()
        await self._store.call("hello", self._me, again=True)

    async def _up(self, server: Server) -> None:
        """On every new connection. After the first: does the store still know us?"""
        before, self._server = self._server, server
        if before.run_id and before != server:
            await prepare(self._url, self._options)
        assert self._store is not None
        await self._store.call("arrive", {"server": server.word}, first=True)
        if before.run_id:
            await self._compare()
            self._spawn(self._rejoin())

    async def _compare(self) -> None:
        """Leases as we remember them, held beside what is there now."""
        assert self._store is not None
        held = list(self._leases.items())
        leases = [[job, one.attempt, one.stored, one.input_head] for job, one in held]
        request = {**self._me, "leases": leases}
        answer = _lost(await self._store.call("compare_leases", request, first=True))
        for (job, one), lost in zip(held, answer, strict=True):
            if lost:
                self._broken(job, one.attempt)
        await self._store.compared([self._worker])

    async def _rejoin(self) -> None:
        assert self._store is not None
        if await self._store.call("rejoin", self._me, again=True):
            await self._fetch_control()
            return
        await self._begin_again()

    async def _begin_again(self) -> None:
        """The store does not know this worker: every lease is gone, it registers anew."""
        if self._beginning or self._store is None:
            return
        self._beginning = True
        log.warning("worker.forgotten", worker=self._worker, jobs=len(self._leases))
        try:
            self._lose_all()
            self._control = 0
            await self._store.call("hello", self._me, again=True)
            if self._stage is not None:
                self.stage(self._worker, *self._stage)
            if self._info is not None:
                self.register(self._info)
            for affinity in self._kept:
                self._keep(affinity, held=True)
        finally:
            self._beginning = False

    def _lose_all(self) -> None:
        held, self._leases = self._leases, {}
        for job, lease in held.items():
            self._tell(LeaseLost(job=job, attempt=lease.attempt))

    def _tell(self, push: Any) -> None:
        if self._sink is not None and not self._closed:
            self._sink(push)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------------ hearing

    def _pushed(self, _: bytes, message: bytes) -> None:
        frame = _frame(message)
        if frame.n == 0:
            self._hint(frame)
        elif frame.inc != self._me["inc"]:
            return  # another process has our name now; the next beat says so
        elif frame.n == self._control + 1:
            self._take(frame)
        elif frame.n > self._control:
            self._spawn(self._fetch_control())

    async def _fetch_control(self) -> None:
        """Take what was said to us and did not arrive, in order."""
        if self._fetching or self._store is None:
            return
        self._fetching = True
        try:
            while True:
                request = {**self._me, "cursor": self._control}
                frames = _frames(await self._store.call("control", request, again=True))
                if isinstance(frames, bool):
                    self._lose_all()
                    return
                if not frames:
                    return
                for frame in frames:
                    if frame.n > self._control:
                        self._take(frame)
        finally:
            self._fetching = False

    def _take(self, frame: Any) -> None:
        self._control = frame.n
        match frame:
            case AssignFrame():
                self._assigned(frame)
            case CancelFrame():
                self._ended(CancelJob(job=frame.job, attempt=frame.attempt, ended=frame.ended))
            case ControlFrame():
                self._tell(
                    Control(
                        pool=frame.pool,
                        affinity=frame.affinity,
                        what=frame.what,
                        args=frame.args,
                    )
                )
            case LostFrame():
                self._ended(LeaseLost(job=frame.job, attempt=frame.attempt))

    def _assigned(self, frame: AssignFrame) -> None:
        spec = frame.spec
        items = numbered(frame.items, frame.start)
        head = items[-1].offset if items else frame.start
        self._leases[spec.id] = Held(
            attempt=frame.attempt,
            row=KINDS[spec.kind],
            counts=dict(frame.counts),
            marks=dict(frame.marks),
            input_head=head,
            stored=frame.head,
            delivered=frame.delivered,
            attached=frame.attached,
        )
        left = frame.run_left_s
        self._tell(
            Assign(
                lease=Lease(
                    spec=spec,
                    attempt=frame.attempt,
                    last_offset=frame.head,
                    counts=frame.counts,
                    marks=frame.marks,
                    consumed=frame.consumed,
                    input=items,
                    text=frame.text,
                    tiles=frame.tiles,
                    exclusive=frame.exclusive,
                    delivered=frame.delivered,
                    attached=frame.attached,
                    run_left_s=None if isinstance(left, bool) else left,
                    credit_bytes=CREDIT_BYTES,
                )
            )
        )
        if frame.input_head > head:
            self._want_input(spec.id)

    def _ended(self, push: CancelJob | LeaseLost) -> None:
        held = self._leases.get(push.job)
        if held is None or held.attempt != push.attempt:
            # It crossed our own end of that lease. Giving a credit back twice is harmless.
            self._park(push.job, push.attempt)
            return
        self._tell(push)

    def _hint(self, frame: Any) -> None:
        held = self._leases.get(frame.job)
        if held is None or held.attempt != frame.attempt:
            return
        if isinstance(frame, InputFrame):
            if frame.first == held.input_head + 1 and not held.fetching:
                self._input(frame.job, held, numbered(frame.items, frame.first - 1))
            elif frame.first > held.input_head:
                self._want_input(frame.job)
        elif isinstance(frame, DeliveredFrame):
            self._delivered(frame.job, held, frame.delivered, frame.attached)

    def _input(self, job: str, held: Held, items: list[Any]) -> None:
        if items:
            held.input_head = items[-1].offset
            self._tell(InputPush(job=job, attempt=held.attempt, items=items))

    def _delivered(self, job: str, held: Held, delivered: int, attached: bool) -> None:
        if (delivered, attached) == (held.delivered, held.attached):
            return
        held.delivered, held.attached = delivered, attached
        self._tell(Delivered(job=job, attempt=held.attempt, delivered=delivered, attached=attached))

    def _want_input(self, job: str) -> None:
        held = self._leases.get(job)
        if held is not None and not held.fetching:
            held.fetching = True
            self._spawn(self._fetch_input(job, held))

    async def _fetch_input(self, job: str, held: Held) -> None:
        assert self._store is not None
        try:
            more = True
            while more and self._leases.get(job) is held:
                request = {"job": job, "attempt": held.attempt, "offset": held.input_head}
                answer = _more(await self._store.call("input", request, again=True))
                if isinstance(answer, bool):
                    return
                if self._leases.get(job) is held:
                    self._input(job, held, numbered(answer.items, answer.start))
                more = answer.more
        finally:
            held.fetching = False

    # ------------------------------------------------------------------------- saying

    def _post(self, op: str, request: Any, *blobs: bytes | str, done: Any = None) -> None:
        if self._store is not None:
            self._flush()  # in the order in which it was said
            self._store.post(op, request, *blobs, done=done or _ignore(op), kept=True)

    def stage(self, worker: str, pools: Sequence[str], stage: LoadStage) -> None:
        self._stage = (list(pools), stage)
        request = {"worker": worker, "pools": list(pools), "stage": stage.stage}
        self._post("stage", request, encode(stage))

    def register(self, info: WorkerInfo) -> None:
        self._info = info
        request = {
            **self._me,
            "pools": list(info.pools),
            "slots": info.slots,
            "sessions": info.sessions,
            "standby": int(info.standby),
            "supervised": int(info.supervised),
            "prefix": int("prefix" in info.capabilities),
            "pid": info.pid,
            "assumed": {name: _assumed_s(name, info) for name in info.pools},
        }
        self._post("register", request, encode(info))

    def commit(
        self,
        job: str,
        attempt: int,
        events: Sequence[OutputEvent],
        consumed: Consumed,
        *,
        model_s: float = 0.0,
    ) -> None:
        held = self._leases.get(job)
        if held is None or held.attempt != attempt:
            return
        sizes = [size_of(event) for event in events]
        if not held.credit.spend(sum(sizes)):
            log.error("worker.over_credit", job=job, size_bytes=sum(sizes), left=held.credit.left)
            self._broken(job, attempt)
            return
        batch = self._open.get(job)
        if batch is None or not batch.goes_on(job, attempt, events):
            batch = self._open[job] = Batch(self._worker, job, held)
            self._batches.append(batch)
        batch.add(events, sizes, consumed, model_s)
        if not self._flushing and self._loop is not None and self._unanswered < IN_FLIGHT:
            self._flushing = True
            self._loop.call_soon(self._flush)
        if events and isinstance(events[-1], Ended):
            self._leases.pop(job, None)

    def _flush(self) -> None:
        """Say everything that was committed in this turn of the loop, in one call or a few.

        A store that is behind hears less often and more at a time."""
        self._flushing = False
        if self._store is None:
            return
        batches, self._batches = self._batches, []
        self._open.clear()
        part: list[Batch] = []
        size = 0
        for batch in batches:
            part.append(batch)
            size += len(batch)
            if size >= CALL_EVENTS:
                self._say(part)
                part, size = [], 0
        if part:
            self._say(part)

    def _say(self, batches: list[Batch]) -> None:
        assert self._store is not None
        self._unanswered += 1

        def done(answers: Any) -> None:
            self._unanswered -= 1
            if isinstance(answers, Exception):
                log.warning("commit.unanswered", jobs=len(batches), reason=str(answers))
                answers = [-2] * len(batches)
            for batch, answer in zip(batches, answers, strict=True):
                self._said(batch.job, batch.held, answer, batch.last)
            if self._batches and self._unanswered < IN_FLIGHT and not self._closed:
                self._flush()

        blobs = [blob for batch in batches for blob in batch.blobs()]
        requests = [batch.request() for batch in batches]
        self._store.post("commit", requests, *blobs, done=done, kept=True)

    def _said(self, job: str, held: Held, answer: int, stored: int) -> None:
        """A commit was answered; what the numbers mean is said beside `API.commit`."""
        if answer < -1:
            log.error("commit.refused", job=job, answer=answer)
            self._broken(job, held.attempt)
        elif answer >= 0 and self._leases.get(job) is held:
            held.stored = max(held.stored, stored)
            lump = held.credit.lump()
            if lump:
                self._tell(Credit(job=job, attempt=held.attempt, add=lump))

    def _broken(self, job: str, attempt: int) -> None:
        """What we say of this job does not fit what the store has: somebody else goes on."""
        held = self._leases.get(job)
        if held is not None and held.attempt == attempt:
            del self._leases[job]
            self._park(job, attempt)
            self._tell(LeaseLost(job=job, attempt=attempt))

    def park(self, job: str, attempt: int) -> None:
        held = self._leases.get(job)
        if held is not None and held.attempt == attempt:
            del self._leases[job]
            self._park(job, attempt)

    def _park(self, job: str, attempt: int) -> None:
        self._post("park", {"worker": self._worker, "job": job, "attempt": attempt})

    def keeps(self, affinity: str, *, held: bool) -> None:
        if held:
            self._kept.add(affinity)
        else:
            self._kept.discard(affinity)
        self._keep(affinity, held=held)

    def _keep(self, affinity: str, *, held: bool) -> None:
        self._post("keeps", {**self._me, "affinity": affinity, "held": held})

    # -------------------------------------------------------------------------- beats

    def hold(self, held: bool) -> None:
        """What is told by Redis is read as it comes: one connection carries other answers."""

    def beat(self, worker: str, load: Mapping[str, Any]) -> None:
        """See `WorkerBroker.beat`. Blocks at most `BEAT_TIMEOUT_S`; one calling thread only."""
        answer = self._beats.say(load, self._control)
        loop = self._loop
        if answer is None or loop is None or loop.is_closed():
            return
        if threading.current_thread() is threading.main_thread() and _running() is loop:
            self._beat_answered(answer)
        else:
            loop.call_soon_threadsafe(self._beat_answered, answer)

    def _beat_answered(self, answer: bytes) -> None:
        if self._closed or self._store is None:
            return
        heard = _beat(answer)
        if isinstance(heard, bool):
            if self._info is not None:
                self._spawn(self._begin_again())
            return
        if heard.control > self._control:
            self._spawn(self._fetch_control())
        for head in heard.heads:
            held = self._leases.get(head.job)
            if held is None or held.attempt != head.attempt:
                continue
            self._delivered(head.job, held, head.delivered, head.attached)
            if head.input_head > held.input_head:
                self._want_input(head.job)

    async def drained(self) -> None:
        self._flush()
        if self._store is not None:
            await self._store.flushed()

    async def settled(self) -> None:
        """Return when everything said so far has been answered, and everything that was
        pushed before that has been heard."""
        self._flush()
        if self._store is not None and not self._closed:
            await self._store.call("rejoin", self._me, again=True)
            await self._store.flushed()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._leases.clear()
        for task in tuple(self._tasks):
            task.cancel()
        if self._store is not None:
            try:
                await self._store.call("gone", self._me)
            except ForebayError as error:
                log.info("store.not_told", what="gone", reason=error.message)
            await self._store.close()
        self._beats.close()


def _assumed_s(pool: str, info: WorkerInfo) -> float:
    """Model seconds of one session, for a model that says its real-time factor."""
    rtf = info.facts.get("rtf")
    kind = pool.partition("/")[0]
    row = KINDS.get(Kind(kind)) if kind in KINDS else None
    if row is None or row.cut is not Cut.SPAN or not isinstance(rtf, int | float):
        return 0.0
    return float(rtf) * ASSUMED_S


def _ignore(op: str) -> Any:
    def done(answer: Any) -> None:
        if isinstance(answer, Exception):
            log.warning("store.not_told", what=op, reason=str(answer))

    return done


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _logged(work: Any) -> None:
    try:
        await work
    except ForebayError as error:
        log.warning("store.not_asked", reason=error.message)

"""The homes of the broker contract, each behind the same small harness.

A test says what a gateway and scripted workers do and looks at what arrives. `settle` waits
until everything in flight has arrived, `advance` lets time pass while living workers beat,
`freeze` is a pause of the broker itself. Time is virtual: the broker's clock and timers are
the harness's; only the bytes on the Unix socket of the link move in real time.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from forebay.broker import (
    Assign,
    CancelJob,
    Credit,
    GatewayPush,
    InputPush,
    LeaseLost,
    OutputPush,
    WorkerPush,
)
from forebay.broker.journal import Journal
from forebay.broker.link_client import LinkClient, SupervisorLink
from forebay.broker.link_server import serve_link
from forebay.broker.local import LocalBroker, Settings
from forebay.core.events import Audio, Consumed, End, Ended, Input, OutputEvent, Text, TextDelta
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec, Lease, WorkerInfo
from forebay.core.stream import Stamper
from forebay.errors import Fenced

SPEECH = "speech/tone"
TEXT = "text/words"
RATE = 16_000


class Virtual:
    """A clock that stands still, and the timers on it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._seq = itertools.count()
        self._cancelled: set[int] = set()
        self.fired = 0

    def clock(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> VirtualHandle:
        seq = next(self._seq)
        heapq.heappush(self._heap, (self.now + delay, seq, call))
        return VirtualHandle(self, seq)

    def cancel(self, seq: int) -> None:
        self._cancelled.add(seq)

    def advance(self, seconds: float) -> None:
        target = self.now + seconds
        while self._heap and self._heap[0][0] <= target:
            when, seq, call = heapq.heappop(self._heap)
            if seq in self._cancelled:
                self._cancelled.discard(seq)
                continue
            self.now = max(self.now, when)
            self.fired += 1
            call()
        self.now = target

    def freeze(self, seconds: float) -> None:
        """Time passes, but nobody gets to run."""
        self.now += seconds

    @property
    def armed(self) -> int:
        return sum(1 for _, seq, _ in self._heap if seq not in self._cancelled)


class VirtualHandle:
    def __init__(self, virtual: Virtual, seq: int) -> None:
        self._virtual, self._seq = virtual, seq

    def cancel(self) -> None:
        self._virtual.cancel(self._seq)


class Direct:
    """`WorkerBroker` by plain calls on the broker's worker half."""

    def __init__(self, broker: LocalBroker, worker: str) -> None:
        self._broker, self._worker = broker, worker
        self.fenced = 0

    async def connect(self, sink: Callable[[WorkerPush], None]) -> None:
        self._broker.worker_connect(self._worker, sink)

    def stage(self, worker: str, pools: Sequence[str], stage: Any) -> None:
        self._broker.worker_stage(worker, pools, stage)

    def register(self, info: WorkerInfo) -> None:
        self._broker.worker_register(info)

    def commit(
        self,
        job: str,
        attempt: int,
        events: Sequence[OutputEvent],
        consumed: Consumed,
        *,
        model_s: float = 0.0,
    ) -> None:
        try:
            self._broker.worker_commit(
                self._worker, job, attempt, events, consumed, model_s=model_s
            )
        except Fenced:
            self.fenced += 1  # as the link does: the worker has been told already

    def park(self, job: str, attempt: int) -> None:
        self._broker.worker_park(self._worker, job, attempt)

    def keeps(self, affinity: str, *, held: bool) -> None:
        self._broker.worker_keeps(self._worker, affinity, held=held)

    def hold(self, held: bool) -> None: ...

    def beat(self, worker: str, load: Any) -> None:
        self._broker.worker_beat(worker, load)

    async def drained(self) -> None: ...

    async def close(self) -> None:
        self._broker.worker_gone(self._worker, "closed")


class Hand:
    """A scripted worker: it does what the test says, with honest numbers."""

    def __init__(self, home: Home, name: str, port: Any) -> None:
        self.home, self.id, self.port = home, name, port
        self.pushes: list[WorkerPush] = []
        self.leases: dict[str, Lease] = {}
        self.input: dict[str, list[Input]] = {}
        self.lost: list[tuple[str, int]] = []
        self.cancels: list[CancelJob] = []
        self.credit: dict[str, int] = {}
        self._stampers: dict[str, Stamper] = {}
        self._consumed: dict[str, Consumed] = {}
        self.beating = True

    def take(self, push: WorkerPush) -> None:
        self.pushes.append(push)
        match push:
            case Assign(lease=lease):
                job = lease.spec.id
                self.leases[job] = lease
                self.input[job] = list(lease.input)
                self.credit[job] = lease.credit_bytes
                self._stampers[job] = Stamper(lease.last_offset, lease.counts, lease.marks)
                self._consumed[job] = lease.consumed
            case InputPush() if push.attempt == self.attempt(push.job):
                self.input[push.job].extend(push.items)
            case LeaseLost():
                self.lost.append((push.job, push.attempt))
            case CancelJob():
                self.cancels.append(push)
            case Credit() if push.attempt == self.attempt(push.job):
                self.credit[push.job] += push.add

    def attempt(self, job: str) -> int:
        return self.leases[job].attempt

    def commit(
        self, job: str, *events: OutputEvent, consumed: Consumed | None = None, model_s: float = 0
    ) -> list[OutputEvent]:
        stamped = [self._stampers[job].stamp(event) for event in events]
        if consumed is not None:
            self._consumed[job] = consumed
        self.again(job, stamped, model_s=model_s)
        return stamped

    def again(self, job: str, stamped: Sequence[OutputEvent], *, model_s: float = 0) -> None:
        self.port.commit(job, self.attempt(job), stamped, self._consumed[job], model_s=model_s)

    def speak(self, job: str, text: str, *, frames: int = 160, through: int = 0) -> None:
        """One piece of audio for ``text``; input through offset ``through`` is done."""
        unit = self._stampers[job].marks.get("units", 0)
        piece = Audio(data=bytes(2 * frames), text=text, unit=unit, frames=frames)
        at = Consumed(through or self._consumed[job].offset, unit + len(text))
        self.commit(job, piece, consumed=at)

    def say(self, job: str, *words: str) -> None:
        for word in words:
            self.commit(job, TextDelta(text=word))

    def end(self, job: str, state: Any = "completed") -> None:
        head = max((item.offset for item in self.input[job]), default=0)
        at = self._consumed[job]
        self.commit(job, Ended(state=state), consumed=Consumed(head or at.offset, at.fine))

    def park(self, job: str) -> None:
        self.port.park(job, self.attempt(job))

    async def die(self, *, stepping: Sequence[str] = (), abnormal: bool = True) -> None:
        """The process is gone: the socket ends, and its supervisor says so."""
        await self.home.settle()
        self.beating = False
        held = [(job, self.attempt(job)) for job in stepping]
        await self.port.close()
        self.home.exited(self.id, abnormal=abnormal, stepping=held, reason="killed")
        await self.home.settle()

    async def unplug(self) -> None:
        """The socket ends; nobody says why."""
        self.beating = False
        await self.port.close()
        await self.home.settle()


class Home:
    """LocalBroker in virtual time, called directly."""

    name = "local"

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        journal_dir: Path | None = None,
        wall: float = 1_700_000_000.0,
    ) -> None:
        self.time = Virtual()
        self.dropped: list[str] = []  # files that nobody needs any more, as they went
        ids = itertools.count(1)
        journal = None
        if journal_dir is not None:
            journal = Journal(journal_dir, wall=lambda: wall + self.time.now)
        self.broker = LocalBroker(
            settings,
            clock=self.time.clock,
            call_later=self.time.call_later,
            ids=lambda: f"id{next(ids)}",
            jitter=lambda: 0.0,
            journal=journal,
            drop_blobs=self.dropped.extend,
        )
        self.pushes: list[GatewayPush] = []
        self.broker.open("g1", self.pushes.append)
        self.hands: list[Hand] = []

    def clock(self) -> float:
        """What a reader of views calls now."""
        return self.time.clock()

    async def start(self) -> None: ...

    async def close(self) -> None:
        await self.broker.close()

    async def port(self, worker: str) -> Any:
        return Direct(self.broker, worker)

    def exited(
        self, worker: str, *, abnormal: bool, stepping: Iterable[tuple[str, int]], reason: str
    ) -> None:
        self.broker.exited(worker, abnormal=abnormal, stepping=stepping, reason=reason)

    async def settle(self) -> None: ...

    async def advance(self, seconds: float) -> None:
        await self.settle()
        while seconds > 1e-9:
            step = min(0.6, seconds)  # under the time-to-live of a beat
            seconds -= step
            for hand in self.hands:
                if hand.beating:
                    hand.port.beat(hand.id, {})
            await self.settle()
            self.time.advance(step)
        await self.settle()

    async def worker(
        self,
        name: str,
        *,
        pools: Sequence[str] = (SPEECH,),
        sessions: int = 4,
        slots: int = 1,
        **more: Any,
    ) -> Hand:
        hand = Hand(self, name, await self.port(name))
        await hand.port.connect(hand.take)
        hand.port.register(
            WorkerInfo(
                id=name, pools=list(pools), slots=slots, sessions=sessions, supervised=True, **more
            )
        )
        self.hands.append(hand)
        await self.settle()
        return hand

    def used_bytes(self) -> int:
        """What the store counts for all jobs together."""
        return self.broker._core.used_bytes

    # --------------------------------------------------------------- shorthands

    def output(self, job: str) -> list[OutputEvent]:
        """What was pushed to the gateway, in order."""
        pushes = [p for p in self.pushes if isinstance(p, OutputPush) and p.job == job]
        return [event for push in pushes for event in push.events]

    async def stored(self, job: str) -> list[OutputEvent]:
        await self.settle()
        return await self.broker.read_after(job, 0)

    async def speech(self, name: str, text: str = "", *, end: bool = False, **more: Any) -> JobSpec:
        """Submit a speech job, watched by g1."""
        spec = speech_spec(name, **more)
        items: list[Any] = [Text(text=text, unit=0, seq=1)] if text else []
        items += [End(seq=2)] if end else []
        await self.broker.submit(spec, items, gateway="g1")
        await self.settle()
        return spec


class LinkHome(Home):
    """The same broker with its workers and supervisor on a real Unix socket."""

    name = "link"

    async def start(self) -> None:
        self._dir = tempfile.TemporaryDirectory(prefix="fb")
        self._path = Path(self._dir.name) / "b.sock"
        self._server = await serve_link(self._path, self.broker)
        self._supervisor = SupervisorLink(str(self._path))
        await self._supervisor.open()
        self._ports: list[LinkClient] = []

    async def close(self) -> None:
        for port in self._ports:
            await port.close()
        await self._supervisor.close()
        await self.broker.close()
        await self._server.close()
        self._dir.cleanup()

    async def port(self, worker: str) -> Any:
        port = LinkClient(str(self._path), worker)
        self._ports.append(port)
        return port

    def exited(
        self, worker: str, *, abnormal: bool, stepping: Iterable[tuple[str, int]], reason: str
    ) -> None:
        self._supervisor.exited(worker, abnormal=abnormal, stepping=stepping, reason=reason)

    def _seen(self) -> tuple[int, ...]:
        return (len(self.pushes), *(len(hand.pushes) for hand in self.hands))

    async def settle(self) -> None:
        """Both directions quiet for a few milliseconds."""
        for port in self._ports:
            await port.drained()
        await self._supervisor.drained()
        quiet, seen = 0, self._seen()
        while quiet < 3:
            await asyncio.sleep(0.001)
            now = self._seen()
            quiet, seen = (quiet + 1, now) if now == seen else (0, now)


def speech_spec(ident: str, **more: Any) -> JobSpec:
    """A speech job; unless said otherwise ``ident`` is also its client's word for it."""
    values: dict[str, Any] = {
        "kind": Kind.SPEECH,
        "pool": SPEECH,
        "dialect": "tts",
        "name": ident,
        "detach_s": 120.0,
        "params": {"sample_rate": RATE, "channels": 1, "format": "pcm16"},
    }
    return JobSpec(id=ident, **{**values, **more})


def text_spec(ident: str, **more: Any) -> JobSpec:
    values: dict[str, Any] = {"kind": Kind.TEXT, "pool": TEXT, "dialect": "openai", "params": {}}
    return JobSpec(id=ident, **{**values, **more})


MakeHome = Callable[..., Awaitable[Home]]

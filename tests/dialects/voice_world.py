"""A whole gateway in one process and in virtual time, for tests of the wire protocols.

Real parts: dialects, session tables, drivers, hub, `LocalBroker`, the worker's runner, the
synthetic engines. Only the socket is made of memory, and the clock jumps: whenever nothing
is ready to run, time moves to the next timer.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import selectors
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from forebay.broker import WorkerSink
from forebay.broker.local import LocalBroker, Settings
from forebay.core.kinds import KINDS, Kind
from forebay.core.spec import WorkerInfo
from forebay.engines import create
from forebay.errors import Fenced
from forebay.gateway.context import ChatOptions, GatewayContext
from forebay.gateway.hub import Hub
from forebay.gateway.metrics import GatewayMetrics
from forebay.gateway.wire import LOW_WATER_BYTES
from forebay.worker.runner import Runner

T = TypeVar("T")
BEAT_S = 0.25


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Instead of sleeping, moves the loop's clock."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if found or timeout == 0:
            return found
        if timeout is None:
            return super().select(5)  # only a thread can wake us; 5 s real time, then give up
        self.skipped += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return 1000.0 + self._jumping.skipped


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(asyncio.wait_for(work, 900))


class InProcess:
    """`WorkerBroker` without a link: the same calls, pushes one loop turn later."""

    def __init__(self, broker: LocalBroker, worker: str) -> None:
        self._broker = broker
        self._worker = worker
        self._dead = False

    async def connect(self, sink: WorkerSink) -> None:
        loop = asyncio.get_running_loop()

        def later(push: Any) -> None:
            if not self._dead:
                loop.call_soon(sink, push)

        self._broker.worker_connect(self._worker, later)

    def stage(self, worker: str, pools: Any, stage: Any) -> None:
        self._broker.worker_stage(worker, pools, stage)

    def register(self, info: WorkerInfo) -> None:
        self._broker.worker_register(info)

    def commit(self, job: str, attempt: int, events: Any, consumed: Any, **how: Any) -> None:
        if not self._dead:
            with contextlib.suppress(Fenced):  # a link tells nobody
                self._broker.worker_commit(self._worker, job, attempt, events, consumed, **how)

    def park(self, job: str, attempt: int) -> None:
        if not self._dead:
            self._broker.worker_park(self._worker, job, attempt)

    def hold(self, held: bool) -> None: ...

    def beat(self, worker: str, load: Any) -> None:
        if not self._dead:
            self._broker.worker_beat(worker, load)

    async def drained(self) -> None: ...

    async def close(self) -> None: ...

    def die(self) -> None:
        """As SIGKILL: nothing it still does is heard."""
        self._dead = True
        self._broker.worker_gone(self._worker, "killed")


class MemoryWire:
    """A socket whose peer reads everything at once, or, while `stalled`, nothing."""

    def __init__(self, on_close: Callable[[int, str], None]) -> None:
        self.taken: list[str | bytes] = []
        self.times: list[float] = []
        self.stalled = False
        self.ended: tuple[int, str] | None = None
        self._queue: deque[str | bytes] = deque()
        self._on_close = on_close
        self._callback: Callable[[], None] | None = None
        self._gone = False

    @property
    def closed(self) -> bool:
        return self._gone or self.ended is not None

    def send(self, data: str | bytes) -> None:
        if self.closed:
            return
        self._queue.append(data)
        if not self.stalled:
            self._flush()

    def _flush(self) -> None:
        while self._queue:
            self.taken.append(self._queue.popleft())
            self.times.append(asyncio.get_running_loop().time())

    def backlog(self) -> int:
        return sum(len(item) for item in self._queue)

    def on_drain(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        if self.backlog() <= LOW_WATER_BYTES:
            asyncio.get_running_loop().call_soon(self._drained)

    def _drained(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()

    def flow(self) -> None:
        """The peer reads again."""
        self.stalled = False
        self._flush()
        self._drained()
        if self.ended is not None:
            self._on_close(*self.ended)

    def close(self, code: int = 1000, reason: str = "") -> None:
        if self.closed:
            return
        self.ended = (code, reason)
        if not self.stalled:
            self._on_close(code, reason)

    def cut(self) -> None:
        """The peer has gone, with all it had not read."""
        self._gone = True
        self._queue.clear()


class Client:
    """One WebSocket client of an endpoint, in memory."""

    def __init__(self, endpoint: Callable[..., Coroutine[Any, Any, None]], **how: Any) -> None:
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.wire = MemoryWire(self._closed)
        self._read = 0
        self._task = asyncio.ensure_future(
            endpoint(
                {"type": "websocket", "forebay.wire": self.wire},
                self._inbox.get,
                self._asgi_send,
                **how,
            )
        )
        self._inbox.put_nowait({"type": "websocket.connect"})

    async def _asgi_send(self, message: Any) -> None:
        assert message["type"] == "websocket.accept", message

    def _closed(self, code: int, reason: str) -> None:
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": code})

    def say(self, message: Any) -> None:
        """Send a JSON message, or a raw text or binary frame."""
        if isinstance(message, bytes):
            self._inbox.put_nowait({"type": "websocket.receive", "bytes": message})
            return
        text = message if isinstance(message, str) else json.dumps(message)
        self._inbox.put_nowait({"type": "websocket.receive", "text": text})

    async def hear(self, within_s: float = 30.0) -> dict[str, Any] | None:
        """The next message; None when the connection was closed, or nothing came."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        while self._read >= len(self.wire.taken):
            if (self.wire.ended and not self.wire.stalled) or loop.time() >= until:
                return None
            await asyncio.sleep(0.01)
        self._read += 1
        return dict(json.loads(self.wire.taken[self._read - 1]))

    async def until(self, *types: str, within_s: float = 30.0) -> list[dict[str, Any]]:
        """Messages up to and with the first of one of ``types``."""
        heard = []
        while (message := await self.hear(within_s)) is not None:
            heard.append(message)
            if message["type"] in types:
                return heard
        raise AssertionError(f"none of {types} came, heard {[m['type'] for m in heard]}")

    async def rest(self, within_s: float = 30.0) -> list[dict[str, Any]]:
        """All messages until the connection is closed or nothing comes for so long."""
        heard = []
        while (message := await self.hear(within_s)) is not None:
            heard.append(message)
        return heard

    @property
    def code(self) -> int | None:
        return None if self.wire.ended is None else self.wire.ended[0]

    async def leave(self) -> None:
        """Go without a word, as a lost network does."""
        self.wire.cut()
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await self._task

    async def gone(self) -> None:
        """Wait for the endpoint to be done with this connection."""
        if self.wire.ended is None or self.wire.stalled:
            await self.leave()
        else:
            await self._task


class World:
    """The gateway. `connect` gives clients, `worker` adds workers."""

    def __init__(self, broker: LocalBroker, hub: Hub, ctx: GatewayContext) -> None:
        self.broker = broker
        self.hub = hub
        self.ctx = ctx
        self.metrics = ctx.metrics
        self._tasks: list[asyncio.Task[None]] = []
        self._workers = 0

    async def worker(self, kind: Kind, *, sessions: int = 100, **options: Any) -> InProcess:
        """A worker with the synthetic engine of ``kind``."""
        self._workers += 1
        name = f"w{self._workers}"
        link = InProcess(self.broker, name)
        engine = create(kind, "synthetic", options)
        info = await engine.load(lambda stage: None)
        pool = f"{kind}/synthetic"
        worker = WorkerInfo(id=name, pools=[pool], slots=info.slots, sessions=sessions)
        runner = Runner(link, engine, info, worker, self.ctx.rows[kind], find_blob=self._find_blob)
        await link.connect(runner.sink)
        self._tasks.append(asyncio.ensure_future(self._beat(link, name)))
        self._tasks.append(asyncio.ensure_future(runner.run()))
        await asyncio.sleep(0)
        return link

    def _find_blob(self, name: str) -> Path:
        assert self.ctx.blobs is not None
        return self.ctx.blobs.path(name)

    @staticmethod
    async def _beat(link: InProcess, name: str) -> None:
        while True:
            link.beat(name, {})
            await asyncio.sleep(BEAT_S)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def world(
    *,
    speech: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    recognition: dict[str, Any] | None = None,
    rows: dict[Kind, Any] | None = None,
    chat: ChatOptions | None = None,
) -> AsyncIterator[World]:
    """A gateway with one worker per kind asked for; the dicts are engine options."""
    loop = asyncio.get_running_loop()
    kinds = {**KINDS, **(rows or {})}
    ids = iter(range(1, 1_000_000))
    broker = LocalBroker(
        Settings(rows=kinds), clock=loop.time, ids=lambda: f"{next(ids):032x}", jitter=lambda: 0.5
    )
    async with Hub(broker, "g1", loop.time) as hub:
        ctx = GatewayContext(
            broker=broker,
            hub=hub,
            gateway_id="g1",
            metrics=GatewayMetrics(),
            rows=kinds,
            chat=chat or ChatOptions(),
            clock=loop.time,
            new_id=lambda: f"{next(ids):032x}",
        )
        gateway = World(broker, hub, ctx)
        try:
            if speech is not None:
                await gateway.worker(Kind.SPEECH, **speech)
            if text is not None:
                await gateway.worker(Kind.TEXT, **text)
            if recognition is not None:
                await gateway.worker(Kind.RECOGNITION, **recognition)
            yield gateway
        finally:
            await gateway.close()
            await broker.close()


def samples(chunk: dict[str, Any]) -> int:
    """Sample frames in an `audio_chunk`."""
    return len(base64.b64decode(chunk["audio_base64"])) // (2 * chunk["channels"])


def spoken(messages: list[dict[str, Any]], first: int = 0) -> str:
    """The text that the audio chunks among ``messages`` speak; asserts that their units go
    on without a gap or a repeat from ``first``, and that no chunk is empty."""
    text = ""
    for message in messages:
        if message["type"] != "audio_chunk":
            continue
        begins = message["unit_index_start"]
        assert begins == first + len(text), (begins, first, text)
        text += message["units_text"]
        assert message["unit_index_end"] == first + len(text) - 1
        assert samples(message) > 0
    return text

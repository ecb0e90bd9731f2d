"""The worker's and the supervisor's end of the Unix-socket link.

`LinkClient` is a `WorkerBroker`: whoever uses it never sees the connection. When the
connection ends, every lease it knows of is reported lost (`LeaseLost`), and it connects
again by itself, after a jittered and bounded wait, and says stage and registration again.

`SupervisorLink` does the same for the supervisor: it says who exited (kept until there is
somebody to say it to, at most `EXITS_KEPT`), and hears how the pools stand.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import structlog

from forebay.broker import Assign, CancelJob, LeaseLost, WorkerSink
from forebay.broker.link_wire import (
    FRAME_BYTES,
    GREETING,
    Beat,
    Commit,
    Exited,
    Failure,
    FrameReader,
    FromBroker,
    FromWorker,
    Hello,
    Park,
    Pools,
    Register,
    Stage,
    decode_from_broker,
    encode,
    frames,
)
from forebay.core.events import Consumed, Ended, OutputEvent
from forebay.core.spec import LoadStage, PoolView, WorkerInfo
from forebay.errors import ConfigError, ProtocolError, by_code

__all__ = ["EXITS_KEPT", "LinkClient", "SupervisorLink", "path_of"]

RETRY_FIRST_S = 0.05
RETRY_MOST_S = 0.5
BEAT_TIMEOUT_S = 0.5
EXITS_KEPT = 256

log = structlog.get_logger(__name__)


def path_of(url: str) -> str:
    """The socket path in ``unix:///path``; raises `ConfigError` for any other URL."""
    scheme, _, path = url.partition("://")
    if scheme != "unix" or not path.startswith("/"):
        raise ConfigError(f"broker url is {url!r}, expected unix:///absolute/path.sock")
    return path


class _Wire(asyncio.Protocol):
    """One connection: frames in, one write per loop tick out."""

    def __init__(
        self, hello: Hello, on_message: Callable[[FromBroker], None], on_ready: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._hello = hello
        self._on_message = on_message
        self._on_ready = on_ready
        self._reader = FrameReader()
        self._queue: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self.error: Exception | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transports have no asyncio base class.
        transport = self._transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=0)  # so that resume_writing means: all sent
        transport.write(GREETING + b"".join(frames(encode(self._hello), control=True)))

    def data_received(self, data: bytes) -> None:
        greeted = self._reader.greeting is not None
        try:
            self._reader.feed(data)
            for body in self._reader:
                if not greeted:
                    greeted = True
                    self._on_ready()
                self._take(decode_from_broker(body))
            if not greeted and self._reader.greeting is not None:
                self._on_ready()
        except ProtocolError as exc:
            self.fail(exc)

    def _take(self, message: FromBroker) -> None:
        if isinstance(message, Failure):
            self.fail(by_code(message.code, message.message))
        else:
            self._on_message(message)

    def send(self, message: FromWorker) -> None:
        """Queue for the end of this loop tick. Raises `TooLarge` over one frame."""
        parts = frames(encode(message), control=False, limit_bytes=FRAME_BYTES)
        if not self._queue:
            self._empty.clear()
            self._loop.call_soon(self._flush)
        self._queue.extend(parts)

    def _flush(self) -> None:
        data, self._queue = b"".join(self._queue), []
        if self._transport is None or self._transport.is_closing():
            self._empty.set()
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() == 0:
            self._empty.set()

    def resume_writing(self) -> None:
        if not self._queue:
            self._empty.set()

    async def drained(self) -> None:
        await self._empty.wait()

    def fail(self, error: Exception) -> None:
        self.error = error
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = self.error or exc
        self._empty.set()
        if not self.lost.done():
            self.lost.set_result(None)


class _Keeper:
    """Keeps one connection alive: connects, waits for its end, waits a little, again."""

    def __init__(self, path: str, hello: Hello) -> None:
        self._path = path
        self._hello = hello
        self._task: asyncio.Task[None] | None = None
        self._wire: _Wire | None = None
        self._ready: asyncio.Future[None] | None = None

    @property
    def connected(self) -> bool:
        return self._wire is not None

    async def open(self) -> None:
        """Return when first connected. Raises `ProtocolError` if the peer refuses to speak
        with us; waits, without end, for a peer that is not there yet. Cancelling it leaves
        the keeper running until `close`."""
        if self._task is not None:
            raise ProtocolError("link is open already")
        self._ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep(), name=f"link {self._hello.role}")
        await asyncio.shield(self._ready)

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        wait_s = RETRY_FIRST_S
        while True:
            wire = _Wire(self._hello, self._message, lambda: self._up())
            self._pending = wire
            try:
                await loop.create_unix_connection(lambda wire=wire: wire, self._path)  # type: ignore[misc]
                await wire.lost
            except OSError as exc:
                wire.error = exc
            finally:
                was_up = self._wire is wire
                if not wire.lost.done():
                    wire.abort()
            if was_up:
                self._wire = None
                wait_s = RETRY_FIRST_S
                self._down()
            self._report(wire.error, was_up)
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, RETRY_MOST_S)

    def _report(self, error: Exception | None, was_up: bool) -> None:
        if isinstance(error, ProtocolError):
            log.error("link.refused", reason=str(error))
            if self._ready is not None and not self._ready.done():
                self._ready.set_exception(error)
        elif was_up:
            log.warning("link.lost", reason=str(error or "closed by the gateway"))

    def _up(self) -> None:
        self._wire = self._pending
        self._hail()
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    def _hail(self) -> None:
        """Say what a new connection must know."""

    def _down(self) -> None:
        """The connection is gone."""

    def _message(self, message: FromBroker) -> None:
        """Something arrived."""

    async def drained(self) -> None:
        if self._wire is not None:
            await self._wire.drained()

    async def close(self) -> None:
        """End the connection and the keeper's task. What has not been sent is dropped: call
        `drained` first."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._ready is not None and not self._ready.done():
            self._ready.cancel()


class LinkClient(_Keeper):
    """`WorkerBroker` over the Unix socket at ``path`` for the worker called ``worker``."""

    def __init__(self, path: str, worker: str) -> None:
        super().__init__(path, Hello("worker", worker))
        self._sink: WorkerSink | None = None
        self._leases: set[tuple[str, int]] = set()
        self._stage: Stage | None = None
        self._info: WorkerInfo | None = None
        self._beats: socket.socket | None = None

    async def connect(self, sink: WorkerSink) -> None:
        self._sink = sink
        await self.open()

    def _hail(self) -> None:
        if self._stage is not None:
            self._say(self._stage)
        if self._info is not None:
            self._say(Register(self._info))

    def _down(self) -> None:
        lost, self._leases = self._leases, set()
        if self._sink is not None:
            for job, attempt in lost:
                self._sink(LeaseLost(job=job, attempt=attempt))

    def _message(self, message: FromBroker) -> None:
        if self._sink is None or isinstance(message, Pools | Failure):
            return
        if isinstance(message, Assign):
            self._leases.add((message.lease.spec.id, message.lease.attempt))
        elif isinstance(message, LeaseLost | CancelJob):
            if (message.job, message.attempt) not in self._leases:
                # It crossed our own end of that lease on the way. The broker still waits for
                # an answer; giving a credit back twice changes nothing.
                self._say(Park(message.job, message.attempt))
                return
        self._sink(message)

    def _say(self, message: FromWorker) -> None:
        # Without a connection there are no leases, so nothing said now could matter later,
        # except stage and registration, which `_hail` says again.
        if self._wire is not None:
            self._wire.send(message)

    def stage(self, worker: str, pools: Sequence[str], stage: LoadStage) -> None:
        self._stage = Stage(worker, list(pools), stage)
        self._say(self._stage)

    def register(self, info: WorkerInfo) -> None:
        self._info = info
        self._say(Register(info))

    def commit(
        self,
        job: str,
        attempt: int,
        events: Sequence[OutputEvent],
        consumed: Consumed,
        *,
        model_s: float = 0.0,
    ) -> None:
        """See `WorkerBroker.commit`. Raises `TooLarge` over one frame (512 KiB)."""
        if (job, attempt) not in self._leases:
            return
        self._say(Commit(job, attempt, list(events), consumed, model_s))
        if events and isinstance(events[-1], Ended):
            self._leases.discard((job, attempt))

    def park(self, job: str, attempt: int) -> None:
        if (job, attempt) in self._leases:
            self._leases.discard((job, attempt))
            self._say(Park(job, attempt))

    def beat(self, worker: str, load: Mapping[str, Any]) -> None:
        """See `WorkerBroker.beat`. Blocks at most `BEAT_TIMEOUT_S`; one calling thread only.

        A beat that cannot be sent is dropped: the next one connects again.
        """
        try:
            if self._beats is None:
                self._beats = _dial(self._path, worker)
            self._beats.sendall(b"".join(frames(encode(Beat(worker, dict(load))), control=True)))
        except OSError:
            if self._beats is not None:
                self._beats.close()
            self._beats = None

    async def close(self) -> None:
        self._leases.clear()
        await super().close()
        if self._beats is not None:
            self._beats.close()
            self._beats = None


def _dial(path: str, worker: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(BEAT_TIMEOUT_S)
        sock.connect(path)
        hello = frames(encode(Hello("beat", worker)), control=True)
        sock.sendall(GREETING + b"".join(hello))
    except OSError:
        sock.close()
        raise
    return sock


class SupervisorLink(_Keeper):
    """`SupervisorBroker` over the link, and the pools as they stand."""

    def __init__(self, path: str) -> None:
        super().__init__(path, Hello("supervisor"))
        self._unsaid: deque[Exited] = deque(maxlen=EXITS_KEPT)
        self._views: list[PoolView] = []
        self._serial = 0
        self._news = asyncio.Event()

    def exited(
        self, worker: str, *, abnormal: bool, stepping: Iterable[tuple[str, int]], reason: str
    ) -> None:
        message = Exited(worker, abnormal, list(stepping), reason)
        if self._wire is not None:
            self._wire.send(message)
        else:
            self._unsaid.append(message)

    def _hail(self) -> None:
        assert self._wire is not None
        while self._unsaid:
            self._wire.send(self._unsaid.popleft())

    def _message(self, message: FromBroker) -> None:
        if isinstance(message, Pools):
            self._views = message.pools
            self._serial += 1
            self._news.set()
            self._news = asyncio.Event()

    async def pools(self) -> AsyncIterator[list[PoolView]]:
        """Every pool, now and after each change; a slow taker gets the newest only.

        Ends when cancelled; nothing is lost by that."""
        seen = 0
        while True:
            news = self._news
            if self._serial != seen:
                seen = self._serial
                yield self._views
            else:
                await news.wait()

"""One client connection of the Unix-socket link, and what keeps it alive."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, cast

import structlog

from forebay.broker.link_wire import (
    FRAME_BYTES,
    GREETING,
    Failure,
    FrameReader,
    FromBroker,
    FromWorker,
    Hello,
    decode_from_broker,
    encode,
    frames,
)
from forebay.errors import ProtocolError, Superseded, by_code

__all__ = ["Keeper", "Wire"]

RETRY_FIRST_S = 0.05
RETRY_MOST_S = 0.5
SUPERSEDED_S = 30.0
"""Whose name another process has taken asks for it again so much later: two that took it from
each other in turn would end every job of both."""
TICK_S = 0.001
"""What is ready does not wait longer than this for what else a loop tick brings."""

log = structlog.get_logger(__name__)


class Wire(asyncio.Protocol):
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
        self._held: asyncio.TimerHandle | None = None
        self._since = 0.0  # the first of `_queue` has waited
        self._due = False
        self._reading = False
        self._read: list[tuple[Callable[..., None], tuple[Any, ...]]] = []  # for its end
        self.error: Exception | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transports have no asyncio base class.
        transport = self._transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=0)  # so that resume_writing means: all sent
        transport.write(GREETING + b"".join(frames(encode(self._hello), control=True)))

    def data_received(self, data: bytes) -> None:
        self._reading = self._due = True
        try:
            self._take(data)
            while self._read:
                self._next()
        finally:
            self._reading = False
            self._flush()

    def _next(self) -> None:
        """What was to be done when the read had been handed over."""
        todo, self._read = self._read, []
        for work, arguments in todo:
            work(*arguments)

    def soon(self, work: Callable[..., None], *arguments: Any) -> None:
        """Call ``work`` once all that was read together has been handed over; outside of a
        read in the loop's next turn. What it sends leaves with what they sent."""
        if self._reading:
            self._read.append((work, arguments))
        else:
            self._loop.call_soon(work, *arguments)

    def _take(self, data: bytes) -> None:
        greeted = self._reader.greeting is not None
        try:
            self._reader.feed(data)
            for body in self._reader:
                if not greeted:
                    greeted = True
                    self._on_ready()
                message = decode_from_broker(body)
                if isinstance(message, Failure):
                    self.fail(by_code(message.code, message.message))
                else:
                    self._on_message(message)
            if not greeted and self._reader.greeting is not None:
                self._on_ready()
        except ProtocolError as exc:
            self.fail(exc)

    def hold(self, limit_s: float) -> None:
        """Read nothing until `release`, or for ``limit_s`` at most."""
        if self._held is None and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._held = self._loop.call_later(limit_s, self.release)

    def release(self) -> None:
        """Read again. Harmless at any time."""
        if self._held is None:
            return
        self._held.cancel()
        self._held = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def send(self, message: FromWorker) -> None:
        """Queue for the end of this read or loop tick, or, in a long one, until the first that
        waits has waited for `TICK_S`. Raises `TooLarge` over one frame."""
        parts = frames(encode(message), control=False, limit_bytes=FRAME_BYTES)
        now = time.perf_counter()
        if not self._queue:
            self._since = now
            self._empty.clear()
            if not self._due:
                self._due = True
                self._loop.call_soon(self._flush)
        self._queue.extend(parts)
        if now - self._since > TICK_S:
            self._write()

    def _flush(self) -> None:
        self._due = False
        if self._queue:
            self._write()

    def _write(self) -> None:
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
        if self._held is not None:
            self._held.cancel()
        self.error = self.error or exc
        self._empty.set()
        if not self.lost.done():
            self.lost.set_result(None)


class Keeper:
    """Keeps one connection alive: connects, waits for its end, waits a little, again."""

    def __init__(self, path: str, hello: Hello) -> None:
        self._path = path
        self._hello = hello
        self._task: asyncio.Task[None] | None = None
        self._wire: Wire | None = None
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
            wire = Wire(self._hello, self._message, lambda: self._up())
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
            if isinstance(wire.error, Superseded):
                wait_s = SUPERSEDED_S
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

"""One accepted connection of the Unix-socket link, on the gateway's side."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol, cast

import structlog

from forebay.broker import Assign, InputPush, WorkerPush
from forebay.broker.host import WorkerHost
from forebay.broker.link_turn import Turn
from forebay.broker.link_wire import (
    FRAME_BYTES,
    GREETING,
    Beat,
    Commit,
    Exited,
    Failure,
    FrameReader,
    FromWorker,
    Hello,
    Keeps,
    Park,
    Pools,
    Register,
    Stage,
    decode_from_worker,
    encode,
    frames,
)
from forebay.core.events import InputItem, size_of
from forebay.errors import Fenced, ForebayError, OffsetGap, ProtocolError
from forebay.telemetry import debugging

__all__ = ["CLOSE_S", "Owner", "Peer"]

HELLO_S = 5.0
CLOSE_S = 1.0
HIGH_WATER_BYTES = 256 * 1024
JOINED_BYTES = 64 * 1024
"""Input of one job in one message, where it waited in several."""
BACKLOG_BYTES = 32 * 1024 * 1024
"""Unsent bytes to one worker at which it counts as lost."""

log = structlog.get_logger(__name__)


class Owner(Protocol):
    """What a connection needs of the server that accepted it."""

    turn: Turn
    peers: set[Peer]

    @property
    def host(self) -> WorkerHost: ...

    def greeted(self, peer: Peer) -> None: ...

    def left(self, peer: Peer) -> None: ...


class _Input:
    """Input of one job that waits for the worker. ``size``: bytes."""

    __slots__ = ("items", "key", "size")

    def __init__(self, key: tuple[str, int], items: list[InputItem], size: int) -> None:
        self.key = key
        self.items = items
        self.size = size


class Peer(asyncio.Protocol):
    """One accepted connection."""

    def __init__(self, server: Owner) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(FRAME_BYTES)
        self._transport: asyncio.Transport | None = None
        self._resting = False
        self._paused_writing = False
        self._paused_reading = False
        self._control: list[bytes] = []
        self._data: deque[_Input] = deque()
        self._newest: dict[tuple[str, int], _Input] = {}  # in `_data`, by job and attempt
        self._data_bytes = 0
        self._flush_due = False
        self._hello_timer: asyncio.TimerHandle | None = None
        self.hello: Hello | None = None
        self.superseded = False
        self.reason = ""
        self.ended: asyncio.Future[None] = self._loop.create_future()

    # ------------------------------------------------------------------ arriving

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transports have no asyncio base class.
        transport = self._transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        transport.write(GREETING)
        self._server.peers.add(self)
        self._hello_timer = self._loop.call_later(HELLO_S, self._silent)

    def _silent(self) -> None:
        self.fail(ProtocolError(f"no hello within {HELLO_S:.0f} s"))

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        if not self._resting:
            self._work()

    def _work(self) -> None:
        self._resting = False
        if self._transport is None or self._transport.is_closing():
            return
        try:
            for body in self._reader:
                self._take(decode_from_worker(body))
                if self._transport.is_closing():
                    return
                if self._reader.pending and self._server.turn.over():
                    self._rest(self._transport)
                    return
        except ForebayError as exc:
            self.fail(exc)
        except Exception as exc:  # noqa: BLE001 - the boundary of one worker's connection
            log.exception("link.failed", peer=self.name)
            self.fail(ProtocolError(f"gateway failed on a message: {type(exc).__name__}"))
        else:
            if self._paused_reading:
                self._paused_reading = False
                self._transport.resume_reading()

    def _rest(self, transport: asyncio.Transport) -> None:
        self._resting = True
        self._server.turn.rest(self._work)
        if not self._paused_reading:
            self._paused_reading = True
            transport.pause_reading()

    def _take(self, message: FromWorker) -> None:
        if self.hello is None:
            if not isinstance(message, Hello):
                raise ProtocolError(f"first message is {type(message).__name__}, expected Hello")
            self._greet(message)
        elif self.hello.role == "supervisor":
            self._from_supervisor(message)
        else:
            self._from_worker(message, self.hello.worker)

    def _greet(self, hello: Hello) -> None:
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        if hello.role != "supervisor" and not hello.worker:
            raise ProtocolError(f"hello of a {hello.role} without a worker id")
        self.hello = hello
        self._server.greeted(self)

    def _from_supervisor(self, message: FromWorker) -> None:
        if not isinstance(message, Exited):
            raise ProtocolError(f"supervisor said {type(message).__name__}, expected Exited")
        self._server.host.exited(
            message.worker,
            abnormal=message.abnormal,
            stepping=message.stepping,
            reason=message.reason,
        )

    def _from_worker(self, message: FromWorker, worker: str) -> None:
        host = self._server.host
        match message:
            case Commit():
                try:
                    host.worker_commit(
                        worker,
                        message.job,
                        message.attempt,
                        message.events,
                        message.consumed,
                        model_s=message.model_s,
                    )
                except OffsetGap:
                    raise
                except Fenced:
                    return  # the worker has been told; what it wrote meanwhile is dropped
            case Park():
                host.worker_park(worker, message.job, message.attempt)
            case Keeps():
                host.worker_keeps(worker, message.affinity, held=message.held)
            case Beat():
                host.worker_beat(worker, message.load)
            case Stage():
                host.worker_stage(worker, message.pools, message.stage)
            case Register():
                host.worker_register(message.info)
            case _:
                raise ProtocolError(f"worker said {type(message).__name__}")

    # ------------------------------------------------------------------- leaving

    def push(self, message: WorkerPush) -> None:
        """The worker's sink. Input goes behind everything else; the rest keeps its order."""
        if self._transport is None or self._transport.is_closing():
            return
        if isinstance(message, InputPush):
            self._put(message)
        else:
            try:
                self._control.extend(frames(encode(message), control=True))
            except ForebayError as exc:
                self.fail(exc)
                return
            if isinstance(message, Assign):
                if debugging():
                    log.debug("link.assigned", worker=self.name, job=message.lease.spec.id)
                if not self._flush_due:  # further ones of this turn go together
                    self._due()
                    self._say(self._transport)
                    return
        self._due()

    def _put(self, message: InputPush) -> None:
        """Behind what waits, or beside what waits of the same job: when many pieces of many
        jobs wait because the worker has much to do, it gets few and long ones to work on."""
        size = sum(map(size_of, message.items))
        self._data_bytes += size
        key = (message.job, message.attempt)
        newest = self._newest.get(key)
        if newest is not None and newest.size + size <= JOINED_BYTES:
            newest.items += message.items
            newest.size += size
            return
        self._newest[key] = fresh = _Input(key, list(message.items), size)
        self._data.append(fresh)

    def _get(self) -> InputPush:
        oldest = self._data.popleft()
        if self._newest[oldest.key] is oldest:
            del self._newest[oldest.key]
        self._data_bytes -= oldest.size
        job, attempt = oldest.key
        return InputPush(job=job, attempt=attempt, items=oldest.items)

    def say(self, message: Pools | Failure) -> None:
        self._control.extend(frames(encode(message), control=True))
        self._due()

    def _due(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _say(self, transport: asyncio.Transport) -> None:
        """A job that begins does not wait for what else its request has to do."""
        out, self._control = self._control, []
        transport.write(b"".join(out))

    def _flush(self) -> None:
        self._flush_due = False
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        out, self._control = self._control, []
        room = HIGH_WATER_BYTES - transport.get_write_buffer_size() - sum(map(len, out))
        while self._data and room > 0 and not self._paused_writing:
            parts = frames(encode(self._get()), control=False)
            room -= sum(map(len, parts))
            out.extend(parts)
        if out:
            transport.write(b"".join(out))
        if self._data and not self._paused_writing:
            self._due()
        backlog = transport.get_write_buffer_size() + self._data_bytes
        if backlog > BACKLOG_BYTES:
            self.fail(
                ProtocolError(f"{backlog} bytes unread, expected no more than {BACKLOG_BYTES}")
            )

    def pause_writing(self) -> None:
        self._paused_writing = True

    def resume_writing(self) -> None:
        self._paused_writing = False
        if self._data:
            self._due()

    # -------------------------------------------------------------------- ending

    @property
    def name(self) -> str:
        return "" if self.hello is None else self.hello.worker or self.hello.role

    def fail(self, error: ForebayError) -> None:
        """End this connection and say why, to the peer and in the log."""
        log.error("link.ended", peer=self.name, code=error.code, reason=error.message)
        self.reason = error.message
        if self._transport is None or self._transport.is_closing():
            return
        parts = frames(encode(Failure(error.code, error.message)), control=True)
        self._transport.write(b"".join(parts))
        if self._transport.get_write_buffer_size() > HIGH_WATER_BYTES:
            self._transport.abort()  # it does not read: a polite end would wait for it
        else:
            self._transport.close()
            self._loop.call_later(CLOSE_S, self._transport.abort)
        self._server.left(self)

    def close(self, *, abort: bool = False) -> None:
        if self._transport is None:
            return
        self._flush()
        if abort:
            self._transport.abort()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        self.reason = self.reason or (str(exc) if exc else "connection closed")
        self._server.left(self)
        self._data.clear()
        self._newest.clear()
        if not self.ended.done():
            self.ended.set_result(None)

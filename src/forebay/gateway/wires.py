"""Three implementations of `gateway.wire.Wire`: WebSocket, chunked HTTP, plain ASGI.

The first two write straight to the transport: no task, no event object, no copy beyond the
frame header. They live in ``scope["forebay.wire"]``. The third stands in where a server
other than ours runs the application (stock uvicorn, a test client).
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from forebay.gateway.responses import Send
from forebay.gateway.wire import LOW_WATER_BYTES

if TYPE_CHECKING:
    from forebay.gateway.http_protocol import HttpProtocol
    from forebay.gateway.packing import Packer
    from forebay.gateway.ws_protocol import WebSocketProtocol

__all__ = [
    "AsgiWire",
    "HttpWire",
    "TakeNow",
    "WebSocketWire",
    "asgi_wire",
    "frame_header",
    "short_reason",
]

TEXT, BINARY = 0x81, 0x82  # final frame, opcode
JOIN_BYTES = 16 * 1024  # above it header and payload are handed over as two buffers
_MEDIUM = struct.Struct("!BBH").pack
_LONG = struct.Struct("!BBQ").pack

Drained = Callable[[], None]
TakeNow = Callable[[Sequence[str | bytes]], int]


def frame_header(first: int, size: int) -> bytes:
    """The header of one unmasked, unfragmented frame of ``size`` payload bytes."""
    if size < 126:
        return bytes((first, size))
    if size < 65536:
        return _MEDIUM(first, 126, size)
    return _LONG(first, 127, size)


def short_reason(reason: str) -> str:
    """``reason`` cut to the 123 bytes a close frame can carry, at a whole character."""
    return reason.encode("utf-8", "replace")[:123].decode("utf-8", "ignore")


class WebSocketWire:
    """One accepted WebSocket. Sending before the accept is a mistake and raises."""

    __slots__ = ("_corked", "_drained", "_late", "_p")

    def __init__(self, protocol: WebSocketProtocol) -> None:
        self._p = protocol
        self._drained: Drained | None = None
        self._corked: bytearray | None = None
        self._late = False  # what is corked waits for what is sent next

    @property
    def closed(self) -> bool:
        return self._p.gone

    def take_messages_of(self, limit_bytes: int) -> None:
        """This path's own bound for one message; before the accept, while none can come."""
        self._p.limit_messages(limit_bytes)

    def offer_messages(self, take: TakeNow | None) -> None:
        """Offer the messages of one read to ``take`` in the call that brings them, while whoever
        receives them waits for one: it says how many of them, from the first on, it has dealt
        with, which are then not received. It must not raise. Not all are offered: order comes
        first."""
        self._p.take_now = take

    def rest(self, sound_s: float) -> None:
        """What this client says next may wait for what it says then (`gather`), now that it has
        said ``sound_s`` seconds of live sound."""
        self._p.rest(sound_s)

    def send(self, data: str | bytes) -> None:
        protocol = self._p
        if protocol.gone:
            return
        if not protocol.handshake_complete:
            raise RuntimeError("sent to a websocket that was not accepted yet")
        protocol.moved = protocol.loop.time()
        if isinstance(data, str):
            payload = data.encode("utf-8", "replace")
            header = frame_header(TEXT, len(payload))
        else:
            payload = data
            header = frame_header(BINARY, len(payload))
        if self._corked is not None:
            self._corked += header
            self._corked += payload
            if self._late:
                self.uncork()
        elif len(payload) < JOIN_BYTES:
            protocol.transport.write(header + payload)
        else:
            protocol.transport.writelines((header, payload))

    def send_late(self, data: str | bytes) -> None:
        """As `send`, for an answer that says nothing new: where this process is busy it leaves
        with what is sent next, or `late.LATE_S` later."""
        late = self._p.listener.late
        if self._corked is not None or not late.busy(self._p.loop.time()):
            self.send(data)
            return
        self.cork()
        self.send(data)
        self._late = True
        late.add(self)

    def on_time(self) -> None:
        """What waited for company has waited long enough."""
        if self._late:
            self.uncork()

    def cork(self) -> None:
        """As `HttpWire.cork`; `close` ends it too."""
        self._late = False
        if self._corked is None:
            self._corked = bytearray()

    def uncork(self) -> None:
        held, self._corked = self._corked, None
        self._late = False
        if held and not self._p.gone:
            self._p.transport.write(held)

    @staticmethod
    def framed(data: str) -> bytes:
        """The bytes that `send` would write: made once where many are told the same."""
        payload = data.encode("utf-8", "replace")
        return frame_header(TEXT, len(payload)) + payload

    def offer(self, frame: bytes, limit_bytes: int, now: float) -> bool:
        """`send` of what `framed` has made, unless more than ``limit_bytes`` are unsent: then
        False. ``now``: the loop's time, read once for all. One who has gone takes anything."""
        protocol = self._p
        if protocol.gone:
            return True
        if self._corked is not None:
            self.uncork()
        transport = protocol.transport
        if transport.get_write_buffer_size() > limit_bytes:
            return False
        protocol.moved = now
        transport.write(frame)
        return True

    def backlog(self) -> int:
        if self._p.disconnected:
            return 0
        unsent: int = self._p.transport.get_write_buffer_size()
        return unsent if self._corked is None else unsent + len(self._corked)

    def on_drain(self, callback: Drained) -> None:
        if self._p.writable.is_set():
            self._p.loop.call_soon(callback)
        else:
            self._drained = callback

    def drained(self) -> None:
        """The transport's buffer is at the low-water mark again. Called by the protocol."""
        callback, self._drained = self._drained, None
        if callback is not None:
            callback()

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.uncork()
        self._p.begin_close(code, short_reason(reason))


class HttpWire:
    """One response body. Sending before its headers is a mistake and raises.

    Meant for chunked bodies; on a body with a fixed length the bytes go out as they are.
    """

    __slots__ = ("_corked", "_drained", "_gone", "_p", "_packer", "cycle")

    def __init__(self, protocol: HttpProtocol) -> None:
        self._p = protocol
        self._drained: Drained | None = None
        self._gone: Callable[[], None] | None = None
        self._corked: bytearray | None = None
        self._packer: Packer | None = None
        self.cycle: Any = None  # uvicorn's RequestResponseCycle

    def carry(self, cycle: Any) -> None:
        """This is ``cycle``'s wire: its head leaves through it too, so that a cork holds it."""
        self.cycle = cycle
        cycle.transport = _Outlet(self._put, self._p.transport)

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once when the client goes before the end of the body; at once
        where it has. Its request must have been read: what comes now is not its."""
        self._gone = callback
        self._p.flow.resume_reading()  # a connection that nobody reads does not tell its end
        if self.cycle.disconnected:
            self.gone()

    def gone(self) -> None:
        """The client has gone. Called by the protocol."""
        callback, self._gone = self._gone, None
        if callback is not None and not self.cycle.response_complete:
            callback()

    @property
    def closed(self) -> bool:
        cycle = self.cycle
        return cycle.disconnected or cycle.response_complete or self._p.transport.is_closing()

    def pack(self, packer: Packer) -> None:
        """Everything that is sent from now on leaves as ``packer`` makes it."""
        self._packer = packer

    def send(self, data: str | bytes) -> None:
        if self.closed or not data:
            return
        cycle = self.cycle
        if not cycle.response_started:
            raise RuntimeError("sent a body before the response was started")
        body = data.encode("utf-8", "replace") if isinstance(data, str) else data
        if cycle.scope["method"] == "HEAD":
            return
        if self._packer is not None:
            body = self._packer.pack(body)
        if cycle.chunked_encoding:
            self._put(b"%x\r\n%b\r\n" % (len(body), body))
        elif len(body) > cycle.expected_content_length:
            raise RuntimeError("sent a longer body than content-length says")
        else:
            cycle.expected_content_length -= len(body)
            self._put(body)

    def _put(self, data: bytes) -> None:
        if self._corked is None:
            self._p.transport.write(data)
        else:
            self._corked += data

    def cork(self) -> None:
        """Keep what is sent until `uncork` or the end of the body: it leaves as one write.
        Never longer than one call of the loop."""
        if self._corked is None:
            self._corked = bytearray()

    def uncork(self) -> None:
        held, self._corked = self._corked, None
        if held and not self._p.transport.is_closing():
            self._p.transport.write(held)

    def backlog(self) -> int:
        if self.cycle.disconnected:
            return 0
        unsent: int = self._p.transport.get_write_buffer_size()
        return unsent if self._corked is None else unsent + len(self._corked)

    def on_drain(self, callback: Drained) -> None:
        if self._p.flow.write_paused:
            self._drained = callback
        else:
            self._p.loop.call_soon(callback)

    def drained(self) -> None:
        """As `WebSocketWire.drained`."""
        callback, self._drained = self._drained, None
        if callback is not None:
            callback()

    def close(self, code: int = 1000, reason: str = "") -> None:
        cycle = self.cycle
        if self.closed:
            return
        if not cycle.response_started:
            raise RuntimeError("ended a response before it was started")
        if cycle.chunked_encoding and cycle.scope["method"] != "HEAD":
            if self._packer is not None:
                end = self._packer.end()
                self._put(b"%x\r\n%b\r\n" % (len(end), end))
            self._put(b"0\r\n\r\n")
        elif cycle.expected_content_length:
            self._p.transport.abort()  # a body that was cut must not look whole
            return
        self.uncork()
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._p.transport.close()
        cycle.on_response()

    def cut(self) -> None:
        """End without the last chunk, so that the client sees a broken body."""
        if not self.closed:
            self.uncork()
            self._p.transport.abort()


class _Outlet:
    """The transport as uvicorn's cycle sees it."""

    __slots__ = ("_transport", "write")

    def __init__(self, write: Callable[[bytes], None], transport: asyncio.Transport) -> None:
        self.write = write
        self._transport = transport

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()


class AsgiWire:
    """A bounded queue in front of a plain ASGI ``send``. Open it with `asgi_wire`.

    What stands in the queue is its backlog; a writer that ignores `backlog` past
    ``bound_bytes`` finds the wire closed (1013) and the rest dropped.
    """

    def __init__(self, send: Send, *, websocket: bool, bound_bytes: int) -> None:
        self._send = send
        self._websocket = websocket
        self._bound_bytes = bound_bytes
        self._queue: deque[tuple[MutableMapping[str, Any] | None, int]] = deque()
        self._bytes = 0
        self._ready = asyncio.Event()
        self._drained: Drained | None = None
        self._ended = False

    @property
    def closed(self) -> bool:
        return self._ended

    def send(self, data: str | bytes) -> None:
        if self._ended:
            return
        if self._bytes + len(data) > self._bound_bytes and self._queue:
            self.close(1013, f"{self._bytes} bytes unsent")
            return
        message: dict[str, Any]
        if not self._websocket:
            body = data.encode("utf-8", "replace") if isinstance(data, str) else data
            message = {"type": "http.response.body", "body": body, "more_body": True}
        else:
            field = "text" if isinstance(data, str) else "bytes"
            message = {"type": "websocket.send", field: data}
        self._put(message, len(data))

    def backlog(self) -> int:
        return self._bytes

    def on_drain(self, callback: Drained) -> None:
        self._drained = callback
        if self._bytes <= LOW_WATER_BYTES:
            asyncio.get_running_loop().call_soon(self._tell)

    def close(self, code: int = 1000, reason: str = "") -> None:
        if self._ended:
            return
        self._ended = True
        close: dict[str, Any]
        if self._websocket:
            close = {"type": "websocket.close", "code": code, "reason": short_reason(reason)}
        else:
            close = {"type": "http.response.body", "body": b"", "more_body": False}
        self._put(close, 0)

    def _put(self, message: MutableMapping[str, Any] | None, size: int) -> None:
        self._queue.append((message, size))
        self._bytes += size
        self._ready.set()

    def _tell(self) -> None:
        callback, self._drained = self._drained, None
        if callback is not None:
            callback()

    async def run(self) -> None:
        """Send what is queued, in order, until `finish` is reached. OSError of the server's
        ``send`` (the client has gone) ends it sooner and closes the wire."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            while self._queue:
                message, size = self._queue.popleft()
                if message is None:
                    return
                try:
                    await self._send(message)
                except OSError:
                    self._ended = True
                    self._queue.clear()
                    self._bytes = 0
                    return
                self._bytes -= size
                if self._drained is not None and self._bytes <= LOW_WATER_BYTES:
                    self._tell()

    def finish(self) -> None:
        """`run` returns after everything queued so far."""
        self._put(None, 0)


@asynccontextmanager
async def asgi_wire(send: Send, *, websocket: bool, bound_bytes: int) -> AsyncIterator[AsgiWire]:
    """An `AsgiWire` and the task that empties it. Leaving waits until what is queued has
    been sent; leaving by an exception drops it."""
    wire = AsgiWire(send, websocket=websocket, bound_bytes=bound_bytes)
    pump = asyncio.create_task(wire.run())
    try:
        yield wire
        wire.finish()
        await pump
    finally:
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)

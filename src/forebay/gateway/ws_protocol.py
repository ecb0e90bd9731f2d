"""WebSocket on one connection: uvicorn's sans-I/O protocol, made bounded and quiet.

The codec is the websockets library's. Added: the wire in the ASGI scope, which writes
frames straight to the transport; at most a few messages decoded ahead of the application;
frames before an error still delivered; pongs that cannot pile up; one shared sweep instead
of two timers per connection; a close that ends even when the peer never answers.

Leans on internals of uvicorn 0.50-0.59: `conn`, `queue`, `writable`, `handle_*` callbacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import structlog
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN

from forebay.errors import ForebayError
from forebay.gateway.gather import Patience
from forebay.gateway.inbox import Inbox
from forebay.gateway.responses import where
from forebay.gateway.sweep import WriteStall
from forebay.gateway.wire import LOW_WATER_BYTES
from forebay.gateway.wires import TakeNow, WebSocketWire
from forebay.gateway.ws_plain import FrameEdge, plain_frame

if TYPE_CHECKING:
    from forebay.gateway.server import Listener

__all__ = ["WebSocketProtocol"]

log = structlog.get_logger(__name__)

MESSAGES_AHEAD = 16
"""Decoded messages waiting for the application; beyond it bytes stay undecoded."""
FEW_AHEAD, AHEAD_BYTES = 2, 32 * 1024
"""Up to so many, and so much, the socket is read on while they wait."""
AT_ONCE = 64
"""So many messages of one read may be dealt with in the call that brings them: a read full of
them must not keep the loop from all others."""
SLICE_BYTES = 4096
"""Bytes decoded at a time, so that a read full of tiny frames cannot become 30,000 objects."""
PING = b"forebay"


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket of one `Listener`, from its handshake on."""

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop, address: str) -> None:
        super().__init__(
            config=listener.config,
            server_state=listener.state,
            app_state=listener.app_state,
            _loop=loop,
        )
        self.logger = listener.quiet
        self.conn.logger = listener.quiet
        self.conn.debug = False
        self.listener = listener
        self.options = listener.options
        self.address = address
        self.slot: int | None = None
        self.wire = WebSocketWire(self)
        self.inbox: Inbox[Any] = Inbox(loop, MESSAGES_AHEAD)
        self.queue = cast("Any", self.inbox)  # what the base class puts goes there too
        self.take_now: TakeNow | None = None  # who may deal with a message at once
        self._edge = FrameEdge()
        self._plain_bytes: int = self.conn.max_message_size or SLICE_BYTES
        self._ahead_bytes = 0  # in the queue, since it was last empty
        self._undecoded = bytearray()
        self._fragments = bytearray()
        self._made = 0.0
        self._heard = 0.0
        self.moved = 0.0  # when a message last went either way; set by the wire too
        self._pinged: float | None = None  # when, since the peer was last heard
        self._closing_since: float | None = None
        self._close_code = 1006  # what the application is told if nobody says more
        self._told = False
        self._resting = False  # not read for a moment, although there is room
        self._gathers = Patience()
        self._pong: bytes | None = None
        self._stall = WriteStall(self.options.write_stall_s, listener.metrics)

    @property
    def gone(self) -> bool:
        """True once nothing more can be sent."""
        # After the handshake whatever closes the codec's state has set one of the two.
        if self.disconnected or self.close_sent:
            return True
        return not self.handshake_complete and self.conn.state is not OPEN

    def quiet_s(self, now: float) -> float:
        """For how long no message has gone either way."""
        return now - self.moved

    # ---------------------------------------------------------------- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=LOW_WATER_BYTES, low=LOW_WATER_BYTES)
        self._made = self._heard = self.moved = self.loop.time()
        self.listener.gate.websockets += 1
        self.listener.sweep.at(self, self._made + self.options.handshake_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self.listener.gate.websockets -= 1
        self.listener.gate.leave(self.address)
        self.listener.sweep.forget(self)
        self.connections.discard(self)
        if exc is None:
            self._decode(limit=None)  # what was read is delivered before the end is
        self._tell_end()
        self._undecoded.clear()
        self.handshake_complete = True
        self.disconnected = True
        self.writable.set()
        self.wire.drained()
        self.transport.close()

    def _tell_end(self, reason: str = "") -> None:
        """The application hears of the end once, after every message."""
        if not self._told:
            self._told = True
            self.inbox.put_nowait(
                {"type": "websocket.disconnect", "code": self._close_code, "reason": reason}
            )

    # --------------------------------------------------------------------- deadlines

    def check(self, now: float) -> float | None:
        """Ping, give up a silent peer, end a close that takes too long. By the sweep."""
        if self.transport.is_closing() or self._closing_since is not None:
            return self._check_closing(now)
        if not self.handshake_complete:
            if now < self._made + self.options.handshake_s:
                return self._made + self.options.handshake_s
            self.listener.metrics.deadline("handshake")
            self.transport.abort()
            return None
        if not self.writable.is_set():
            return self._stall.check(self.transport, now)
        if self.read_paused:
            self._heard, self._pinged = now, None  # we are not listening: silence says nothing
        if now < self._heard + self.listener.ping_s:
            return self._heard + self.listener.ping_s
        if self._pinged is None:
            self._pinged = now  # not when it was due: the peer has its whole time to answer
            self.conn.send_ping(PING)
            self._flush()
        if now < self._pinged + self.listener.pong_s:
            return self._pinged + self.listener.pong_s
        self.listener.metrics.deadline("pong")
        self._fail(1011, "no answer to a ping")
        return now + self.options.close_s

    def _check_closing(self, now: float) -> float | None:
        if self._closing_since is None:
            self._closing_since = now
        waited = now - self._closing_since
        if waited >= 2 * self.options.close_s:
            self.transport.abort()
            return None
        if waited >= self.options.close_s:
            self.transport.close()
            return self._closing_since + 2 * self.options.close_s
        return self._closing_since + self.options.close_s

    # ----------------------------------------------------------------------- reading

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        self._pinged = None
        if self.handshake_complete:
            rest = data if self._undecoded else self._plain(data)
            if not rest:
                if self.inbox:
                    self._pause_if_full()
                return
            self._undecoded += rest
        elif self.handshake_initiated:
            self.listener.metrics.refuse("early_frames")
            self.transport.abort()
            return
        else:
            self._edge.lost = not data.endswith(b"\r\n\r\n")
            self.conn.receive_data(data)
            self.handle_events()
        self._decode(limit=MESSAGES_AHEAD)

    def _plain(self, data: bytes) -> bytes:
        """Take the plain frames that ``data`` begins with; the rest is for the codec."""
        if not self._edge.between or self._fragments or self.gone or self.inbox.full:
            return data
        frames, at = self._frames(data, 0, MESSAGES_AHEAD - len(self.inbox))
        if len(frames) == 1 and at == len(data):  # as nearly always
            payload, text = frames[0]
            self._message(payload, text=text, now=True)
        elif frames:
            self.wire.cork()  # several answers, one write
            try:
                return self._more(data, frames, at)
            finally:
                self.wire.uncork()
        return data[at:]

    def _more(self, data: bytes, frames: list[tuple[bytes, bool]], at: int) -> bytes:
        """`_plain` for a read of several ``frames``, the first of which ends at ``at``."""
        done = 0
        while frames:
            done += len(frames)
            while frames:
                taken = self._offer(frames)
                if not taken:
                    payload, text = frames[0]
                    self._message(payload, text=text)
                frames = frames[max(1, taken) :]
            most = 0 if self.gone or done >= AT_ONCE else MESSAGES_AHEAD - len(self.inbox)
            frames, at = self._frames(data, at, most)
        return data[at:]

    def _frames(self, data: bytes, at: int, most: int) -> tuple[list[tuple[bytes, bool]], int]:
        """``most`` plain frames from ``at`` on, each with whether it is text; where they end."""
        frames: list[tuple[bytes, bool]] = []
        while at < len(data) and len(frames) < most:
            frame = plain_frame(data, at, self._plain_bytes)
            if frame is None:
                break
            text, payload, at = frame
            frames.append((payload, text))
        return frames, at

    def _offer(self, frames: Sequence[tuple[bytes, bool]]) -> int:
        """How many of ``frames`` were dealt with in this call."""
        if self.take_now is None or not self.inbox.waited_for:
            return 0
        said: list[str | bytes] = []
        for payload, text in frames:
            try:
                said.append(payload.decode() if text else payload)
            except UnicodeDecodeError:  # met again, and answered, after what came before it
                break
        self.moved = self._heard
        return self.take_now(said) if said else 0

    def _decode(self, limit: int | None) -> None:
        """Decode until ``limit`` messages wait; then stop reading from the socket."""
        while self._undecoded and self.conn.parser_exc is None:
            if limit is not None and len(self.inbox) >= limit:
                break
            part = bytes(self._undecoded[:SLICE_BYTES])
            del self._undecoded[:SLICE_BYTES]
            self._edge.fed(part)
            self.conn.receive_data(part)
            self.handle_events()
        if self.conn.parser_exc is not None:
            self._undecoded.clear()
            self.handle_parser_exception()
        else:
            self._pause_if_full()

    def _pause_if_full(self) -> None:
        if len(self.inbox) and self._full and self.handshake_complete and not self.close_sent:
            self._pause_reading()

    @property
    def _full(self) -> bool:
        """Enough waits for the application: the socket can wait too. A message or two more
        are let in, for a pause costs more than a small message does."""
        waiting = len(self.inbox)
        return waiting > FEW_AHEAD or (waiting > 0 and self._ahead_bytes > AHEAD_BYTES)

    def _pause_reading(self) -> None:
        if not self.read_paused and not self.transport.is_closing():
            self.read_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self.read_paused and not self._resting and not self.transport.is_closing():
            self.read_paused = False
            self._heard = self.loop.time()
            self.transport.resume_reading()

    def rest(self, sound_s: float) -> None:
        """Read nothing for a moment, where this process has too much to do. ``sound_s``: seconds
        of live sound that the client has just said."""
        if self.read_paused or self.gone:
            return
        if self._gathers.after(sound_s, self._heard) and self.listener.gather.rest(self):
            self._resting = True
            self._pause_reading()

    def rested(self) -> None:
        self._resting = False
        self._gathers.rested()
        if not self._full:
            self._resume_reading()

    async def receive(self) -> Any:
        """The next event. Cancelling loses nothing."""
        inbox = self.inbox
        message = await inbox.get()
        if not inbox:
            self._ahead_bytes = 0
            if not self.disconnected:
                self._decode(limit=MESSAGES_AHEAD)
                if not inbox:
                    self._resume_reading()
        return message

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.handshake_complete:
            return  # refused by the codec: no key, wrong version
        scope: Any = self.scope
        scope["forebay.wire"] = self.wire

    def limit_messages(self, limit_bytes: int) -> None:
        """The largest message taken from now on; a larger one ends the connection (1009)."""
        self.conn.max_message_size = limit_bytes
        self.conn.max_fragment_size = None
        self._plain_bytes = limit_bytes

    def handle_cont(self, event: Frame) -> None:
        self._part(event)

    def handle_text(self, event: Frame) -> None:
        self.curr_msg_data_type = "text"
        self._part(event)

    def handle_bytes(self, event: Frame) -> None:
        self.curr_msg_data_type = "bytes"
        self._part(event)

    def _part(self, event: Frame) -> None:
        """Collect fragments in one buffer: an empty one then costs nothing."""
        if not event.fin or self._fragments:
            self._fragments += event.data
        if not event.fin:
            return
        data = bytes(self._fragments) if self._fragments else bytes(event.data)
        self._fragments.clear()
        self._message(data, text=self.curr_msg_data_type == "text")

    def _message(self, data: bytes, *, text: bool, now: bool = False) -> None:
        """A whole message has come. ``now``: it may be dealt with in this call, if whoever
        reads has nothing else to do."""
        self.moved = self._heard
        if self.close_sent:
            return
        try:
            said = data.decode() if text else data
        except UnicodeDecodeError as error:
            self._undecoded.clear()
            self._fail(1007, f"{error.reason} at position {error.start}")
            return
        take_now = self.take_now
        if now and take_now is not None and self.inbox.waited_for and take_now((said,)):
            return
        self._ahead_bytes += len(data)
        self.inbox.put_nowait({"type": "websocket.receive", "text" if text else "bytes": said})

    def handle_ping(self) -> None:
        """Pong now, or only to the newest ping once a peer that does not read has read."""
        pongs = self.conn.data_to_send()
        if not pongs:
            return
        if self.writable.is_set():
            self.transport.write(b"".join(pongs))
        else:
            self._pong = pongs[-1]

    def handle_pong(self, event: Frame) -> None:
        """Nothing to do: whatever arrives proves the peer alive."""

    def handle_close(self, event: Frame) -> None:
        received = self.conn.close_rcvd
        if not self.close_sent:
            self.close_sent = True
            self._flush()
            if received is not None:
                self._close_code = received.code
            self._tell_end(received.reason if received is not None else "")
        self._end_transport()

    def handle_parser_exception(self) -> None:
        """The codec has already framed what to say (1002, 1007, 1009, or an HTTP error)."""
        sent = self.conn.close_sent
        self.listener.metrics.refuse("malformed_websocket")
        self._close_code = sent.code if sent is not None else 1006
        self.close_sent = True
        self._flush()
        self._tell_end(sent.reason if sent is not None else "")
        self._end_transport()

    def handle_events(self) -> None:
        for event in self.conn.events_received():
            if isinstance(event, Request):
                self.handle_connect(event)
            elif not isinstance(event, Frame):
                continue
            elif event.opcode is Opcode.CLOSE:
                self.handle_close(event)
            else:
                self._HANDLERS[event.opcode](self, event)

    _HANDLERS = {
        Opcode.CONT: handle_cont,
        Opcode.TEXT: handle_text,
        Opcode.BINARY: handle_bytes,
        Opcode.PING: lambda self, _event: self.handle_ping(),
        Opcode.PONG: handle_pong,
    }

    # ----------------------------------------------------------------------- writing

    def begin_close(self, code: int, reason: str) -> None:
        """Say goodbye after everything sent; the peer has `close_s` to answer."""
        if self.gone or not self.handshake_complete:
            return
        self.wire.uncork()
        self.conn.send_close(code, reason)
        self.close_sent = True
        self._close_code = code
        self._undecoded.clear()
        self._flush()
        self._tell_end(reason)
        self._resting = False  # to hear the peer's answer
        self._resume_reading()
        self._closing_since = self.loop.time()
        self.listener.sweep.at(self, self._closing_since + self.options.close_s)

    def _fail(self, code: int, reason: str) -> None:
        """End without waiting for the peer: it is dead, or broke the protocol."""
        self.wire.uncork()  # what it said before was answered
        if not self.gone:
            self.conn.fail(code, reason)
        self.close_sent = True
        self._close_code = code
        self._flush()
        self._tell_end(reason)
        self._end_transport()

    def _end_transport(self) -> None:
        if self._closing_since is None:
            self._closing_since = self.loop.time()
            self.listener.sweep.at(self, self._closing_since + self.options.close_s)
        self.transport.close()

    def _flush(self) -> None:
        output = b"".join(self.conn.data_to_send())
        if output and not self.transport.is_closing():
            self.transport.write(output)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.listener.sweep.at(self, self.loop.time() + self._stall.begin())

    def resume_writing(self) -> None:
        super().resume_writing()
        pong, self._pong = self._pong, None
        if pong is not None and not self.gone:
            self.transport.write(pong)
        self.wire.drained()

    def start_keepalive(self) -> None:
        """Called by the base class at the accept: from here on the sweep pings."""
        self._heard = self.loop.time()
        self.listener.sweep.at(self, self._heard + self.listener.ping_s)
        del self.request, self.response  # kilobytes that nobody asks for again

    def stop_keepalive(self) -> None:
        """The base class's timers are not used."""

    def shutdown(self) -> None:
        """End now with 1012, as a server that restarts does."""
        if not self.handshake_complete:
            self.send_500_response()
            self.transport.close()
        else:
            self.begin_close(1012, "server is shutting down")

    async def send(self, message: Any) -> None:
        """ASGI send: the slow road to the wire, which waits while the peer does not read."""
        kind = message["type"]
        if self.handshake_complete and kind == "websocket.send":
            await self.writable.wait()
            if self.gone:
                raise ClientDisconnected
            text = message.get("text")
            self.wire.send(message["bytes"] if text is None else text)
        elif self.handshake_complete and kind == "websocket.close":
            self.begin_close(message.get("code", 1000), message.get("reason") or "")
        else:
            await super().send(message)

    async def run_asgi(self) -> None:
        """Run the application; whatever it does, the connection ends after it."""
        code, reason = 1000, ""
        try:
            await self.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            log.debug("websocket.left_by_peer")
        except ForebayError as error:
            code, reason = error.close_code, error.code
        except Exception as error:  # noqa: BLE001 - the supervised boundary of one connection
            code = 1011
            log.error("websocket.crashed", error=type(error).__name__, where=where(error))
        if not self.handshake_complete and not self.disconnected:
            self.send_500_response()
            self.transport.close()
        elif not self.close_sent:
            self.begin_close(code, reason)

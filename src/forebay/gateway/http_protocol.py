"""HTTP/1.1 on one connection: uvicorn's httptools protocol with deadlines and limits.

What the stock class lacks and a server in the open needs: a deadline for the request head
and for the body, bounds on lines, headers and pipelining, refusal of what a smuggler would
send (two Hosts, a body on an upgrade, bytes before our 101), and the connection's wire in
the ASGI scope. The parser is httptools'; nothing here parses.

Leans on internals of uvicorn 0.50-0.59: `cycle`, `flow`, `pipeline`, `on_*` callbacks.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from forebay.errors import BadRequest, ForebayError, Refused
from forebay.gateway.head_rules import Broken, Head, check_head, over
from forebay.gateway.responses import new_request_id, raw_error
from forebay.gateway.sweep import WriteStall
from forebay.gateway.wire import LOW_WATER_BYTES
from forebay.gateway.wires import HttpWire
from forebay.gateway.ws_protocol import WebSocketProtocol

if TYPE_CHECKING:
    from forebay.gateway.server import Listener

__all__ = ["HttpProtocol"]

log = structlog.get_logger(__name__)

LINGER_S = 1.0
"""After a refusal the input is read and dropped this long, so that the answer arrives: a
close with unread input would reset the connection under it."""
HEAD, BODY, IDLE, DONE = "head", "body", "idle", "done"
"""Reading a request's head; its body; between requests (or answering); reading no more."""


class HttpProtocol(HttpToolsProtocol):
    """One HTTP connection of one `Listener`."""

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            config=listener.config,
            server_state=listener.state,
            app_state=listener.app_state,
            _loop=loop,
        )
        self.logger = listener.quiet
        self.access_log = False
        self.listener = listener
        self.options = listener.options
        self.slot: int | None = None
        self.address = ""
        self.refusal: Refused | None = None
        self._phase = HEAD
        self._fault: ForebayError | None = None
        self._fault_status = 400
        self._head_bytes = 0
        self._body_bytes = 0
        self._since = 0.0  # when this phase began
        self._stall = WriteStall(self.options.write_stall_s, listener.metrics)
        self._linger_until: float | None = None
        self._wire: HttpWire | None = None  # of the request that is being answered

    # ---------------------------------------------------------------- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.transport.set_write_buffer_limits(high=LOW_WATER_BYTES, low=LOW_WATER_BYTES)
        self.address = self.client[0] if self.client else ""
        self._since = self.loop.time()
        gate = self.listener.gate
        self.refusal = gate.enter(self.address, self._since, loopback=self.listener.loopback)
        if self.refusal is not None and gate.crowded:
            self.transport.abort()
            return
        self.listener.sweep.at(self, self._since + self._head_limit_s())

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = DONE
        self.listener.gate.leave(self.address)
        self.listener.sweep.forget(self)
        self.pipeline.clear()
        super().connection_lost(exc)
        if self._wire is not None:
            self._wire.drained()
            self._wire.gone()

    def _head_limit_s(self) -> float:
        return self.options.head_s if self.refusal is None else min(2.0, self.options.head_s)

    # --------------------------------------------------------------------- deadlines

    def check(self, now: float) -> float | None:
        """Act on deadlines that have passed. Called by the sweep."""
        if self.flow.write_paused or self.transport.is_closing():
            return self._stall.check(self.transport, now)
        if self._phase is DONE:
            if self._linger_until is None:
                return now + self.options.keep_alive_s  # the last answer is still going out
            if now >= self._linger_until:
                self.transport.close()
            return self._linger_until + LINGER_S
        due = self._due(now)
        if due > now:
            return due
        self._too_late()
        return now + LINGER_S

    def _due(self, now: float) -> float:
        """When the present phase must be over."""
        if self.flow.read_paused:  # we hold the client up, not the other way round
            self._since, self._body_bytes = now, 0
        if self._phase is HEAD:
            return self._since + self._head_limit_s()
        if self._phase is BODY:
            earned = self._body_bytes / self.options.body_min_bytes_s
            return self._since + self.options.body_s + earned
        if self._running() is not None:
            return now + self.options.keep_alive_s
        return self._since + self.options.keep_alive_s

    def _too_late(self) -> None:
        which = self._phase if self._phase is not IDLE else "keep_alive"
        self.listener.metrics.deadline(which)
        log.debug("timeout.deadline", which=which)
        if self._phase is IDLE or self._head_bytes == 0:
            self._phase = DONE
            self.transport.close()
            return
        limit = self.options.head_s if self._phase is HEAD else self.options.body_s
        self._refuse(408, BadRequest(f"request {which} not complete within {limit:g} s"))

    # ----------------------------------------------------------------------- reading

    def data_received(self, data: bytes) -> None:
        if self._phase is DONE:
            return  # refused: read and dropped until the linger ends
        if self._phase is HEAD:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data, upgrade)
        except httptools.HttpParserError:
            self._refuse(self._fault_status, self._fault or BadRequest("malformed http request"))
        else:
            if self._phase is HEAD and self._head_bytes > self.options.head_bytes:
                self._refuse(431, over("request head", self._head_bytes, self.options.head_bytes))

    def _upgrade(self, data: bytes, upgrade: httptools.HttpParserUpgrade) -> None:
        rest = data[upgrade.args[0] :] if upgrade.args else b""
        if not self._should_upgrade():
            # Another protocol was offered (h2c): answered as HTTP/1.1, once.
            if self.cycle is not None:
                self.cycle.keep_alive = False
            return
        if rest:
            self._refuse(400, BadRequest("bytes after a websocket request, before its answer"))
        elif self._running() is not None:
            self._refuse(400, BadRequest("websocket request behind an unanswered one"))
        else:
            self.handle_websocket_upgrade()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection, and its place in the gate, to a WebSocket protocol."""
        self._phase = DONE
        self.listener.sweep.forget(self)
        self.connections.discard(self)
        head = [self.scope["method"].encode(), b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            head += [name, b": ", value, b"\r\n"]
        head.append(b"\r\n")
        protocol = WebSocketProtocol(self.listener, self.loop, self.address)
        protocol.connection_made(self.transport)
        protocol.data_received(b"".join(head))
        self.transport.set_protocol(protocol)

    # -------------------------------------------------------------- parser callbacks

    def on_message_begin(self) -> None:
        now = self.loop.time()
        if self._phase is not HEAD:
            self._phase, self._head_bytes, self._since = HEAD, 1, now
            self.listener.sweep.at(self, now + self.options.head_s)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.options.request_line_bytes:
            limit = self.options.request_line_bytes
            self._fail(414, over("request line", len(self.url), limit))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is BODY:
            return  # a trailer: what was checked stays what was checked
        most, size = self.options.header_count, len(name) + len(value) + 4
        if len(self.headers) >= most:
            self._fail(431, over("headers", len(self.headers) + 1, most, ""))
        if size > self.options.header_bytes:
            self._fail(431, over("one header", size, self.options.header_bytes))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._check()
        self.listener.freshen(self.loop.time())
        before = self.cycle
        wire = HttpWire(self)
        self.scope["forebay.wire"] = wire  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        if self.cycle is not before:
            wire.carry(self.cycle)
            if len(self.pipeline) == 0:
                self._wire = wire
        self._phase, self._since, self._body_bytes = BODY, self.loop.time(), 0

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._phase is BODY:
            self._phase, self._since = IDLE, self.loop.time()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        now = self.loop.time()
        if self._phase is IDLE:
            self._since = now
            self.listener.sweep.at(self, now + self.options.keep_alive_s)
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._wire = cycle.scope["forebay.wire"]  # type: ignore[typeddict-item]
            self._start_asgi_task(cycle, app)

    # ----------------------------------------------------------------- what is refused

    def _check(self) -> None:
        """Stop the parser at a head that breaks a rule."""
        if self.refusal is not None:
            self._fail(self.refusal.http_status, self.refusal)
        head = Head(
            self.parser.get_method().decode("ascii"),
            self.parser.get_http_version(),
            self.url,
            self.headers,
            self._should_upgrade(),
        )
        try:
            check_head(head, self.options)
        except Broken as broken:
            self._fail(broken.status, broken.error)
        waiting, most = len(self.pipeline), self.options.pipelined_requests
        if waiting >= most:
            self._fail(400, over("pipelined requests", waiting + 1, most, ""))

    def _fail(self, status: int, error: ForebayError) -> None:
        """Stop the parser with ``error``, from inside one of its callbacks."""
        self._fault, self._fault_status = error, status
        raise error

    def _refuse(self, status: int, error: ForebayError) -> None:
        """Answer with ``error`` and read nothing more.

        While an earlier request is still being answered, only its answer goes out and the
        connection ends after it. A request whose own body is at fault is disconnected."""
        whole, self._phase = self._phase is not BODY, DONE
        log.info("request.refused", status=status, code=error.code, reason=error.message)
        running = self._running()
        if running is None:
            self._answer(status, error)
            return
        self.pipeline.clear()
        running.keep_alive = False
        if whole or running is not self.cycle:
            return
        running.disconnected = True
        running.message_event.set()
        if self._wire is not None:
            self._wire.gone()
        if running.response_started:
            self.transport.abort()
        else:
            self._answer(status, error)

    def _running(self) -> RequestResponseCycle | None:
        """The cycle whose answer is not complete, the oldest one."""
        if self._wire is None or self._wire.cycle.response_complete:
            return None
        cycle: RequestResponseCycle = self._wire.cycle
        return cycle

    def _answer(self, status: int, error: ForebayError) -> None:
        """Write the refusal and close once it has left, without resetting what still comes."""
        self.transport.write(raw_error(status, error, new_request_id()))
        self._linger_until = self.loop.time() + LINGER_S
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.listener.sweep.at(self, self._linger_until)
        else:
            self.transport.close()

    # ---------------------------------------------------------------- flow of writing

    def pause_writing(self) -> None:
        super().pause_writing()
        self.listener.sweep.at(self, self.loop.time() + self._stall.begin())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._wire is not None:
            self._wire.drained()

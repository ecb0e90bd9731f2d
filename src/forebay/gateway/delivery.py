"""One job's output as the answer to one HTTP request: streamed, or whole.

The head of the answer waits for the first event, so that what is refused or fails before
the model has said anything is an HTTP status and not a broken stream. Event streams wait at
most ``hold_head_s``; after that the head goes out and signs of life keep the connection
open. The bytes of events never pass through a task: the hub writes them to the wire.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from forebay.broker import GatewayPush, LeasePush
from forebay.core.events import Ended, OutputEvent
from forebay.core.kinds import Kind
from forebay.core.spec import JobView
from forebay.dialects import error_of
from forebay.dialects.openai_common import Call
from forebay.errors import ForebayError, SlowClient
from forebay.gateway.batch import Batch
from forebay.gateway.context import GatewayContext
from forebay.gateway.held import HeadGate, NoWire
from forebay.gateway.hub import Reader
from forebay.gateway.ledger import Ledger
from forebay.gateway.news import News
from forebay.gateway.packing import packed
from forebay.gateway.responses import Headers, Receive, Scope, Send, reply
from forebay.gateway.surfaces import CallOptions, Ident, Surface
from forebay.gateway.wire import Wire
from forebay.gateway.wires import HttpWire, asgi_wire

__all__ = ["Delivery"]

PLAIN_WIRE_BYTES = 1024 * 1024
Encode = Callable[[OutputEvent], Sequence[bytes]]

log = structlog.get_logger(__name__)


class Delivery:
    """One answer under way. ``over``: the job's terminal event has been seen."""

    def __init__(
        self,
        ctx: GatewayContext,
        surface: Surface,
        call: Call,
        view: JobView,
        send: Send,
        begun: float,
        request_id: str,
        options: CallOptions,
        *,
        asked: float | None = None,
    ) -> None:
        self.over = False
        self._ctx = ctx
        self._surface = surface
        self._call = call
        self._view = view
        self._send = send
        self._request_id = request_id
        self._options = options
        self._ledger = Ledger(
            view, ctx.metrics, ctx.clock, begun=begun, asked=asked, slow_s=ctx.slow_stream_s
        )
        self._news = News()
        self._gone = False
        self._failure: ForebayError | None = None
        self._wire: Wire | None = None  # once the head has left
        self._batch: Batch | None = None
        self._slow = False
        self._timed = False  # the head could say how long the first output took
        self._scope: Scope = {}
        model = call.model or view.spec.pool.partition("/")[2]
        self._ident = Ident(
            job=view.spec.id,
            created=int(time.time()),
            model=model,
            epoch=view.epoch,
            timing=self._ledger.stages_ms,
        )

    async def run(self, scope: Scope, receive: Receive) -> None:
        """Answer, to the end of the job or until the client has gone."""
        self._scope = scope
        wire = scope.get("forebay.wire")
        watch: asyncio.Task[None] | None = None
        if isinstance(wire, HttpWire):
            wire.on_gone(self._left)
        else:
            watch = asyncio.create_task(self._watch(receive))
        try:
            if self._call.stream:
                await self._streamed(wire)
            else:
                await self._whole()
        finally:
            self._ledger.close()
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)

    async def _watch(self, receive: Receive) -> None:
        """Learn that the client has gone, which an ASGI ``send`` does not tell."""
        while (await receive())["type"] != "http.disconnect":
            continue
        self._left()

    def _left(self) -> None:
        self._gone = True
        self._news.ring()

    # ------------------------------------------------------------------- streamed

    async def _streamed(self, wire: Wire | None) -> None:
        if wire is not None:
            await self._stream(wire)
            return
        bound = PLAIN_WIRE_BYTES
        async with asgi_wire(self._send, websocket=False, bound_bytes=bound) as plain:
            await self._stream(plain)

    async def _stream(self, wire: Wire) -> None:
        gate = HeadGate(wire, self._news.ring)
        hold_s = self._options.hold_head_s if self._surface.events(self._call) else None
        if hold_s == 0:
            await self._head(wire, gate)
        reader = self._read(gate, self._encoder(gate))
        try:
            if hold_s != 0:
                await self._news.wait(hold_s)
                if self._gone:
                    return
                if self._failure is not None:
                    await self._refuse(self._failure)
                    return
                await self._head(wire, gate)
            await self._to_the_end(wire)
        finally:
            reader.close()
            if self._batch is not None:
                self._batch.close()

    async def _head(self, wire: Wire, gate: HeadGate) -> None:
        head = [*self._surface.headers(self._call), *self._facts()]
        if self._ctx.operations.compress:
            head = packed(self._scope, wire, head)
        self._timed = "first_output" in self._ledger.stages_ms()
        corked = wire if isinstance(wire, HttpWire) else None
        if corked is not None:  # the head and what was held back until now leave as one write
            corked.cork()
        try:
            await self._send({"type": "http.response.start", "status": 200, "headers": head})
            for frame in self._surface.opening(self._call, self._ident):
                wire.send(frame)
            gate.open()
            self._wire = wire
            if self.over:
                self._finish(wire)
        finally:
            if corked is not None:
                corked.uncork()

    async def _to_the_end(self, wire: Wire) -> None:
        keepalive_s = self._options.keepalive_s if self._surface.events(self._call) else 0
        while not (self._gone or self.over or self._failure):
            if not await self._news.wait(keepalive_s or None) and not wire.backlog():
                wire.send(self._surface.keepalive)
        if self._failure is not None and not self.over:
            self._break(wire, self._failure)

    def _encoder(self, wire: Wire) -> Callable[[OutputEvent], Sequence[bytes]]:
        encode = self._surface.encoder(self._call, self._ident)
        if self._options.flush.waits and self._call.kind is Kind.TEXT:
            self._batch = Batch(
                encode, self._options.flush, wire.send, whole_until=self._call.after
            )
            encode = self._batch.encode
        return self._noted(encode)

    def _noted(self, encode: Encode) -> Encode:
        ledger = self._ledger

        def noted(event: OutputEvent) -> Sequence[bytes]:
            ledger.arrived(event)
            frames = encode(event)
            ledger.encoded()
            return frames

        return noted

    def _finish(self, wire: Wire) -> None:
        """The terminal event's frames are on the wire: end the body as it deserves."""
        if self._surface.events(self._call):
            if not self._timed:
                for frame in self._surface.timed(self._ledger.header()):
                    wire.send(frame)
            wire.close()
        elif self._failure is None:
            wire.close()
        else:
            _cut(wire)

    def _break(self, wire: Wire, error: ForebayError) -> None:
        """End an answer whose job has not ended: never so that it looks whole."""
        if self._surface.events(self._call) and not self._slow:
            for frame in self._surface.broken(self._call, error, self._request_id):
                wire.send(frame)
            wire.close()
        else:
            _cut(wire)

    # ---------------------------------------------------------------------- whole

    async def _whole(self) -> None:
        collector = self._surface.collector(self._call, self._ident)

        def collect(event: OutputEvent) -> Sequence[bytes]:
            self._ledger.arrived(event)
            if self._failure is None:
                try:
                    collector.take(event)
                except ForebayError as error:
                    self._fail(error)
            return ()

        reader = self._read(NoWire(), collect)
        try:
            while not (self._gone or self.over or self._failure):
                await self._news.wait()
        finally:
            reader.close()
        if self._gone:
            return
        body = b""
        if self._failure is None:
            try:
                if self._surface.files is None:
                    body = collector.body()
                else:
                    body = await asyncio.to_thread(collector.body)
            except ForebayError as error:
                self._failure = error
        if self._failure is not None:
            await self._refuse(self._failure)
            return
        await reply(self._send, 200, body, [*self._surface.headers(self._call), *self._facts()])

    # --------------------------------------------------------------------- reading

    def _read(self, wire: Wire, encode: Callable[[OutputEvent], Sequence[bytes]]) -> Reader:
        files = self._surface.files if self._call.stream else None
        reader = self._ctx.hub.open(
            self._view.spec.id,
            epoch=self._view.epoch,
            after=0,
            encode=encode,
            wire=wire,
            row=self._ctx.rows[self._call.kind],
            pace=files,
            on_end=self._on_end,
            on_slow=self._on_slow,
            on_reset=self._fail,
            on_push=self._on_push,
            on_sent=self._on_sent,
        )
        if files is not None:
            files.on_read = reader.pump
        return reader

    def _on_end(self, ended: Ended) -> None:
        self.over = True
        self._ctx.audio.ended(self._view.spec.id, ended)
        if ended.state != "completed":
            self._failure = self._failure or error_of(ended)
        if self._wire is not None:
            self._finish(self._wire)
        self._news.ring()

    def _on_slow(self, reader: Reader) -> None:
        limit_s = self._ctx.rows[self._call.kind].slow_reader_s
        self._slow = True
        self._ctx.metrics.slow_client()
        log.info("buffer.unread", job=self._view.spec.id, limit_s=limit_s)
        self._fail(SlowClient(f"client took nothing for {limit_s:g} s", limit_s=limit_s))

    def _fail(self, error: ForebayError) -> None:
        self._failure = self._failure or error
        self._news.ring()

    def _on_push(self, push: GatewayPush) -> None:
        if isinstance(push, LeasePush) and push.running:
            self._ledger.leased()

    def _on_sent(self, event: OutputEvent) -> None:
        took_s = self._ledger.sent(event)
        if took_s is None:
            return
        if self._call.kind is Kind.SPEECH:
            self._ctx.metrics.ttfa(took_s)
        else:
            self._ctx.metrics.ttft(took_s)

    async def _refuse(self, error: ForebayError) -> None:
        facts = self._facts()
        await self._surface.refuse(self._send, error, self._request_id, self._call, facts)

    def _facts(self) -> Headers:
        """Where the time went, and by what name to ask for it."""
        return [
            (b"x-request-id", self._request_id.encode()),
            *self._surface.facts(self._call, self._ident),
            (b"server-timing", self._ledger.header()),
        ]


def _cut(wire: Wire) -> None:
    """End the body without its last chunk, so that the client sees it is not whole.

    On a plain ASGI server that means returning without a last body message, which is what
    becomes of a wire that is left open."""
    cut: Callable[[], None] | None = getattr(wire, "cut", None)
    if cut is not None:
        cut()

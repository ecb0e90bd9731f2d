"""One HTTP request, one job, one answer: the path every plain HTTP call takes.

A `Surface` says how a wire protocol reads its request and words its answer; everything else
is the same for all: body, pool, submit, delivery, errors, the client that goes away (which
here is a cancel: a plain call gave its client no handle to come back with).

The head of the answer waits for the first event, so that what is refused or fails before
the model has said anything is an HTTP status and not a broken stream. Event streams wait at
most ``hold_head_s``; after that the head goes out and comments keep the connection alive.
The bytes of events never pass through a task: the hub writes them to the wire.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

import msgspec
import structlog

from forebay.broker import GatewayPush, LeasePush
from forebay.core.events import Audio, Ended, InputItem, OutputEvent, TextDelta
from forebay.core.kinds import Kind
from forebay.core.spec import JobView, PoolView
from forebay.dialects import error_of
from forebay.dialects.openai_common import Call, error_object, status_of
from forebay.dialects.openai_models import model_name
from forebay.errors import ForebayError, SlowClient, TooLarge
from forebay.gateway.beside import drop_beside, set_beside
from forebay.gateway.context import GatewayContext
from forebay.gateway.held import HeadGate, NoWire
from forebay.gateway.hub import Reader
from forebay.gateway.responses import (
    Headers,
    Receive,
    Scope,
    Send,
    error_headers,
    new_request_id,
    reply,
)
from forebay.gateway.wire import Wire
from forebay.gateway.wires import asgi_wire

__all__ = [
    "CallOptions",
    "Collector",
    "Ident",
    "Surface",
    "answer_call",
    "read_body",
    "refuse",
    "request_id",
    "serve_call",
]

KEEP_ALIVE = b": still here\n\n"
PLAIN_WIRE_BYTES = 1024 * 1024

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """``hold_head_s``: how long an event stream's head waits for a first event.
    ``keepalive_s``: silence after which an event stream gets a comment; 0: never."""

    body_bytes: int = 1024 * 1024
    hold_head_s: float = 5.0
    keepalive_s: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ident:
    """What an answer is called. ``created``: seconds since 1970."""

    job: str
    created: int
    model: str


class Collector(Protocol):
    def take(self, event: OutputEvent) -> None:
        """Raises `TooLarge` when the answer outgrows what may be held."""

    def body(self) -> bytes: ...


class Surface(Protocol):
    """One wire protocol's words for a call. No I/O."""

    name: str

    def parse(self, body: bytes) -> Call: ...

    def events(self, call: Call) -> bool:
        """True: the streamed answer is an event stream, which can say that it broke.
        False: it is the bare content, which can only be cut."""

    def headers(self, call: Call) -> Headers: ...

    def encoder(self, call: Call, ident: Ident) -> Callable[[OutputEvent], Sequence[bytes]]: ...

    def collector(self, call: Call, ident: Ident) -> Collector: ...


async def serve_call(
    scope: Scope,
    receive: Receive,
    send: Send,
    ctx: GatewayContext,
    surface: Surface,
    options: CallOptions,
) -> None:
    """Answer one request, whole. Never raises for what a client or a model did.

    Cancelling this cancels the job."""
    begun = ctx.clock()
    try:
        body = await read_body(receive, options.body_bytes)
        if body is None:
            return
        call = surface.parse(body)
    except ForebayError as error:
        await refuse(send, error, request_id(scope))
        return
    await answer_call(scope, receive, send, ctx, surface, options, call, begun)


async def answer_call(
    scope: Scope,
    receive: Receive,
    send: Send,
    ctx: GatewayContext,
    surface: Surface,
    options: CallOptions,
    call: Call,
    begun: float,
) -> None:
    """`serve_call` for a request that has been read and parsed. ``begun``: when it came."""
    request = request_id(scope)
    items: list[InputItem] = []
    try:
        pool = ctx.pool_view(call.kind, call.model or "")
        spec = ctx.spec(
            call.kind,
            call.params,
            tenant=scope.get("forebay.tenant", "local"),
            dialect=surface.name,
            model=model_name(pool),
            detach_s=0,
            cost_s=_cost_s(call, pool),
        )
        if call.run_s is not None:
            limits = msgspec.structs.replace(spec.deadlines, run_s=call.run_s)
            spec = msgspec.structs.replace(spec, deadlines=limits)
        for item in call.items:
            items.append(await set_beside(ctx.blobs, item))
        view = await ctx.broker.submit(spec, items, gateway=ctx.gateway_id)
    except ForebayError as error:
        drop_beside(ctx.blobs, items)
        await refuse(send, error, request)
        return
    answer = _Answer(ctx, surface, call, view, send, begun, request, options)
    try:
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(answer.watch(receive))
            try:
                await answer.run(scope)
            finally:
                watch.cancel()
    finally:
        if not answer.over:
            leaving = ctx.hub.spawn(_cancel(ctx, view.spec.id))
            if leaving is not None:
                await asyncio.shield(leaving)
        drop_beside(ctx.blobs, items)


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """The request's body; None when the client left inside it. Raises `TooLarge`.

    Deadlines are the server's (`http_protocol`)."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise TooLarge(f"read {size} bytes of body, expected no more than {limit}")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def refuse(send: Send, error: ForebayError, request_id: str, headers: Headers | None = None) -> None:  # fmt: skip
    """Answer with an error in OpenAI's shape; ``Retry-After`` where waiting helps."""
    body = msgspec.json.encode(error_object(error, request_id), enc_hook=str)
    start = [*error_headers(error, request_id), *(headers or [])]
    await reply(send, status_of(error), body, start)


class _Answer:
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
    ) -> None:
        self.over = False
        self._ctx = ctx
        self._surface = surface
        self._call = call
        self._view = view
        self._send = send
        self._begun = begun
        self._request_id = request_id
        self._options = options
        self._submitted = ctx.clock()
        self._leased = self._submitted if view.state != "queued" else None
        self._news = asyncio.Event()
        self._gone = False
        self._failure: ForebayError | None = None
        self._wire: Wire | None = None  # once the head has left
        self._first_sent = False
        self._slow = False
        model = call.model or view.spec.pool.partition("/")[2]
        self._ident = Ident(job=view.spec.id, created=int(time.time()), model=model)

    async def watch(self, receive: Receive) -> None:
        """Learn that the client has gone, which an ASGI ``send`` does not tell."""
        while (await receive())["type"] != "http.disconnect":
            continue
        self._gone = True
        self._news.set()

    async def run(self, scope: Scope) -> None:
        if self._call.stream:
            async with AsyncExitStack() as stack:
                wire: Wire | None = scope.get("forebay.wire")
                if wire is None:
                    wire = await stack.enter_async_context(
                        asgi_wire(self._send, websocket=False, bound_bytes=PLAIN_WIRE_BYTES)
                    )
                await self._stream(wire)
        else:
            await self._whole()

    # ------------------------------------------------------------------- streamed

    async def _stream(self, wire: Wire) -> None:
        gate = HeadGate(wire, self._news.set)
        reader = self._read(gate, self._surface.encoder(self._call, self._ident))
        events = self._surface.events(self._call)
        try:
            await self._wait(self._options.hold_head_s if events else None)
            if self._gone:
                return
            if self._failure is not None:
                await refuse(self._send, self._failure, self._request_id, self._facts())
                return
            head = [*self._surface.headers(self._call), *self._facts()]
            await self._send({"type": "http.response.start", "status": 200, "headers": head})
            gate.open()
            self._wire = wire
            if self.over:
                self._finish(wire)
            keepalive_s = self._options.keepalive_s if events else 0
            while not (self._gone or self.over or self._failure):
                if not await self._wait(keepalive_s or None) and not wire.backlog():
                    wire.send(KEEP_ALIVE)
            if self._failure is not None and not self.over:
                self._break(wire, self._failure)
        finally:
            reader.close()

    def _finish(self, wire: Wire) -> None:
        """The terminal event's frames are on the wire: end the body as it deserves."""
        if self._failure is None or self._surface.events(self._call):
            wire.close()
        else:
            _cut(wire)

    def _break(self, wire: Wire, error: ForebayError) -> None:
        """End an answer whose job has not ended: never so that it looks whole."""
        if self._surface.events(self._call) and not self._slow:
            body = msgspec.json.encode(error_object(error, self._request_id), enc_hook=str)
            wire.send(b"data: " + body + b"\n\n")
            wire.close()
        else:
            _cut(wire)

    # ---------------------------------------------------------------------- whole

    async def _whole(self) -> None:
        collector = self._surface.collector(self._call, self._ident)

        def collect(event: OutputEvent) -> Sequence[bytes]:
            if self._failure is None:
                try:
                    collector.take(event)
                except ForebayError as error:
                    self._fail(error)
            return ()

        reader = self._read(NoWire(), collect)
        try:
            while not (self._gone or self.over or self._failure):
                await self._wait(None)
        finally:
            reader.close()
        if self._gone:
            return
        body = b""
        if self._failure is None:
            try:
                body = collector.body()
            except ForebayError as error:
                self._failure = error
        if self._failure is not None:
            await refuse(self._send, self._failure, self._request_id, self._facts())
            return
        await reply(self._send, 200, body, [*self._surface.headers(self._call), *self._facts()])

    # --------------------------------------------------------------------- reading

    def _read(self, wire: Wire, encode: Callable[[OutputEvent], Sequence[bytes]]) -> Reader:
        return self._ctx.hub.open(
            self._view.spec.id,
            epoch=self._view.epoch,
            after=0,
            encode=encode,
            wire=wire,
            row=self._ctx.rows[self._call.kind],
            on_end=self._on_end,
            on_slow=self._on_slow,
            on_reset=self._fail,
            on_push=self._on_push,
            on_sent=self._on_sent,
        )

    def _on_end(self, ended: Ended) -> None:
        self.over = True
        if ended.state != "completed":
            self._failure = self._failure or error_of(ended)
        if self._wire is not None:
            self._finish(self._wire)
        self._news.set()

    def _on_slow(self, reader: Reader) -> None:
        limit_s = self._ctx.rows[self._call.kind].slow_reader_s
        self._slow = True
        self._ctx.metrics.slow_client()
        self._fail(SlowClient(f"client took nothing for {limit_s:g} s", limit_s=limit_s))

    def _fail(self, error: ForebayError) -> None:
        self._failure = self._failure or error
        self._news.set()

    def _on_push(self, push: GatewayPush) -> None:
        if isinstance(push, LeasePush) and push.running and self._leased is None:
            self._leased = self._ctx.clock()

    def _on_sent(self, event: OutputEvent) -> None:
        if self._first_sent or not isinstance(event, TextDelta | Audio):
            return
        self._first_sent = True
        took_s = self._ctx.clock() - self._begun
        if self._call.kind is Kind.SPEECH:
            self._ctx.metrics.ttfa(took_s)
        else:
            self._ctx.metrics.ttft(took_s)

    async def _wait(self, timeout_s: float | None) -> bool:
        """Wait for news; False when the time passed without any."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True

    def _facts(self) -> Headers:
        """Where the time went, and by what name to ask for it."""
        accepted_ms = (self._submitted - self._begun) * 1000
        queued_ms = ((self._leased or self._ctx.clock()) - self._submitted) * 1000
        timing = f"accepted;dur={accepted_ms:.2f}, queued;dur={queued_ms:.2f}"
        return [
            (b"x-request-id", self._request_id.encode()),
            (b"x-forebay-job", self._view.spec.id.encode()),
            (b"server-timing", timing.encode()),
        ]


def _cut(wire: Wire) -> None:
    """End the body without its last chunk, so that the client sees it is not whole.

    On a plain ASGI server that means returning without a last body message, which is what
    becomes of a wire that is left open."""
    cut: Callable[[], None] | None = getattr(wire, "cut", None)
    if cut is not None:
        cut()


def request_id(scope: Scope) -> str:
    """The id that the log has too."""
    return str(scope.get("forebay.request_id") or new_request_id())


def _cost_s(call: Call, pool: PoolView) -> float:
    """Model seconds this will probably take: what fairness counts."""
    if call.kind is Kind.RECOGNITION:
        return max(0.05, call.units / 16_000 * (0.3 if pool.rtf is None else pool.rtf))
    if call.kind is Kind.SPEECH:
        return max(0.05, call.units * 0.08 * (0.3 if pool.rtf is None else pool.rtf))
    return 1.0 if pool.service_s is None else max(0.05, pool.service_s)


async def _cancel(ctx: GatewayContext, job: str) -> None:
    try:
        await ctx.broker.cancel(job, reason="client gone")
    except ForebayError as error:
        log.info("cancel.not_taken", job=job, code=error.code)

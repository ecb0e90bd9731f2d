"""A job's events to one client that may come back: server-sent events and WebSockets.

The one place where event streams are written. A protocol brings its words (`EventWords`);
positions, resume, the queue's news, keep-alive, slow readers, drain and the client that goes
away are the same for all. The bytes of events never pass through a task: the hub writes them
to the wire.

A stream may be read by any number of clients at once, and reading is never writing: who
leaves ends nothing, who is too slow loses the connection and not the job. A reader resumes by
the header ``Last-Event-ID`` or by ``?after=``; the header, which a browser sends by itself
when it reconnects, wins. A job that is over, read to its end, is answered with 204, at which
browsers stop asking.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from urllib.parse import parse_qs

import structlog

from forebay.broker import GatewayPush, LeasePush, PlacePush
from forebay.core.events import Ended, OutputEvent
from forebay.core.spec import JobView
from forebay.dialects.job_events import (
    Body,
    EventWords,
    Position,
    position_id,
    read_position,
    sse_event,
    ws_event,
)
from forebay.errors import ForebayError, NotFound, SlowClient
from forebay.gateway.access import header
from forebay.gateway.connection import Frames, accepted_wire
from forebay.gateway.context import GatewayContext
from forebay.gateway.ledger import Ledger
from forebay.gateway.news import News
from forebay.gateway.packing import packed
from forebay.gateway.reader import Reader, patient
from forebay.gateway.responses import Headers, Receive, Scope, Send, reply
from forebay.gateway.wire import LOW_WATER_BYTES, Wire
from forebay.gateway.wires import HttpWire, asgi_wire

__all__ = [
    "KEEPALIVE_S",
    "KEEP_ALIVE",
    "SSE_HEADERS",
    "JobStream",
    "own_job",
    "position_of",
    "serve_events",
    "serve_events_socket",
]

KEEPALIVE_S = 15.0
"""Silence after which a stream gets a comment, so that proxies keep it open."""
KEEP_ALIVE = b": still here\n"
PLAIN_WIRE_BYTES = 1024 * 1024
SSE_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-store"),
    (b"x-accel-buffering", b"no"),
]

log = structlog.get_logger(__name__)

Say = Callable[[Body, str], bytes | str]


async def own_job(ctx: GatewayContext, tenant: str, job: str) -> JobView:
    """The job, if it is ``tenant``'s. Raises `NotFound` for another's as for none at all."""
    view = await ctx.broker.status(job)
    if view.spec.tenant != tenant:
        raise NotFound(f"no job {job[:32]}")
    return view


def position_of(scope: Scope) -> Position | None:
    """Where the client says it stands; None for one that has nothing yet."""
    said = header(scope, b"last-event-id")
    if not said:
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=50)
        said = query.get("after", [""])[-1]
    return read_position(said) if said else None


class JobStream:
    """One reader of one job on one wire. `begin`, then `wait` until `over`; end with `leave`.

    ``say`` makes the wire's frame of an object and its position."""

    def __init__(
        self,
        ctx: GatewayContext,
        view: JobView,
        words: EventWords,
        wire: Wire,
        say: Say,
        *,
        cut: Callable[[], None],
        asked: float | None = None,
    ) -> None:
        self.ledger = Ledger(
            view,
            ctx.metrics,
            ctx.clock,
            begun=ctx.clock() if asked is None else asked,
            asked=asked,
            slow_s=ctx.slow_stream_s if view.state == "queued" else 0,
        )
        self.failure: ForebayError | None = None
        self.over = False  # the terminal event's frames are on the wire
        self._ctx = ctx
        self._view = view
        self._words = words
        self._wire = wire
        self._say = say
        self._cut = cut
        self._news = News()
        self._said = False
        self._draining = False
        self._reader: Reader | None = None

    @property
    def done(self) -> bool:
        return self.over or self.failure is not None or self._draining or self._wire.closed

    def begin(self, after: int) -> None:
        """Send the opening and read on from ``after``. The job is attached by now."""
        self._tell(self._words.opening(self._view))
        self._reader = self._ctx.hub.open(
            self._view.spec.id,
            epoch=self._view.epoch,
            after=after,
            encode=self._encode,
            wire=self._wire,
            row=patient(self._ctx.rows[self._view.spec.kind]),
            on_end=self._on_end,
            on_slow=self._on_slow,
            on_reset=self._fail,
            on_push=self._hear,
            on_sent=self._on_sent,
        )

    def leave(self) -> None:
        self.ledger.close()
        if self._reader is not None:
            self._reader.close()

    async def wait(self, timeout_s: float | None) -> bool:
        """Until something was sent or it is over; False when the time passed in silence."""
        return await self._news.wait(timeout_s)

    def wake(self) -> None:
        self._news.ring()

    def drain(self) -> None:
        """The gateway is shutting down: whoever reads comes back to another."""
        self._draining = True
        self._news.ring()

    def _encode(self, event: OutputEvent) -> Sequence[bytes | str]:
        self.ledger.arrived(event)
        bodies = self._words.event(event)
        last = len(bodies) - 1
        where = position_id(self._view.epoch, event.offset)
        # Only the last has the position: who got a part of an event gets all of it again.
        said = [self._say(body, where if at == last else "") for at, body in enumerate(bodies)]
        self.ledger.encoded()
        return said

    def _tell(self, bodies: Sequence[Body]) -> None:
        for body in bodies:
            self._wire.send(self._say(body, ""))

    def _hear(self, push: GatewayPush) -> None:
        if self._wire.backlog() > LOW_WATER_BYTES:
            return  # news that is not stored gives way; the next is as good
        match push:
            case PlacePush():
                self._tell(self._words.place(push.place))
            case LeasePush():
                if push.running:
                    self.ledger.leased()
                self._tell(self._words.lease(push.running))
            case _:
                return
        self._news.ring()

    def _on_sent(self, event: OutputEvent) -> None:
        self.ledger.sent(event)
        if not self._said:
            self._said = True
            self._news.ring()

    def _on_end(self, ended: Ended) -> None:
        self.over = True
        self._news.ring()

    def _on_slow(self, reader: Reader) -> None:
        limit_s = self._ctx.rows[self._view.spec.kind].slow_reader_s
        self._ctx.metrics.slow_client()
        log.info("buffer.unread", job=self._view.spec.id, limit_s=limit_s)
        self.failure = SlowClient(f"client took nothing for {limit_s:g} s", limit_s=limit_s)
        self._cut()
        self._news.ring()

    def _fail(self, error: ForebayError) -> None:
        self.failure = self.failure or error
        self._tell(self._words.error(error))
        self._news.ring()


async def serve_events(
    scope: Scope,
    receive: Receive,
    send: Send,
    ctx: GatewayContext,
    view: JobView,
    words: EventWords,
    *,
    keepalive_s: float = KEEPALIVE_S,
    headers: Headers | None = None,
) -> None:
    """Answer with ``view``'s events to their end, from where the client says it stands.

    The caller has seen that the job is the tenant's. Raises `BadRequest` for a malformed
    position and `ResumeNotAvailable` before the head has left."""
    position = position_of(scope)
    after = await _start(ctx, view, position)
    if view.ended_s is not None and position is not None and after >= view.head:
        await reply(send, 204)
        return
    async with AsyncExitStack() as stack:
        view = await _attach(stack, ctx, view)
        wire: Wire | None = scope.get("forebay.wire")
        head = [*SSE_HEADERS, *(headers or [])]
        if ctx.operations.compress:
            head = packed(scope, wire, head)
        await send({"type": "http.response.start", "status": 200, "headers": head})
        if wire is None:
            wire = await stack.enter_async_context(
                asgi_wire(send, websocket=False, bound_bytes=PLAIN_WIRE_BYTES)
            )
        stream = JobStream(ctx, view, words, wire, sse_event, cut=lambda: _cut(wire))
        stack.callback(stream.leave)
        stack.callback(ctx.on_drain(stream.drain))
        watch = asyncio.create_task(_until_gone(receive, stream))
        stack.push_async_callback(_stopped, watch)
        stream.begin(after)
        while not stream.done and not watch.done():
            if not await stream.wait(keepalive_s) and not wire.backlog():
                wire.send(KEEP_ALIVE)
        if stream.over and position is None:
            wire.send(b": server-timing: " + stream.ledger.header() + b"\n")
        wire.close()


async def serve_events_socket(
    scope: Scope,
    receive: Receive,
    send: Send,
    ctx: GatewayContext,
    view: JobView,
    words: EventWords,
    *,
    on_message: Callable[[bytes | str], Sequence[Body]] | None = None,
) -> None:
    """`serve_events` over a WebSocket. Closes 1000 after the terminal event.

    ``on_message``: what to do with what the client says and what to answer; without it the
    client's messages are read and dropped. It must not raise."""
    after = await _start(ctx, view, position_of(scope))
    async with AsyncExitStack() as stack:
        view = await _attach(stack, ctx, view)
        wire = await accepted_wire(stack, scope, receive, send)
        if wire is None:
            return
        frames = Frames(receive)
        stack.push_async_callback(frames.close)

        def slow() -> None:
            wire.close(4408, SlowClient.code)

        stream = JobStream(ctx, view, words, wire, ws_event, cut=slow)
        stack.callback(stream.leave)
        stack.callback(ctx.on_drain(stream.drain))
        stream.begin(after)
        listen = asyncio.create_task(_listen(frames, wire, stream, on_message))
        stack.push_async_callback(_stopped, listen)
        while not stream.done and not listen.done():
            await stream.wait(None)
        error = stream.failure
        if error is not None:
            wire.close(error.close_code, error.code)
        elif stream.over:
            wire.close(1000, "")
        else:
            wire.close(1012, "going away")
        await asyncio.wait({listen}, timeout=ctx.options.close_s)


async def _start(ctx: GatewayContext, view: JobView, position: Position | None) -> int:
    """The offset to go on after: what the client has, or the oldest that is kept."""
    if position is None:
        return view.first - 1
    after = position.check(view)
    await ctx.broker.read_after(view.spec.id, after, epoch=view.epoch, limit=1)
    return after


async def _attach(stack: AsyncExitStack, ctx: GatewayContext, view: JobView) -> JobView:
    """Hold the job as a reader until ``stack`` is closed; how it stands now."""
    held = await ctx.broker.attach(view.spec.id, gateway=ctx.gateway_id, write=False)

    async def give_back() -> None:
        await ctx.hub.flush_delivered()
        try:
            await ctx.broker.detach(held)
        except ForebayError as error:
            log.debug("events.not_detached", job=held.job, code=error.code)

    async def leave() -> None:
        leaving = ctx.hub.spawn(give_back())
        if leaving is not None:  # the hub owns it, so a cut connection is given back too
            await asyncio.shield(leaving)

    stack.push_async_callback(leave)
    return held.view


async def _until_gone(receive: Receive, stream: JobStream) -> None:
    """An ASGI ``send`` does not tell that the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        continue
    stream.wake()


async def _listen(
    frames: Frames,
    wire: Wire,
    stream: JobStream,
    on_message: Callable[[bytes | str], Sequence[Body]] | None,
) -> None:
    try:
        while (frame := await frames.next()) is not None:
            for body in on_message(frame) if on_message is not None else ():
                wire.send(ws_event(body))
    finally:
        stream.wake()


async def _stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _cut(wire: Wire) -> None:
    """End the body without its last chunk, so that the client sees it was cut."""
    if isinstance(wire, HttpWire):
        wire.cut()
    else:
        wire.close()

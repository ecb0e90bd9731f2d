"""A WebSocket endpoint for dialects whose sessions are resumable jobs.

`serve_websocket` is a bare ASGI application's body: it reads frames one after another,
hands what the dialect makes of them to the session's `driver.Hold`, and stops reading while
the job's input is over its bound. Output does not pass here: the hub writes it straight to
the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import structlog

from forebay.core.intents import Failed, Hear, Intent, Open
from forebay.core.kinds import Kind
from forebay.core.session import Sessions
from forebay.dialects import About, Frame, SessionDialect
from forebay.errors import ForebayError, StateLost
from forebay.gateway.auth import port_of
from forebay.gateway.context import GatewayContext
from forebay.gateway.driver import AppendNow, Hold
from forebay.gateway.under_way import holds
from forebay.gateway.wire import Wire
from forebay.gateway.wires import WebSocketWire, asgi_wire

__all__ = ["Frames", "Receive", "Scope", "Send", "accepted_wire", "serve_websocket"]

PLAIN_WIRE_BYTES = 1024 * 1024
AT_ONCE_BYTES = 64 * 1024
"""Messages that are longer, together, are not dealt with as one in the call that brings them."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
TenantOf = Callable[[Open], str]

log = structlog.get_logger(__name__)


class Frames:
    """The frames of one WebSocket, read one at a time; None once it is closed.

    At most one frame is read ahead (`ready`, `until`), so that a client that leaves is
    noticed although nothing more is taken from it.
    """

    __slots__ = ("_ahead", "_closed", "_receive")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ahead: asyncio.Task[Message] | None = None
        self._closed = False

    async def next(self) -> Frame | None:
        """The next frame. Cancelling this may lose the frame that was arriving."""
        while not self._closed:
            if self._ahead is not None:
                message = await self._ahead
                self._ahead = None
            else:
                message = await self._receive()
            if message["type"] == "websocket.disconnect":
                self._closed = True
            elif message["type"] == "websocket.receive":
                text = message.get("text")
                data: Frame | None = text if text is not None else message.get("bytes")
                if data is not None:
                    return data
        return None

    async def ready(self, within_s: float) -> bool:
        """Whether something arrives within so long; it stays for `next`."""
        if self._ahead is None:
            self._ahead = asyncio.ensure_future(self._next_message())
        done, _ = await asyncio.wait({self._ahead}, timeout=within_s)
        return bool(done)

    async def until(self, work: Awaitable[None], wire: Wire) -> None:
        """Wait for ``work``, or until the client has left; ``work`` is then cancelled.

        While frames are left unread behind the one read ahead, only the wire can tell that
        the client has gone, and it calls nobody: so it is looked at once a second."""
        waited = asyncio.ensure_future(work)
        if self._ahead is None:
            self._ahead = asyncio.ensure_future(self._next_message())
        watched = {waited, self._ahead}
        try:
            while not waited.done() and not wire.closed:
                await asyncio.wait(watched, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                if self._ahead in watched and self._ahead.done():
                    watched.discard(self._ahead)
                    if self._ahead.result()["type"] == "websocket.disconnect":
                        return
        finally:
            waited.cancel()
            await asyncio.gather(waited, return_exceptions=True)

    async def _next_message(self) -> Message:
        return await self._receive()

    async def close(self) -> None:
        """Stop reading ahead. The opener calls this last."""
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)
            self._ahead = None


async def accepted_wire(
    stack: AsyncExitStack, scope: Scope, receive: Receive, send: Send
) -> Wire | None:
    """Accept the WebSocket and give its wire: our server's own, or a bounded queue in front
    of ``send`` under any other server. None when the client left before."""
    message = await receive()
    if message["type"] != "websocket.connect":
        return None
    await send({"type": "websocket.accept"})
    wire: Wire | None = scope.get("forebay.wire")
    if wire is None:
        wire = await stack.enter_async_context(
            asgi_wire(send, websocket=True, bound_bytes=PLAIN_WIRE_BYTES)
        )
    return wire


async def serve_websocket(
    scope: Scope,
    receive: Receive,
    send: Send,
    ctx: GatewayContext,
    dialect: SessionDialect,
    *,
    tenant: str = "local",
    first_message_s: float | None = None,
    message_bytes: int | None = None,
    tenant_of: TenantOf | None = None,
) -> None:
    """Serve one connection to its end.

    Gates and keys have been passed. ``first_message_s``: close 4408 when the client says
    nothing for so long after the accept; None: it may take its time. ``message_bytes``: the
    largest message taken, where this path has a bound of its own. ``tenant_of``: whose a
    session is, where what opens it may say so.
    """
    set_limit = getattr(scope.get("forebay.wire"), "take_messages_of", None)
    if set_limit is not None and message_bytes is not None:
        set_limit(message_bytes)
    async with AsyncExitStack() as stack:
        wire = await accepted_wire(stack, scope, receive, send)
        if wire is None:
            return
        frames = Frames(receive)
        stack.push_async_callback(frames.close)
        if dialect.kind is Kind.SPEECH:
            ctx.metrics.connection_opened()
            stack.callback(ctx.metrics.connection_closed)
        promised_until: float | None = scope.get("forebay.promised_until")
        limited = ctx.auth.limits(port_of(scope))
        connection = _Connection(ctx, dialect, wire, tenant, promised_until, limited, tenant_of)
        stack.callback(ctx.on_drain(connection.drain))
        stack.callback(holds(scope, connection))
        try:
            await connection.run(frames, first_message_s)
        finally:
            leaving = ctx.hub.spawn(connection.leave())
            if leaving is not None:  # the hub owns it, so a cut connection is given back too
                await asyncio.shield(leaving)


class _Connection:
    """The sessions of one socket and the dialect's state of it."""

    __slots__ = (
        "_append_now",
        "_ctx",
        "_dialect",
        "_holds",
        "_limited",
        "_offered",
        "_promised_until",
        "_sessions",
        "_state",
        "_tenant",
        "_tenant_of",
        "_wire",
        "_working",
    )

    def __init__(
        self,
        ctx: GatewayContext,
        dialect: SessionDialect,
        wire: Wire,
        tenant: str,
        promised_until: float | None,
        limited: bool,
        tenant_of: TenantOf | None,
    ) -> None:
        self._limited = limited
        self._tenant_of = tenant_of
        self._promised_until = promised_until
        self._ctx = ctx
        self._dialect = dialect
        self._wire = wire
        self._tenant = tenant
        self._state: Any = None
        self._sessions = Sessions(dialect.concurrent, dialect.rules)
        self._holds: dict[str, Hold] = {}
        # Only a home in this process can take input without being waited for.
        self._append_now: AppendNow | None = getattr(ctx.broker, "append_now", None)
        self._offered = self._append_now is None
        self._working = False  # on a frame that may have to wait: what follows waits behind it

    async def run(self, frames: Frames, first_message_s: float | None) -> None:
        try:
            async with asyncio.timeout(first_message_s):
                frame = await frames.next()
        except TimeoutError:
            self._ctx.metrics.deadline("first_message")
            self._wire.close(4408, f"no message within {first_message_s:g} s")
            frame = await frames.next()
        while frame is not None:
            if not self._wire.closed:
                await self._one(frame, frames)
            frame = await frames.next()

    async def _one(self, frame: Frame, frames: Frames) -> None:
        self._working = True
        try:
            self._state, intents = self._dialect.receive(self._state, frame)
            for intent in intents:
                await self._take(intent, frames)
        except ForebayError as error:
            self._refuse(error)
        except Exception as error:  # noqa: BLE001 - the supervised boundary of one connection
            log.error("connection.failed", error=type(error).__name__, exc_info=error)
            self._refuse(ForebayError("the gateway failed, this connection cannot go on"))
        finally:
            self._working = False

    def _refuse(self, error: ForebayError) -> None:
        self._ctx.metrics.error(self._dialect.word(error))
        self._send(self._dialect.refuse(self._state, error))
        if self._dialect.rules.over_code is not None:
            self._wire.close(1000)

    def _send(self, out: Sequence[Frame]) -> None:
        for frame in out:
            self._wire.send(frame)

    async def _take(self, intent: Intent, frames: Frames) -> None:
        session, leaving = self._sessions.choose(intent)
        for old in leaving:
            await self._holds.pop(old.name).leave()
        if isinstance(intent, Open):
            tenant = self._tenant if self._tenant_of is None else self._tenant_of(intent)
            hold = self._holds[session.name] = Hold(
                self._ctx,
                session,
                self._dialect,
                self._wire,
                params=intent.params,
                tenant=tenant,
                model=intent.model,
                promised=self._promised(),
                limited=self._limited,
                state=lambda: self._state,
            )
            await hold.open()
            return
        hold = self._holds[session.name]
        if hold.full:  # by what was taken at once
            await frames.until(hold.room(), self._wire)
        await hold.take(intent)
        if hold.full:
            await frames.until(hold.room(), self._wire)
        if not self._offered and isinstance(intent, Hear):
            self._offered = True
            if isinstance(self._wire, WebSocketWire):
                self._wire.offer_messages(self._at_once)

    def _at_once(self, frames: Sequence[Frame]) -> int:
        """Deal with ``frames`` here and now, as far as they are sound for one session that takes
        it without anything to wait for: together, as one piece of input. Anything else changes
        nothing, goes the ordinary way, and is answered there."""
        append_now, wire, state = self._append_now, self._wire, self._state
        if append_now is None or self._working or wire.closed:
            return 0
        if not isinstance(wire, WebSocketWire):
            return 0
        chunks: list[Hear] = []
        size = 0
        for frame in frames:
            size += len(frame)
            if size > AT_ONCE_BYTES:
                break
            try:
                next_state, intents = self._dialect.receive(state, frame)
            except Exception:  # noqa: BLE001 - met again on the ordinary way, which says what it is
                break
            intent = intents[0] if len(intents) == 1 else None
            if not isinstance(intent, Hear) or (chunks and intent.session != chunks[0].session):
                break
            chunks.append(intent)
            state = next_state
        hold = self._holds.get(chunks[0].session) if chunks else None
        if hold is None or not hold.take_at_once(chunks, append_now, wire.send_late):
            return 0
        self._state = state
        if len(self._holds) == 1:  # another session may wait for answers
            sound = chunks[0].sounds[0]
            wire.rest(sum(chunk.units for chunk in chunks) / sound.rate)
        return len(chunks)

    def _promised(self) -> bool:
        """Whether the connection gate kept a place for this, the connection's first job."""
        until, self._promised_until = self._promised_until, None
        return until is not None and self._ctx.clock() < until

    def drain(self) -> None:
        """The gateway is shutting down. Where another can take over, everybody is sent there
        with how far they are; else only who has nothing under way is sent away at once, and
        others end in their own time, or when the server's limit cuts them."""
        if self._wire.closed:
            return
        if self._ctx.hands_over:
            retry_after_ms = self._ctx.retry_after_ms()
            for hold in self._holds.values():
                hold.say_going_away(retry_after_ms)
            self._wire.close(1012, f"going away, retry_after_ms={retry_after_ms}")
        elif not self.busy:
            self._wire.close(1012, "going away")

    @property
    def busy(self) -> bool:
        """Whether a session would be lost here if its client left: one that waits, runs or
        pauses. Where another gateway takes over, none would."""
        if self._ctx.hands_over:
            return False
        return not all(hold.idle for hold in self._holds.values())

    def cut(self) -> None:
        """The time of a drain is over. A session that nobody takes over ends here, and its
        client hears so before the close, rather than at its next resume."""
        if self._ctx.hands_over or not self.busy:
            self.drain()
            return
        error = StateLost(
            "this server is shutting down: this session, not over within the "
            f"{self._ctx.options.drain_s:g} s that open sessions have at most (server.drain_s), "
            "ends unfinished. Begin a new one",
            reason="state_lost",
        )
        for hold in self._holds.values():
            if not hold.idle:
                about = About(session=hold.session.name, params={})
                self._ctx.metrics.error(self._dialect.word(error))
                self._send(self._dialect.answer(Failed(error, hold.session.seq), about))
        self._wire.close(1012, "going away")

    async def leave(self) -> None:
        """Give back every session: the client has gone, or was cut off. Never raises."""
        if isinstance(self._wire, WebSocketWire):
            self._wire.offer_messages(None)
        holds, self._holds = list(self._holds.values()), {}
        for hold in holds:
            await hold.leave()

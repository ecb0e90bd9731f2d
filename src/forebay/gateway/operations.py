"""``/send_operation``: a notebook front end's language operations, line by line.

Operations that a model answers are text jobs on the usual path (`gateway.calls`); the others
are answered at once. Leaving is cancel, unless the client asked for a handle: with the header
``X-Forebay-Stream`` in the request, the answer's header of that name is what to come back
with, at ``GET /send_operation/{stream}?after=ID``, and lines say their ``id``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

from forebay.core.events import Ended, OutputEvent
from forebay.core.kinds import Kind
from forebay.dialects import operations
from forebay.dialects.openai_common import Call
from forebay.dialects.operations import Composer, Operation
from forebay.errors import BadRequest, ForebayError, NotFound, Refused
from forebay.gateway.access import header
from forebay.gateway.batch import FlushRule
from forebay.gateway.calls import (
    CallOptions,
    Collector,
    Ident,
    Surface,
    answer_call,
    answer_job,
    read_body,
    request_id,
)
from forebay.gateway.context import GatewayContext
from forebay.gateway.responses import (
    JSON_TYPE,
    Headers,
    Receive,
    Scope,
    Send,
    reply,
    reply_error,
)
from forebay.gateway.routes import Route

__all__ = ["HEADERS", "ROUTES", "TooManyOperations", "UnknownOperation", "call_options"]

HEADERS: Headers = [
    (b"content-type", JSON_TYPE),
    (b"cache-control", b"no-cache, no-store, must-revalidate, proxy-revalidate"),
    (b"pragma", b"no-cache"),
    (b"expires", b"0"),
    (b"connection", b"keep-alive"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]
HANDLE = b"x-forebay-stream"
EXPOSE = (b"access-control-expose-headers", b"X-Forebay-Stream")
BODY_BYTES = 1024 * 1024


class TooManyOperations(Refused):
    """As many operations as may are under way."""

    code = "too_many_operations"


class UnknownOperation(BadRequest):
    code = "unknown_operation"


class _Operations(Surface):
    name = "operations"
    keepalive = b"\n"

    def parse(self, body: bytes) -> Call:
        return operations.as_call(operations.parse(body), {})

    def events(self, call: Call) -> bool:
        return True

    def headers(self, call: Call) -> Headers:
        return HEADERS

    def facts(self, call: Call, ident: Ident) -> Headers:
        job = (b"x-forebay-job", ident.job.encode())
        if not call.request.handle:
            return [job]
        return [job, (HANDLE, ident.job.encode()), EXPOSE]

    def opening(self, call: Call, ident: Ident) -> Sequence[bytes]:
        return [b"".join(Composer(call.request).begin())]

    def encoder(self, call: Call, ident: Ident) -> Callable[[OutputEvent], Sequence[bytes]]:
        composer = Composer(call.request)
        composer.begin()  # what the opening says counts

        def encode(event: OutputEvent) -> Sequence[bytes]:
            if isinstance(event, Ended):
                composer.timing = ident.timing()
            lines = composer.take(event)
            return lines if len(lines) < 2 else [b"".join(lines)]

        return encode

    def collector(self, call: Call, ident: Ident) -> Collector:
        raise TypeError("operations are always streamed")

    def timed(self, timing: bytes) -> Sequence[bytes]:
        return ()  # the closing line has it

    def broken(self, call: Call, error: ForebayError, request_id: str) -> Sequence[bytes]:
        return Composer(replace(call.request, handle=False)).close(error)

    async def refuse(
        self,
        send: Send,
        error: ForebayError,
        request_id: str,
        call: Call | None = None,
        headers: Headers | None = None,
    ) -> None:
        """What cannot be read is refused by status; what can is answered in its own words."""
        if call is None:
            await reply_error(send, error, request_id, headers or [], "message")
            return
        await _say(send, call.request, error)


_surface = _Operations()


def call_options(ctx: GatewayContext) -> CallOptions:
    """How operations are answered, as settled."""
    wanted = ctx.operations
    return CallOptions(
        body_bytes=BODY_BYTES,
        hold_head_s=0,
        keepalive_s=wanted.heartbeat_s,
        flush=FlushRule(
            interval_s=wanted.flush_interval_ms / 1000,
            items=wanted.flush_items,
            cap=wanted.flush_cap,
        ),
    )


async def send_operation(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /send_operation``."""
    begun, send = ctx.clock(), _honest(scope, send)
    try:
        async with _counted(ctx):
            body = await read_body(receive, BODY_BYTES)
            if body is None:
                return
            op = replace(operations.parse(body), handle=header(scope, HANDLE) is not None)
            await _operate(scope, receive, send, ctx, op, begun)
    except ForebayError as error:
        await _surface.refuse(send, error, request_id(scope))


async def _operate(
    scope: Scope, receive: Receive, send: Send, ctx: GatewayContext, op: Operation, begun: float
) -> None:
    if op.type not in operations.ASKS:
        known = op.type in operations.KNOWN
        error = None if known else UnknownOperation(f"no operation is called {op.type!r}")
        await _say(send, op, error)
        return
    try:
        call = operations.as_call(op, {})
    except ForebayError as error:
        await _say(send, op, error)
        return
    if op.handle:
        call = replace(call, detach_s=ctx.rows[Kind.TEXT].detach_s)
    await answer_call(scope, receive, send, ctx, _surface, call_options(ctx), call, begun)


async def come_back(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /send_operation/{stream}``: the lines after the one the client has."""
    begun, send = ctx.clock(), _honest(scope, send)
    try:
        async with _counted(ctx):
            job, after = scope["path_params"]["stream"], _position(scope)
            view = await ctx.broker.status(job)
            if view.spec.tenant != scope["forebay.tenant"] or view.spec.dialect != _surface.name:
                raise NotFound("no stream of that name")
            op = operations.of_params(view.spec.params, after=after)
            call = Call(kind=Kind.TEXT, model=None, params={}, items=(), stream=True, request=op)
            options = call_options(ctx)
            await answer_job(scope, receive, send, ctx, _surface, options, call, job, begun)
    except ForebayError as error:
        await _surface.refuse(send, error, request_id(scope))


def _honest(scope: Scope, send: Send) -> Send:
    """``send`` that does not promise to keep a connection which its client will close."""
    asked = (header(scope, b"connection") or "").lower()
    if "close" not in asked and scope.get("http_version") != "1.0":
        return send

    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kept = [pair for pair in message["headers"] if pair[0] != b"connection"]
            message = {**message, "headers": kept}
        await send(message)

    return sent


def _position(scope: Scope) -> int:
    said = header(scope, b"last-event-id")
    if not said:
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=50)
        said = query.get("after", ["0"])[-1]
    if not said.isascii() or not said.isdigit() or len(said) > 12:
        raise BadRequest(f"after is {said[:20]!r}, expected the id of a line")
    return int(said)


async def _say(send: Send, op: Operation, error: ForebayError | None) -> None:
    """The whole answer of an operation that no model was asked about."""
    composer = Composer(op)
    lines = [*composer.begin(), *composer.close(error)]
    await reply(send, 200, b"".join(lines), HEADERS)


@asynccontextmanager
async def _counted(ctx: GatewayContext) -> AsyncIterator[None]:
    """Hold one of the places that operations share. Raises `TooManyOperations`."""
    under_way, limit = ctx.under_way["operations"], ctx.operations.concurrency
    if under_way >= limit:
        raise TooManyOperations(
            f"{under_way} operations under way, expected no more than {limit}",
            retry_after_s=1.0,
        )
    ctx.under_way["operations"] += 1
    try:
        yield
    finally:
        ctx.under_way["operations"] -= 1


ROUTES = [
    Route(
        method="POST",
        path="/send_operation",
        handler=send_operation,
        needs="submit",
        works=True,
        body_bytes=BODY_BYTES,
        errors="message",
    ),
    Route(
        method="GET",
        path="/send_operation/{stream}",
        handler=come_back,
        needs="read",
        errors="message",
    ),
]

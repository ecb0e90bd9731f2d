"""One HTTP request, one job, one answer: the path every plain HTTP call takes.

A `Surface` says how a wire protocol reads its request and words its answer; everything else
is the same for all: body, pool, submit, delivery, errors, and the client that goes away,
which is a cancel unless the call gave its client a handle to come back with (``detach_s``).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
import structlog

from forebay.broker import Attachment
from forebay.core.events import InputItem
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec, PoolView
from forebay.dialects.openai_common import Call
from forebay.errors import ForebayError, TooLarge
from forebay.gateway.beside import drop_beside, set_beside
from forebay.gateway.context import GatewayContext
from forebay.gateway.delivery import Delivery
from forebay.gateway.responses import Receive, Scope, Send
from forebay.gateway.surfaces import (
    CallOptions,
    Collector,
    Ident,
    Surface,
    refuse,
    request_id,
)

__all__ = [
    "CallOptions",
    "Collector",
    "Ident",
    "Surface",
    "answer_call",
    "answer_job",
    "job_spec",
    "read_body",
    "refuse",
    "request_id",
    "serve_call",
]

log = structlog.get_logger(__name__)


async def serve_call(
    scope: Scope,
    receive: Receive,
    send: Send,
    ctx: GatewayContext,
    surface: Surface,
    options: CallOptions,
    *,
    detach_s: float = 0.0,
) -> None:
    """Answer one request, whole. Never raises for what a client or a model did.

    Cancelling this cancels the job. ``detach_s``: how long a streamed answer outlives its
    client; 0 makes leaving a cancel."""
    begun = ctx.clock()
    try:
        body = await read_body(receive, options.body_bytes)
        if body is None:
            return
        call = surface.parse(body)
        if call.stream and detach_s:
            call = replace(call, detach_s=detach_s)
    except ForebayError as error:
        await surface.refuse(send, error, request_id(scope))
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
        spec = job_spec(scope, ctx, surface, call)
        for item in call.items:
            items.append(await set_beside(ctx.blobs, item, spec.tenant))
        asked = ctx.clock()
        view = await ctx.broker.submit(spec, items, gateway=ctx.gateway_id)
    except ForebayError as error:
        drop_beside(ctx.blobs, items)
        await surface.refuse(send, error, request, call)
        return
    ctx.audio.begun(view)
    answer = Delivery(ctx, surface, call, view, send, begun, request, options, asked=asked)
    hold = None
    try:
        if call.detach_s:
            hold = await ctx.broker.attach(view.spec.id, gateway=ctx.gateway_id, write=False)
        await answer.run(scope, receive)
    finally:
        await _leave(ctx, view.spec.id, hold, over=answer.over)
        drop_beside(ctx.blobs, items)


async def answer_job(
    scope: Scope,
    receive: Receive,
    send: Send,
    ctx: GatewayContext,
    surface: Surface,
    options: CallOptions,
    call: Call,
    job: str,
    begun: float,
) -> None:
    """Answer with the output of a job that is there already, live or over, from its beginning;
    the surface's encoder leaves out what the client has. Leaving only detaches."""
    request = request_id(scope)
    try:
        hold = await ctx.broker.attach(job, gateway=ctx.gateway_id, write=False)
    except ForebayError as error:
        await surface.refuse(send, error, request, call)
        return
    answer = Delivery(ctx, surface, call, hold.view, send, begun, request, options)
    try:
        await answer.run(scope, receive)
    finally:
        await _leave(ctx, job, hold, over=answer.over)


def job_spec(scope: Scope, ctx: GatewayContext, surface: Surface, call: Call) -> JobSpec:
    """The job of a call. Raises `ModelNotFound` and `NoWorkers`."""
    pool = ctx.pool_view(call.kind, call.model or "")
    spec = ctx.spec(
        call.kind,
        call.params,
        tenant=scope.get("forebay.tenant", "local"),
        dialect=surface.name,
        pool=pool.name,
        detach_s=call.detach_s,
        cost_s=_cost_s(call, pool),
    )
    if call.durable:
        spec = msgspec.structs.replace(spec, durable=True)
    if call.run_s is not None:
        limits = msgspec.structs.replace(spec.deadlines, run_s=call.run_s)
        spec = msgspec.structs.replace(spec, deadlines=limits)
    return spec


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


def _cost_s(call: Call, pool: PoolView) -> float:
    """Model seconds this will probably take: what fairness counts."""
    if call.kind is Kind.RECOGNITION:
        return max(0.05, call.units / 16_000 * (0.3 if pool.rtf is None else pool.rtf))
    if call.kind is Kind.SPEECH:
        return max(0.05, call.units * 0.08 * (0.3 if pool.rtf is None else pool.rtf))
    return 1.0 if pool.service_s is None else max(0.05, pool.service_s)


async def _leave(ctx: GatewayContext, job: str, hold: Attachment | None, *, over: bool) -> None:
    """The client is served or gone: give the job back, or cancel it where nobody can return."""
    if over and hold is None:
        return
    leaving = ctx.hub.spawn(_cancel(ctx, job) if hold is None else _detach(ctx, hold))
    if leaving is not None:
        await asyncio.shield(leaving)


async def _cancel(ctx: GatewayContext, job: str) -> None:
    try:
        await ctx.broker.cancel(job, reason="client gone")
    except ForebayError as error:
        log.info("cancel.not_taken", job=job, code=error.code)


async def _detach(ctx: GatewayContext, hold: Attachment) -> None:
    try:
        await ctx.hub.flush_delivered()
        await ctx.broker.detach(hold)
    except ForebayError as error:
        log.info("detach.not_taken", job=hold.job, code=error.code)

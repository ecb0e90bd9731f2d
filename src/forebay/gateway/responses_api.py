"""``/v1/responses``: OpenAI's Responses on the same path as every plain call.

With ``background`` the answer goes on without its client, survives the gateway's process
(where it has a journal), and is read again at any time, from any position, by any connection
of its tenant, until its window after the end has passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from urllib.parse import parse_qs

from forebay.core.events import OutputEvent
from forebay.core.kinds import Kind
from forebay.core.spec import BY_CLIENT, JobView
from forebay.dialects import openai_responses
from forebay.dialects.openai_common import Call
from forebay.dialects.openai_responses import Encoder, Response
from forebay.errors import BadRequest, ForebayError, NotFound
from forebay.gateway.access import header
from forebay.gateway.calls import (
    CallOptions,
    Collector,
    Ident,
    Surface,
    answer_call,
    answer_job,
    job_spec,
    read_body,
    refuse,
    request_id,
)
from forebay.gateway.context import GatewayContext
from forebay.gateway.responses import JSON_TYPE, Headers, Receive, Scope, Send, reply_json
from forebay.gateway.routes import Route
from forebay.gateway.sse import SSE_HEADERS, own_job

__all__ = ["ROUTES"]

OPTIONS = CallOptions()
AT_ONCE = CallOptions(hold_head_s=0)
"""For a response that has a name: how it ends is an event of its stream, never a status."""
PAGE = 256


class _Responses(Surface):
    name = "openai-responses"

    def parse(self, body: bytes) -> Call:
        return openai_responses.parse(body, int(time.time()))

    def events(self, call: Call) -> bool:
        return True

    def headers(self, call: Call) -> Headers:
        if call.stream:
            return SSE_HEADERS
        return [(b"content-type", JSON_TYPE), (b"cache-control", b"no-store")]

    def opening(self, call: Call, ident: Ident) -> Sequence[bytes]:
        return [b"".join(self._encoder(call, ident).opening())]

    def encoder(self, call: Call, ident: Ident) -> Callable[[OutputEvent], Sequence[bytes]]:
        return self._encoder(call, ident).encode

    def collector(self, call: Call, ident: Ident) -> Collector:
        return self._response(call, ident)

    def _encoder(self, call: Call, ident: Ident) -> Encoder:
        return Encoder(self._response(call, ident), call.after - 1)

    def _response(self, call: Call, ident: Ident) -> Response:
        kept = call.params["response"]
        return Response(job=ident.job, model=ident.model, kept=kept, state="running")


_surface = _Responses()


async def create(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /v1/responses``."""
    begun = ctx.clock()
    try:
        body = await read_body(receive, OPTIONS.body_bytes)
        if body is None:
            return
        call = _surface.parse(body)
        if not call.durable:
            await answer_call(scope, receive, send, ctx, _surface, OPTIONS, call, begun)
            return
        text = ctx.rows[Kind.TEXT]
        call = replace(call, detach_s=text.queue_s + (text.run_s or 0.0))
        if call.stream:
            await answer_call(scope, receive, send, ctx, _surface, AT_ONCE, call, begun)
            return
        view = await ctx.broker.submit(job_spec(scope, ctx, _surface, call), call.items)
        await reply_json(send, _of(view).object())
    except ForebayError as error:
        await refuse(send, error, request_id(scope))


async def retrieve(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /v1/responses/{id}``: as it stands, or its events from where the client is."""
    begun = ctx.clock()
    try:
        view = await _found(scope, ctx)
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=50)
        if query.get("stream", ["false"])[-1].lower() not in ("true", "1"):
            await reply_json(send, (await _read(ctx, view)).object())
            return
        call = Call(
            kind=Kind.TEXT,
            model=view.spec.pool.partition("/")[2],
            params=view.spec.params,
            items=(),
            stream=True,
            request=None,
            after=_position(scope, query) + 1,
        )
        await answer_job(scope, receive, send, ctx, _surface, AT_ONCE, call, view.spec.id, begun)
    except ForebayError as error:
        await refuse(send, error, request_id(scope))


async def cancel(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /v1/responses/{id}/cancel``. One that is over stays as it ended."""
    try:
        view = await _found(scope, ctx)
        view = await ctx.broker.cancel(view.spec.id, reason=BY_CLIENT)
        await reply_json(send, (await _read(ctx, view)).object())
    except ForebayError as error:
        await refuse(send, error, request_id(scope))


async def delete(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``DELETE /v1/responses/{id}``: stops it if it runs; no gateway knows it any more."""
    try:
        view = await _found(scope, ctx)
        await ctx.broker.cancel(view.spec.id, reason=BY_CLIENT)
        await ctx.broker.forget(view.spec.id)
        response = _of(view)
        await reply_json(send, {"id": response.id, "object": "response", "deleted": True})
    except ForebayError as error:
        await refuse(send, error, request_id(scope))


async def _found(scope: Scope, ctx: GatewayContext) -> JobView:
    """The job of a response of this tenant. Raises `NotFound`."""
    job = openai_responses.job_of(scope["path_params"]["id"])
    view = await own_job(ctx, scope["forebay.tenant"], job)
    if view.spec.dialect != _surface.name:
        raise NotFound(f"no response {job[:32]}")
    return view


def _of(view: JobView) -> Response:
    return Response(
        job=view.spec.id,
        model=view.spec.pool.partition("/")[2],
        kept=view.spec.params["response"],
        state=view.state,
    )


async def _read(ctx: GatewayContext, view: JobView) -> Response:
    """The response as far as it has come. Raises `ResumeNotAvailable` where its beginning is
    not kept any more."""
    response, at = _of(view), 0
    while events := await ctx.broker.read_after(view.spec.id, at, epoch=view.epoch, limit=PAGE):
        for event in events:
            response.take(event)
        at = events[-1].offset
    return response


def _position(scope: Scope, query: dict[str, list[str]]) -> int:
    """The last ``sequence_number`` the client has, -1 for none."""
    said = query.get("starting_after", [""])[-1] or header(scope, b"last-event-id") or ""
    if not said:
        return -1
    if not said.isascii() or not said.isdigit() or len(said) > 12:
        raise BadRequest(
            f"starting_after is {said[:20]!r}, expected a sequence number", param="starting_after"
        )
    return int(said)


ROUTES = [
    Route(method="POST", path="/v1/responses", handler=create, needs="submit", works=True),
    Route(method="GET", path="/v1/responses/{id}", handler=retrieve, needs="read"),
    Route(method="POST", path="/v1/responses/{id}/cancel", handler=cancel, needs="cancel"),
    Route(method="DELETE", path="/v1/responses/{id}", handler=delete, needs="cancel"),
]

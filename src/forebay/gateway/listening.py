"""Recognition over our own WebSocket and over OpenAI's upload: the handlers and their routes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from forebay.core.events import OutputEvent
from forebay.core.kinds import Kind
from forebay.dialects import openai_transcribe
from forebay.dialects.listen import ListenDialect
from forebay.dialects.openai_common import Call
from forebay.dialects.openai_transcribe import Request
from forebay.errors import ForebayError, TooLarge
from forebay.gateway.access import header
from forebay.gateway.auth import port_of
from forebay.gateway.calls import (
    CallOptions,
    Collector,
    Ident,
    Surface,
    answer_call,
    read_body,
    refuse,
    request_id,
)
from forebay.gateway.connection import serve_websocket
from forebay.gateway.context import GatewayContext
from forebay.gateway.forms import parse_form
from forebay.gateway.responses import Headers, Receive, Scope, Send
from forebay.gateway.routes import Route

__all__ = ["FILE_BYTES", "ROUTES", "listen", "transcriptions"]

FILE_BYTES = 25 * 1024 * 1024
"""The largest file taken for transcription, as OpenAI has it."""
FORM_BYTES = FILE_BYTES + 256 * 1024
"""The same with the other parts of the form."""
IN_LOOP_BYTES = 256 * 1024
"""A form up to this is read in the loop, a larger one in a thread."""
_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-store"),
    (b"x-accel-buffering", b"no"),
]


async def listen(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """`/v1/listen`."""
    dialect = ListenDialect(new_session=ctx.new_id(), ttl_s=ctx.rows[Kind.RECOGNITION].detach_s)
    await serve_websocket(
        scope,
        receive,
        send,
        ctx,
        dialect,
        tenant=scope["forebay.tenant"],
        first_message_s=ctx.options.first_message_s,
    )


# ---------------------------------------------------------------------- transcriptions


class _Transcriptions(Surface):
    name = "openai-transcriptions"

    def parse(self, body: bytes) -> Call:
        raise TypeError("a form is parsed with its content type, by `transcriptions`")

    def events(self, call: Call) -> bool:
        return True

    def headers(self, call: Call) -> Headers:
        wanted: Request = call.request
        head = list(_STREAM_HEADERS)
        if not call.stream:
            media = openai_transcribe.MEDIA_TYPES[wanted.form]
            head = [(b"content-type", media), (b"cache-control", b"no-store")]
        if wanted.ignored:
            head.append((b"x-forebay-ignored", ", ".join(wanted.ignored).encode()))
        return head

    def encoder(self, call: Call, ident: Ident) -> Callable[[OutputEvent], Sequence[bytes]]:
        return openai_transcribe.encode_event

    def collector(self, call: Call, ident: Ident) -> Collector:
        return openai_transcribe.Whole(call.request)


_transcriptions = _Transcriptions()
_OPTIONS = CallOptions(body_bytes=FORM_BYTES)


def _parse(content_type: str, body: bytes) -> Call:
    form = parse_form(content_type, body)
    file = form.files.get("file")
    if file is not None and len(file.data) > FILE_BYTES:
        raise TooLarge(
            f"file has {len(file.data)} bytes, expected no more than {FILE_BYTES}",
            param="file",
            limit_bytes=FILE_BYTES,
        )
    return openai_transcribe.parse(form.fields, None if file is None else file.data)


async def transcriptions(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /v1/audio/transcriptions``."""
    begun, tenant = ctx.clock(), scope["forebay.tenant"]
    limited = ctx.auth.limits(port_of(scope))
    try:
        if limited:
            await ctx.audio.admit(tenant)
        body = await read_body(receive, FORM_BYTES)
        if body is None:
            return
        content_type = header(scope, b"content-type") or ""
        if len(body) <= IN_LOOP_BYTES:
            call = _parse(content_type, body)
        else:
            call = await asyncio.to_thread(_parse, content_type, body)
        if limited:
            left = await ctx.audio.allowance(tenant)
            call = replace(call, params={**call.params, **left})
    except ForebayError as error:
        await refuse(send, error, request_id(scope))
        return
    del body  # 25 MiB that need not wait for the model
    await answer_call(scope, receive, send, ctx, _transcriptions, _OPTIONS, call, begun)


ROUTES = [
    Route(
        method="WEBSOCKET",
        path="/v1/listen",
        handler=listen,
        needs="submit",
        works=True,
        serves=(Kind.RECOGNITION, ListenDialect.name),
    ),
    Route(
        method="POST",
        path="/v1/audio/transcriptions",
        handler=transcriptions,
        needs="submit",
        works=True,
        body_bytes=FORM_BYTES,
    ),
]

"""The OpenAI surfaces as bare ASGI handlers, and the routes that mount them.

Who may call is decided before a handler runs; the tenant is in ``scope["forebay.tenant"]``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from forebay.core.events import OutputEvent
from forebay.core.kinds import Kind
from forebay.dialects import openai_chat, openai_models, openai_speech
from forebay.dialects.job_events import position_id
from forebay.dialects.openai_common import Call
from forebay.errors import ForebayError
from forebay.gateway.access import header
from forebay.gateway.calls import (
    CallOptions,
    Collector,
    Ident,
    Surface,
    refuse,
    request_id,
    serve_call,
)
from forebay.gateway.context import GatewayContext
from forebay.gateway.responses import (
    JSON_TYPE,
    Headers,
    Receive,
    Scope,
    Send,
    reply,
    reply_json,
)

__all__ = [
    "ROUTES",
    "Handler",
    "audio_speech",
    "chat_completions",
    "health",
    "models",
    "one_model",
]

DEFAULTS = CallOptions()
_STREAM_HEADERS: Headers = [
    (b"cache-control", b"no-cache, no-store"),
    (b"x-accel-buffering", b"no"),
]


Handler = Callable[[Scope, Receive, Send, GatewayContext], Awaitable[None]]


class _Chat(Surface):
    name = "openai-chat"

    def parse(self, body: bytes) -> Call:
        return openai_chat.parse(body)

    def events(self, call: Call) -> bool:
        return True

    def headers(self, call: Call) -> Headers:
        if not call.stream:
            return [(b"content-type", JSON_TYPE), (b"cache-control", b"no-store")]
        return [(b"content-type", b"text/event-stream; charset=utf-8"), *_STREAM_HEADERS]

    def encoder(self, call: Call, ident: Ident) -> Callable[[OutputEvent], Sequence[bytes]]:
        options = call.request.stream_options
        encode = openai_chat.ChunkEncoder(
            id=f"chatcmpl-{ident.job}",
            created=ident.created,
            model=ident.model,
            include_usage=options is not None and options.include_usage,
        ).encode
        if not call.detach_s:
            return encode

        def placed(event: OutputEvent) -> Sequence[bytes]:
            frames = list(encode(event))
            if frames:  # only the last has the position: who got a part gets all of it again
                where = position_id(ident.epoch, event.offset).encode()
                frames[-1] = b"id: " + where + b"\n" + frames[-1]
            return frames

        return placed

    def collector(self, call: Call, ident: Ident) -> Collector:
        return _WholeChat(ident)


class _WholeChat(openai_chat.Whole):
    def __init__(self, ident: Ident) -> None:
        super().__init__()
        self._ident = ident

    def body(self) -> bytes:
        ident = self._ident
        return self.completion(id=f"chatcmpl-{ident.job}", created=ident.created, model=ident.model)


class _Speech(Surface):
    name = "openai-speech"

    def parse(self, body: bytes) -> Call:
        return openai_speech.parse(body)

    def events(self, call: Call) -> bool:
        return bool(call.request.stream_format == "sse")

    def headers(self, call: Call) -> Headers:
        media = openai_speech.media_type(call.request, streamed=call.stream)
        return [(b"content-type", media), *_STREAM_HEADERS]

    def encoder(self, call: Call, ident: Ident) -> Callable[[OutputEvent], Sequence[bytes]]:
        return openai_speech.PieceEncoder(call.request).encode

    def collector(self, call: Call, ident: Ident) -> Collector:
        return openai_speech.Whole(call.request)


_chat, _speech = _Chat(), _Speech()


async def chat_completions(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """With the header ``X-Forebay-Stream`` leaving is not a cancel, and the stream says
    positions to come back with, at ``/v1/jobs/{job}/events``."""
    handled = header(scope, b"x-forebay-stream") is not None
    detach_s = ctx.rows[Kind.TEXT].detach_s if handled else 0.0
    await serve_call(scope, receive, send, ctx, _chat, DEFAULTS, detach_s=detach_s)


async def audio_speech(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    await serve_call(scope, receive, send, ctx, _speech, DEFAULTS)


async def models(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    await reply_json(send, openai_models.models(ctx.broker.pools(), _created(ctx)))


async def one_model(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /v1/models/NAME``; names of models often contain a slash."""
    name = str(scope["path"]).partition("/models/")[2]
    try:
        found = openai_models.one_model(ctx.broker.pools(), name, _created(ctx))
    except ForebayError as error:
        await refuse(send, error, request_id(scope))
        return
    await reply_json(send, found)


def _created(ctx: GatewayContext) -> int:
    return int(ctx.started_at.timestamp())


async def health(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """A model server's: empty, 200 once a text model can answer, 503 while none can."""
    ready = any(pool.ready for pool in ctx.broker.pools() if pool.kind == "text")
    await reply(send, 200 if ready else 503)


ROUTES: list[tuple[tuple[str, ...], str, Handler]] = [
    (("POST",), "/v1/chat/completions", chat_completions),
    (("POST",), "/v1/audio/speech", audio_speech),
    (("GET",), "/v1/models", models),
    (("GET",), "/v1/models/{model:path}", one_model),
]

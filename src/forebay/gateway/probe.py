"""What `forebay doctor --url` asks to learn what lies between it and the gateway.

``GET /api/probe/stream?n=8&every_ms=100``: ``n`` lines, ``every_ms`` apart, each with the
time at which it was written; what arrives in one clump was held back on the way. The first
line also says what the gateway saw of the request and which headers it sent. ``bare=1``
leaves out the headers that forbid proxies to hold a stream back; ``form=sse`` words it as
server-sent events. WebSocket ``/api/probe/socket``: ``{"silent_ms": N}`` is answered after so
long, between the usual pings. Nothing here touches a job.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

import msgspec

from forebay.errors import BadRequest, Refused
from forebay.gateway.access import header
from forebay.gateway.connection import Frames, accepted_wire
from forebay.gateway.context import GatewayContext
from forebay.gateway.responses import JSON_TYPE, Headers, Receive, Scope, Send
from forebay.gateway.routes import Route

__all__ = ["LIMIT_MS", "MAX_LINES", "ROUTES", "TooManyProbes"]

MAX_LINES = 64
LIMIT_MS = 600_000
"""No probe takes longer, whatever is asked."""
MAX_PROBES = 16
_HELD = [
    (b"cache-control", b"no-cache, no-store, must-revalidate"),
    (b"x-accel-buffering", b"no"),
]
_TYPES = {"lines": JSON_TYPE, "sse": b"text/event-stream; charset=utf-8"}


class TooManyProbes(Refused):
    """As many probes as may are under way."""

    code = "too_many_probes"


@asynccontextmanager
async def _counted(ctx: GatewayContext) -> AsyncIterator[None]:
    if ctx.under_way["probes"] >= MAX_PROBES:
        raise TooManyProbes(
            f"{MAX_PROBES} probes under way, expected no more than {MAX_PROBES}", retry_after_s=5.0
        )
    ctx.under_way["probes"] += 1
    try:
        yield
    finally:
        ctx.under_way["probes"] -= 1


def _whole(said: str, name: str, low: int, high: int) -> int:
    if not said.isascii() or not said.isdigit() or not low <= int(said[:9]) <= high:
        raise BadRequest(f"{name} is {said[:20]!r}, expected {low}..{high}", param=name)
    return int(said[:9])


def _plan(scope: Scope) -> tuple[int, int, bool, str]:
    """Lines, milliseconds between them, whether bare, and the form."""
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=20)
    lines = _whole(query.get("n", ["8"])[-1], "n", 1, MAX_LINES)
    every_ms = _whole(query.get("every_ms", ["100"])[-1], "every_ms", 0, LIMIT_MS)
    if (lines - 1) * every_ms > LIMIT_MS:
        took_ms = (lines - 1) * every_ms
        raise BadRequest(f"the probe would take {took_ms} ms, expected no more than {LIMIT_MS}")
    form = query.get("form", ["lines"])[-1]
    if form not in _TYPES:
        raise BadRequest(f"form is {form[:20]!r}, expected lines or sse", param="form")
    return lines, every_ms, query.get("bare", ["0"])[-1] == "1", form


def _said(form: str, line: dict[str, Any]) -> bytes:
    body = msgspec.json.encode(line)
    return b"data: " + body + b"\n\n" if form == "sse" else body + b"\n"


def _facts(scope: Scope, ctx: GatewayContext, sent: Headers) -> dict[str, Any]:
    """What only this side knows: how the request came, and what was answered."""
    return {
        "http": scope.get("http_version", ""),
        "host": (header(scope, b"host") or "")[:200],
        "forwarded": header(scope, b"x-forwarded-for") is not None,
        "sent": {name.decode(): value.decode() for name, value in sent},
        "heartbeat_s": ctx.operations.heartbeat_s,
        "ping_s": ctx.options.ping_s,
    }


async def stream(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/probe/stream``."""
    begun = time.monotonic()
    lines, every_ms, bare, form = _plan(scope)
    async with _counted(ctx):
        sent = [(b"content-type", _TYPES[form]), *([] if bare else _HELD)]
        await send({"type": "http.response.start", "status": 200, "headers": sent})
        wire, over = scope["forebay.wire"], asyncio.Event()
        stop = ctx.on_drain(over.set)
        watch = asyncio.create_task(_until_gone(receive, over))
        try:
            for number in range(1, lines + 1):
                if number > 1 and await _pause(over, every_ms / 1000):
                    break
                line: dict[str, Any] = {"n": number, "of": lines}
                if number == 1:
                    line |= _facts(scope, ctx, sent)
                line["at_ms"] = round((time.monotonic() - begun) * 1000, 3)
                wire.send(_said(form, line))
            wire.close()
        finally:
            stop()
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)


async def _pause(over: asyncio.Event, seconds: float) -> bool:
    """Wait; True when it is over before that."""
    try:
        async with asyncio.timeout(seconds):
            await over.wait()
    except TimeoutError:
        return False
    return True


async def _until_gone(receive: Receive, over: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    over.set()


async def socket(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """WebSocket ``/api/probe/socket``: one question, one answer, closed."""
    async with _counted(ctx), AsyncExitStack() as stack:
        wire = await accepted_wire(stack, scope, receive, send)
        if wire is None:
            return
        frames = Frames(receive)
        stack.push_async_callback(frames.close)
        stack.callback(ctx.on_drain(lambda: wire.close(1012, "going away")))
        try:
            async with asyncio.timeout(ctx.options.first_message_s):
                asked = await frames.next()
        except TimeoutError:
            wire.close(4408, "no message in time")
            return
        if asked is None:
            return
        try:
            question = msgspec.json.decode(asked, type=_Silence)
        except (msgspec.DecodeError, msgspec.ValidationError):
            wire.close(4400, "expected silent_ms")
            return
        if question.silent_ms > LIMIT_MS or question.silent_ms < 0:
            wire.close(4400, f"silent_ms is {question.silent_ms}, expected 0..{LIMIT_MS}")
            return
        await frames.until(asyncio.sleep(question.silent_ms / 1000), wire)
        wire.send(msgspec.json.encode({"silent_ms": question.silent_ms}).decode())
        wire.close(1000)


class _Silence(msgspec.Struct):
    silent_ms: int


ROUTES = [
    Route(method="GET", path="/api/probe/stream", handler=stream, needs="read"),
    Route(method="WEBSOCKET", path="/api/probe/socket", handler=socket, needs="read"),
]

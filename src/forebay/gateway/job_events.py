"""`/v1/jobs/{id}/events` and `/v1/jobs/{id}/ws`: any job's events, of whatever kind.

Its own tenant reads them, from any connection, as often as it likes, from any position that
is still kept. `gateway.sse` does the work; the words are `dialects.job_events.JobWords`.
"""

from __future__ import annotations

from forebay.dialects.job_events import JobWords
from forebay.gateway.context import GatewayContext
from forebay.gateway.responses import Receive, Scope, Send
from forebay.gateway.routes import Route
from forebay.gateway.sse import own_job, serve_events, serve_events_socket

__all__ = ["ROUTES"]

_WORDS = JobWords()


async def events(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /v1/jobs/{id}/events``: server-sent events."""
    view = await own_job(ctx, scope["forebay.tenant"], scope["path_params"]["id"])
    await serve_events(scope, receive, send, ctx, view, _WORDS)


async def socket(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``/v1/jobs/{id}/ws``: the same over a WebSocket."""
    view = await own_job(ctx, scope["forebay.tenant"], scope["path_params"]["id"])
    await serve_events_socket(scope, receive, send, ctx, view, _WORDS)


ROUTES = [
    Route(method="GET", path="/v1/jobs/{id}/events", handler=events, needs="read"),
    Route(method="WEBSOCKET", path="/v1/jobs/{id}/ws", handler=socket, needs="read"),
]

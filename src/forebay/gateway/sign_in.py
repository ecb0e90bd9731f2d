"""Signing in to the console with a key, for gateways that demand one.

``POST /api/session`` with ``Authorization: Bearer KEY`` keeps the key in a cookie that no
script can read, so that pages, their sockets and their pictures are let in; ``DELETE`` forgets
it. What the cookie is worth, and where, says `auth`.
"""

from __future__ import annotations

from forebay.gateway.access import header
from forebay.gateway.auth import COOKIE, PUBLIC, Principal, bearer, port_of
from forebay.gateway.context import GatewayContext
from forebay.gateway.responses import Headers, Receive, Scope, Send, reply_json
from forebay.gateway.routes import Route

__all__ = ["ROUTES", "sign_in", "sign_out"]


def _cookie(scope: Scope, value: str, life: str) -> Headers:
    """Until the browser is closed, unless ``life`` says otherwise. A proxy that ends TLS says
    so, and the cookie is then for TLS alone."""
    parts = [f"{COOKIE}={value}", "Path=/", "HttpOnly", "SameSite=Strict", life]
    if scope.get("scheme") == "https" or header(scope, b"x-forwarded-proto") == "https":
        parts.append("Secure")
    text = "; ".join(part for part in parts if part)
    return [(b"set-cookie", text.encode("latin-1")), (b"cache-control", b"no-store")]


async def sign_in(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """Where no key is demanded there is nothing to keep, and none is."""
    principal: Principal = scope["forebay.principal"]
    key = bearer(scope)
    kept = key is not None and ctx.auth.demands_key(port_of(scope))
    facts = {"signed_in": kept, "tenant": principal.tenant, "scopes": sorted(principal.scopes)}
    headers = _cookie(scope, key, "") if kept and key is not None else []
    await reply_json(send, facts, 200, headers)


async def sign_out(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    await reply_json(send, {"signed_in": False}, 200, _cookie(scope, "", "Max-Age=0"))


ROUTES = [
    Route(
        method="POST",
        path="/api/session",
        handler=sign_in,
        needs="read",
        on=frozenset({"main"}),
    ),
    Route(
        method="DELETE",
        path="/api/session",
        handler=sign_out,
        needs=PUBLIC,
        on=frozenset({"main"}),
    ),
]

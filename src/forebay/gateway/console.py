"""The console's own files: read once, served with headers that let nothing else in.

Everything under ``web/`` is at ``/static/<name>``, and ``index.html`` is the page itself.
No page of ours has inline script or style, loads from elsewhere, or may be framed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from forebay.errors import NotFound
from forebay.gateway.access import header
from forebay.gateway.context import GatewayContext
from forebay.gateway.responses import Headers, Receive, Scope, Send, reply

__all__ = ["PAGE_HEADERS", "named_page", "page", "pools_page", "static"]

WEB = Path(__file__).parent / "web"
TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".mjs": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".png": b"image/png",
    ".ico": b"image/x-icon",
    ".json": b"application/json",
    ".woff2": b"font/woff2",
    ".txt": b"text/plain; charset=utf-8",
    ".wasm": b"application/wasm",
}
PAGE_HEADERS: Headers = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        b"font-src 'self'; media-src 'self' blob:; connect-src 'self'; worker-src 'self'; "
        b"manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(self)"),
    (b"cache-control", b"no-cache"),
]


@dataclass(frozen=True, slots=True)
class _File:
    type: bytes
    body: bytes
    etag: bytes


@cache
def _files() -> dict[str, _File]:
    found = {}
    for path in sorted(WEB.rglob("*")):
        kind = TYPES.get(path.suffix)
        if path.is_file() and kind is not None:
            body = path.read_bytes()
            tag = b'"' + hashlib.sha256(body).hexdigest()[:20].encode() + b'"'
            found[path.relative_to(WEB).as_posix()] = _File(kind, body, tag)
    return found


async def page(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """The console page."""
    await _send(scope, send, "index.html")


async def pools_page(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``/pools``: the operator's page."""
    await _send(scope, send, "pools.html")


async def named_page(scope: Scope, send: Send, name: str) -> None:
    """One of our pages at another address than its own."""
    await _send(scope, send, name)


async def static(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """One of its files, by the route's variable ``name``."""
    await _send(scope, send, scope["path_params"]["name"])


async def _send(scope: Scope, send: Send, name: str) -> None:
    file = _files().get(name)
    if file is None:
        raise NotFound("no file of that name")
    headers = [*PAGE_HEADERS, (b"content-type", file.type), (b"etag", file.etag)]
    if header(scope, b"if-none-match") == file.etag.decode():
        await send({"type": "http.response.start", "status": 304, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
        return
    await reply(send, 200, file.body, headers)

"""The pages of rooms: landing, display and console. Each is a file under ``web/``.

A display may be framed by the pages an operator names, and only it may load fonts from
Google, and only where that is switched on.
"""

from __future__ import annotations

from functools import cache

from forebay.gateway.auth import PUBLIC
from forebay.gateway.captions import rooms_of
from forebay.gateway.console import PAGE_HEADERS, WEB
from forebay.gateway.context import GatewayContext
from forebay.gateway.responses import Headers, Receive, Scope, Send, reply
from forebay.gateway.rooms import RoomOptions
from forebay.gateway.routes import Route

__all__ = ["ROUTES", "display_headers", "landing"]


@cache
def _body(name: str) -> bytes:
    return (WEB / name).read_bytes()


def display_headers(options: RoomOptions) -> Headers:
    """The console's headers, opened only as far as a display needs."""
    styles = fonts = "'self'"
    if options.google_fonts:
        styles += " https://fonts.googleapis.com"
        fonts += " https://fonts.gstatic.com"
    ancestors = " ".join(options.frame_ancestors) or "'none'"
    policy = (
        f"default-src 'none'; script-src 'self'; style-src {styles}; font-src {fonts}; "
        "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors {ancestors}"
    )
    closed = {b"content-security-policy", b"permissions-policy"}
    if options.frame_ancestors:
        closed |= {b"x-frame-options", b"cross-origin-resource-policy"}
    kept = [(name, value) for name, value in PAGE_HEADERS if name not in closed]
    return [
        *kept,
        (b"content-security-policy", policy.encode("latin-1", "replace")),
        (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    ]


async def _page(send: Send, name: str, headers: Headers) -> None:
    await reply(send, 200, _body(name), [*headers, (b"content-type", b"text/html; charset=utf-8")])


async def display(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``/display?room=R``."""
    options = rooms_of(ctx).options
    fonts = b"google" if options.google_fonts else b"local"
    body = _body("display.html").replace(b'data-fonts="local"', b'data-fonts="' + fonts + b'"')
    headers = [*display_headers(options), (b"content-type", b"text/html; charset=utf-8")]
    await reply(send, 200, body, headers)


async def landing(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """A room's name and passphrase, made up for whoever needs one."""
    await _page(send, "captions.html", PAGE_HEADERS)


async def console(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``/room?room=R``: who is there, what was said, export."""
    await _page(send, "room.html", PAGE_HEADERS)


async def speak(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``/speak``: microphone to recognition to a room. The room may be another server's."""
    opened = [
        (name, value.replace(b"connect-src 'self'", b"connect-src 'self' http: https:"))
        for name, value in PAGE_HEADERS
    ]
    await _page(send, "speak.html", opened)


def _get(path: str, handler: object) -> Route:
    return Route(method="GET", path=path, handler=handler, needs=PUBLIC)  # type: ignore[arg-type]


ROUTES = [
    _get("/display", display),
    _get("/display.php", display),
    _get("/{folder}/display.php", display),
    _get("/{above}/{folder}/display.php", display),
    _get("/captions", landing),
    _get("/room", console),
    _get("/speak", speak),
]

"""The application: from a connection to the handler of its route.

Bare ASGI, because the hot paths pay for every layer: each request costs one table look-up
and the checks that must come before any handler (host, origin, key, drain, body size).
Whatever goes wrong below becomes one JSON error with a request id.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog

from forebay.errors import BadRequest, Draining, ForebayError, StoreDown, TooLarge
from forebay.gateway.access import header, listed_origin
from forebay.gateway.auth import port_of
from forebay.gateway.context import GatewayContext
from forebay.gateway.doors import Doors
from forebay.gateway.expiry import ends_with_key
from forebay.gateway.responses import (
    ErrorFace,
    Headers,
    Receive,
    Scope,
    Send,
    error_headers,
    error_payload,
    new_request_id,
    reply,
    reply_error,
    where,
)
from forebay.gateway.routes import MethodNotAllowed, Route, Router
from forebay.gateway.wires import HttpWire, asgi_wire

__all__ = ["GatewayApp"]

log = structlog.get_logger(__name__)

CORS_METHODS = b"GET, POST, PUT, PATCH, DELETE, OPTIONS"


class GatewayApp:
    """The ASGI application over one context and one table of routes."""

    def __init__(self, ctx: GatewayContext, routes: Iterable[Route]) -> None:
        self.ctx = ctx
        self.router = Router(routes)
        self.doors = Doors(ctx)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await _lifespan(receive, send)

    # -------------------------------------------------------------------------- http

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(send, self._cors(scope))
        request_id = scope["forebay.request_id"] = new_request_id()
        pattern = "none"
        answer.face = port_of(scope).personality.errors  # until the path's own is known
        try:
            if scope["method"] == "OPTIONS" and answer.extra:
                await _preflight(scope, answer)
                return
            route, variables = self.router.find(
                scope["method"], scope["path"], port_of(scope).personality.name
            )
            pattern, answer.face = route.path, route.errors
            self._admit(scope, route, variables)
            body = _Body(receive, route.body_bytes or self.ctx.options.body_bytes)
            body.check_length(scope)
            await self._handle(route, scope, body, answer)
        except ForebayError as error:
            _log_error(error, request_id)
            await answer.error(error, request_id, scope)
        except Exception as error:  # noqa: BLE001 - the supervised boundary of one request
            _log_bug(error, request_id)
            hidden = ForebayError("the gateway failed on this request")
            await answer.error(hidden, request_id, scope)
        finally:
            self.ctx.metrics.request(pattern, answer.status)

    async def _handle(self, route: Route, scope: Scope, body: _Body, answer: _Answer) -> None:
        if "forebay.wire" in scope:
            await route.handler(scope, body.receive, answer.send, self.ctx)
            return
        bound = self.ctx.options.plain_wire_bytes
        async with asgi_wire(answer.send, websocket=False, bound_bytes=bound) as wire:
            scope["forebay.wire"] = wire
            await route.handler(scope, body.receive, answer.send, self.ctx)

    def _admit(self, scope: Scope, route: Route, variables: dict[str, str]) -> None:
        """Everything that is decided before a handler runs."""
        port = port_of(scope)
        needs = route.needs
        if port.personality.compat and route.compat_needs is not None:
            needs = route.compat_needs
        principal = self.ctx.auth.check(scope, needs, orchestrator=route.orchestrator)
        if route.works and self.ctx.refusing:
            raise Draining("this gateway is shutting down", retry_after_s=1.0)
        if route.works and not self.ctx.store_up():
            raise StoreDown("the store does not answer", retry_after_s=1.0)
        scope["forebay.principal"] = principal
        scope["forebay.tenant"] = principal.tenant
        scope["path_params"] = variables

    def _cors(self, scope: Scope) -> Headers:
        """CORS headers of the answer: any origin on compat ports, listed ones elsewhere."""
        origin = header(scope, b"origin")
        if origin is None:
            return []
        if port_of(scope).personality.compat:
            return [(b"access-control-allow-origin", b"*")]
        if listed_origin(origin, self.ctx.options):
            allowed = origin.encode("latin-1")
            return [(b"access-control-allow-origin", allowed), (b"vary", b"origin")]
        return []

    # --------------------------------------------------------------------- websocket

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = scope["forebay.request_id"] = new_request_id()
        face: ErrorFace = "openai"
        try:
            route, variables = self.router.find(
                "WEBSOCKET", scope["path"], port_of(scope).personality.name
            )
            face = route.errors
            await self.ctx.tickets.redeem(scope, self.ctx.auth)
            self._admit(scope, route, variables)
            if route.serves is not None:
                await self.doors.enter(scope, *route.serves)
        except ForebayError as error:
            _log_error(error, request_id)
            self.ctx.metrics.refuse(error.code)
            await _deny(scope, receive, send, error, request_id, face)
            return
        with ends_with_key(scope):
            if route.serves is None:
                await self._ungated(route, scope, receive, send)
                return
            kind = route.serves[0]
            try:
                watched = self.doors.watch(scope, kind, receive)
                await route.handler(scope, watched, send, self.ctx)
            finally:
                self.doors.leave(scope, kind)

    async def _ungated(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        """A handler that may still refuse, until it has said anything."""
        begun = False

        async def noted(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await route.handler(scope, receive, noted, self.ctx)
        except ForebayError as error:
            if begun:
                raise
            request_id = scope["forebay.request_id"]
            _log_error(error, request_id)
            await _deny(scope, receive, send, error, request_id, route.errors)


class _Answer:
    """``send`` that knows whether the response has begun, and adds headers to it."""

    __slots__ = ("_send", "extra", "face", "started", "status")

    def __init__(self, send: Send, extra: Headers) -> None:
        self._send = send
        self.extra = extra
        self.face: ErrorFace = "openai"
        self.started = False
        self.status = 0

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            if self.extra:
                message = {**message, "headers": [*message.get("headers", ()), *self.extra]}
        await self._send(message)

    async def error(self, error: ForebayError, request_id: str, scope: Scope) -> None:
        """Answer with ``error``, or break off a response that has begun: a body that was
        cut must not look whole."""
        if not self.started:
            more = []
            if isinstance(error, MethodNotAllowed):
                more.append((b"allow", str(error.details["allow"]).encode()))
            if isinstance(error, Draining):
                more.append((b"connection", b"close"))
            await reply_error(self.send, error, request_id, more, self.face)
            return
        wire = scope.get("forebay.wire")
        if not isinstance(wire, HttpWire):
            raise error
        wire.cut()


class _Body:
    """``receive`` that counts the body and refuses one that grows over its limit."""

    __slots__ = ("_limit", "_receive", "_seen")

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._seen = 0

    def check_length(self, scope: Scope) -> None:
        said = header(scope, b"content-length")
        if said is not None and (not said.isdigit() or len(said) > 15):
            raise BadRequest("content-length is not a decimal number")
        if said is not None and int(said) > self._limit:
            raise self._too_large(int(said))

    async def receive(self) -> Any:
        message = await self._receive()
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            if self._seen > self._limit:
                raise self._too_large(self._seen)
        return message

    def _too_large(self, size: int) -> TooLarge:
        return TooLarge(f"read a body of {size} bytes, expected no more than {self._limit}")


async def _preflight(scope: Scope, answer: _Answer) -> None:
    asked = header(scope, b"access-control-request-headers") or "content-type, authorization"
    await reply(
        answer.send,
        204,
        b"",
        [
            (b"access-control-allow-methods", CORS_METHODS),
            (b"access-control-allow-headers", asked.encode("latin-1")[:1024]),
            (b"access-control-max-age", b"600"),
        ],
    )


async def _deny(
    scope: Scope,
    receive: Receive,
    send: Send,
    error: ForebayError,
    request_id: str,
    face: ErrorFace,
) -> None:
    """Refuse a WebSocket before its 101, with a real HTTP answer where the server can."""
    message = await receive()
    if message["type"] != "websocket.connect":
        return
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": error.close_code, "reason": error.code})
        return
    body = error_payload(error, request_id, face)
    headers = [*error_headers(error, request_id), (b"content-length", b"%d" % len(body))]
    start = {"type": "websocket.http.response.start", "status": error.http_status}
    await send({**start, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing is started or stopped here: `gateway.main` owns the life of the process."""
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _log_error(error: ForebayError, request_id: str) -> None:
    if error.http_status >= 500 and not error.retryable:
        log.error("request.failed", request_id=request_id, code=error.code)
    else:
        log.debug("request.refused", request_id=request_id, code=error.code)


def _log_bug(error: Exception, request_id: str) -> None:
    name = type(error).__name__
    log.error("request.crashed", request_id=request_id, error=name, where=where(error))

"""Listening: protocols on sockets, one gate, one sweep, and an orderly end.

A `GatewayServer` serves one ASGI application on several listening sockets, each with a
personality. uvicorn supplies the protocols' base classes and their configuration; its
`Server` is not used, because it polls ten times a second, serves one configuration, and at
the end cuts WebSockets at once while an open event stream keeps it alive for ever.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from functools import partial
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from forebay.gateway.accepting import AT_ONCE, Door
from forebay.gateway.gate import Gate
from forebay.gateway.gather import LASTING_S, Gather
from forebay.gateway.http_protocol import HttpProtocol
from forebay.gateway.late import LateAnswers
from forebay.gateway.load import ThreadLoad, wanted_s
from forebay.gateway.metrics import GatewayMetrics
from forebay.gateway.options import GatewayOptions
from forebay.gateway.personality import Personality, Port, is_loopback
from forebay.gateway.responses import Receive, Scope, Send
from forebay.gateway.sweep import Sweep
from forebay.gateway.under_way import holder_of
from forebay.gateway.ws_protocol import WebSocketProtocol

__all__ = ["Application", "GatewayServer", "Listener"]

log = structlog.get_logger(__name__)

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
DRAIN_GRAIN_S = 0.05
CUT_S = 1.0
"""From the last goodbye to the cut of whoever did not go."""

_quiet = logging.getLogger("forebay.uvicorn")
_quiet.disabled = True  # uvicorn logs paths with their query, and tracebacks; we log our own


class Listener:
    """What the connections of one listening socket share."""

    def __init__(self, server: GatewayServer, sock: socket.socket, personality: Personality):
        self.server = server
        self.sock = sock
        self.personality = personality
        self.options = server.options
        self.metrics = server.metrics
        self.gate = server.gate
        self.sweep = server.sweep
        self.late = server.late
        self.gather = server.gather
        self.state = server.state
        self.quiet = _quiet
        self.app_state: dict[str, Any] = {}
        self.address = _bound(sock)
        self.loopback = is_loopback(self.address)
        self.ping_s = personality.ping_s or self.options.ping_s
        self.pong_s = personality.pong_s or self.options.pong_s
        port = Port(personality, self.loopback)
        self.config = uvicorn.Config(
            _marked(server.app, port),
            http=HttpToolsProtocol,
            ws=WebSocketsSansIOProtocol,
            ws_max_size=personality.ws_message_bytes or self.options.ws_message_bytes,
            ws_ping_interval=None,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=max(1, int(self.options.keep_alive_s)),
        )
        self.config.load()
        self._dated_at = float("-inf")

    def freshen(self, now: float) -> None:
        """Keep the Date header of the answers within a second of the truth."""
        if now - self._dated_at >= 1.0:
            self._dated_at = now
            date = formatdate(time.time(), usegmt=True).encode()
            self.state.default_headers = [(b"date", date)]

    def protocol(self, loop: asyncio.AbstractEventLoop) -> asyncio.Protocol:
        if not self.server.stock:
            return HttpProtocol(self, loop)
        return HttpToolsProtocol(
            config=self.config, server_state=self.state, app_state=self.app_state, _loop=loop
        )


def _bound(sock: socket.socket) -> str:
    name = sock.getsockname()
    return str(name[0]) if isinstance(name, tuple) else ""


def _marked(app: Application, port: Port) -> Application:
    """``app``, told where each connection came in."""

    async def marked(scope: Scope, receive: Receive, send: Send) -> None:
        scope["forebay.port"] = port
        await app(scope, receive, send)

    return marked


class GatewayServer:
    """Serves ``app`` until drained. All calls from the event loop it is made in.

    ``stock``: use uvicorn's own protocol classes instead of ours: no deadlines, no limits,
    no direct wires. A fallback to tell whose fault something is; tests run on both.
    """

    def __init__(
        self,
        app: Application,
        options: GatewayOptions,
        metrics: GatewayMetrics,
        *,
        stock: bool = False,
    ) -> None:
        self.app = app
        self.options = options
        self.metrics = metrics
        self.stock = stock
        self.loop = asyncio.get_running_loop()
        self.gate = Gate(options, metrics)
        self.sweep = Sweep(self.loop, options.sweep_s)
        now = self.loop.time()
        self.late = LateAnswers(self.loop, ThreadLoad(now))
        self.gather = Gather(self.loop, ThreadLoad(now, wanted_s, LASTING_S))
        self.state = ServerState()
        self.listeners: list[Listener] = []
        self._doors: list[Door] = []
        metrics.connections = self.gate.counts

    async def start(
        self, sockets: Sequence[tuple[socket.socket, Personality]], *, sharing: bool = False
    ) -> None:
        """Accept on every socket (bound already, `bind.bind`). They are closed by the drain.
        ``sharing``: other processes accept on them too."""
        for sock, personality in sockets:
            listener = Listener(self, sock, personality)
            sock.setblocking(False)
            protocol = partial(listener.protocol, self.loop)
            self.listeners.append(listener)
            most = 1 if sharing else AT_ONCE
            self._doors.append(Door(self.loop, sock, protocol, most))

    @property
    def ports(self) -> dict[str, int]:
        """The port number of each personality that listens."""
        found = {}
        for listener in self.listeners:
            name = listener.sock.getsockname()
            found[listener.personality.name] = name[1] if isinstance(name, tuple) else 0
        return found

    def stop_accepting(self) -> None:
        """Close the listeners. Whoever holds the sockets too (the supervisor, the next
        gateway) goes on accepting."""
        for door in self._doors:
            door.close()
        self._doors.clear()

    async def wait_idle(self, limit_s: float, hurry: asyncio.Event | None = None) -> bool:
        """Wait until no connection and no request is left; false when ``limit_s`` passed, or
        ``hurry`` was set, before that.

        Whoever has nothing in work is sent away at once: HTTP connections between requests,
        WebSockets on which nothing has moved for `quiet_s` and nobody holds work (1012)."""
        until = self.loop.time() + limit_s
        while self.state.connections or self.state.tasks:
            self._send_away()
            if self.loop.time() >= until or (hurry is not None and hurry.is_set()):
                return False
            await asyncio.sleep(DRAIN_GRAIN_S)
        return True

    def _send_away(self) -> None:
        now = self.loop.time()
        for connection in list(self.state.connections):
            if isinstance(connection, WebSocketProtocol):
                if connection.quiet_s(now) < self.options.quiet_s:
                    continue
                holder = holder_of(connection)
                if holder is None or not holder.busy:
                    connection.shutdown()
            elif not isinstance(connection, WebSocketsSansIOProtocol):
                connection.shutdown()

    async def cut(self) -> None:
        """End every connection: WebSockets with 1012, after what their protocol has to say
        of work that ends unfinished; responses by breaking them off."""
        for connection in list(self.state.connections):
            if isinstance(connection, WebSocketsSansIOProtocol):
                holder = holder_of(connection)
                if holder is not None:
                    holder.cut()
                else:
                    connection.shutdown()
        await self.wait_idle(CUT_S)
        for connection in list(self.state.connections):
            connection.transport.abort()
        tasks = list(self.state.tasks)
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=CUT_S)
            for task in stuck:
                log.warning("request.cancelled_at_exit")
                task.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)

    async def close(self) -> None:
        """Stop accepting, cut what is left, stop the sweep. Idempotent."""
        self.stop_accepting()
        await self.cut()
        self.sweep.close()

"""The gateway's end of the Unix-socket link: workers and the supervisor attach here.

One connection per worker, read for as long as it lives: no job's slowness ever stops it.
What bounds memory instead is the byte credit of each lease (the host counts it and an
overrun ends the connection) and, towards the worker, `link_peer.BACKLOG_BYTES`.

How long the broker works on arriving messages in one turn of the loop, over all connections
together, is `link_turn`'s to say; the rest waits for the next turn, and a connection with a rest
is not read meanwhile, so that what is buffered stays one read and one frame.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Protocol

from forebay.broker import GatewayPush, GatewaySink, StatePush
from forebay.broker.host import WorkerHost
from forebay.broker.link_peer import CLOSE_S, Peer
from forebay.broker.link_socket import bind
from forebay.broker.link_turn import Turn
from forebay.broker.link_wire import Pools
from forebay.core.spec import PoolView
from forebay.errors import Superseded

__all__ = ["LinkHost", "LinkServer", "serve_link"]

POOLS_EVERY_S = 0.05


class LinkHost(WorkerHost, Protocol):
    """What the server needs of the broker's home (`LocalBroker` is one)."""

    def open(self, gateway: str, sink: GatewaySink) -> None: ...

    def pools(self) -> list[PoolView]: ...


class LinkServer:
    """Made by `serve_link`; owns the socket file and every accepted connection."""

    def __init__(self, host: LinkHost, path: Path) -> None:
        self.host = host
        self.path = path
        self.peers: set[Peer] = set()
        self.turn = Turn(asyncio.get_running_loop())
        self._workers: dict[str, Peer] = {}
        self._pools_due: asyncio.TimerHandle | None = None
        self._server: asyncio.AbstractServer | None = None
        self._inode = 0

    async def start(self) -> None:
        sock = bind(self.path)
        self._inode = os.stat(self.path).st_ino
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Peer(self), sock=sock)
        self.host.open("link", self._on_gateway_push)

    def greeted(self, peer: Peer) -> None:
        assert peer.hello is not None
        match peer.hello.role:
            case "worker":
                old = self._workers.get(peer.hello.worker)
                self._workers[peer.hello.worker] = peer
                if old is not None:
                    old.superseded = True
                    old.fail(Superseded("another process has this worker's name"))
                self.host.worker_connect(peer.hello.worker, peer.push)
            case "supervisor":
                peer.say(Pools(self.host.pools()))
            case _:
                pass

    def left(self, peer: Peer) -> None:
        if peer not in self.peers:
            return
        self.peers.discard(peer)
        hello = peer.hello
        if hello is None or hello.role != "worker" or peer.superseded:
            return
        if self._workers.get(hello.worker) is peer:
            del self._workers[hello.worker]
        self.host.worker_gone(hello.worker, peer.reason)

    def _on_gateway_push(self, push: GatewayPush) -> None:
        # Loading workers change state often; a start screen needs twenty pictures a second
        # at most, each of the newest state.
        if isinstance(push, StatePush) and self._pools_due is None and self._supervisors():
            loop = asyncio.get_running_loop()
            self._pools_due = loop.call_later(POOLS_EVERY_S, self._tell_pools)

    def _supervisors(self) -> list[Peer]:
        return [p for p in self.peers if p.hello is not None and p.hello.role == "supervisor"]

    def _tell_pools(self) -> None:
        self._pools_due = None
        for peer in self._supervisors():
            peer.say(Pools(self.host.pools()))

    async def close(self) -> None:
        """Stop listening, send what is queued, end every connection, remove the file.

        Cancelling it leaves connections to be ended by the process."""
        if self._pools_due is not None:
            self._pools_due.cancel()
        if self._server is not None:
            self._server.close()
        for peer in list(self.peers):
            peer.close()
        ends = [peer.ended for peer in self.peers]
        if ends:
            await asyncio.wait(ends, timeout=CLOSE_S)
        for peer in list(self.peers):
            peer.close(abort=True)
        if self.path.exists() and os.stat(self.path).st_ino == self._inode:
            self.path.unlink()


async def serve_link(path: str | Path, host: LinkHost) -> LinkServer:
    """Listen on ``path`` (mode 0600) for workers and the supervisor of ``host``.

    Raises `ConfigError` when the path is too long for a socket, is no socket, or is
    served by a living process. Next: ``await server.close()`` at the end.
    """
    server = LinkServer(host, Path(path))
    await server.start()
    return server

"""Taking connections from a listening socket: some of them in each turn of the loop.

A gateway that has much to do turns slowly. Taking one connection a turn, as libuv does, its door
would be slowest when most people wait there; taking all of them, whoever is served already would
wait for the whole crowd to be let in. `Door` takes `AT_ONCE` in a turn.

Where several processes share a listening socket, the one that wakes first would then have
everybody who comes back after another's death, and be the slow one for all of them. There `Door`
takes one in a turn: a gateway that is busy turns slowly, so that an idle one has taken most of
them meanwhile, and both of them let people in.

Leaving all of them to the gateway that holds the fewest was tried: the numbers were even, but
one process let everybody in, and the last waited longer.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

import structlog

__all__ = ["AT_ONCE", "Door"]

AT_ONCE = 16
"""Connections accepted in one turn of the loop. Opening a session takes about a millisecond."""

FULL_WAIT_S = 1.0
"""How long nothing is accepted when no descriptor is left, or the system says anything else
that may last: to ask again at once would take the whole turn, every turn."""
_ITS_OWN = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EPERM,
        errno.ETIMEDOUT,
        getattr(errno, "ENONET", errno.ENETDOWN),
    }
)
"""What became of that one connection, which Linux tells whoever accepts it (accept(2))."""

log = structlog.get_logger(__name__)


class Door:
    """Accepts on ``sock`` until closed; ``protocol`` makes each connection's protocol.
    ``most``: how many in one turn."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        most: int = AT_ONCE,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._protocol = protocol
        self._most = most
        self._opening: set[asyncio.Task[None]] = set()
        self._wait: asyncio.TimerHandle | None = None
        loop.add_reader(sock, self._ready)

    def _ready(self) -> None:
        for _ in range(self._most):
            try:
                taken, _address = self._sock.accept()
            except BlockingIOError:
                return  # no more, or another gateway has taken it
            except OSError as error:
                self._not_accepted(error)
                return
            taken.setblocking(False)
            task = self._loop.create_task(self._open(taken), name="accept")
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _not_accepted(self, error: OSError) -> None:
        if error.errno in _ITS_OWN:
            log.debug("connection.not_accepted", reason=error.strerror)
            return
        log.error("gateway.cannot_accept", reason=error.strerror, wait_s=FULL_WAIT_S)
        self._loop.remove_reader(self._sock)
        self._wait = self._loop.call_later(FULL_WAIT_S, self._again)

    def _again(self) -> None:
        self._wait = None
        self._loop.add_reader(self._sock, self._ready)

    async def _open(self, taken: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, taken)
        except OSError as error:  # it left already
            taken.close()
            log.debug("connection.not_opened", reason=error.strerror)

    def close(self) -> None:
        """Accept no more, and close the socket here. What was accepted is opened still."""
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()

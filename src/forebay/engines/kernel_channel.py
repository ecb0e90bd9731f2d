"""One ZeroMQ socket to a kernel, read when something has arrived: no thread, no polling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import zmq

__all__ = ["Channel"]

BATCH = 64
"""Messages taken in one turn of the loop; others get theirs in between."""

RECONNECT_MS = 5
HIGH_WATER = 2000
"""Messages that ZeroMQ holds for us. Behind it the kernel waits (`kernel_boot`)."""


class Channel:
    """A DEALER (``subscribe=False``) or SUB socket, connected to ``url``."""

    def __init__(
        self,
        context: zmq.Context[Any],
        url: str,
        on_message: Callable[[list[bytes]], None],
        *,
        identity: bytes = b"",
        subscribe: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._socket = context.socket(zmq.SUB if subscribe else zmq.DEALER)
        self._socket.linger = 0
        self._socket.rcvhwm = HIGH_WATER
        self._socket.reconnect_ivl = RECONNECT_MS
        if subscribe:
            self._socket.subscribe(b"")
        else:
            self._socket.setsockopt(zmq.IDENTITY, identity)
        self._socket.connect(url)
        self._closed = False
        self._again: asyncio.Handle | None = None
        self._fd = self._socket.getsockopt(zmq.FD)
        self._loop.add_reader(self._fd, self._read)
        self._soon()

    def send(self, frames: Sequence[bytes]) -> None:
        """Queue a message; it leaves when the kernel is there."""
        self._socket.send_multipart(list(frames), zmq.NOBLOCK)
        if self._has_news():  # sending may have consumed the one signal that something has come
            self._soon()

    def _has_news(self) -> bool:
        """Asking costs a twentieth of being told by an exception that there is nothing."""
        return bool(self._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN)

    def _soon(self) -> None:
        if self._again is None and not self._closed:
            self._again = self._loop.call_soon(self._read)

    def _read(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for _ in range(BATCH):
            if self._closed or not self._has_news():
                return
            self._on_message(self._socket.recv_multipart(zmq.NOBLOCK))
        self._soon()

    def close(self) -> None:
        """Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._fd)
        self._socket.close()

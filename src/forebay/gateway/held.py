"""Two stand-ins for a wire: one that waits for the answer's head, one that sends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from forebay.gateway.wire import Wire
from forebay.gateway.wires import HttpWire

__all__ = ["HeadGate", "NoWire"]


class HeadGate:
    """Holds what is sent until the head has left, then steps aside.

    What it holds counts as backlog, so a reader sends no more than a wire would take."""

    __slots__ = ("_bytes", "_held", "_opened", "_tell", "_waiting", "_wire", "send")

    def __init__(self, wire: Wire, tell: Callable[[], None]) -> None:
        self._wire = wire
        self._tell = tell
        self._held: list[str | bytes] = []
        self._bytes = 0
        self._opened = False
        self._waiting: Callable[[], None] | None = None
        self.send: Callable[[str | bytes], None] = self._hold

    @property
    def closed(self) -> bool:
        return self._wire.closed

    def _hold(self, data: str | bytes) -> None:
        self._held.append(data)
        self._bytes += len(data)
        self._tell()

    def backlog(self) -> int:
        return self._bytes + self._wire.backlog()

    def cork(self) -> None:
        """As `HttpWire.cork`, where the wire is one."""
        if self._opened and isinstance(self._wire, HttpWire):
            self._wire.cork()

    def uncork(self) -> None:
        if isinstance(self._wire, HttpWire):
            self._wire.uncork()

    def on_drain(self, callback: Callable[[], None]) -> None:
        if self._opened:
            self._wire.on_drain(callback)
        else:
            self._waiting = callback

    def close(self, code: int = 1000, reason: str = "") -> None:
        self._wire.close(code, reason)

    def open(self) -> None:
        self._opened = True
        self.send = self._wire.send
        if self._held:
            self._wire.send(b"".join(d.encode() if isinstance(d, str) else d for d in self._held))
        self._held.clear()
        self._bytes = 0
        if self._waiting is not None:
            self._wire.on_drain(self._waiting)


class NoWire:
    """For answers that are collected, not sent."""

    closed = False

    def send(self, data: str | bytes) -> None:
        return None

    def backlog(self) -> int:
        return 0

    def on_drain(self, callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(callback)

    def close(self, code: int = 1000, reason: str = "") -> None:
        return None

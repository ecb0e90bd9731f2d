"""Where the bytes of one client leave: the contract between transports and the hub.

A wire is written to by plain calls, without a task or a wake-up, from the gateway's event
loop. It never blocks and never drops: whoever writes looks at `backlog` first and keeps
what does not fit (`hub.Reader` becomes *catching up* and pulls when `on_drain` calls).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["LOW_WATER_BYTES", "Wire"]

LOW_WATER_BYTES = 32 * 1024
"""At or below this backlog a reader may be written to directly; above it, it is catching up."""


class Wire(Protocol):
    """One client's way out: a WebSocket, a chunked HTTP body.

    WebSocket: ``str`` leaves as one text frame, ``bytes`` as one binary frame.
    HTTP: both leave as one chunk of the body.
    """

    @property
    def closed(self) -> bool:
        """True once the peer has gone or `close` was called."""

    def send(self, data: str | bytes) -> None:
        """Hand one message to the transport now. Ignored when closed."""

    def backlog(self) -> int:
        """Bytes accepted by `send` that the kernel has not taken yet."""

    def on_drain(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, when the backlog next falls to `LOW_WATER_BYTES` or below
        (soon, not at once, if it is there already). One callback at a time: a second call
        replaces the first."""

    def close(self, code: int = 1000, reason: str = "") -> None:
        """End after everything sent has left. HTTP ignores code and reason."""

"""What a drain asks a WebSocket's application before it sends the client away.

Silence on the wire says little: a session that waits in a queue, or that a model works on, is
silent too. So whoever holds work for a client says so in the connection's scope.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

__all__ = ["Holder", "holder_of", "holds"]

_KEY = "forebay.holder"


class Holder(Protocol):
    """Whoever works for the client of one WebSocket. Neither may raise or wait."""

    @property
    def busy(self) -> bool:
        """Whether anything is under way that would be lost if the client left now."""

    def cut(self) -> None:
        """Time is up: say so in the protocol's own words, where it has any, and close."""


def holds(scope: MutableMapping[str, Any], holder: Holder) -> Callable[[], None]:
    """From now on ``holder`` is asked. Returns the call that takes it back."""
    scope[_KEY] = holder

    def stop() -> None:
        scope.pop(_KEY, None)

    return stop


def holder_of(connection: object) -> Holder | None:
    """Who holds work on this connection of the server's, if anybody does."""
    scope = getattr(connection, "scope", None)  # there is none before the handshake
    found: Holder | None = None if scope is None else scope.get(_KEY)
    return found

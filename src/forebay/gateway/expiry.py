"""A socket lives no longer than the key or token that opened it.

The client is told by close code 4401 and may come back with a new one and resume. What is
asked by plain HTTP was allowed when it was asked, and ends in its own time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from forebay.errors import Unauthorized
from forebay.gateway.auth import Principal
from forebay.gateway.responses import Scope
from forebay.gateway.wire import Wire

__all__ = ["ends_with_key"]

LONGEST_TIMER_S = 3600.0
"""Keys may live for years, which no timer should; clocks are set right now and then."""


@contextmanager
def ends_with_key(scope: Scope, wall: Callable[[], float] = time.time) -> Iterator[None]:
    """While the block runs, close the socket of ``scope`` when its principal's time is over.
    ``wall``: seconds since 1970."""
    principal: Principal = scope["forebay.principal"]
    until = principal.until
    if until is None:
        yield
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        left = until - wall()
        if left > 0:
            timer = loop.call_later(min(left, LONGEST_TIMER_S), look)
            return
        wire: Wire | None = scope.get("forebay.wire")
        if wire is not None:
            wire.close(Unauthorized.close_code, "key or token has expired")

    timer = loop.call_soon(look)  # type: ignore[assignment]
    try:
        yield
    finally:
        timer.cancel()

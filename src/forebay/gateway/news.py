"""A bell for one listener: what the callbacks of an answer wake its task with."""

from __future__ import annotations

import asyncio

__all__ = ["News"]


class News:
    """Rung any number of times, heard once; a ring that nobody waits for is kept.

    One waiter at a time. Cheaper than `asyncio.Event` inside `asyncio.timeout`, which every
    answer would pay for several times."""

    __slots__ = ("_rung", "_waiter")

    def __init__(self) -> None:
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake whoever waits, or the next who does."""
        self._rung = True
        _wake(self._waiter)

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Until the bell is rung; False when ``timeout_s`` passed in silence."""
        if not self._rung:
            loop = asyncio.get_running_loop()
            waiter = self._waiter = loop.create_future()
            timer = None if timeout_s is None else loop.call_later(timeout_s, _wake, waiter)
            try:
                await waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        rung, self._rung = self._rung, False
        return rung


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)

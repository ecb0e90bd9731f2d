"""Small answers that may leave with the next one, while this process has too much to do.

Of the messages that a recognition client gets, half only say that a chunk has arrived. Each is a
system call here and a wake-up there, which is the right price on an idle gateway: the answer
leaves at once. A busy one (its thread used more than `BUSY` of the last tenth of a second) puts
it beside the result that follows, and sends it alone after `LATE_S` if none does.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from forebay.gateway.load import ThreadLoad

__all__ = ["BUSY", "LATE_S", "LateAnswers"]

BUSY = 0.5
"""Share of one core's time. Half of a core is where waiting for a turn begins to be as long as
the work itself."""
LATE_S = 0.05
"""The longest an answer waits: the 50 ms at which the originals sent what they had collected."""


class Late(Protocol):
    """What is told to send what it holds. Saying it twice is harmless."""

    def on_time(self) -> None: ...


class LateAnswers:
    """One for all connections of a loop. What waits is bounded by what connections hold
    (`WebSocketWire.send_late`)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, load: ThreadLoad) -> None:
        self._loop = loop
        self._load = load
        self._waiting: list[Late] = []

    def busy(self, now: float) -> bool:
        """Whether an answer should wait for the next. ``now``: the loop's time."""
        return self._load.share(now) >= BUSY

    def add(self, answer: Late) -> None:
        """``answer.on_time`` is called within `LATE_S`."""
        if not self._waiting:
            self._loop.call_later(LATE_S, self._send)
        self._waiting.append(answer)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer.on_time()

"""Small answers that may leave with the next one, while this process has too much to do.

Of the messages that a recognition client gets, half only say that a chunk has arrived. Each is a
system call here and a wake-up there, which is the right price on an idle gateway: the answer
leaves at once. A busy one (its thread used more than `BUSY` of the last tenth of a second) puts
it beside the result that follows, and sends it alone after `LATE_S` if none does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["BUSY", "LATE_S", "LateAnswers"]

BUSY = 0.5
"""Share of one core's time. Half of a core is where waiting for a turn begins to be as long as
the work itself."""
LATE_S = 0.05
"""The longest an answer waits: the 50 ms at which the originals sent what they had collected."""
LOOK_S = 0.1


class Late(Protocol):
    """What is told to send what it holds. Saying it twice is harmless."""

    def on_time(self) -> None: ...


class LateAnswers:
    """One for all connections of a loop. ``cpu``: seconds of processor time of the calling
    thread so far. What waits is bounded by what connections hold (`WebSocketWire.send_late`)."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, cpu: Callable[[], float] = time.thread_time
    ) -> None:
        self._loop = loop
        self._cpu = cpu
        self._busy = False
        self._looked_at, self._used = loop.time(), cpu()
        self._waiting: list[Late] = []

    def busy(self, now: float) -> bool:
        """Whether an answer should wait for the next. ``now``: the loop's time."""
        passed = now - self._looked_at
        if passed >= LOOK_S:
            used = self._cpu()
            # Long ago says nothing about now.
            self._busy = passed < 5 * LOOK_S and used - self._used >= BUSY * passed
            self._looked_at, self._used = now, used
        return self._busy

    def add(self, answer: Late) -> None:
        """``answer.on_time`` is called within `LATE_S`."""
        if not self._waiting:
            self._loop.call_later(LATE_S, self._send)
        self._waiting.append(answer)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer.on_time()

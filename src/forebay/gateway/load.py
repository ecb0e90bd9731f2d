"""How much of one core the event loop's thread uses: what a busy gateway does differently.

An idle gateway does everything at once. A busy one saves system calls and wake-ups where the
client cannot tell the difference: see `late` and `gather`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["LOOK_S", "ThreadLoad"]

LOOK_S = 0.1
"""The share is that of the last tenth of a second or a little more."""


class ThreadLoad:
    """One per loop, asked from its thread only. ``cpu``: seconds of processor time of the calling
    thread so far. ``now``: the loop's time."""

    __slots__ = ("_cpu", "_looked_at", "_share", "_used")

    def __init__(self, now: float, cpu: Callable[[], float] = time.thread_time) -> None:
        self._cpu = cpu
        self._share = 0.0
        self._looked_at, self._used = now, cpu()

    def share(self, now: float) -> float:
        """0 to 1. Costs next to nothing: it is looked at anew every `LOOK_S` only."""
        passed = now - self._looked_at
        if passed >= LOOK_S:
            used = self._cpu()
            # Long ago says nothing about now.
            self._share = (used - self._used) / passed if passed < 5 * LOOK_S else 0.0
            self._looked_at, self._used = now, used
        return self._share

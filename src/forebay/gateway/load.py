"""How much of one core the event loop's thread uses: what a busy gateway does differently.

An idle gateway does everything at once. A busy one saves system calls and wake-ups where the
client cannot tell the difference: see `late` and `gather`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["LOOK_S", "ThreadLoad", "wanted_s"]

LOOK_S = 0.1
"""Long enough to see more than one turn of the loop."""


def wanted_s() -> float:
    """Seconds for which the calling thread had a processor or waited for one, so far: beside
    many processes on few processors it may have no free moment and still run for half of the
    time only. Linux says both (`schedstat`); elsewhere it is the processor time alone."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            had, waited, _ = file.read().split()
    except (OSError, ValueError):
        return time.thread_time()
    return (int(had) + int(waited)) / 1e9


class ThreadLoad:
    """Asked from the loop's thread only. ``cpu``: seconds of processor time of the calling thread
    so far, or `wanted_s`. ``now``: the loop's time. ``look_s``: the share is that of the last so many seconds,
    or a little more."""

    __slots__ = ("_cpu", "_look_s", "_looked_at", "_share", "_used")

    def __init__(
        self, now: float, cpu: Callable[[], float] = time.thread_time, look_s: float = LOOK_S
    ) -> None:
        self._cpu = cpu
        self._look_s = look_s
        self._share = 0.0
        self._looked_at, self._used = now, cpu()

    def share(self, now: float) -> float:
        """0 to 1. Costs next to nothing: it is looked at anew every ``look_s`` only."""
        passed = now - self._looked_at
        if passed >= self._look_s:
            used = self._cpu()
            # Long ago says nothing about now.
            self._share = (used - self._used) / passed if passed < 5 * self._look_s else 0.0
            self._looked_at, self._used = now, used
        return self._share

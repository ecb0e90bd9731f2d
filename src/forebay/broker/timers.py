"""One heap of deadlines, one sleeping timer: nothing runs while nothing is due.

Whoever needs to act later calls `Timers.at`; only the earliest deadline is armed with the
event loop. A thousand idle sessions have no deadline and so cost nothing.

Clock and sleep are given from outside, so that tests run in virtual time.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Protocol

__all__ = ["CallLater", "Handle", "Timer", "Timers", "loop_call_later"]

_COMPACT_OVER = 256  # cancelled entries tolerated before the heap is rebuilt


class Handle(Protocol):
    def cancel(self) -> None: ...


CallLater = Callable[[float, Callable[[], None]], Handle]
"""Run a plain function once, so many seconds from now; what is returned can be cancelled."""


def loop_call_later(delay_s: float, call: Callable[[], None]) -> Handle:
    """The running event loop's own timer."""
    return asyncio.get_running_loop().call_later(delay_s, call)


class Timer:
    """One deadline. `cancel` is idempotent, and harmless after it has run."""

    __slots__ = ("_owner", "call", "seq", "when")

    def __init__(self, owner: Timers, when: float, seq: int, call: Callable[[], None]) -> None:
        self._owner = owner
        self.when = when
        self.seq = seq
        self.call: Callable[[], None] | None = call

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self.seq) < (other.when, other.seq)

    def cancel(self) -> None:
        if self.call is not None:
            self.call = None
            self._owner.cancelled()


class Timers:
    """Deadlines on ``clock``. ``on_pause(now)`` is called before any deadline that is met more
    than ``pause_s`` late: the process itself had stood still."""

    def __init__(
        self,
        clock: Callable[[], float],
        call_later: CallLater,
        *,
        pause_s: float,
        on_pause: Callable[[float], None],
    ) -> None:
        self._clock = clock
        self._call_later = call_later
        self._pause_s = pause_s
        self._on_pause = on_pause
        self._heap: list[Timer] = []
        self._seq = 0
        self._dead = 0
        self._armed: tuple[float, Handle] | None = None
        self._closed = False

    def at(self, when: float, call: Callable[[], None]) -> Timer:
        """Call once at ``when``, or as soon as possible if that has passed."""
        self._seq += 1
        timer = Timer(self, when, self._seq, call)
        heapq.heappush(self._heap, timer)
        self._arm()
        return timer

    def cancelled(self) -> None:
        self._dead += 1
        if self._dead > _COMPACT_OVER and self._dead * 2 > len(self._heap):
            self._heap = [timer for timer in self._heap if timer.call is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    @property
    def next_s(self) -> float | None:
        """The earliest deadline; None when nothing is waited for."""
        while self._heap and self._heap[0].call is None:
            heapq.heappop(self._heap)
            self._dead = max(0, self._dead - 1)
        return self._heap[0].when if self._heap else None

    def _arm(self) -> None:
        when = self.next_s
        if self._closed or when is None:
            return
        if self._armed is not None:
            if self._armed[0] <= when:
                return
            self._armed[1].cancel()
        delay = max(0.0, when - self._clock())
        self._armed = (when, self._call_later(delay, self._fire))

    def _fire(self) -> None:
        self._armed = None
        try:
            self.run()
        finally:
            self._arm()

    def run(self) -> None:
        """Do everything that is due now. One failing call does not lose the others: they
        run at the next turn."""
        now = self._clock()
        first = self.next_s
        if first is not None and now - first > self._pause_s:
            self._on_pause(now)
        while (when := self.next_s) is not None and when <= now:
            timer = heapq.heappop(self._heap)
            call, timer.call = timer.call, None
            if call is not None:
                call()

    def close(self) -> None:
        """Nothing runs any more."""
        self._closed = True
        self._heap.clear()
        if self._armed is not None:
            self._armed[1].cancel()
            self._armed = None

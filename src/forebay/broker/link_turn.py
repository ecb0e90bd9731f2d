"""Who may work how long on what workers say, in one turn of the gateway's loop.

What workers say comes in bursts, and clients must not wait for its end. So in one turn of the
loop the broker works for `TURN_S`, and whoever has more to read rests until the next. A loop
that has so much to do that its turns are longer than that is not helped by rest: results would
pile up behind what clients go on to say. Then the broker may work as long as all others did, up
to `LONGEST_S`, and it is the clients' next words that wait, in their sockets, where several of
them become one piece of work.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

__all__ = ["LONGEST_S", "TURN_S", "Turn"]

TURN_S = 0.005
LONGEST_S = 0.05

Work = Callable[[], None]


class Turn:
    """What is left of this turn, shared evenly by those who rested in the one before.

    ``clock``: seconds, of a clock that runs while others work."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._ends: float | None = None  # of whoever works now; None: the turn has not begun
        self._began = self._allowed_s = 0.0  # this turn, or the last
        self._too_short = False  # somebody had to rest in it
        self._resting: list[Work] = []

    def over(self) -> bool:
        """Whether whoever works must `rest` now, if it has more to do."""
        now = self._clock()
        if self._ends is None:
            self._ends = self._begin(now)
        if now < self._ends:
            return False
        self._too_short = True
        return True

    def rest(self, work: Work) -> None:
        """Call ``work`` in the next turn."""
        self._resting.append(work)

    def _begin(self, now: float) -> float:
        """When the turn that begins now ends. Where the last was too short, the loop has not
        slept since it began: what of that time was not the broker's was others' work."""
        others_s = now - self._began - self._allowed_s if self._too_short else 0.0
        self._too_short = False
        self._began, self._allowed_s = now, min(max(TURN_S, others_s), LONGEST_S)
        self._loop.call_soon(self._next)
        return now + self._allowed_s

    def _next(self) -> None:
        self._ends = None
        if not self._resting:
            return
        resting, self._resting = deque(self._resting), []
        now = self._clock()
        end = self._begin(now)
        try:
            while resting:
                # What one leaves of its share is the others'.
                self._ends = now + max(0.0, end - now) / len(resting)
                resting.popleft()()
                now = self._clock()
        finally:  # whatever became of one, the others are not forgotten
            self._resting = [*resting, *self._resting]
            self._ends = end

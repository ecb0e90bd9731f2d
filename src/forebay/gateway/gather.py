"""What a speaker says in a third of a second, dealt with as one, while there is too much to do.

Live sound comes in many small chunks. Reading, storing, handing on and answering one costs nearly
the same whether it holds a tenth of a second or three. So a gateway whose thread is nearly full
leaves what a speaker says in its socket for `REST_S` and then takes all of it: a fifth less work
for each chunk, which is what lets it catch up. Nobody is made to wait who waits for answers
himself before he goes on: only who was heard to speak on without them is read later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from forebay.gateway.load import ThreadLoad

__all__ = ["ENOUGH", "FULL", "REST_S", "Gather"]

FULL, ENOUGH = 0.75, 0.5
"""Share of one core's time at which this begins, and below which it ends: gathering itself makes
room, and must not end by that."""
REST_S = 0.3
"""Text comes no later for it than a listener would notice: a word is as long."""
GRAIN_S = 0.004
"""Those due within it are told together."""


class Resting(Protocol):
    """Whose client is not read for a moment."""

    def rested(self) -> None: ...


class Gather:
    """One for all connections of a loop, each of which rests once at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, load: ThreadLoad) -> None:
        self._loop = loop
        self._load = load
        self._on = False
        self._resting: deque[tuple[float, Resting]] = deque()

    def rest(self, who: Resting) -> bool:
        """Whether ``who`` is to stop reading until its `rested` is called."""
        now = self._loop.time()
        self._on = self._load.share(now) >= (ENOUGH if self._on else FULL)
        if not self._on:
            return False
        if not self._resting:
            self._loop.call_at(now + REST_S, self._wake)
        self._resting.append((now + REST_S, who))
        return True

    def _wake(self) -> None:
        resting, until = self._resting, self._loop.time() + GRAIN_S
        while resting and resting[0][0] <= until:
            resting.popleft()[1].rested()
        if resting:
            self._loop.call_at(resting[0][0], self._wake)

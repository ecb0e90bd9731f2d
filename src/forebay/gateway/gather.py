"""What a speaker says in a quarter of a second, dealt with as one, while there is too much to do.

Live sound comes in many small chunks. Reading, storing, handing on and answering one costs nearly
the same whether it holds a tenth of a second or three. So a gateway whose thread is nearly full
leaves what a speaker says in its socket for `REST_S` and then takes what is there: a fifth less
work for each chunk, which is what lets it catch up.

Who waits for an answer before he goes on must not be made to wait: he would fall behind real
time, chunk by chunk. He is known by how little he has said after a rest, and is read at once for
`PATIENCE_S` from then on (`Patience`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from forebay.gateway.load import ThreadLoad

__all__ = ["ENOUGH", "FULL", "LASTING_S", "PATIENCE_S", "REST_S", "SAID_S", "Gather", "Patience"]

FULL, ENOUGH = 0.75, 0.5
"""Share of the time for which the thread runs or waits for a processor (`wanted_s`) at which this
begins, and below which it ends: gathering itself makes room, and must not end by that."""
LASTING_S = 1.0
"""The share is that of so long a time. A tenth of a second may be full of anything, a collection
of garbage say; to gather for that would keep everybody waiting longer than it did."""
REST_S = 0.25
"""Text comes no later for it than a listener would notice: a word is as long."""
SAID_S = 0.17
"""Whoever speaks on has said more than this in a rest."""
PATIENCE_S = 30.0
"""So often whoever waits for answers may be mistaken for one who does not: one per cent of his
time."""
GRAIN_S = 0.004
"""Those due within it are told together."""


class Resting(Protocol):
    """Whose client is not read for a moment."""

    def rested(self) -> None: ...


class Gather:
    """One for all connections of a loop, each of which rests once at a time. ``load``: of the
    last `LASTING_S`."""

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
        try:
            while resting and resting[0][0] <= until:
                resting.popleft()[1].rested()
        finally:
            if resting:  # whatever became of one, the others are not forgotten
                self._loop.call_at(resting[0][0], self._wake)


class Patience:
    """Whether one client may be made to rest again."""

    __slots__ = ("_at_once_until", "_rested")

    def __init__(self) -> None:
        self._rested = False
        self._at_once_until = 0.0

    def rested(self) -> None:
        """A rest is over: what is said next was said in it."""
        self._rested = True

    def after(self, sound_s: float, now: float) -> bool:
        """Whether it may rest after it has said ``sound_s`` seconds of sound, 0 where that is not
        known."""
        rested, self._rested = self._rested, False
        if not sound_s or (rested and sound_s <= SAID_S):
            self._at_once_until = now + PATIENCE_S
        return now >= self._at_once_until

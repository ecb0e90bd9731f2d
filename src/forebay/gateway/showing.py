"""When captions stand on displays: what displays tell, who is told, and what is counted."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from forebay.broker.rooms import RoomBroker
from forebay.core.events import Caption
from forebay.core.shown import Settled, Tally, signal
from forebay.errors import ForebayError
from forebay.gateway.hub import Hub

__all__ = ["BOUNDS_S", "Showing", "ShownCounts"]

BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class ShownCounts:
    """``buckets``: captions by the time to their last display, one more than `BOUNDS_S`.
    ``missing``: displays that told nothing of a caption in time."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0
    missing: int = 0

    def count(self, settled: Settled) -> None:
        self.missing += settled.shown.of - settled.shown.displays
        if settled.slowest_s is not None:
            self.buckets[bisect_left(BOUNDS_S, settled.slowest_s)] += 1
            self.sum_s += settled.slowest_s


@dataclass(slots=True)
class _Room:
    tally: Tally = field(default_factory=Tally)
    timer: asyncio.TimerHandle | None = None


class Showing:
    """One gateway's `core.shown.Tally` for each of its rooms where a display can tell."""

    def __init__(self, hub: Hub, broker: RoomBroker) -> None:
        self.counts = ShownCounts()
        self._hub, self._broker, self._clock = hub, broker, hub.clock
        self._rooms: dict[str, _Room] = {}

    def come(self, room: str, display: str) -> bool:
        """Whether this display is asked to tell what it shows. Then `go` must follow."""
        return self._rooms.setdefault(room, _Room()).tally.come(display)

    def go(self, room: str, display: str) -> None:
        """Idempotent."""
        known = self._rooms.get(room)
        if known is None:
            return
        self._settled(room, known, known.tally.go(display, self._clock()))
        if known.tally.empty:
            if known.timer is not None:
                known.timer.cancel()
            del self._rooms[room]

    def wrote(self, room: str, caption: Caption) -> None:
        """A caption is on its way to everybody who reads the room here."""
        known = self._rooms.get(room)
        if known is not None:
            self._settled(room, known, known.tally.wrote(caption, self._clock()))

    def told(self, room: str, display: str, reports: Sequence[tuple[int, float]]) -> None:
        known = self._rooms.get(room)
        if known is not None:
            self._settled(room, known, known.tally.told(display, reports, self._clock()))

    def _settled(self, room: str, known: _Room, settled: Sequence[Settled]) -> None:
        for one in settled:
            self.counts.count(one)
            if one.shown.seq:  # its writer knows which one is meant
                self._hub.spawn(self._tell(room, signal(one.shown)))
        due_at = known.tally.due_at
        if known.timer is None and due_at is not None:
            known.timer = self._hub.call_at(due_at, lambda: self._due(room, known))

    def _due(self, room: str, known: _Room) -> None:
        known.timer = None
        self._settled(room, known, known.tally.due(self._clock()))

    async def _tell(self, room: str, caption: Caption) -> None:
        try:
            await self._broker.preview(room, caption)
        except ForebayError as error:
            log.debug("room.shown_not_told", code=error.code)

"""One timer for every deadline of every connection.

A connection says when it next wants to be looked at; the sweep keeps it in the bucket of
that moment and calls its `check` then. A thousand idle connections cost a thousand calls in
twenty seconds, and nothing runs while there are none.

What has arrived is read before anybody is judged: after a loop that stood still (a stopped
process, a busy machine) timers run before sockets, and a request that came in time would
count as silence.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from forebay.gateway.metrics import GatewayMetrics

__all__ = ["Sweep", "Swept", "WriteStall"]


class Swept(Protocol):
    """Something with deadlines. `slot` belongs to the sweep."""

    slot: int | None

    def check(self, now: float) -> float | None:
        """Act on what is due; return when to look again, None for never. Must not raise."""


READ_TURNS = 2
"""Turns of the loop after which every socket that was readable at a tick has been read: the
first may come before the sockets are polled (uvloop) or right behind the poll (asyncio)."""


ROUNDING_S = 0.0015
"""Loop clocks round to a millisecond, so a timer may come one before its moment by the clock."""


class Sweep:
    """Calls `check` on each entry, never early and at most ``grain_s`` and a few turns of the
    loop late."""

    def __init__(self, loop: asyncio.AbstractEventLoop, grain_s: float) -> None:
        self._loop = loop
        self._grain_s = grain_s
        self._slots: dict[int, list[Swept]] = {}
        self._timer: asyncio.Handle | None = None

    def at(self, entry: Swept, when: float) -> None:
        """Look at ``entry`` at ``when`` at the latest. A later time than one already set
        changes nothing: `check` finds out by itself."""
        slot = math.ceil(when / self._grain_s)
        if entry.slot is not None and entry.slot <= slot:
            return
        entry.slot = slot
        self._slots.setdefault(slot, []).append(entry)
        if self._timer is None:
            self._arm()

    def forget(self, entry: Swept) -> None:
        """Never call ``entry`` again. What its bucket still holds of it is skipped."""
        entry.slot = None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._slots.clear()

    def _now(self) -> float:
        """The tick that has come counts as come, though the clock may still say otherwise."""
        return self._loop.time() + ROUNDING_S

    def _arm(self) -> None:
        turn = math.floor(self._now() / self._grain_s) + 1
        self._timer = self._loop.call_at(turn * self._grain_s, self._tick)

    def _tick(self) -> None:
        turn = math.floor(self._now() / self._grain_s)
        if any(slot <= turn for slot in self._slots):
            self._read_first(READ_TURNS, turn)
        else:
            self._rest()

    def _read_first(self, turns: int, turn: int) -> None:
        if turns:
            self._timer = self._loop.call_soon(self._read_first, turns - 1, turn)
        else:
            self._judge(turn)

    def _judge(self, turn: int) -> None:
        # `_timer` stays set until all are judged: `at` must not arm a second one meanwhile.
        now = self._now()
        for slot in [slot for slot in self._slots if slot <= turn]:
            for entry in self._slots.pop(slot):
                if entry.slot != slot:
                    continue  # moved to an earlier bucket, or forgotten
                entry.slot = None
                again = entry.check(now)
                if again is not None:
                    self.at(entry, max(again, now))
        self._rest()

    def _rest(self) -> None:
        """Wait for the next tick; for none while there is nothing to look at."""
        self._timer = None
        if self._slots:
            self._arm()


class WriteStall:
    """The deadline of a peer that does not read: its backlog may stand still for ``limit_s``."""

    __slots__ = ("_backlog_bytes", "_limit_s", "_metrics", "_since")

    def __init__(self, limit_s: float, metrics: GatewayMetrics) -> None:
        self._limit_s = limit_s
        self._metrics = metrics
        self._since: float | None = None
        self._backlog_bytes = 0

    def begin(self) -> float:
        """Writing was paused: count anew. Returns after how many seconds to `check`."""
        self._since = None
        return self._limit_s / 2

    def check(self, transport: asyncio.Transport, now: float) -> float | None:
        """Abort ``transport`` if nothing has moved for too long. Returns when to look again."""
        backlog = transport.get_write_buffer_size()
        if self._since is None or backlog != self._backlog_bytes:
            self._since, self._backlog_bytes = now, backlog
        if now - self._since < self._limit_s:
            return self._since + self._limit_s
        self._metrics.deadline("write")
        transport.abort()
        return None

"""How often one writer may speak, so that being refused never turns its messages around.

A writer with several requests in flight may find number 12 refused while 13, a moment later,
would pass: 13 would then be held, go past the hole, and 12 would come last. So once a number
was refused, everything above it is refused too, until it has come again or was given time to.
"""

from __future__ import annotations

__all__ = ["WriterPace"]

BLOCK_S = 3.0
"""For so long a refused number keeps those above it out. A writer that retries is faster."""


class WriterPace:
    """``rate`` messages a second, up to ``burst`` at once, of one writer."""

    __slots__ = ("_at", "_burst", "_left", "_rate", "_refused", "_until")

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate, self._burst = rate, float(burst)
        self._left, self._at = float(burst), now
        self._refused = 0
        self._until = 0.0

    def take(self, now: float, seq: int = 0) -> float | None:
        """None: it may pass. Otherwise the seconds after which to send it again."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._rate)
        self._at = max(self._at, now)
        if seq and self._refused and seq > self._refused and now < self._until:
            return self._wait_s
        if self._left < 1:
            if seq and (not self._refused or seq < self._refused or now >= self._until):
                self._refused = seq
            self._until = now + BLOCK_S
            return self._wait_s
        self._left -= 1
        if seq >= self._refused:
            self._refused = 0
        return None

    @property
    def _wait_s(self) -> float:
        return max(0.05, (1 - self._left) / self._rate)

"""When a waiting client may be told its place in the queue.

Some protocols' clients expect an exact order of messages and take no other in between; for
them news of the queue is held back for a moment, which is longer than an idle system ever
lets a session wait. Acknowledgements of what a client goes on sending do not hold it back
any further: somebody who speaks without a pause must hear of the queue too. Only the newest
place is kept: what a client has not been told yet is replaced, never queued.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from forebay.core.spec import QueuePlace
from forebay.gateway.context import GatewayContext

__all__ = ["Notices"]


class Notices:
    """Queue news of one session. ``gap_s``: how long it must have waited before it is told;
    0: at once. ``tell`` says a place, or with None that the wait is over. How far the first
    forecast of each wait was off is counted under ``kind``."""

    __slots__ = (
        "_ctx",
        "_forecast",
        "_gap_s",
        "_kind",
        "_newest",
        "_since",
        "_tell",
        "_timer",
        "_told",
    )

    def __init__(
        self,
        ctx: GatewayContext,
        gap_s: float,
        tell: Callable[[QueuePlace | None], None],
        kind: str = "",
    ) -> None:
        self._ctx = ctx
        self._kind = kind
        self._forecast: tuple[float, float] | None = None  # (when, seconds from then)
        self._gap_s = gap_s
        self._tell = tell
        self._newest: QueuePlace | None = None
        self._since: float | None = None  # when this wait began
        self._timer: asyncio.TimerHandle | None = None
        self._told = False

    def waits(self, place: QueuePlace) -> None:
        """The job waits, at this place."""
        self._newest = place
        now = self._ctx.clock()
        if self._since is None:
            self._since = now
        if self._forecast is None and place.eta_s is not None:
            self._forecast = (now, place.eta_s)
        if self._timer is None:
            self._due()

    def begun(self) -> None:
        """It waits no more."""
        if self._forecast is not None:
            when, eta_s = self._forecast
            self._ctx.metrics.waited(self._kind, eta_s, self._ctx.clock() - when)
        self.stop()
        if self._told:
            self._told = False
            self._tell(None)

    def stop(self) -> None:
        """Say nothing more of this wait. Idempotent."""
        self._newest = self._since = self._forecast = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        place = self._newest
        if place is None or self._since is None:
            return
        at = self._since + self._gap_s
        if self._ctx.clock() < at:
            self._timer = self._ctx.hub.call_at(at, self._due)
            return
        self._newest = None
        self._told = True
        self._tell(place)

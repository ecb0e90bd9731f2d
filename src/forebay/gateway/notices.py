"""When a waiting client may be told its place in the queue.

Some protocols' clients expect an exact order of messages and take no other in between; for
them news of the queue is held back for a moment, which is longer than an idle system ever
lets a session wait. Acknowledgements of what a client goes on sending do not hold it back
any further: somebody who speaks without a pause must hear of the queue too. Only the newest
place is kept: what a client has not been told yet is replaced, never queued.

The broker tells a place when it changes. Behind a job that lives much longer than the mean
nothing changes, and what the client counts down runs out: then its place is told again with a
corrected time (`core.admission.corrected`), which grows as the wait does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from forebay.core.admission import corrected
from forebay.core.events import Ended
from forebay.core.spec import QueuePlace
from forebay.gateway.context import GatewayContext

__all__ = ["Notices"]

EVERY_S = 1.0
"""A client is told of its place at most so often."""

SLACK_S, SLACK = 1.0, 0.2
"""A time that was told has run out when it has passed by so much, and by that share of it."""


@dataclass(frozen=True, slots=True)
class _Forecast:
    """A place, and when the broker said it."""

    place: QueuePlace
    at: float


class Notices:
    """Queue news of one session. ``gap_s``: how long it must have waited before it is told;
    0: at once. ``tell`` says a place, or with None that the wait is over. How far the first
    forecast of each wait was off is counted under ``kind``."""

    __slots__ = (
        "_ctx",
        "_first",
        "_gap_s",
        "_kind",
        "_newest",
        "_quiet_until",
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
        self._first: _Forecast | None = None  # of this wait, that had a time
        self._newest: _Forecast | None = None
        self._gap_s = gap_s
        self._tell = tell
        self._quiet_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._told = False

    def waits(self, place: QueuePlace) -> None:
        """The job waits, at this place."""
        now = self._ctx.clock()
        if self._newest is None:
            self._quiet_until = now + self._gap_s
        self._newest = _Forecast(place, now)
        if self._first is None and place.eta_s is not None:
            self._first = self._newest
        self._due()

    def begun(self) -> None:
        """It waits no more."""
        self._count(begun=True)
        self.stop()
        if self._told:
            self._told = False
            self._tell(None)

    def ended(self, how: Ended) -> None:
        """The job is over. Where its deadline ended the wait, that is the worst a forecast can
        miss by; a client that cancelled was not kept waiting."""
        if how.state == "expired":
            self._count(begun=False)
        self.stop()

    def stop(self) -> None:
        """Say nothing more of this wait. Idempotent."""
        self._newest = self._first = None
        self._disarm()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count(self, *, begun: bool) -> None:
        first = self._first
        if first is not None and first.place.eta_s is not None:
            waited_s = self._ctx.clock() - first.at
            self._ctx.metrics.waited(self._kind, first.place.eta_s, waited_s, begun=begun)

    def _due(self) -> None:
        """Tell the newest place, or set the time at which it may be told."""
        self._disarm()
        newest, now = self._newest, self._ctx.clock()
        if newest is None:
            return
        if now < self._quiet_until:
            self._timer = self._ctx.hub.call_at(self._quiet_until, self._due)
            return
        place = self._corrected(newest, now)
        self._quiet_until = now + EVERY_S
        if place.eta_s is not None:
            over = now + place.eta_s + max(SLACK_S, SLACK * place.eta_s)
            self._timer = self._ctx.hub.call_at(over, self._due)
        self._told = True
        self._tell(place)

    def _corrected(self, newest: _Forecast, now: float) -> QueuePlace:
        first = self._first
        if first is None or first.place.eta_s is None:
            return newest.place
        return corrected(
            newest.place,
            age_s=now - newest.at,
            late_s=now - first.at - first.place.eta_s,
            advanced=max(0, first.place.position - newest.place.position),
        )

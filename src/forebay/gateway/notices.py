"""When a waiting client may be told its place in the queue.

Some protocols' clients expect an exact order of messages and take no other in between; for
them news of the queue waits until the session has been silent for a while. Only the newest
place is kept: what a client has not been told yet is replaced, never queued.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from forebay.core.spec import QueuePlace
from forebay.gateway.context import GatewayContext

__all__ = ["Notices"]


class Notices:
    """Queue news of one session. ``gap_s``: silence of ours before it may be told; 0: at
    once. ``tell`` says a place, or with None that the wait is over."""

    __slots__ = ("_ctx", "_gap_s", "_newest", "_spoke_at", "_tell", "_timer", "_told")

    def __init__(
        self, ctx: GatewayContext, gap_s: float, tell: Callable[[QueuePlace | None], None]
    ) -> None:
        self._ctx = ctx
        self._gap_s = gap_s
        self._tell = tell
        self._newest: QueuePlace | None = None
        self._spoke_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._told = False

    def spoke(self) -> None:
        """The session was sent a message."""
        self._spoke_at = self._ctx.clock()

    def waits(self, place: QueuePlace) -> None:
        """The job waits, at this place."""
        self._newest = place
        if self._timer is None:
            self._due()

    def begun(self) -> None:
        """It waits no more."""
        self.stop()
        if self._told:
            self._told = False
            self._tell(None)

    def stop(self) -> None:
        """Say nothing more of this wait. Idempotent."""
        self._newest = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        place = self._newest
        if place is None:
            return
        at = self._spoke_at + self._gap_s
        if self._ctx.clock() < at:
            self._timer = self._ctx.hub.call_at(at, self._due)
            return
        self._newest = None
        self._told = True
        self._tell(place)

"""When an open session that says nothing has been idle for long enough.

One timer a session, set again only when it fires: what happens meanwhile only writes down
when. A thousand idle sessions cost a thousand timers and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from forebay.broker import GatewayBroker
from forebay.errors import ForebayError, NotFound
from forebay.gateway.context import GatewayContext

__all__ = ["IdleLife", "has_more"]

log = structlog.get_logger(__name__)


class IdleLife:
    """``life_s``: silence after which ``over`` is called, once, with it; None: never.
    ``busy``: whether something is under way nevertheless; asked only when the time is up."""

    __slots__ = ("_busy", "_ctx", "_last", "_life_s", "_over", "_stopped", "_timer")

    def __init__(
        self,
        ctx: GatewayContext,
        life_s: float | None,
        busy: Callable[[], Awaitable[bool]],
        over: Callable[[float], None],
    ) -> None:
        self._ctx = ctx
        self._life_s = life_s
        self._busy = busy
        self._over = over
        self._last = ctx.clock()
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None

    def touch(self) -> None:
        """A message went one way or the other. The first one starts the clock."""
        if self._life_s is None:
            return
        self._last = self._ctx.clock()
        if self._timer is None and not self._stopped:
            self._wait_until(self._last + self._life_s)

    def stop(self) -> None:
        """The session is over or has left. Idempotent."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait_until(self, when: float) -> None:
        self._timer = self._ctx.hub.call_at(when, self._due)

    def _due(self) -> None:
        life_s = self._life_s
        if life_s is None or self._stopped:
            return
        if self._ctx.clock() < self._last + life_s:
            self._wait_until(self._last + life_s)
            return
        self._ctx.hub.spawn(self._look(life_s))

    async def _look(self, life_s: float) -> None:
        asked_at = self._last
        try:
            busy = await self._busy()
        except ForebayError as error:
            log.debug("idle.not_known", code=error.code)
            busy = True
        if self._stopped:
            return
        if busy or self._last != asked_at:
            self._wait_until(self._ctx.clock() + life_s)
        else:
            self._over(life_s)


async def has_more(broker: GatewayBroker, job: str, counter: str) -> bool:
    """Whether ``job`` has anything to say still, for all that was fed to it."""
    try:
        view = await broker.status(job)
    except NotFound:
        return False
    unspoken = view.marks.get(counter, 0) < view.units
    return view.ended_s is None and (unspoken or view.delivered < view.head)

"""One job's output on its way to one wire: the cursor, the small hold, the slow rule.

See `gateway.hub` for the whole picture. A reader is opened by `Hub.open` only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Protocol

import structlog

from forebay.broker import GatewayPush, OutputPush
from forebay.core.events import Ended, OutputEvent, size_of
from forebay.core.kinds import Row
from forebay.errors import ForebayError, StateLost
from forebay.gateway.wire import LOW_WATER_BYTES, Wire

if TYPE_CHECKING:
    from forebay.gateway.hub import Hub

__all__ = ["HOLD_BYTES", "HOLD_EVENTS", "Encode", "Frame", "Pacing", "Reader"]

HOLD_BYTES = 256 * 1024
"""A reader that is behind holds at most this much (or one event); the rest stays in the broker."""
HOLD_EVENTS = 64

Frame = str | bytes
Encode = Callable[[OutputEvent], Sequence[Frame]]
Shared = dict[tuple[Hashable, int], Sequence[Frame]]

log = structlog.get_logger(__name__)


class Pacing(Protocol):
    """When an event may leave. Held-back events are paced, not slow."""

    def due(self, event: OutputEvent, now: float) -> float:
        """The time at which ``event`` may leave; at or before ``now`` means at once."""

    def sent(self, event: OutputEvent, now: float) -> None:
        """``event`` has been handed to the wire."""


class Reader:
    """Where one client is in one job's output. Read `cursor`; call `close`."""

    __slots__ = (
        "_arrivals",
        "_encode",
        "_epoch",
        "_head",
        "_held",
        "_held_bytes",
        "_hub",
        "_mark",
        "_on_end",
        "_on_push",
        "_on_reset",
        "_on_sent",
        "_on_slow",
        "_opened_at",
        "_pace",
        "_paced_until",
        "_pulling",
        "_pumping",
        "_row",
        "_share",
        "_timer",
        "closed",
        "cursor",
        "job",
        "wire",
    )

    def __init__(
        self,
        hub: Hub,
        job: str,
        *,
        epoch: str,
        after: int | None,
        mark: tuple[str, int] | None,
        encode: Encode,
        wire: Wire,
        row: Row,
        pace: Pacing | None,
        on_end: Callable[[Ended], None],
        on_slow: Callable[[Reader], None],
        on_reset: Callable[[ForebayError], None],
        on_push: Callable[[GatewayPush], None] | None,
        on_sent: Callable[[OutputEvent], None] | None,
        share: Hashable | None,
    ) -> None:
        self._hub = hub
        self.job = job
        self.wire = wire
        self.closed = False
        self.cursor = after or 0
        self._epoch = epoch
        self._mark = mark
        self._encode = encode
        self._row = row
        self._pace = pace
        self._on_end = on_end
        self._on_slow = on_slow
        self._on_reset = on_reset
        self._on_push = on_push
        self._on_sent = on_sent
        self._share = share
        self._held: deque[tuple[OutputEvent, float]] = deque()
        self._held_bytes = 0
        self._head = 0  # newest offset heard of; above the last one held: pull
        self._arrivals: deque[tuple[int, float]] = deque()  # heads heard of, not held
        self._opened_at = 0.0
        self._paced_until = 0.0  # the pace last let an event go at this time
        self._pulling: asyncio.Task[None] | None = None
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ beginning

    def start(self) -> None:
        """Read what is already there. Until that has come back, pushes only raise the head."""
        self._opened_at = self._hub.clock()
        self._pull()

    def close(self) -> None:
        """Stop reading; no callback follows. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._held.clear()
        self._held_bytes = 0
        self._cancel_timer()
        if self._pulling is not None and self._pulling is not asyncio.current_task():
            self._pulling.cancel()
        self._hub.drop(self)

    # --------------------------------------------------------------------- pushes

    def hear(self, push: GatewayPush) -> None:
        if self._on_push is not None and not self.closed:
            self._on_push(push)

    def offer(self, push: OutputPush, shared: Shared | None = None) -> None:
        """Take a push: send it now if this reader is live, hold it, or only note the head."""
        if self.closed or not push.events:
            return
        if push.epoch != self._epoch:
            self._reset(StateLost(f"the output of job {self.job} was lost by the store"))
            return
        now = self._hub.clock()
        if self._pulling is None:
            for event in push.events:
                if event.offset > self._tail and not self._hold(event, now):
                    break
        newest = push.events[-1].offset
        if newest > self._head:
            self._head = newest
            if newest > self._tail:
                self._note_arrival(newest, now)
        self.pump(shared)

    def _note_arrival(self, offset: int, now: float) -> None:
        """Remember when what is neither sent nor held came, for the slow rule."""
        if len(self._arrivals) >= HOLD_EVENTS:
            self._arrivals.pop()  # the youngest is judged too young rather than too old
        self._arrivals.append((offset, now))

    def _arrived(self, offset: int) -> float:
        while self._arrivals and self._arrivals[0][0] < offset:
            self._arrivals.popleft()
        return self._arrivals[0][1] if self._arrivals else self._opened_at

    @property
    def _tail(self) -> int:
        """The last offset sent or held."""
        return self._held[-1][0].offset if self._held else self.cursor

    def _hold(self, event: OutputEvent, since: float) -> bool:
        """Take ``event`` if it is the next one and there is room."""
        if event.offset != self._tail + 1:
            return False
        size = size_of(event)
        full = len(self._held) >= HOLD_EVENTS or self._held_bytes + size > HOLD_BYTES
        if full and self._held:
            return False
        self._held.append((event, since))
        self._held_bytes += size
        return True

    # -------------------------------------------------------------------- sending

    def pump(self, shared: Shared | None = None) -> None:
        """Send what may leave now; then wait for the drain, the pace or the broker."""
        if self._pumping or self.closed:
            return  # a callback of ours closed or fed us; the outer call goes on
        self._pumping = True
        try:
            self._cancel_timer()
            while self._held and not self.closed:
                if not self._may_send():
                    return
                self._send(shared)
            if not self.closed and self._pulling is None and self._head > self.cursor:
                self._pull()
        finally:
            self._pumping = False

    def _may_send(self) -> bool:
        event, since = self._held[0]
        now = self._hub.clock()
        if self.wire.closed:
            return False  # whoever owns the wire hears of it and closes this reader
        if self.wire.backlog() > LOW_WATER_BYTES:
            self._blocked(max(since, self._paced_until) + self._row.slow_reader_s, now)
            return False
        if self._pace is not None:
            due = self._pace.due(event, now)
            if due > now:
                self._paced_until = due
                self._timer = self._hub.call_at(due, self.pump)
                return False
        return True

    def _blocked(self, slow_at: float, now: float) -> None:
        if slow_at <= now:
            self.close()
            self._on_slow(self)
            return
        self._hub.wait_drain(self)
        self._timer = self._hub.call_at(slow_at, self.pump)

    def _send(self, shared: Shared | None) -> None:
        event, _ = self._held.popleft()
        self._held_bytes -= size_of(event)
        for frame in self._frames(event, shared):
            self.wire.send(frame)
        self.cursor = event.offset
        if self._pace is not None:
            self._pace.sent(event, self._hub.clock())
        self._hub.moved(self)
        if self._on_sent is not None:
            self._on_sent(event)
        if isinstance(event, Ended) and not self.closed:
            self.close()
            self._on_end(event)

    def _frames(self, event: OutputEvent, shared: Shared | None) -> Sequence[Frame]:
        if shared is None or self._share is None:
            return self._encode(event)
        key = (self._share, event.offset)
        frames = shared.get(key)
        if frames is None:
            frames = shared[key] = self._encode(event)
        return frames

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -------------------------------------------------------------------- pulling

    def _pull(self) -> None:
        if self._pulling is None:
            self._pulling = self._hub.spawn(self._pull_once())

    async def _pull_once(self) -> None:
        """Fetch what follows the cursor and send it. The hold is empty when this begins."""
        failure: ForebayError | None = None
        events: list[OutputEvent] = []
        head = self._head
        try:
            events = await self._read()
        except ForebayError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - the supervised boundary of one reader
            log.error("reader.failed", job=self.job, error=type(error).__name__)
            failure = ForebayError("reading the output failed inside the gateway")
        self._pulling = None
        if self.closed:
            return
        if failure is not None:
            self._reset(failure)
            return
        if not events and head == self._head:
            self._head = self.cursor  # heard of, yet not there: the store is the truth
        self._take(events)
        self.pump()

    async def _read(self) -> list[OutputEvent]:
        broker = self._hub.broker
        if self._mark is None:
            return await broker.read_after(
                self.job, self.cursor, epoch=self._epoch, limit=HOLD_EVENTS
            )
        view = await broker.status(self.job)
        if view.epoch != self._epoch:
            raise StateLost(f"the output of job {self.job} was lost by the store")
        events = await broker.read_after_mark(self.job, *self._mark, limit=HOLD_EVENTS)
        # Nothing after the mark means that the reader stands at the head; the head was asked
        # for *before*, so that an event which came in between is read and not skipped.
        self.cursor = events[0].offset - 1 if events else view.head
        self._mark = None
        return events

    def _take(self, events: list[OutputEvent]) -> None:
        if not events:
            return
        for event in events:
            if not self._hold(event, self._arrived(event.offset)):
                break
        self._head = max(self._head, events[-1].offset)

    def _reset(self, error: ForebayError) -> None:
        self.close()
        self._on_reset(error)

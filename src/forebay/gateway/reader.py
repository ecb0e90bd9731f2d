"""One job's output on its way to one wire: the cursor, the small hold, the slow rule.

See `gateway.hub` for the whole picture. A reader is opened by `Hub.open` only.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import structlog

from forebay.broker import GatewayPush, OutputPush
from forebay.core.events import Audio, Ended, OutputEvent, size_of
from forebay.core.flush import Cursor, Pace
from forebay.core.kinds import Row, SlowRule
from forebay.errors import ForebayError, StateLost, StoreDown
from forebay.gateway.held import HeadGate
from forebay.gateway.wire import LOW_WATER_BYTES, Wire
from forebay.gateway.wires import HttpWire, WebSocketWire

if TYPE_CHECKING:
    from forebay.gateway.hub import Hub

__all__ = [
    "HOLD_BYTES",
    "HOLD_EVENTS",
    "STORE_DOWN_S",
    "AudioPace",
    "Encode",
    "Frame",
    "Pacing",
    "ReadAfter",
    "Reader",
    "patient",
]

HOLD_BYTES = 256 * 1024
"""A reader that is behind holds at most this much (or one event); the rest stays in the broker."""
HOLD_EVENTS = 64
STORE_DOWN_S = 0.2
"""How long a reader waits before it asks a store again that did not answer."""

Frame = str | bytes
Encode = Callable[[OutputEvent], Sequence[Frame]]
ReadAfter = Callable[..., Awaitable[list[OutputEvent]]]
"""`GatewayBroker.read_after`, or the same of another kind of stream."""
Shared = dict[tuple[Hashable, int], Sequence[Frame]]

_CORKED = (WebSocketWire, HttpWire, HeadGate)

log = structlog.get_logger(__name__)


def patient(row: Row) -> Row:
    """``row`` for a reader of it: where stale events give way to newer ones, the others are
    kept by the broker, and whoever reads may take its time."""
    return replace(row, slow_reader_s=math.inf) if row.slow is SlowRule.COALESCE else row


class Pacing(Protocol):
    """When an event may leave. Held-back events are paced, not slow."""

    def due(self, event: OutputEvent, now: float) -> float:
        """The time at which ``event`` may leave; at or before ``now`` means at once."""

    def sent(self, event: OutputEvent, now: float) -> None:
        """``event`` has been handed to the wire."""


class AudioPace:
    """`core.flush.Pace` for audio events. ``rate``: sample frames per second of the job."""

    __slots__ = ("_pace", "_rate")

    def __init__(self, ahead_s: float | None, rate: int) -> None:
        self._pace = Pace(ahead_s)
        self._rate = rate

    def due(self, event: OutputEvent, now: float) -> float:
        if not isinstance(event, Audio) or self._pace.allow(event.frames / self._rate, now):
            return now
        return now if self._pace.deadline is None else self._pace.deadline

    def sent(self, event: OutputEvent, now: float) -> None:
        if isinstance(event, Audio):
            self._pace.sent(event.frames / self._rate, now)


class Reader:
    """Where one client is in one job's output. Read `cursor`; call `close`."""

    __slots__ = (
        "_at",
        "_encode",
        "_held",
        "_held_bytes",
        "_hub",
        "_mark",
        "_more",
        "_on_end",
        "_on_push",
        "_on_reset",
        "_on_sent",
        "_on_slow",
        "_pace",
        "_pulling",
        "_pumping",
        "_read_room",
        "_row",
        "_share",
        "_timer",
        "_waiting",
        "closed",
        "epoch",
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
        read: ReadAfter | None = None,
    ) -> None:
        self._read_room = read
        self._hub = hub
        self.job = job
        self.wire = wire
        self.closed = False
        self.epoch = epoch
        self._mark = mark
        self._more = False  # the last pull was a full page: the head is not known
        self._encode = encode
        self._row = row
        self._pace = pace
        self._on_end = on_end
        self._on_slow = on_slow
        self._on_reset = on_reset
        self._on_push = on_push
        self._on_sent = on_sent
        self._share = share
        self._held: deque[OutputEvent] = deque()
        self._held_bytes = 0
        self._at = self._cursor_at(after or 0)
        self._pulling: asyncio.Task[None] | None = None
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = False  # the wire takes nothing; its drain or the slow rule comes next

    # ------------------------------------------------------------------ beginning

    def start(self) -> None:
        """Read what is already there. Until that has come back, pushes only raise the head.

        A home in this process can say at once that there is nothing yet, as of a new job."""
        at_head = getattr(self._hub.broker, "at_head", None)
        if at_head is None or self._mark is not None or self._read_room is not None:
            self._pull()
        elif not at_head(self.job, self.cursor, self.epoch):
            self._pull()

    def _cursor_at(self, offset: int) -> Cursor:
        slow_s = self._row.slow_reader_s
        return Cursor(
            offset, offset, now=self._hub.clock(), slow_s=slow_s if math.isfinite(slow_s) else None
        )

    @property
    def cursor(self) -> int:
        """The last offset handed to the wire."""
        return self._at.offset

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

    @property
    def hears(self) -> bool:
        """Whether it wants to `hear` what is not output."""
        return self._on_push is not None

    def hear(self, push: GatewayPush) -> None:
        if self._on_push is not None and not self.closed:
            self._on_push(push)

    def offer(self, push: OutputPush, shared: Shared | None = None) -> None:
        """Take a push: send it now if this reader is live, hold it, or only note the head."""
        if self.closed:
            return
        if push.epoch != self.epoch:  # perhaps without events: only to say so
            self._reset(StateLost(f"the output of job {self.job} was lost by the store"))
            return
        if not push.events:
            return
        first, last = push.events[0].offset, push.events[-1].offset
        if first == last and self._passes(push.events[0]):
            self.pump(shared, push.events[0])
            return
        self._at.arrived(first, last, self._hub.clock())
        full = self._pulling is None and not self._hold_all(push.events)
        if not self._waiting:
            self.pump(shared)
        elif full:
            self._hub.rest(self)

    def missed(self, last: int, when: float) -> None:
        """While it slept the stream grew to ``last``."""
        self._at.arrived(self._at.head + 1, last, when)

    def _passes(self, event: OutputEvent) -> bool:
        """Whether ``event`` may go straight from its push to the wire: the usual case, and
        what `pump` would find out in more steps."""
        return (
            event.offset == self._at.offset + 1
            and self._at.live
            and self._pulling is None
            and self._pace is None
            and not (self._held or self._more or self._pumping or self.wire.closed)
            and self.wire.backlog() <= LOW_WATER_BYTES
        )

    @property
    def _tail(self) -> int:
        """The last offset sent or held."""
        return self._held[-1].offset if self._held else self._at.offset

    def _hold_all(self, events: Sequence[OutputEvent]) -> bool:
        """Take those that are new; False once one is not the next or there is no room."""
        return all(event.offset <= self._tail or self._hold(event) for event in events)

    def _hold(self, event: OutputEvent) -> bool:
        """Take ``event`` if it is the next one and there is room."""
        if event.offset != self._tail + 1:
            return False
        size = size_of(event)
        full = len(self._held) >= HOLD_EVENTS or self._held_bytes + size > HOLD_BYTES
        if full and self._held:
            return False
        self._held.append(event)
        self._held_bytes += size
        return True

    # -------------------------------------------------------------------- sending

    def pump(self, shared: Shared | None = None, straight: OutputEvent | None = None) -> None:
        """Send what may leave now; then wait for the drain, the pace or the broker.
        ``straight``: an event that `_passes`."""
        if self._pumping or self.closed:
            return  # a callback of ours closed or fed us; the outer call goes on
        self._pumping = True
        try:
            if straight is not None:
                self._send(straight, shared)
            if straight is None or not self._at.live:
                self._send_together(shared)
        except Exception as error:  # noqa: BLE001 - the supervised boundary of one reader
            log.error("reader.failed", job=self.job, error=type(error).__name__)
            if not self.closed:
                self._reset(ForebayError("writing the output failed inside the gateway"))
        finally:
            self._pumping = False

    def _send_together(self, shared: Shared | None) -> None:
        """`_send_held`, in one write where the wire can and there is more than one event."""
        wire = self.wire
        if len(self._held) < 2 or not isinstance(wire, _CORKED):
            self._send_held(shared)
            return
        wire.cork()
        try:
            self._send_held(shared)
        finally:
            wire.uncork()

    def _send_held(self, shared: Shared | None) -> None:
        self._cancel_timer()
        while self._held and not self.closed:
            if not self._may_send():
                return
            event = self._held.popleft()
            self._held_bytes -= size_of(event)
            self._send(event, shared)
        if not self.closed and self._pulling is None and (self._more or not self._at.live):
            self._pull()

    def _may_send(self) -> bool:
        if self.wire.closed:
            return False  # whoever owns the wire hears of it and closes this reader
        now = self._hub.clock()
        if self.wire.backlog() > LOW_WATER_BYTES:
            self._blocked(now)
            return False
        if self._pace is not None:
            due = self._pace.due(self._held[0], now)
            if due > now:
                self._at.hold(due)
                self._timer = self._hub.call_at(due, self.pump)
                return False
        if self._waiting:
            self._waiting = False
            self._hub.wake(self)
        return True

    def _blocked(self, now: float) -> None:
        slow_at = self._at.slow_at
        if slow_at is not None and slow_at <= now:
            self.close()
            self._on_slow(self)
            return
        self._waiting = True
        self._hub.wait_drain(self)
        if slow_at is not None:
            self._timer = self._hub.call_at(slow_at, self.pump)

    def _send(self, event: OutputEvent, shared: Shared | None) -> None:
        for frame in self._frames(event, shared):
            self.wire.send(frame)
        self._at.sent(event.offset)
        if self._pace is not None:
            self._pace.sent(event, self._hub.clock())
        if self._read_room is None:  # nobody works on a room, so nobody waits to hear this
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
        head = self._at.head
        try:
            events = await self._read()
        except StoreDown:
            await asyncio.sleep(STORE_DOWN_S)
            self._pulling = None
            if not self.closed:
                self._pull()  # nothing was learnt: there may be events that nobody pushes again
            return
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
        self._more = len(events) >= HOLD_EVENTS
        if events:
            self._take(events)
        elif head == self._at.head:
            self._at = self._cursor_at(self._at.offset)  # the stream is the truth, not the push
        self.pump()

    async def _read(self) -> list[OutputEvent]:
        broker = self._hub.broker
        if self._mark is None:
            read = self._read_room or broker.read_after
            return await read(self.job, self.cursor, epoch=self.epoch, limit=HOLD_EVENTS)
        view = await broker.status(self.job)
        if view.epoch != self.epoch:
            raise StateLost(f"the output of job {self.job} was lost by the store")
        events = await broker.read_after_mark(self.job, *self._mark, limit=HOLD_EVENTS)
        # Nothing after the mark means that the reader stands at the head; the head was asked
        # for *before*, so that an event which came in between is read and not skipped. One that
        # was pushed before we came to run again is not among them, and nobody pushes it twice.
        pushed = self._at.head
        self._at = self._cursor_at(events[0].offset - 1 if events else view.head)
        self._at.arrived(pushed, pushed, self._hub.clock())
        self._mark = None
        return events

    def _take(self, events: list[OutputEvent]) -> None:
        self._at.arrived(events[0].offset, events[-1].offset, self._hub.clock())
        self._hold_all(events)

    def _reset(self, error: ForebayError) -> None:
        self.close()
        self._on_reset(error)

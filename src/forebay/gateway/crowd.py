"""Everybody in this gateway who reads one room, and the one frame written to all of them.

Whoever stands at the head shares one cursor, the crowd's. A new caption is encoded once for
each face (a way of writing it) and the same bytes go to every wire, in the broker's callback,
without a task. Whoever cannot take it, because the wire is over its low-water mark or because
they begin further back, is *behind*: a reader of the hub's takes them through the room from
their own position, by its own flow control, and brings them back to the crowd at the head.

Previews go only to who is at the head with an empty enough wire: they are dropped first. Who
stays behind for longer than the kind's bound is cut, with the position they reached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from forebay.broker import GatewayPush, OutputPush
from forebay.broker.rooms import GonePush, PreviewPush, RoomBroker
from forebay.core.events import Caption, OutputEvent
from forebay.core.kinds import Row
from forebay.core.shown import Shown, news
from forebay.errors import ForebayError, StateLost, StoreDown
from forebay.gateway.hub import Hub
from forebay.gateway.reader import STORE_DOWN_S, Reader
from forebay.gateway.wire import LOW_WATER_BYTES, Wire
from forebay.gateway.wires import WebSocketWire

__all__ = ["PREVIEW_BYTES", "Counts", "Crowd", "Face", "Seat"]

PREVIEW_BYTES = 8 * 1024
"""A wire with more than this unsent gets no previews."""
PULL = 256

log = structlog.get_logger(__name__)


class Face(Protocol):
    """How captions are written for some readers. Equal faces write equal bytes."""

    def write(self, caption: Caption) -> str: ...

    def __hash__(self) -> int: ...


@dataclass(slots=True)
class Counts:
    """What happened in this gateway's rooms since it started."""

    delivered: int = 0
    previews: int = 0
    previews_dropped: int = 0
    behind: int = 0
    cut: int = 0


class Seat:
    """One reader's place. ``on_slow(offset)``: cut it, it got this far; ``on_lost``: the room
    cannot be read on. Both are called once, after which the seat is empty. ``on_shown``: told
    when captions stand on displays; only who speaks wants that."""

    __slots__ = ("face", "left", "on_lost", "on_shown", "on_slow", "previews", "reader", "wire")

    def __init__(
        self,
        wire: Wire,
        face: Face,
        *,
        on_slow: Callable[[int], None],
        on_lost: Callable[[ForebayError], None],
        previews: bool = True,
        on_shown: Callable[[Shown], None] | None = None,
    ) -> None:
        self.wire = wire
        self.face = face
        self.on_slow = on_slow
        self.on_lost = on_lost
        self.previews = previews
        self.on_shown = on_shown
        self.reader: Reader | None = None
        self.left = False


class Crowd:
    """The readers of one room here. Made by `rooms.Rooms`, which watches the room for it."""

    def __init__(
        self,
        hub: Hub,
        rooms: RoomBroker,
        room: str,
        row: Row,
        counts: Counts,
        on_written: Callable[[str, Caption], None] | None = None,
    ) -> None:
        self.room = room
        self._on_written = on_written
        self.lost = False  # nothing more will come; whoever comes now needs another crowd
        self.epoch = ""
        self.head = 0
        self._hub = hub
        self._rooms = rooms
        self._row = row
        self._counts = counts
        self._live: dict[Face, dict[Seat, None]] = {}
        self._behind: set[Seat] = set()
        self._told: dict[Seat, None] = {}  # those with an ``on_shown``
        self._known = False  # the head was told; until then pushes only say that it moved
        self._missed = False
        self._pulling = False

    def __len__(self) -> int:
        return len(self._behind) + sum(len(seats) for seats in self._live.values())

    def begin(self, epoch: str, head: int) -> None:
        """Where the room stands. Pushes may have come before; none is lost."""
        if self._known:
            return
        self._known, self.epoch, self.head = True, epoch, head
        if self._missed:
            self._pull()

    # ----------------------------------------------------------------------- seats

    def sit(self, seat: Seat, after: int) -> None:
        """Read on from ``after``, which is at most the head. Nothing is written before this
        returns to the loop unless the seat is live."""
        if seat.on_shown is not None:
            self._told[seat] = None
        if after >= self.head:
            self._live.setdefault(seat.face, {})[seat] = None
        else:
            self._fall_behind(seat, after)

    def leave(self, seat: Seat) -> None:
        """Idempotent."""
        seat.left = True
        if seat.reader is not None:
            seat.reader.close()
            seat.reader = None
        self._behind.discard(seat)
        self._told.pop(seat, None)
        self._stand_up(seat)

    def _stand_up(self, seat: Seat) -> None:
        seats = self._live.get(seat.face)
        if seats is not None and seats.pop(seat, seat) is None and not seats:
            del self._live[seat.face]

    def _fall_behind(self, seat: Seat, after: int) -> None:
        self._stand_up(seat)
        self._behind.add(seat)
        self._counts.behind += 1

        def sent(event: OutputEvent) -> None:
            self._counts.delivered += 1
            asyncio.get_running_loop().call_soon(self._catch_up, seat)

        def slow(reader: Reader) -> None:
            self._counts.cut += 1
            self._empty(seat)
            seat.on_slow(reader.cursor)

        def lost(error: ForebayError) -> None:
            self._empty(seat)
            seat.on_lost(error)

        seat.reader = self._hub.open(
            self.room,
            epoch=self.epoch,
            after=after,
            encode=lambda event: [seat.face.write(event)] if isinstance(event, Caption) else [],
            wire=seat.wire,
            row=self._row,
            on_end=lambda ended: None,
            on_slow=slow,
            on_reset=lost,
            on_sent=sent,
            share=seat.face,
            read=self._rooms.read_room,
        )

    def _empty(self, seat: Seat) -> None:
        seat.reader = None
        self.leave(seat)

    def _catch_up(self, seat: Seat) -> None:
        """Back to the crowd, if the reader has come as far as it."""
        reader = seat.reader
        if seat.left or reader is None or reader.closed or reader.cursor < self.head:
            return
        if reader.cursor > self.head or seat.wire.backlog() > LOW_WATER_BYTES:
            return  # it will come by here again with its next event
        reader.close()
        seat.reader = None
        self._behind.discard(seat)
        self._live.setdefault(seat.face, {})[seat] = None

    # ---------------------------------------------------------------------- pushes

    def hear(self, push: GatewayPush) -> None:
        """What the broker says about the room."""
        match push:
            case OutputPush():
                self._take(push)
            case PreviewPush():
                self._preview(push.caption)
            case GonePush() if push.epoch == self.epoch:
                self._lost(StateLost("the room was dropped"))

    def _take(self, push: OutputPush) -> None:
        if not self._known or self._pulling:
            self._missed = True
            return
        if push.epoch != self.epoch:
            self._lost(StateLost("the room was lost by the store"))
            return
        if push.events and push.events[0].offset > self.head + 1:
            self._pull()
            return
        self._say(push.events)

    def _say(self, events: Sequence[OutputEvent]) -> None:
        for event in events:
            if event.offset == self.head + 1:
                if isinstance(event, Caption):
                    self._counts.delivered += self._write(event, LOW_WATER_BYTES)
                    if self._on_written is not None:
                        self._on_written(self.room, event)
                self.head = event.offset

    def _preview(self, caption: Caption) -> None:
        shown = news(caption)
        if shown is not None:
            for seat in tuple(self._told):
                if seat.on_shown is not None and seat.wire.backlog() <= PREVIEW_BYTES:
                    seat.on_shown(shown)
            return
        at_head = sum(len(seats) for seats in self._live.values())
        written = self._write(caption, PREVIEW_BYTES)
        self._counts.previews += written
        self._counts.previews_dropped += at_head - written + len(self._behind)

    def _write(self, caption: Caption, limit: int) -> int:
        """Give ``caption`` to everybody live; how many got it. Who cannot take a stored one
        falls behind from before it."""
        seated = 0
        full: list[Seat] = []
        now = asyncio.get_running_loop().time()
        for face, everybody in tuple(self._live.items()):
            seats = [seat for seat in everybody if seat.previews or not caption.preview]
            seated += len(seats)
            text = face.write(caption)
            frame = WebSocketWire.framed(text)
            for seat in seats:
                wire = seat.wire
                if isinstance(wire, WebSocketWire):
                    if not wire.offer(frame, limit, now):
                        full.append(seat)
                elif wire.backlog() > limit:
                    full.append(seat)
                else:
                    wire.send(text)
        written = seated - len(full)
        if not caption.preview:
            for seat in full:
                self._fall_behind(seat, self.head)
        return written

    def _lost(self, error: ForebayError) -> None:
        self.lost = True
        seats = [*self._behind, *(seat for seats in self._live.values() for seat in seats)]
        for seat in seats:
            self.leave(seat)
            seat.on_lost(error)

    # --------------------------------------------------------------------- pulling

    def _pull(self) -> None:
        """A push was missed: one read for everybody at the head."""
        self._missed, self._pulling = False, True
        if self._hub.spawn(self._pull_once()) is None:
            self._pulling = False

    async def _pull_once(self) -> None:
        try:
            more = True
            while (more or self._missed) and not self.lost:
                self._missed = False
                try:
                    events = await self._rooms.read_room(
                        self.room, self.head, epoch=self.epoch, limit=PULL
                    )
                except StoreDown:  # the room is where it was
                    await asyncio.sleep(STORE_DOWN_S)
                    continue
                self._say(events)
                more = len(events) >= PULL
        except ForebayError as error:
            self._lost(error)
        except Exception as error:  # noqa: BLE001 - the supervised boundary of one room
            log.error("crowd.failed", room=self.room, error=type(error).__name__)
            self._lost(ForebayError("reading the room failed inside the gateway"))
        finally:
            self._pulling = False

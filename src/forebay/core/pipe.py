"""Pipes: the output of one job, through a named pure map, into the input of another.

A `PipeState` is what the gateway that carries a pipe keeps: how far it has copied, and how
the next item is numbered. All of it can be rebuilt from what the broker knows, so another
gateway can carry on (`PipeState.rebuilt`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from forebay.core.events import (
    Caption,
    End,
    Ended,
    Final,
    InputItem,
    OutputEvent,
    Partial,
    Text,
    TextDelta,
    size_of,
)
from forebay.core.room import RoomItem
from forebay.core.spec import JobView, PipeSpec
from forebay.errors import BadRequest, ProtocolError

__all__ = ["MAPS", "Copy", "PipeState", "RoomMap"]

PREVIEW_CHARS = 2000
"""Of a longer partial the newest part is shown."""

COPY_BYTES = 16 * 1024
"""One append carries about this much, so that a full target is noticed between appends."""


class Copy(NamedTuple):
    """One append to the target. ``source_offset``: last source event wholly contained."""

    items: list[InputItem]
    source_offset: int


PipeMap = Callable[[OutputEvent, int, int], InputItem | None]
"""(event, units so far, number of this item) -> the item, or None if nothing follows."""


def _speak(event: OutputEvent, units: int, seq: int) -> InputItem | None:
    """Text deltas are spoken; tool calls, usage and notices are not."""
    match event:
        case TextDelta() if event.text:
            return Text(text=event.text, unit=units, seq=seq)
        case Ended(state="completed"):
            return End(seq=seq)
        case _:
            return None


MAPS: dict[str, PipeMap] = {"speak": _speak}


def _shown(event: Partial | Final) -> str:
    text = event.text.strip()
    return text[-PREVIEW_CHARS:] if isinstance(event, Partial) else text


class RoomMap:
    """The pure map of a pipe into a room: ``captions`` or ``captions:NAME``, who then speaks.

    Finals become captions, numbered by the source's offsets; the newest partial that no
    final has replaced becomes a preview."""

    __slots__ = ("user",)

    def __init__(self, name: str) -> None:
        kind, _, user = name.partition(":")
        if kind != "captions":
            raise BadRequest(f"no pipe map into a room is called {kind!r}, expected captions")
        self.user = user or "speaker"

    def items(
        self, events: Sequence[OutputEvent], pipe: str, *, now_ms: int, stamp: str
    ) -> tuple[Caption | None, list[RoomItem]]:
        """What to show as a preview after, and to publish before, for these events."""
        preview: Caption | None = None
        items: list[RoomItem] = []
        for event in events:
            if not isinstance(event, Partial | Final) or not event.text.strip():
                continue
            caption = Caption(
                user=self.user,
                text=_shown(event),
                timestamp=stamp,
                created_ms=now_ms,
                preview=isinstance(event, Partial),
            )
            if isinstance(event, Partial):
                preview = caption
                continue
            preview = None
            items.append(
                RoomItem(
                    client=f"pipe:{pipe}",
                    seq=event.offset,
                    settled=event.offset - 1,
                    caption=caption,
                )
            )
        return preview, items


class PipeState:
    """Where one pipe stands.

    ``copied``: last source offset contained in an append. ``units``: units given to the
    target so far. ``seq``: number of the last item given, 1, 2, 3... ``source_end``: the
    source's terminal event once it was received, else None.
    """

    __slots__ = ("_map", "_seen", "copied", "map", "seq", "source_end", "units")

    def __init__(self, map: str, copied: int = 0, *, units: int = 0, seq: int = 0) -> None:
        if map not in MAPS:
            raise BadRequest(f"no pipe map is called {map!r}, expected one of {', '.join(MAPS)}")
        self.map = map
        self.copied = copied
        self.units = units
        self.seq = seq
        self.source_end: Ended | None = None
        self._map = MAPS[map]
        self._seen = copied

    @classmethod
    def rebuilt(cls, spec: PipeSpec, target: JobView) -> PipeState:
        """The state a carrier takes over with: every item of the target came through here,
        so its input head is the last number given and its units are the units given.

        Read ``spec`` and ``target`` without an append between them. Then read the source
        after ``copied``. A carrier told that an append was a repeat was not alone: it must
        rebuild.
        """
        return cls(spec.map, spec.copied, units=target.units, seq=target.input_head)

    def receive(self, events: Sequence[OutputEvent]) -> list[Copy]:
        """What to append to the target, in order, for the next events of the source.

        Events received before are passed over; a gap raises `ProtocolError` (read the source
        after ``copied`` again). The caller must append each `Copy` as the pipe, waiting for
        room where the answer says ``over``, and then look at ``source_end``:

        * completed: `End` is the last item; mark the pipe as ended;
        * cancelled: cancel the target;
        * failed, expired: end the target with that event (``expire``).
        """
        copies: list[Copy] = []
        items: list[InputItem] = []
        size = 0
        for event in events:
            if event.offset <= self._seen:
                continue
            item = self._next(event)
            if item is None:
                continue
            items.append(item)
            size += size_of(item)
            self.copied = event.offset
            if size >= COPY_BYTES:
                copies.append(Copy(items, self.copied))
                items, size = [], 0
        if items:
            copies.append(Copy(items, self.copied))
        return copies

    def _next(self, event: OutputEvent) -> InputItem | None:
        if event.offset != self._seen + 1:
            raise ProtocolError(f"got source offset {event.offset}, expected {self._seen + 1}")
        self._seen = event.offset
        if isinstance(event, Ended):
            self.source_end = event
        item = self._map(event, self.units, self.seq + 1)
        if item is not None:
            self.seq += 1
            if isinstance(item, Text):
                self.units += len(item.text)
        return item

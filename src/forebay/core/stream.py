"""One numbered stream in memory, who may write to it, and how events get their numbers.

A `StreamLog` keeps the newest part of a stream and answers two questions exactly or by a
named refusal: what comes after an offset, and what comes after a cumulative counter. The
append rules of the broker are the fences of `core.fence`, named here too; they are apart from
the log because a home other than memory needs the same comparisons.

Order of calls for an output append: `OutputFence.check`, then on "append" `StreamLog.append`,
then `StreamLog.trim`. For input: the fence, `StreamLog.numbered`, `StreamLog.append`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import msgspec

from forebay.core.events import (
    Audio,
    Display,
    End,
    Ended,
    Final,
    Heard,
    Input,
    Output,
    OutputEvent,
    Partial,
    Sound,
    Text,
    TextDelta,
    Tile,
    faded,
    marks,
    rewrites,
    size_of,
)
from forebay.core.fence import IdentityFence, InputFence, OutputFence
from forebay.core.kinds import Row
from forebay.errors import EngineFailed, Fenced, OffsetGap, ResumeNotAvailable

__all__ = [
    "IdentityFence",
    "InputFence",
    "OutputFence",
    "Stamper",
    "StreamLog",
    "Window",
    "tag_of",
]

T = TypeVar("T", bound=Input | Output)
LAST = (Ended, End)  # nothing follows one of these


def tag_of(item: Input | Output) -> str:
    """The word an item or event goes by on the wire, such as "audio" or "text"."""
    kind = type(item)
    tag = _TAGS.get(kind)
    if tag is None:
        tag = _TAGS[kind] = str(kind.__struct_config__.tag)
    return tag


_TAGS: dict[type, str] = {}


def _marks_of(item: Input | Output) -> dict[str, int]:
    if isinstance(item, Output):
        return marks(item)
    return {"units": item.unit + len(item.text)} if isinstance(item, Text) else _NONE


_NONE: dict[str, int] = {}
_UNMARKED = frozenset({Sound, Partial, End})  # nothing is counted of what comes most


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How much of a stream is kept. Every bound is a maximum; None means no such bound.

    ``max_bytes``: content bytes as `size_of` counts them. ``max_marks``: (counter, span),
    keep the events that hold the newest ``span`` of that counter. ``keep_undelivered``: what
    no reader has been sent yet is kept whatever the other two say (it is bounded by the lead
    of the engine). ``replaceable``: of events with this tag only the newest keeps its content
    (`events.rewrites` says which replaces which).
    """

    max_bytes: int | None = None
    max_marks: tuple[str, int] | None = None
    keep_undelivered: bool = False
    replaceable: str = ""

    @classmethod
    def of(cls, row: Row, *, rate: int | None = None) -> Window:
        """The output window of a kind. ``rate``: sample frames per second of its media,
        needed where the row counts its window in seconds."""
        if row.window_s is None:
            return cls(max_bytes=row.window_bytes, replaceable=row.replaceable)
        if rate is None:
            raise ValueError(f"the window of {row.kind} is in seconds and needs a sample rate")
        return cls(
            max_bytes=row.window_bytes,
            max_marks=("samples", int(row.window_s * rate)),
            keep_undelivered=True,
        )


class _Counter:
    """Where one cumulative counter rose: values and offsets, both strictly rising."""

    __slots__ = ("offsets", "trimmed", "values")

    def __init__(self, start: int) -> None:
        self.values: list[int] = []
        self.offsets: list[int] = []
        self.trimmed = start  # the counter at the last event no longer kept

    def add(self, value: int, offset: int) -> bool:
        """Whether ``value`` is a rise; a counter that stands still or falls is not."""
        if value <= (self.values[-1] if self.values else self.trimmed):
            return False
        self.values.append(value)
        self.offsets.append(offset)
        return True

    def last_at(self, value: int) -> int:
        """Offset of the last kept event that raised the counter to at most ``value``; 0 if
        none is kept."""
        index = bisect_right(self.values, value)
        return self.offsets[index - 1] if index else 0

    def drop_through(self, offset: int) -> None:
        index = bisect_right(self.offsets, offset)
        if index:
            self.trimmed = self.values[index - 1]
            del self.values[:index], self.offsets[:index]


class StreamLog(Generic[T]):
    """The kept part of one stream of input items or output events.

    ``last_offset``, ``marks`` and ``counts`` are given when a log goes on where an earlier
    one stopped and the events before are gone (a journal that had trimmed them).

    ``first``: oldest offset kept, ``head + 1`` if none. ``head``: last offset. ``bytes``: size
    of what is kept. ``ended``: the terminal event (or `End`) is in. ``marks``: cumulative
    counters at the head. ``counts``: events so far per tag.
    """

    def __init__(
        self,
        epoch: str,
        window: Window | None = None,
        *,
        last_offset: int = 0,
        marks: Mapping[str, int] | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        self.epoch = epoch
        self.window = window if window is not None else Window()
        self.head = last_offset
        self.first = last_offset + 1
        self.bytes = 0
        self.ended = False
        self.marks: dict[str, int] = dict(marks or {})
        self.counts: dict[str, int] = dict(counts or {})
        self._items: list[T] = []
        self._sizes: list[int] = []
        self._replaceable: dict[str, int] = {}  # line -> the event on it that may be replaced
        self._counters = {name: _Counter(value) for name, value in self.marks.items()}

    def __len__(self) -> int:
        return len(self._items)

    def numbered(self, items: Sequence[T]) -> list[T]:
        """``items`` with the offsets they would have if appended now. Then call `append`."""
        return [
            msgspec.structs.replace(item, offset=offset)
            for offset, item in enumerate(items, self.head + 1)
        ]

    def append(self, items: Sequence[T], sizes: Sequence[int] | None = None) -> None:
        """Add items whose offsets go on from the head; all of them or none. ``sizes``: what
        `size_of` says of each, where it has been asked already.

        Raises `OffsetGap` for any other offset and `Fenced` for anything after the end.
        Then call `trim`.
        """
        for expected, item in enumerate(items, self.head + 1):
            if item.offset != expected:
                raise OffsetGap(
                    f"got offset {item.offset}, expected {expected}",
                    offset=item.offset,
                    expected=expected,
                )
            if self.ended or (isinstance(item, LAST) and item is not items[-1]):
                raise Fenced("nothing may be appended after the end", offset=item.offset)
        if sizes is None:
            sizes = [size_of(item) for item in items]  # may raise, so before anything changes
        for item, size in zip(items, sizes, strict=True):
            self._add(item, size)

    def _add(self, item: T, size: int) -> None:
        self._items.append(item)
        self._sizes.append(size)
        self.bytes += size
        self.head = item.offset
        kind: type = type(item)
        tag = _TAGS.get(kind) or tag_of(item)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if kind in _UNMARKED:
            if tag == self.window.replaceable:
                self._replace(cast(Output, item))
            elif kind is End:
                self.ended = True
            return
        if tag == self.window.replaceable:
            self._replace(cast(Output, item))
        for name, value in _marks_of(item).items():
            counter = self._counters.get(name)
            if counter is None:
                counter = self._counters[name] = _Counter(0)
                self.marks[name] = 0
            if counter.add(value, item.offset):
                self.marks[name] = value
        if isinstance(item, LAST):
            self.ended = True

    def _replace(self, event: Output) -> None:
        found = rewrites(event)
        if found is None:
            return
        line, replaces, may_be = found
        before = self._replaceable.pop(line, 0)
        if replaces:
            self._fade(before)
        if may_be:
            self._replaceable[line] = event.offset

    def _fade(self, offset: int) -> None:
        """The replaceable event at ``offset`` keeps its number and loses its content."""
        if offset < self.first:
            return
        index = offset - self.first
        item: Any = faded(cast(Any, self._items[index]))
        size = size_of(item)
        self.bytes += size - self._sizes[index]
        self._items[index], self._sizes[index] = item, size

    def bytes_after(self, offset: int) -> int:
        """Size of the kept items after ``offset``."""
        if offset < self.first:
            return self.bytes
        return sum(self._sizes[offset + 1 - self.first :])

    def after(self, offset: int, limit: int | None = None) -> list[T]:
        """Items after ``offset``, oldest first, at most ``limit``; [] at the head.

        Raises `ResumeNotAvailable` with ``details["reason"]`` window_expired or
        ahead_of_head.
        """
        if offset > self.head:
            raise ResumeNotAvailable(
                f"asked for what follows offset {offset}, the last is {self.head}",
                reason="ahead_of_head",
                head=self.head,
            )
        if offset < self.first - 1:
            raise ResumeNotAvailable(
                f"asked for what follows offset {offset}, the oldest kept is {self.first}",
                reason="window_expired",
                first=self.first,
            )
        start = offset + 1 - self.first
        return self._items[start:] if limit is None else self._items[start : start + limit]

    def after_mark(self, counter: str, value: int, limit: int | None = None) -> list[T]:
        """Events from the first that a reader with ``value`` of ``counter`` has not all of.

        The first event whose cumulative counter passes ``value``, and all after it, the
        terminal one included. Events that carry no such counter and stand at exactly
        ``value`` come too: they are given again rather than lost. The first event with the
        counter may begin below ``value``: the caller must trim it (`audio.trim_audio`).

        Raises `ResumeNotAvailable`: window_expired when an event that passes ``value`` is no
        longer kept, ahead_of_head when ``value`` is more than there ever was.
        """
        total = self.marks.get(counter, 0)
        if value > total:
            raise ResumeNotAvailable(
                f"asked for what follows {value} {counter}, there are {total}",
                reason="ahead_of_head",
                head=total,
            )
        known = self._counters.get(counter)
        trimmed = known.trimmed if known is not None else 0
        if value < trimmed:
            raise ResumeNotAvailable(
                f"asked for what follows {value} {counter}, kept is what follows {trimmed}",
                reason="window_expired",
                first=trimmed,
            )
        position = known.last_at(value) if known is not None else 0
        return self.after(max(position, self.first - 1), limit)

    def trim(self, *, delivered: int) -> int:
        """Apply the window; returns the bytes freed.

        ``delivered``: last offset sent to the attached reader (with several, the furthest
        behind). The newest event always stays, so an ended stream never looks cut.
        """
        over = max(self._over_bytes(), self._over_marks())
        if over < self.first:
            return 0
        limit = self.head - 1
        if self.window.keep_undelivered:
            limit = min(limit, delivered)
        return self.drop_through(min(limit, over))

    def _over_bytes(self) -> int:
        """Last offset that must go so that the rest fits ``max_bytes``; 0 if none."""
        if self.window.max_bytes is None or self.bytes <= self.window.max_bytes:
            return 0
        left = self.bytes
        offset = self.first - 1
        for size in self._sizes:
            if left <= self.window.max_bytes:
                break
            left -= size
            offset += 1
        return offset

    def _over_marks(self) -> int:
        if self.window.max_marks is None:
            return 0
        name, span = self.window.max_marks
        counter = self._counters.get(name)
        return counter.last_at(self.marks[name] - span) if counter is not None else 0

    def drop_through(self, offset: int) -> int:
        """Forget everything up to ``offset`` (input that is consumed); returns bytes freed."""
        count = min(offset, self.head) + 1 - self.first
        if count <= 0:
            return 0
        freed = sum(self._sizes[:count])
        del self._items[:count], self._sizes[:count]
        self.first += count
        self.bytes -= freed
        for counter in self._counters.values():
            counter.drop_through(self.first - 1)
        return freed


class Stamper:
    """Gives events their numbers: offset, ordinal of their type, cumulative counters.

    Starts from where the stream stands (`Lease.last_offset`, ``counts``, ``marks``), so the
    numbers go on over attempts as if there had been one.
    """

    __slots__ = ("counts", "last_offset", "marks")

    def __init__(
        self, last_offset: int, counts: Mapping[str, int], marks: Mapping[str, int]
    ) -> None:
        self.last_offset = last_offset
        self.counts = dict(counts)
        self.marks = dict(marks)

    def stamp(self, event: OutputEvent) -> OutputEvent:
        """``event`` with its numbers. Append stamped events in this order, none left out.

        Raises `EngineFailed` for audio that does not go on at the next unit; nothing is
        counted then.
        """
        kind = type(event)
        tag = _TAGS.get(kind) or tag_of(event)
        totals = _NONE if kind in _UNMARKED else self._totals(event)
        self.last_offset += 1
        self.counts[tag] = n = self.counts.get(tag, 0) + 1
        stamped: OutputEvent = msgspec.structs.replace(
            event, offset=self.last_offset, n=n, **totals
        )
        if totals:
            self.marks.update(marks(stamped))
        return stamped

    def _totals(self, event: OutputEvent) -> dict[str, int]:
        if isinstance(event, Heard):  # most of what is counted
            return {
                "told": self.marks.get("told", 0) + len(event.text),
                "samples": max(event.samples, self.marks.get("heard", 0)),
            }
        match event:
            case TextDelta():
                return {
                    "chars": self.marks.get("chars", 0) + len(event.text),
                    "tokens": self.marks.get("tokens", 0) + event.count,
                }
            case Audio():
                units = self.marks.get("units", 0)
                if event.unit != units:
                    raise EngineFailed(f"audio begins at unit {event.unit}, expected {units}")
                return {
                    "units": units + len(event.text),
                    "samples": self.marks.get("samples", 0) + event.frames,
                }
            case Final():
                return {
                    "chars": self.marks.get("chars", 0) + len(event.text),
                    "end": max(event.end, self.marks.get("consumed", 0)),
                }
            case Tile():
                return {"tiles": self.marks.get("tiles", 0) + 1}
            case Display():
                return {"size": self.marks.get("bytes", 0) + size_of(event)}
            case _:
                return _NONE

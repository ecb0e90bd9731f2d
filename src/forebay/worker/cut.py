"""From input items to the items of one engine step, by the row's `Cut`.

Spans of sound are cut by `worker.listen`, which decodes them too.

A cutter is pure: items and times in, `Work` out, and `deadline` says when to ask again. It
also keeps the account of what is consumed, because only it knows which part of which input
item went into which step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from forebay.core.events import Consumed, End, InputItem, Text
from forebay.core.kinds import Cut, Recovery, Row
from forebay.core.segment import Segmenter
from forebay.core.spec import Lease
from forebay.errors import ProtocolError

__all__ = ["Cutter", "Work", "make_cutter"]


@dataclass(slots=True)
class Work:
    """One step: its items, and the input offset that is consumed when it is done. ``idle``:
    it was made because nothing came, so the session goes on being idle. Nobody changes it;
    it is not frozen because a frozen one costs three times as much to make."""

    items: tuple[InputItem, ...]
    offset: int
    idle: bool = False


class Cutter(Protocol):
    seq: int
    """Newest client number heard."""

    def feed(self, items: Sequence[InputItem], now: float) -> None:
        """More input, contiguous. Then call `take` until None."""

    def take(self, now: float) -> Work | None:
        """The next step, or None: ask again after `feed` or at `deadline`."""

    @property
    def deadline(self) -> float | None:
        """When `take` will have something if nothing more comes."""

    @property
    def unread(self) -> bool:
        """Something has been fed that is in no step yet."""

    @property
    def done(self) -> bool:
        """No more steps will come: the input has ended and all of it was taken."""

    def consumed(self, units: int) -> Consumed:
        """The position when output accounts for ``units`` (kinds that count units)."""

    def finished(self, work: Work) -> Consumed:
        """``work`` is done; the position now."""


class _Items:
    """Whole items (`Cut.WHOLE`), one a step."""

    def __init__(self, row: Row, start: Consumed) -> None:
        # Steps until the job is over; None: until `End`. An attempt may begin when all are done.
        self._left = None if row.input_items is None else max(0, row.input_items - start.offset)
        self._queue: deque[InputItem] = deque()
        self._position = start
        self._ended = False
        self.seq = 0

    deadline: float | None = None

    def feed(self, items: Sequence[InputItem], now: float) -> None:
        for item in items:
            if isinstance(item, End):
                self._ended = True
                self.seq = max(self.seq, item.seq)
            else:
                self._queue.append(item)

    def take(self, now: float) -> Work | None:
        if not self._queue or self._left == 0:
            return None
        taken = self._queue.popleft()
        if self._left is not None:
            self._left -= 1
        return Work((taken,), taken.offset)

    @property
    def unread(self) -> bool:
        return bool(self._queue)

    @property
    def done(self) -> bool:
        return self._left == 0 or (self._ended and not self._queue)

    def consumed(self, units: int) -> Consumed:
        return self._position

    def finished(self, work: Work) -> Consumed:
        self._position = Consumed(max(self._position.offset, work.offset), self._position.fine)
        return self._position


class _Segments:
    """Text cut into speakable segments (`Cut.SEGMENTS`), counted in units."""

    def __init__(self, start: Consumed) -> None:
        self._segmenter = Segmenter(first=start.fine == 0, unit=start.fine)
        self._position = start
        self._ends: deque[tuple[int, int]] = deque()  # (input offset, units when it is spoken)
        self.seq = 0

    def feed(self, items: Sequence[InputItem], now: float) -> None:
        for item in items:
            match item:
                case Text():
                    self._segmenter.feed(item.text, item.unit, item.seq, now)
                    self._ends.append((item.offset, item.unit + len(item.text)))
                    self.seq = max(self.seq, item.seq)
                case End():
                    self._segmenter.end(now)
                    self._ends.append((item.offset, self._segmenter.next_unit))
                    self.seq = max(self.seq, item.seq)
                case _:
                    raise ProtocolError(f"input item {type(item).__name__}, expected text")

    def take(self, now: float) -> Work | None:
        segment = self._segmenter.take(now)
        if segment is None:
            return None
        text = Text(text=segment.text, unit=segment.unit, seq=segment.seq)
        return Work((text,), 0)

    @property
    def deadline(self) -> float | None:
        return self._segmenter.deadline

    @property
    def unread(self) -> bool:
        return self._segmenter.pending_units > 0

    @property
    def done(self) -> bool:
        return self._segmenter.done

    def consumed(self, units: int) -> Consumed:
        offset = self._position.offset
        while self._ends and self._ends[0][1] <= units:
            offset = self._ends.popleft()[0]
        self._position = Consumed(offset, max(units, self._position.fine))
        return self._position

    def finished(self, work: Work) -> Consumed:
        return self._position


def make_cutter(row: Row, lease: Lease) -> Cutter:
    """The cutter for a lease, not fed yet.

    Kinds that continue are given their whole input again, so nothing of it counts as taken.
    """
    if row.cut is Cut.SEGMENTS:
        return _Segments(lease.consumed)
    return _Items(row, Consumed() if row.recovery is Recovery.CONTINUE else lease.consumed)

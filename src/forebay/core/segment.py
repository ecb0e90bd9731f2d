"""Cutting a growing text into segments worth speaking.

A segment is what one engine step speaks. Cut too early and words break or sound clipped;
cut too late and the listener waits. The rules:

* Never inside a grapheme cluster, a number or a word of a spaced script.
* The first segment ends at the first sentence or clause mark, or 400 ms after the first
  unit arrived at the last word boundary (of Han or kana at least two characters).
* Later ones end at a sentence mark, at a clause mark once 24 units long, or when nothing
  came for 1.5 s: then word, number and cluster count as over.
* Two bounds keep text without marks moving: a unit waits at most 5 s for a mark before the
  cut is at the last word boundary, and no segment is over 200 units (a longer word is cut
  between clusters).
* The end of the input flushes the rest.

Whether a mark ends anything can depend on what follows it ("3." may become "3.14"). Where
that is not known yet the cut waits for the next unit, but no longer than 300 ms, or, where
it could be inside a number or after an abbreviation, until the text is idle.

A unit is one Unicode code point. Every unit is in exactly one segment, in order. What the
text looks like is decided in `textbreak`; this module decides when.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from forebay.core import textbreak
from forebay.errors import Fenced, OffsetGap

__all__ = ["Segment", "Segmenter"]

LOOKAHEAD_UNITS = 32  # seen past the longest segment, to judge its end


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Text for one engine step. ``unit``: index of its first unit. ``seq``: the newest
    client number fed when it was cut."""

    text: str
    unit: int
    seq: int


class Segmenter:
    """Cuts one session's text; hold one per attempt.

    ``first``: whether the next segment is the session's first. ``unit``: index of the next
    unit expected. A new attempt passes ``first=False`` (unless nothing was spoken) and the
    unit where it goes on, and feeds the input again from there; text below ``unit`` is
    skipped. The other arguments are the rules' numbers, in seconds and units.
    """

    def __init__(
        self,
        *,
        first: bool = True,
        unit: int = 0,
        first_wait_s: float = 0.4,
        idle_s: float = 1.5,
        mark_wait_s: float = 0.3,
        longest_wait_s: float = 5.0,
        clause_units: int = 24,
        max_units: int = 200,
    ) -> None:
        self._first = first
        self._unit = unit  # index of the first pending unit
        self._first_wait_s = first_wait_s
        self._idle_s = idle_s
        self._mark_wait_s = mark_wait_s
        self._longest_wait_s = longest_wait_s
        self._clause_units = clause_units
        self._max_units = max_units
        self._text = ""
        self._begin = 0  # where in _text the pending units begin
        self._seq = 0
        self._arrivals: deque[tuple[int, float]] = deque()  # (index past its last unit, when)
        self._fed_s = 0.0
        self._ended = False
        self._plan: tuple[float, int] | None = None

    @property
    def pending_units(self) -> int:
        """Units fed and not yet in a segment. While there are any, do not park."""
        return len(self._text) - self._begin

    @property
    def next_unit(self) -> int:
        """Index of the next unit that `feed` expects; what is below is skipped."""
        return self._unit + self.pending_units

    @property
    def done(self) -> bool:
        """The input has ended and every unit is in a segment that was taken."""
        return self._ended and not self.pending_units

    @property
    def deadline(self) -> float | None:
        """When `take` will have a segment if nothing more is fed (maybe already); None when
        nothing is pending."""
        return self._plan[0] if self._plan is not None else None

    def feed(self, text: str, unit: int, seq: int, now: float) -> None:
        """More text, whose first unit has the index ``unit``. Then call `take` until None.

        Raises `OffsetGap` if units are missing before it and `Fenced` after `end`.
        """
        if unit > self.next_unit:
            raise OffsetGap(f"text begins at unit {unit}, expected {self.next_unit}")
        if self._ended:
            raise Fenced("text was fed after the end")
        self._seq = max(self._seq, seq)
        text = text[self.next_unit - unit :]
        if not text:
            return
        self._text = self._text[self._begin :] + text
        self._begin = 0
        self._fed_s = now
        self._arrivals.append((self.next_unit, now))
        self._replan()

    def end(self, now: float) -> None:
        """No more will come: everything pending may be taken. Then call `take` until None."""
        if not self._ended:
            self._ended = True
            self._fed_s = now
            self._replan()

    def take(self, now: float) -> Segment | None:
        """The next segment, or None if none is due: call again after `feed`, or at
        ``deadline``."""
        if self._plan is None or now < self._plan[0]:
            return None
        end = self._begin + self._plan[1]
        segment = Segment(text=self._text[self._begin : end], unit=self._unit, seq=self._seq)
        self._begin = end
        self._unit += len(segment.text)
        self._first = False
        while self._arrivals and self._arrivals[0][0] <= self._unit:
            self._arrivals.popleft()
        self._replan()
        return segment

    def _replan(self) -> None:
        """Find the earliest cut that needs no further input, and when it may be made."""
        view = self._text[self._begin : self._begin + self._max_units + LOOKAHEAD_UNITS]
        self._plan = min(self._cuts(view)) if view else None

    def _cuts(self, view: str) -> list[tuple[float, int]]:
        """All cuts that time alone can bring, as (when, length). On a tie the shorter wins."""
        size = self.pending_units
        open_end = size == len(view) and not self._ended
        found = self._mark_cuts(view, open_end)
        if size > self._max_units:
            found.append((self._fed_s, textbreak.forced_break(view, self._max_units)))
        elif self._ended:
            found.append((self._fed_s, size))
        else:
            found.append((self._fed_s + self._idle_s, size))
        wait_s = self._first_wait_s if self._first else self._longest_wait_s
        word = textbreak.last_break(view[: self._max_units + 1], open_end, self._max_units)
        if word:
            found.append((self._arrivals[0][1] + wait_s, word))
        if self._ended:
            found = [(when, self._with_rest(view, cut)) for when, cut in found]
        # What was due before the newest text came is due now, with no head start over a mark
        # in that text.
        return [(max(when, self._fed_s), cut) for when, cut in found]

    def _mark_cuts(self, view: str, open_end: bool) -> list[tuple[float, int]]:
        """The first mark that may end a segment, and when: at once, or after the wait for what
        follows it. At most one."""
        for mark in textbreak.marks_in(view, open_end):
            long_enough = self._first or mark.sentence or mark.end >= self._clause_units
            if not long_enough or mark.end > self._max_units:
                continue
            if not textbreak.speakable(view[: mark.end]):
                continue
            if mark.certain or (self._first and mark.prompt):
                return [(self._fed_s, mark.end)]
            return [(self._fed_s + self._mark_wait_s, mark.end)]
        return []

    def _with_rest(self, view: str, cut: int) -> int:
        """At the end, marks and spaces left over go with the last words, not alone."""
        if self.pending_units <= self._max_units and not textbreak.speakable(view[cut:]):
            return len(view)
        return cut

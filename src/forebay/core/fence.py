"""The append rules: who may write to a stream, and what is a repeat.

Three kinds of writer. *Output* is fenced by attempt and offset, *input* by attachment number
and client position, *identity* (a pipe) by a sequence that must rise. The same comparisons
guard every home of the broker; what they protect is in `stream`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from forebay.errors import Fenced, OffsetGap

__all__ = ["IdentityFence", "InputFence", "OutputFence"]


class OutputFence:
    """The append rule of a job's output: attempt and offset. It has no state of its own."""

    __slots__ = ()

    @staticmethod
    def check(
        attempt: int, offsets: Sequence[int], lease_attempt: int | None, head: int
    ) -> Literal["append", "already"]:
        """Judge one batch. "already": a retried write that had landed; change nothing.

        ``lease_attempt`` is None when nobody holds the job. An empty batch is "append" (a
        commit that only moves ``consumed``). Raises `Fenced` for an attempt that is not the
        lease's; `OffsetGap` for a batch that skips an offset, or that is neither wholly old
        nor wholly new (a batch is atomic, so no honest writer sends one).
        """
        if attempt != lease_attempt:
            raise Fenced(
                f"attempt {attempt} writes, the lease is {lease_attempt}",
                attempt=attempt,
                lease_attempt=lease_attempt,
            )
        if not offsets:
            return "append"
        first, last = offsets[0], offsets[-1]
        straight = all(b == a + 1 for a, b in zip(offsets, offsets[1:], strict=False))
        if straight and last <= head:
            return "already"
        if not straight or first != head + 1:
            raise OffsetGap(
                f"got offsets {first} to {last}, expected {head + 1} on",
                offset=first,
                expected=head + 1,
            )
        return "append"


class InputFence:
    """The append rule of a job's input: attachment number and client position.

    ``number``: the attachment that may write, 0 before the first. ``client_pos``: highest
    position recorded, 0 before the first.
    """

    __slots__ = ("_base", "_recorded", "number")

    def __init__(self, number: int = 0, client_pos: int | None = None) -> None:
        self.number = number
        self._recorded = client_pos
        self._base = client_pos

    @property
    def client_pos(self) -> int:
        return self._recorded if self._recorded is not None else 0

    def attach(self) -> int:
        """A new connection takes over; returns its number. The previous holder's appends
        are refused from now on: tell it (`SupersededPush`)."""
        self.number += 1
        self._base = self._recorded
        return self.number

    def check(self, number: int, client_pos: int | None) -> Literal["append", "repeat"]:
        """Judge one append and, on "append", record its position: check all else before.

        "repeat": at or below what was recorded when this attachment began; drop it. Within
        one attachment repeated or falling positions are accepted, and the highest is kept.
        None means the protocol has no positions. Raises `Fenced` for an older attachment.
        """
        if number != self.number:
            raise Fenced(
                f"attachment {number} writes, the holder is {self.number}",
                attachment=number,
                holder=self.number,
            )
        if client_pos is None:
            return "append"
        if self._base is not None and client_pos <= self._base:
            return "repeat"
        if self._recorded is None or client_pos > self._recorded:
            self._recorded = client_pos
        return "append"


class IdentityFence:
    """The append rule of a pipe: source offsets rise, with gaps allowed.

    ``last``: highest source offset recorded, 0 before the first.
    """

    __slots__ = ("last",)

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def check(self, source_offset: int) -> Literal["append", "repeat"]:
        """Judge one append and, on "append", record its source offset."""
        if source_offset <= self.last:
            return "repeat"
        self.last = source_offset
        return "append"

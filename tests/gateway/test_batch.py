"""Text that waits for more of itself: merged, never late, never across a reader's beginning."""

from __future__ import annotations

import asyncio

from forebay.core.events import Ended, OutputEvent, TextDelta
from forebay.gateway.batch import Batch, FlushRule

RULE = FlushRule(interval_s=0.2, items=4, cap=6)


class Wire:
    def __init__(self, *, whole_until: int = 0, rule: FlushRule = RULE) -> None:
        self.events: list[OutputEvent] = []
        self.sent: list[bytes] = []
        self.batch = Batch(self._encode, rule, self.sent.append, whole_until=whole_until)

    def _encode(self, event: OutputEvent) -> list[bytes]:
        self.events.append(event)
        return [event.text.encode()] if isinstance(event, TextDelta) else [b"|"]

    def give(self, *events: OutputEvent) -> None:
        for event in events:
            self.sent += self.batch.encode(event)


def deltas(first: int, count: int) -> list[TextDelta]:
    return [
        TextDelta(offset=n, n=n, text=f"{n} ", chars=2 * n, tokens=n)
        for n in range(first, first + count)
    ]


async def test_the_first_piece_leaves_at_once_and_the_rest_together() -> None:
    wire = Wire()
    wire.give(*deltas(1, 6))
    assert wire.sent == [b"1 ", b"2 3 4 5 "]
    merged = wire.events[1]
    assert isinstance(merged, TextDelta)
    assert (merged.offset, merged.n, merged.chars, merged.count) == (5, 5, 10, 4)
    await asyncio.sleep(0.3)
    assert wire.sent[-1] == b"6 "


async def test_an_end_takes_along_what_waits() -> None:
    wire = Wire()
    wire.give(*deltas(1, 3), Ended(offset=4, state="completed"))
    assert wire.sent == [b"1 ", b"2 3 ", b"|"]
    wire.give(*deltas(5, 1))
    wire.batch.close()
    await asyncio.sleep(0.3)
    assert wire.sent[-1] == b"|"


async def test_what_a_returning_reader_has_is_not_merged_with_what_it_lacks() -> None:
    wire = Wire(whole_until=3)
    wire.give(*deltas(1, 6))
    assert wire.sent[:3] == [b"1 ", b"2 ", b"3 "]
    assert wire.sent[3] == b"4 "
    await asyncio.sleep(0.3)
    assert b"".join(wire.sent) == b"1 2 3 4 5 6 "


async def test_a_merged_first_piece_is_still_the_first() -> None:
    wire = Wire()
    wire.give(*deltas(7, 1))
    wire.give(*deltas(1, 4))
    merged = wire.events[1]
    assert isinstance(merged, TextDelta)
    assert merged.n == 1

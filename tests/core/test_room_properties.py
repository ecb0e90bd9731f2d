"""Any order, any retries, any losses: nothing twice, and nothing that could be in order out of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forebay.core.events import Caption
from forebay.core.room import HOLD_S, Room, RoomItem, RoomSpec, room_id

SPEC = RoomSpec(id=room_id("t", "r"), tenant="t", name="r")


def item(seq: int, client: str = "c", settled: int = 0, skip: bool = False) -> RoomItem:
    caption = None if skip else Caption(user="u", text=str(seq), created_ms=1)
    return RoomItem(client=client, seq=seq, settled=settled, caption=caption)


def seqs(room: Room, client: str = "c") -> list[int]:
    return [
        event.seq
        for event in room.log.after(0)
        if isinstance(event, Caption) and event.client == client
    ]


@given(st.permutations(list(range(1, 13))), st.lists(st.integers(1, 12), max_size=12))
def test_within_the_hold_any_order_and_any_retry_gives_the_one_order(
    order: list[int], retries: list[int]
) -> None:
    room = Room(SPEC, "e")
    for seq in [*order, *retries]:
        room.take(room.plan([item(seq)], 1.0), 1)
    assert seqs(room) == list(range(1, 13))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.integers(1, 80),
        st.integers(0, 40),
        st.booleans(),
        st.floats(0, 0.4),
    ),
    max_size=80,
)


@given(STEPS)
def test_nothing_is_doubled_whatever_is_sent_and_offsets_have_no_gap(
    steps: list[tuple[str, int, int, bool, float]],
) -> None:
    room, now = Room(SPEC, "e"), 0.0
    sent: set[tuple[str, int]] = set()
    for client, seq, settled, skip, wait in steps:
        now += wait
        room.take(room.overdue(now), 1)
        plan = room.plan([item(seq, client, settled, skip)], now)
        assert len(plan.answers) == 1
        room.take(plan, 1)
        if not skip:
            sent.add((client, seq))
        assert room.deadline is None or room.deadline > now - 1e-9
    room.take(room.overdue(now + HOLD_S), 1)
    events = room.log.after(0)
    assert [event.offset for event in events] == list(range(1, len(events) + 1))
    kept = [(event.client, event.seq) for event in events if isinstance(event, Caption)]
    assert len(kept) == len(set(kept)) and set(kept) <= sent
    assert room.deadline is None


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_a_pipe_that_settles_what_it_passes_is_taken_where_it_rises(offsets: list[int]) -> None:
    room, highest, expected = Room(SPEC, "e"), 0, []
    for offset in offsets:
        plan = room.plan([item(offset, settled=offset - 1)], 1.0)
        assert plan.answers[0].result == ("appended" if offset > highest else "repeat")
        if offset > highest:
            highest = offset
            expected.append(offset)
        room.take(plan, 1)
    assert seqs(room) == expected and room.deadline is None

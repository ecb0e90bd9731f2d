"""One writer's pace: a refusal never turns its messages around."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forebay.core.pace import BLOCK_S, WriterPace


def test_a_burst_passes_and_then_so_many_a_second() -> None:
    pace = WriterPace(10.0, 3, 0.0)
    assert [pace.take(0.0) for _ in range(4)] == [None, None, None, 0.1]
    assert pace.take(0.05) == 0.05
    assert pace.take(0.1) is None


def test_what_stands_above_a_refused_number_waits_for_it() -> None:
    pace = WriterPace(10.0, 1, 0.0)
    assert pace.take(0.0, 1) is None
    assert pace.take(0.0, 2) is not None
    assert pace.take(0.2, 3) is not None
    assert pace.take(0.2, 2) is None
    assert pace.take(0.4, 3) is None


def test_what_stands_below_a_refused_number_may_pass_before_it() -> None:
    pace = WriterPace(10.0, 1, 0.0)
    assert pace.take(0.0, 1) is None
    assert pace.take(0.0, 5) is not None
    assert pace.take(0.2, 3) is None
    assert pace.take(0.4, 6) is not None


def test_a_lower_refused_number_counts_and_one_that_never_comes_is_given_up() -> None:
    pace = WriterPace(10.0, 1, 0.0)
    assert pace.take(0.0, 1) is None
    assert pace.take(0.0, 5) is not None
    assert pace.take(0.0, 4) is not None
    assert pace.take(0.2, 5) is not None
    assert pace.take(0.2 + BLOCK_S, 5) is None
    assert pace.take(9.0, 6) is None
    pace = WriterPace(0.1, 1, 0.0)
    assert pace.take(0.0, 1) is None
    assert pace.take(0.0, 2) is not None
    assert pace.take(BLOCK_S + 1, 7) is not None
    assert pace.take(BLOCK_S + 1, 8) is not None
    assert pace.take(20.0, 7) is None
    assert pace.take(20.0) is not None


@given(st.lists(st.floats(0, 0.3), min_size=1, max_size=60))
def test_numbers_that_are_sent_again_until_they_pass_do_so_in_order(waits: list[float]) -> None:
    pace, now, left, passed = WriterPace(5.0, 2, 0.0), 0.0, list(range(1, 9)), []
    for wait in [*waits, *[0.25] * 20]:
        now += wait
        for seq in tuple(left):
            if pace.take(now, seq) is None:
                passed.append(seq)
                left.remove(seq)
    assert passed == sorted(passed) and not left

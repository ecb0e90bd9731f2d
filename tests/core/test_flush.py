"""Sending early, not too far ahead, and knowing slow from paced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.flush import Arrivals, Cursor, Flush, Lead, Pace
from forebay.core.kinds import row

# --------------------------------------------------------------------------- flush


def test_by_default_everything_leaves_at_once() -> None:
    flush = Flush()
    assert flush.deadline is None
    assert not flush.due(0.0)
    for now in (0.0, 0.001, 0.002):
        flush.add(1, now)
        assert flush.deadline is not None and flush.deadline <= now
        assert flush.due(now)
        flush.sent(now)
    assert flush.room is None


def test_an_interval_lets_the_first_leave_at_once_and_the_next_wait() -> None:
    flush = Flush(interval_s=0.05, threshold_items=15, cap_items=20)
    flush.add(1, 1.0)
    assert flush.due(1.0)
    flush.sent(1.0)
    flush.add(1, 1.01)
    assert not flush.due(1.01)
    assert flush.deadline == pytest.approx(1.05)
    assert flush.due(1.05)
    flush.sent(1.05)
    flush.add(1, 9.0)
    assert flush.due(9.0)


def test_the_deadline_holds_without_any_further_event() -> None:
    flush = Flush(interval_s=0.05)
    flush.add(1, 0.0)
    flush.sent(0.0)
    flush.add(1, 0.01)
    assert flush.deadline is not None
    assert flush.due(flush.deadline)


def test_a_threshold_or_a_full_buffer_does_not_wait() -> None:
    flush = Flush(interval_s=10, threshold_items=15)
    flush.add(1, 0.0)
    flush.sent(0.0)
    flush.add(14, 0.1)
    assert not flush.due(0.1)
    flush.add(1, 0.1)
    assert flush.due(0.1)

    capped = Flush(interval_s=10, cap_items=3)
    capped.add(1, 0.0)
    capped.sent(0.0)
    capped.add(2, 0.1)
    assert (capped.room, capped.due(0.1)) == (1, False)
    capped.add(1, 0.1)
    assert (capped.room, capped.due(0.1)) == (0, True)


# ---------------------------------------------------------------------------- pace


def test_audio_is_sent_four_seconds_ahead_and_no_further() -> None:
    pace = Pace(4)
    sent = 0
    while pace.allow(1.0, 10.0):
        pace.sent(1.0, 10.0)
        sent += 1
    assert sent == 4
    assert pace.deadline == pytest.approx(11.0)
    assert not pace.allow(1.0, 10.9)
    assert pace.allow(1.0, 11.0)
    assert pace.deadline is None


def test_the_clock_stands_still_when_everything_was_played() -> None:
    pace = Pace(4)
    pace.sent(1.0, 0.0)
    assert pace.ahead(0.4) == pytest.approx(0.6)
    assert pace.ahead(100.0) == 0.0
    pace.sent(1.0, 100.0)
    assert pace.ahead(100.5) == pytest.approx(0.5)


def test_the_clock_does_not_run_before_the_first_audio() -> None:
    pace = Pace(4)
    assert pace.allow(4.0, 50.0)
    pace.sent(4.0, 50.0)
    assert pace.ahead(50.0) == 4.0


def test_a_piece_longer_than_the_pace_waits_for_silence_only() -> None:
    pace = Pace(4)
    assert pace.allow(9.0, 0.0)
    pace.sent(9.0, 0.0)
    assert not pace.allow(9.0, 5.0)
    assert pace.deadline == pytest.approx(9.0)


def test_without_a_pace_everything_may_leave() -> None:
    pace = Pace(None)
    pace.sent(1000.0, 0.0)
    assert pace.allow(1000.0, 0.0)


@given(
    st.lists(st.tuples(st.floats(0, 3), st.floats(0.001, 6)), max_size=40),
    st.floats(0.1, 5),
)
def test_a_caller_that_waits_for_the_deadline_is_let_through_and_never_too_far_ahead(
    steps: list[tuple[float, float]], ahead_s: float
) -> None:
    pace = Pace(ahead_s)
    now = 0.0
    for gap_s, audio_s in steps:
        now += gap_s
        if not pace.allow(audio_s, now):
            assert pace.deadline is not None and pace.deadline > now
            now = pace.deadline
            assert pace.allow(audio_s, now)
        pace.sent(audio_s, now)
        assert pace.ahead(now) <= max(ahead_s, audio_s) + 1e-5


# ---------------------------------------------------------------------------- lead


def test_an_engine_runs_ten_seconds_ahead_attached_and_thirty_detached() -> None:
    lead = Lead.of(row("speech"), rate=100)
    assert lead.may_run(999, 0, attached=True)
    assert not lead.may_run(1000, 0, attached=True)
    assert lead.room(1000, 0, attached=False) == 2000
    assert lead.may_run(1000, 1, attached=True)


def test_a_kind_without_a_lead_makes_its_whole_answer() -> None:
    lead = Lead.of(row("text"), rate=1)
    assert lead.room(10**9, 0, attached=False) is None
    assert lead.may_run(10**9, 0, attached=True)


# -------------------------------------------------------------------------- cursor


def reader(offset: int = 0, head: int = 0, slow_s: float | None = 30) -> Cursor:
    return Cursor(offset, head, now=0.0, slow_s=slow_s)


def test_a_live_reader_takes_the_push_and_stays_live() -> None:
    cursor = reader()
    assert cursor.live
    assert cursor.arrived(1, 2, 1.0)
    assert not cursor.live
    cursor.sent(2)
    assert cursor.live
    assert cursor.slow_at is None


def test_a_lost_push_makes_the_reader_catch_up() -> None:
    cursor = reader()
    assert not cursor.arrived(2, 3, 0.0)
    assert (cursor.offset, cursor.head, cursor.live) == (0, 3, False)
    cursor.sent(3)
    assert cursor.arrived(4, 4, 0.0)


def test_a_push_that_was_pulled_before_is_nothing_new() -> None:
    cursor = reader(0, 2)
    cursor.sent(4)
    assert cursor.live
    assert not cursor.arrived(3, 4, 0.0)
    assert cursor.live
    cursor.sent(1)
    assert cursor.offset == 4


def test_slow_is_the_age_of_the_oldest_unsent_event() -> None:
    cursor = reader()
    for offset, now in ((1, 0.0), (2, 10.0), (3, 20.0)):
        cursor.arrived(offset, offset, now)
    assert cursor.slow_at == 30.0
    cursor.sent(1)
    assert cursor.slow_at == 40.0
    cursor.sent(3)
    assert cursor.slow_at is None


def test_a_reader_is_not_blamed_for_what_was_there_before_it_came() -> None:
    cursor = Cursor(5, 9, now=100.0, slow_s=30)
    assert not cursor.live
    assert cursor.slow_at == 130.0


def test_held_back_audio_is_paced_and_not_slow() -> None:
    cursor = reader()
    cursor.arrived(1, 1, 0.0)
    cursor.hold(25.0)
    assert cursor.slow_at == 55.0
    cursor.hold(20.0)
    assert cursor.slow_at == 55.0


@pytest.mark.parametrize("never", [None, float("inf")])
def test_some_readers_are_never_slow(never: float | None) -> None:
    cursor = reader(0, 5, slow_s=never)
    assert cursor.slow_at is None


def test_a_reader_far_behind_costs_little_and_its_age_stays_exact_enough() -> None:
    cursor = reader()
    for offset in range(1, 20_001):
        cursor.arrived(offset, offset, offset * 0.001)
    assert len(list(cursor._arrivals)) <= 20 / Arrivals.GRAIN_S + 1
    cursor.sent(10_000)
    assert cursor.slow_at is not None
    assert 10_001 * 0.001 + 30 - Arrivals.GRAIN_S <= cursor.slow_at <= 10_001 * 0.001 + 30


def test_what_a_reader_costs_is_bounded_and_it_is_never_blamed_too_early() -> None:
    cursor = reader()
    for offset in range(1, 1001):
        cursor.arrived(offset, offset, float(offset))
    assert len(list(cursor._arrivals)) == Arrivals.MAX_ARRIVALS
    cursor.sent(999)
    assert cursor.slow_at == 1030.0


def test_what_is_noted_for_many_keeps_the_newest_times() -> None:
    missed = Arrivals(last=True)
    for offset in range(1, 1001):
        missed.note(offset, float(offset))
    kept = list(missed)
    assert len(kept) == Arrivals.MAX_ARRIVALS
    assert kept[-1] == (1000, 1000.0)
    assert missed.oldest_s == kept[0][1] == 1001.0 - Arrivals.MAX_ARRIVALS

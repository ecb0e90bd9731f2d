"""What a load needs: the rule of thumb, the queueing model, and where they differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.capacity import (
    Pool,
    counted,
    erlang_c,
    held_streams,
    lag,
    needed_workers,
    plan,
    queue_wait,
    simple_workers,
    spare_streams,
    work_rate,
)


def test_erlang_c_agrees_with_published_values() -> None:
    assert erlang_c(1, 0.5) == pytest.approx(0.5)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(10, 8.0) == pytest.approx(0.409, abs=0.001)
    assert erlang_c(3, 0) == 0
    assert erlang_c(3, 3.0) == 1.0


def test_a_single_queue_waits_as_pollaczek_and_khinchine_say() -> None:
    exponential = queue_wait(1, 0.5, 1.0, scv=1.0)
    constant = queue_wait(1, 0.5, 1.0)
    assert exponential is not None and constant is not None
    assert exponential.mean_s == pytest.approx(1.0)
    assert constant.mean_s == pytest.approx(0.5)


def test_at_full_load_no_wait_is_promised() -> None:
    assert queue_wait(4, 4.0, 1.0) is None
    assert queue_wait(0, 1.0, 1.0) is None
    assert lag(500, Pool(rtf=0.1, workers=50)).p95_s is None


def test_nothing_to_do_means_no_wait() -> None:
    nothing = queue_wait(2, 0.0, 1.0)
    assert nothing is not None and nothing.p95_s == 0


def test_fifty_workers_for_500_streams_are_full_and_more_are_needed() -> None:
    found = plan(500, 0.1, workers=50)
    assert found.full_load == 50
    assert found.load == pytest.approx(1.0)
    assert found.needed > 50
    assert found.held == 450 and found.waiting == 50
    assert "100% busy" in found.why


def test_sixty_workers_hold_500_streams() -> None:
    found = plan(500, 0.1, workers=60)
    assert found.waiting == 0 and found.needed <= 60
    assert found.lag_p95_s is not None and found.lag_p95_s < 0.2
    assert found.spare >= 0


def test_without_workers_the_plan_is_for_what_is_needed() -> None:
    found = plan(500, 0.1)
    assert found.workers == found.needed
    assert found.waiting == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"streams": 0, "rtf": 0.1},
        {"streams": 1, "rtf": 0},
        {"streams": 1, "rtf": 0.1, "slots": 0},
        {"streams": 1, "rtf": 0.1, "utilisation": 0},
        {"streams": 1, "rtf": 0.1, "max_wait_s": -1},
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        plan(**wrong)  # type: ignore[arg-type]


def test_a_model_slower_than_speech_still_holds_one_stream() -> None:
    assert held_streams(1, 2.0) == 1
    assert held_streams(4, 0.1) == 36
    assert held_streams(1, 0) == 1_000_000


def test_what_workers_say_they_admit_is_what_they_hold() -> None:
    assert Pool(rtf=0.1015, workers=2).held == 16  # as it would be measured today
    assert Pool(rtf=0.1015, workers=2, each=9).held == 18
    assert Pool(rtf=0.1015, workers=3, each=(9 + 9 + 10) / 3).held == 28


def test_workers_slower_than_speech_are_not_asked_for_without_end() -> None:
    assert needed_workers(1, Pool(rtf=1.0)) == 1
    assert needed_workers(30, Pool(rtf=2.5)) == 30
    assert "however many" in plan(1, 1.0).why


def test_a_stricter_wait_asks_for_more_workers() -> None:
    relaxed = needed_workers(100, Pool(rtf=0.1), max_wait_s=1.0)
    strict = needed_workers(100, Pool(rtf=0.1), max_wait_s=0.001)
    assert strict > relaxed


def test_spare_streams_fill_up_and_then_there_are_none() -> None:
    pool = Pool(rtf=0.1, workers=2)
    spare = spare_streams(3, pool)
    assert spare > 0
    assert spare_streams(3 + spare, pool) == 0
    assert spare_streams(1000, pool) == 0


@given(
    streams=st.integers(1, 2000),
    rtf=st.floats(0.01, 0.95),
    slots=st.integers(1, 8),
)
def test_what_is_needed_fits_and_one_less_does_not(streams: int, rtf: float, slots: int) -> None:
    needed = needed_workers(streams, Pool(rtf=rtf, slots=slots))
    assert needed >= simple_workers(streams, rtf, 1.0, slots)
    assert plan(streams, rtf, workers=needed, slots=slots).waiting == 0
    if needed > 1:
        fewer = plan(streams, rtf, workers=needed - 1, slots=slots)
        p95_s = fewer.lag_p95_s
        limit_s = 1.0 + 0.1 * rtf
        assert fewer.waiting or p95_s is None or p95_s > limit_s


def test_whole_jobs_share_every_slot() -> None:
    found = work_rate(8.0, 1.0, 10, workers=10, max_wait_s=1.0)
    assert found.load == pytest.approx(0.8)
    assert found.wait is not None and 9 <= found.needed <= 11
    assert work_rate(20.0, 1.0, 10, workers=10).wait is None


def test_a_wait_nobody_may_have_leaves_no_room() -> None:
    assert spare_streams(10, Pool(rtf=0.1, workers=10), max_wait_s=0.0) == 0
    assert spare_streams(1, Pool(rtf=0.5, workers=3, slots=2), max_wait_s=0.0) < 8


def test_more_work_than_any_number_of_workers_is_bounded() -> None:
    assert work_rate(1e6, 1.0, 1).needed == 1_000_000


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (1, "1 slot"),
        (2, "2 slots"),
        (0, "0 slots"),
        (0.5, "0.5 slots"),
        (2_000_000, "2000000 slots"),
    ],
)
def test_one_thing_is_said_in_the_singular(number: float, said: str) -> None:
    assert counted(number, "slot") == said


def test_the_reason_for_a_plan_is_a_sentence_for_one_stream_too() -> None:
    why = plan(1, 0.5).why
    assert why.startswith("1 stream x RTF 0.5 is 0.5 slots of work: 1 worker would be")

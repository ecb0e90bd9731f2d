"""The job's state machine, when it competes, how it recovers, when its time is up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.events import Consumed, End, Text
from forebay.core.job import (
    LIVE,
    MOVES,
    OVER,
    Job,
    Move,
    Phase,
    Recover,
    competes,
    lost_code,
    move,
    over_deadline,
    recover,
    remaining_input,
    run_left_s,
    total_until,
    waits_until,
)
from forebay.core.kinds import KINDS, Kind
from forebay.core.spec import Deadlines, JobSpec
from forebay.errors import ProtocolError

ENDS = {Move.COMPLETE, Move.FAIL, Move.CANCEL, Move.EXPIRE}


def job(kind: Kind = Kind.SPEECH, deadlines: Deadlines | None = None, **more: Any) -> Job:
    params = more.pop("params", {})
    spec = JobSpec(
        id="j",
        kind=kind,
        pool=f"{kind}/m",
        params=params,
        deadlines=deadlines if deadlines is not None else Deadlines(),
    )
    return Job(spec=spec, row=KINDS[kind], created_s=100.0, **more)


def test_every_live_phase_can_end_and_no_end_can_be_left() -> None:
    for phase in LIVE:
        assert {what for (at, what) in MOVES if at is phase} >= ENDS
    assert not any(at in OVER for (at, _) in MOVES)
    assert len(OVER) == 4


@given(st.lists(st.sampled_from(list(Move)), max_size=30))
def test_any_order_of_moves_ends_at_most_once(moves: list[Move]) -> None:
    it = job()
    ends = 0
    for what in moves:
        before = it.phase
        try:
            move(it, what)
        except ProtocolError:
            assert it.phase is before
        else:
            ends += what in ENDS
            assert it.over == (what in ENDS)
    assert ends <= 1


@pytest.mark.parametrize(
    ("phase", "state"),
    [
        (Phase.IDLE, "queued"),
        (Phase.QUEUED, "queued"),
        (Phase.RUNNING, "running"),
        (Phase.PARKED, "running"),
        (Phase.EXPIRED, "expired"),
    ],
)
def test_what_the_outside_sees_of_a_phase(phase: Phase, state: str) -> None:
    assert job(phase=phase).state == state


def test_a_job_competes_only_with_unread_input_or_an_end() -> None:
    assert not competes(job())
    assert competes(job(input_head=1))
    assert not competes(job(input_head=1, consumed=Consumed(1)))
    assert competes(job(input_head=1, consumed=Consumed(1), input_ended=True))
    assert not competes(job(input_head=1, phase=Phase.COMPLETED))


def test_a_prompt_is_unread_until_the_job_is_over() -> None:
    assert not competes(job(Kind.TEXT))
    assert competes(job(Kind.TEXT, input_head=1, consumed=Consumed(1)))


def test_replay_always_goes_on_and_kernels_never_do() -> None:
    assert recover(job(), prefix=False, kept_whole=False, head=9) is Recover.GO_ON
    kernel = job(Kind.KERNEL)
    assert recover(kernel, prefix=True, kept_whole=True, head=0) is Recover.FAIL
    assert lost_code(kernel) == "kernel_lost"
    assert lost_code(job(Kind.TEXT)) == "worker_lost"


@pytest.mark.parametrize(
    ("head", "prefix", "kept", "exposed", "more", "expected"),
    [
        (0, False, True, 0, {}, Recover.GO_ON),
        (3, True, True, 3, {}, Recover.GO_ON),
        (3, True, False, 3, {}, Recover.FAIL),
        (3, False, True, 0, {}, Recover.RESTART),
        (3, False, True, 1, {}, Recover.FAIL),
        (3, True, True, 3, {"tools": True}, Recover.FAIL),
        (3, True, True, 0, {"tools": True}, Recover.RESTART),
        (3, True, True, 3, {"params": {"response_format": {"type": "json"}}}, Recover.FAIL),
        (3, False, True, 3, {"answered": True}, Recover.FINISH),
    ],
)
def test_how_an_answer_recovers(
    head: int, prefix: bool, kept: bool, exposed: int, more: dict[str, Any], expected: Recover
) -> None:
    it = job(Kind.TEXT, exposed=exposed, **more)
    assert recover(it, prefix=prefix, kept_whole=kept, head=head) is expected


def test_the_queue_deadline_runs_from_when_waiting_began() -> None:
    it = job(waiting_s=200.0)
    assert waits_until(it) == (260.0, "queue")
    assert waits_until(job(deadlines=Deadlines(queue_s=5), waiting_s=200.0)) == (205.0, "queue")


def test_the_total_deadline_bounds_the_wait() -> None:
    it = job(deadlines=Deadlines(total_s=110), waiting_s=200.0)
    assert waits_until(it) == (210.0, "total")
    assert total_until(it) == 210.0
    assert total_until(job()) is None


def test_model_time_left_counts_over_all_attempts() -> None:
    assert run_left_s(job(model_s=590.0)) == 10.0
    assert run_left_s(job(model_s=700.0)) == 0.0
    assert run_left_s(job(deadlines=Deadlines(run_s=5), model_s=1.0)) == 4.0
    assert run_left_s(job(Kind.RECOGNITION)) is None


@pytest.mark.parametrize("which", ["queue", "run", "total"])
def test_a_passed_deadline_is_named_with_its_limit(which: str) -> None:
    ended = over_deadline(which, 2.5)
    assert (ended.state, ended.code, ended.retryable) == ("expired", "deadline_exceeded", True)
    assert ended.details == {"deadline": which, "limit_s": 2.5}
    assert "2.5 s" in ended.message


def test_what_remains_is_cut_at_the_consumed_unit_and_counted_from_zero() -> None:
    items = [
        Text(text="abc", unit=0, offset=1),
        Text(text="def", unit=3, offset=2),
        Text(text="ghi", unit=6, seq=4, offset=3),
        End(offset=4),
    ]
    left = remaining_input(items, Consumed(1, 5))
    assert [(i.text, i.unit) for i in left if isinstance(i, Text)] == [("f", 0), ("ghi", 1)]
    assert isinstance(left[-1], End)
    assert [i.text for i in remaining_input(items, Consumed(0, 6)) if isinstance(i, Text)] == [
        "ghi"
    ]
    everything = remaining_input(items, Consumed())
    assert "".join(i.text for i in everything if isinstance(i, Text)) == "abcdefghi"

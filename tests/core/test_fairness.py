"""The fair queue: who is next, where everybody stands, and that nobody starves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.fairness import HEAD_START_S, FairQueue, head_start_s


def flooded() -> FairQueue:
    queue = FairQueue()
    for index in range(1000):
        queue.push(f"a{index}", tenant="a", cost_s=1)
    for index in range(3):
        queue.push(f"b{index}", tenant="b", cost_s=1)
    return queue


def serve(queue: FairQueue, count: int) -> list[str]:
    return [job for job in (queue.take() for _ in range(count)) if job is not None]


def test_after_a_flood_of_one_tenant_anothers_three_stand_at_ranks_1_3_5() -> None:
    queue = flooded()
    assert [queue.rank(f"b{index}") for index in range(3)] == [1, 3, 5]
    queue.push("urgent", tenant="c", cost_s=1, priority=3)
    assert queue.rank("urgent") == 0
    assert serve(queue, 5) == ["urgent", "a0", "b0", "a1", "b1"]


def test_rank_is_the_order_of_service() -> None:
    queue = flooded()
    ranks = {job: queue.rank(job) for job in queue}
    served = serve(queue, len(queue))
    assert [ranks[job] for job in served] == list(range(1003))
    assert len(queue) == 0
    assert queue.take() is None


def test_an_idle_tenant_can_save_nothing_up() -> None:
    queue = FairQueue()
    for index in range(100):
        queue.push(f"a{index}", tenant="a", cost_s=1)
    serve(queue, 50)
    for index in range(50):  # idle until now: it starts at V, not at 0
        queue.push(f"b{index}", tenant="b", cost_s=1)
    served = serve(queue, 20)
    assert sum(job.startswith("a") for job in served) == 10


def test_cost_and_weight_set_the_share() -> None:
    queue = FairQueue({"heavy": 2.0})
    for index in range(60):
        queue.push(f"h{index}", tenant="heavy", cost_s=1)
        queue.push(f"l{index}", tenant="light", cost_s=1)
        queue.push(f"c{index}", tenant="costly", cost_s=4)
    served = serve(queue, 70)
    counts = {letter: sum(job[0] == letter for job in served) for letter in "hlc"}
    assert counts["h"] == pytest.approx(2 * counts["l"], abs=2)
    assert counts["l"] == pytest.approx(4 * counts["c"], abs=4)


def test_work_beyond_the_estimate_is_charged() -> None:
    queue = FairQueue()
    queue.push("a0", tenant="a", cost_s=1)
    queue.charge("a", 9)
    queue.push("a1", tenant="a", cost_s=1)
    for index in range(8):
        queue.push(f"b{index}", tenant="b", cost_s=1)
    assert queue.rank("a1") == 9


def test_a_job_that_comes_back_keeps_its_place_and_pays_once() -> None:
    queue = FairQueue()
    ticket = queue.push("a0", tenant="a", cost_s=1)
    for index in range(1, 5):
        queue.push(f"a{index}", tenant="a", cost_s=1)
    assert serve(queue, 3) == ["a0", "a1", "a2"]
    queue.restore(ticket)
    assert queue.rank("a0") == 0
    assert serve(queue, 3) == ["a0", "a3", "a4"]
    queue.restore(ticket)
    with pytest.raises(ValueError, match="waits already"):
        queue.restore(ticket)


def test_jobs_that_are_not_ready_are_passed_over_and_keep_their_place() -> None:
    queue = FairQueue()
    for index in range(4):
        queue.push(f"a{index}", tenant="a", cost_s=1)
    assert queue.take(lambda job: job in {"a2", "a3"}) == "a2"
    assert queue.take(lambda job: False) is None
    assert list(queue) == ["a0", "a1", "a3"]


def test_a_job_can_be_taken_out() -> None:
    queue = flooded()
    assert queue.remove("b0")
    assert not queue.remove("b0")
    assert "b0" not in queue
    assert queue.rank("b1") == 2
    with pytest.raises(KeyError):
        queue.rank("b0")


def test_where_a_new_job_would_stand_is_where_it_then_stands() -> None:
    queue = flooded()
    for tenant, priority in (("a", 0), ("b", 0), ("new", 0), ("new2", 3), ("a", 3), ("a", -3)):
        expected = queue.rank_of_new(tenant=tenant, priority=priority)
        job = f"x{tenant}{priority}"
        queue.push(job, tenant=tenant, cost_s=1, priority=priority)
        assert queue.rank(job) == expected


def test_priority_is_a_bounded_head_start() -> None:
    assert head_start_s(0) == 0
    assert head_start_s(1) == 10
    assert head_start_s(99) == HEAD_START_S
    assert head_start_s(-99) == -HEAD_START_S


def test_low_priority_is_overtaken_for_a_while_but_not_for_ever() -> None:
    queue = FairQueue()
    queue.push("low", tenant="a", cost_s=1, priority=-3)
    served = 0
    while "low" in queue:
        queue.push(f"n{served}", tenant="b", cost_s=1)
        served += 1
        queue.take()
        assert served < 40
    assert served > 25


def test_tenants_that_no_longer_matter_are_forgotten() -> None:
    queue = FairQueue()
    for index in range(5000):
        queue.push(f"j{index}", tenant=f"t{index}", cost_s=0.001)
        queue.take()
        queue.virtual_s += 0.01
    assert len(queue._last) <= 1100


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(0.1, 5), st.integers(-3, 3), st.booleans()),
        min_size=1,
        max_size=120,
    )
)
def test_everybody_is_served_once_and_new_arrivals_never_pass_a_bound(
    steps: list[tuple[str, float, int, bool]],
) -> None:
    """No starvation: a job is overtaken only by work worth the head starts and one turn."""
    queue = FairQueue()
    served: list[str] = []
    overtaken: dict[str, float] = {}
    cost_of: dict[str, float] = {}
    for index, (tenant, cost, priority, take) in enumerate(steps):
        job = f"{tenant}{index}"
        cost_of[job] = cost
        overtaken[job] = 0.0
        queue.push(job, tenant=tenant, cost_s=cost, priority=priority)
        if take:
            first = queue.take()
            assert first is not None
            served.append(first)
            for waiting in queue:
                if int(waiting[1:]) < int(first[1:]) and waiting[0] != first[0]:
                    overtaken[waiting] += cost_of[first]
    while queue:
        job = queue.take()
        assert job is not None
        served.append(job)
    assert sorted(served) == sorted(cost_of)
    tenants_in_play = 3
    own = {t: sum(c for j, c in cost_of.items() if j[0] == t) for t in "abc"}
    for job, passed in overtaken.items():
        bound = tenants_in_play * (2 * HEAD_START_S + own[job[0]] + 5)
        assert passed <= bound


@given(st.lists(st.sampled_from(["push", "take", "restore", "remove"]), max_size=80))
def test_the_virtual_time_never_falls(steps: list[str]) -> None:
    queue = FairQueue()
    tickets = []
    out = []
    for index, step in enumerate(steps):
        before = queue.virtual_s
        if step == "push":
            tickets.append(queue.push(f"j{index}", tenant=str(index % 3), cost_s=1))
        elif step == "take":
            job = queue.take()
            out += [t for t in tickets if t.job == job]
        elif step == "restore" and out:
            queue.restore(out.pop())
        elif step == "remove" and len(queue):
            queue.remove(next(iter(queue)))
        assert queue.virtual_s >= before
        assert [queue.rank(job) for job in queue] == list(range(len(queue)))


def test_passing_by_an_empty_queue_counts_as_waiting_and_being_served() -> None:
    passed, waited = FairQueue({"b": 2.0}), FairQueue({"b": 2.0})
    for index in range(30):
        tenant, priority = "ab"[index % 2], index % 3 - 1
        passed.pass_by(tenant=tenant, cost_s=1.5, priority=priority)
        waited.push(f"j{index}", tenant=tenant, cost_s=1.5, priority=priority)
        assert waited.take() == f"j{index}"
        assert passed.virtual_s == waited.virtual_s
    for queue in (passed, waited):
        queue.push("x", tenant="a", cost_s=1)
        queue.push("y", tenant="b", cost_s=1)
    assert list(passed) == list(waited)

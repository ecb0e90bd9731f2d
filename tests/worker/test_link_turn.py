"""Who may work how long on what workers say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from forebay.broker.link_turn import LONGEST_S, TURN_S, Turn


class Loop:
    """A loop whose turns, and whose time, the test makes."""

    def __init__(self) -> None:
        self.now = 10.0
        self._soon: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self._soon.append(call)

    def turn(self) -> None:
        soon, self._soon = self._soon, []
        for call in soon:
            call()

    @property
    def quiet(self) -> bool:
        return not self._soon


class Worker:
    """Has so many messages, of which each takes ``each_s``."""

    def __init__(self, loop: Loop, turn: Turn, messages: int, each_s: float = 0.001) -> None:
        self._loop, self._turn, self._each_s = loop, turn, each_s
        self.left = messages

    def work(self) -> None:
        while self.left:
            self.left -= 1
            self._loop.now += self._each_s
            if self.left and self._turn.over():
                self._turn.rest(self.work)
                return


def made() -> tuple[Loop, Turn]:
    loop: Any = Loop()
    return loop, Turn(loop, lambda: loop.now)


def test_a_burst_is_worked_on_for_a_moment_in_each_turn() -> None:
    loop, turn = made()
    worker = Worker(loop, turn, 100)
    begun = loop.now
    worker.work()
    assert loop.now - begun == pytest.approx(TURN_S, abs=0.003)
    left = worker.left
    loop.turn()
    assert left - worker.left == pytest.approx(TURN_S / 0.001, abs=1)
    for _ in range(40):
        loop.turn()
    assert worker.left == 0
    loop.turn()
    assert loop.quiet


@pytest.mark.parametrize(("others_s", "share_s"), [(0.02, 0.02), (0.5, LONGEST_S)])
def test_where_others_take_long_it_may_take_as_long_within_bounds(
    others_s: float, share_s: float
) -> None:
    loop, turn = made()
    worker = Worker(loop, turn, 10_000)
    worker.work()
    loop.now += others_s  # what clients said meanwhile
    left = worker.left
    loop.turn()
    assert (left - worker.left) * 0.001 == pytest.approx(share_s, abs=0.002)


def test_a_pause_in_which_nobody_had_to_rest_is_no_work_of_others() -> None:
    loop, turn = made()
    Worker(loop, turn, 3).work()
    loop.turn()
    loop.now += 60.0
    worker = Worker(loop, turn, 100)
    begun = loop.now
    worker.work()
    assert loop.now - begun == pytest.approx(TURN_S, abs=0.003)


def test_those_who_rest_share_the_next_turn_evenly_and_leave_over_what_they_do_not_need() -> None:
    loop, turn = made()
    workers = [Worker(loop, turn, count) for count in (1000, 1000, 3)]
    for worker in workers:
        worker.work()
    assert [worker.left for worker in workers[1:]] == [999, 2]  # the first had the turn
    loop.now += 0.03
    before = [worker.left for worker in workers]
    loop.turn()
    done = [was - worker.left for was, worker in zip(before, workers, strict=True)]
    assert done[0] == pytest.approx(10, abs=2)
    assert done[1] == pytest.approx(10, abs=2)
    assert done[2] == 2
    late = Worker(loop, turn, 100)  # comes in the same turn, of which nothing is left
    loop.now += 0.03
    late.work()
    assert late.left == 99


def test_one_that_fails_does_not_keep_the_others_resting() -> None:
    loop, turn = made()
    worker = Worker(loop, turn, 20)

    def broken() -> None:
        raise RuntimeError("told so")

    worker.work()
    turn._resting.insert(0, broken)
    with pytest.raises(RuntimeError):
        loop.turn()
    left = worker.left
    loop.turn()
    assert worker.left < left

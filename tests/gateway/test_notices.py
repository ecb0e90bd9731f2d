"""When a waiting client is told its place again, and which waits count as foretold wrongly."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from forebay.core.events import Ended
from forebay.core.spec import QueuePlace
from forebay.gateway.metrics import GatewayMetrics
from forebay.gateway.notices import Notices


class Timer:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Stand:
    """A wait on a clock that `pass_` moves. ``told``: (when, position, time), None at its end."""

    def __init__(self, gap_s: float = 0.0) -> None:
        self.now = 0.0
        self.hub = self
        self.metrics = GatewayMetrics()
        self.told: list[tuple[float, int, float | None] | None] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._number = count()
        self.notices = Notices(cast(Any, self), gap_s, self._tell, "speech")

    def clock(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self._timers, (when, next(self._number), timer))
        return timer

    def _tell(self, place: QueuePlace | None) -> None:
        found = None if place is None else (round(self.now, 2), place.position, place.eta_s)
        self.told.append(found)

    def waits(self, position: int, each_s: float | None = 6.0) -> None:
        eta_s = None if each_s is None else position * each_s
        self.notices.waits(QueuePlace(position=position, eta_s=eta_s, each_s=each_s))

    def pass_(self, seconds: float) -> None:
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            self.now, _, timer = heapq.heappop(self._timers)
            if timer.call is not None:
                timer.call()
        self.now = until

    @property
    def counted(self) -> int:
        return sum(sum(found.counts) for found in self.metrics.eta_errors.values())


@pytest.fixture
def stand() -> Stand:
    return Stand()


def test_a_place_is_told_again_when_its_time_has_run_out_ever_more_rarely(
    stand: Stand,
) -> None:
    stand.waits(1)
    stand.pass_(75)
    told = [news for news in stand.told if news is not None]
    assert told[0] == (0.0, 1, 6.0)
    assert told[1][:2] == (7.2, 1) and told[1][2] == 6.0, "another mean"
    gaps = [later[0] - sooner[0] for sooner, later in zip(told, told[1:], strict=False)]
    assert 3 <= len(gaps) <= 5 and gaps == sorted(gaps)
    at, _, eta_s = told[-1]
    assert eta_s is not None and eta_s > 18 and at + eta_s > 60
    stand.notices.begun()
    assert stand.told[-1] is None
    stand.pass_(600)
    assert stand.told[-1] is None, "nothing of a wait that is over"


def test_a_wait_as_long_as_was_said_is_told_once(stand: Stand) -> None:
    stand.waits(1)
    stand.pass_(7.1)
    stand.notices.begun()
    assert stand.told == [(0.0, 1, 6.0), None]


def test_who_comes_forward_only_because_others_gave_up_hears_of_no_mean(
    stand: Stand,
) -> None:
    stand.waits(2)
    stand.pass_(72)
    stand.waits(1)  # the pool says 6 s, the job before this one waited in vain for a minute
    stand.pass_(1)
    at, position, eta_s = stand.told[-1] or (0, 0, 0)
    assert (at, position, eta_s) == (72.0, 1, 30.0)


def test_news_come_at_most_once_a_second_and_the_newest_counts(stand: Stand) -> None:
    for position in (9, 8, 7, 6):
        stand.waits(position, 0.1)
        stand.pass_(0.3)
    assert [news[:2] for news in stand.told if news] == [(0.0, 9), (1.0, 6)]
    stand.pass_(60)
    times = [news[0] for news in stand.told if news]
    assert all(b - a >= 1 for a, b in zip(times, times[1:], strict=False))
    assert len(times) < 10


def test_news_are_held_back_for_the_gap_and_count_down_meanwhile() -> None:
    stand = Stand(gap_s=0.5)
    stand.notices.waits(QueuePlace(position=1, eta_s=8.0, each_s=1.0))
    stand.pass_(0.4)
    assert stand.told == []
    stand.pass_(0.2)
    assert stand.told == [(0.5, 1, 7.5)]
    stand.notices.stop()
    stand.pass_(60)
    assert len(stand.told) == 1


def test_a_place_without_a_time_is_told_once_and_counts_for_nothing(stand: Stand) -> None:
    stand.waits(3, None)
    stand.pass_(60)
    assert stand.told == [(0.0, 3, None)]
    stand.waits(3)
    assert stand.told[-1] == (60.0, 3, 18.0)
    stand.pass_(18)
    stand.notices.begun()
    assert stand.counted == 1 and stand.metrics.eta_errors["speech"].total == 0.0


@pytest.mark.parametrize(
    ("state", "missed"), [("expired", 1), ("cancelled", 0), ("failed", 0), ("completed", 0)]
)
def test_a_wait_that_its_deadline_ended_was_foretold_wrongly(
    stand: Stand, state: Any, missed: int
) -> None:
    stand.waits(1)
    stand.pass_(10)
    with capture_logs() as events:
        stand.notices.ended(Ended(state=state))
    said = [e for e in events if e["event"] == "queue.longer_than_told"]
    assert (stand.counted, len(said)) == (missed, missed)
    if missed:
        assert stand.metrics.eta_errors["speech"].total == pytest.approx(0.4)
        assert (said[0]["told_s"], said[0]["real_s"], said[0]["begun"]) == (6.0, 10.0, False)
    stand.notices.begun()
    stand.pass_(60)
    assert stand.counted == missed, "once"


def test_a_job_that_ran_into_its_deadline_did_not_wait_for_it(stand: Stand) -> None:
    stand.waits(1)
    stand.pass_(6)
    stand.notices.begun()
    stand.pass_(60)
    stand.notices.ended(Ended(state="expired"))
    assert stand.counted == 1 and stand.metrics.eta_errors["speech"].total == 0.0


def test_a_client_that_left_counts_for_nothing(stand: Stand) -> None:
    stand.waits(1)
    stand.pass_(60)
    stand.notices.stop()
    assert stand.counted == 0

"""Who is let in, and what those who are not are told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.admission import (
    RESERVE_S,
    Connections,
    Drain,
    Gate,
    JobFacts,
    JobLimits,
    Load,
    Service,
    at_once,
    busy_rate,
    corrected,
    forecast,
    refuse_job,
    retry_after_s,
)
from forebay.core.spec import QueuePlace

LIMITS = JobLimits(queue=10, tenant_jobs=3, jobs=100)


def refused(limits: JobLimits = LIMITS, **facts: Any) -> str | None:
    error = refuse_job(JobFacts(**{"workers": 1, **facts}), limits, jitter=0.5)
    if error is None:
        return None
    assert error.retry_after_s is not None and error.retry_after_s >= 1
    assert error.retryable
    return error.code


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({}, None),
        ({"draining": True}, "draining"),
        ({"store_used": 1.0}, "store_full"),
        ({"store_used": 0.99}, None),
        ({"workers": 0}, "no_workers"),
        ({"tenant_jobs": 3}, "quota_exceeded"),
        ({"tenant_jobs": 2}, None),
        ({"live_jobs": 100}, "store_full"),
        ({"queued": 10}, "queue_full"),
        ({"queued": 9}, None),
        ({"queued": 10, "free": 1}, "queue_full"),
        ({"place": QueuePlace(position=9, eta_s=61.0), "queue_s": 60.0}, "wait_too_long"),
        ({"place": QueuePlace(position=9, eta_s=59.0), "queue_s": 60.0}, None),
        ({"place": QueuePlace(position=9), "queue_s": 60.0}, None),
        ({"place": QueuePlace(position=9, eta_s=61.0)}, None),
        ({"place": QueuePlace(position=9, eta_s=61.0), "queue_s": 60, "will_wait": False}, None),
        ({"place": QueuePlace(position=9, eta_s=61.0), "queue_s": 60.0, "free": 1}, None),
    ],
)
def test_the_job_gate(facts: dict[str, Any], code: str | None) -> None:
    assert refused(**facts) == code


def test_without_a_quota_a_tenant_may_have_any_number() -> None:
    assert refused(JobLimits(tenant_jobs=None), tenant_jobs=5000) is None


# ----------------------------------------------------------------- connection gate


def decide(gate: Gate, name: str, now: float = 0.0, **load: Any) -> str | None:
    error = gate.decide(name, Load(**{"queue_limit": 2, **load}), now, jitter=0.0)
    return None if error is None else error.code


def test_a_handshake_let_in_keeps_its_place_until_it_starts() -> None:
    gate = Gate()
    assert decide(gate, "a") is None
    assert decide(gate, "b") is None
    assert decide(gate, "c") == "queue_full"
    gate.begun("a")
    assert decide(gate, "c") is None
    assert gate.reserved(0.0) == 2


def test_a_place_that_is_not_used_lapses() -> None:
    gate = Gate()
    decide(gate, "a")
    decide(gate, "b", 1.0)
    assert decide(gate, "c", RESERVE_S - 0.1) == "queue_full"
    assert decide(gate, "c", RESERVE_S) is None
    assert gate.reserved(RESERVE_S + 1.0) == 1


def test_those_who_wait_and_those_who_are_promised_count_together() -> None:
    gate = Gate()
    assert decide(gate, "a", queued=1) is None
    assert decide(gate, "b", queued=1) == "queue_full"


def test_a_named_session_passes_and_reserves_nothing() -> None:
    gate = Gate()
    assert decide(gate, "a", queued=2, named=True) is None
    assert gate.reserved(0.0) == 0
    assert decide(gate, "a", named=True, draining=True) == "draining"


def test_as_many_unnamed_handshakes_pass_as_sessions_are_detached() -> None:
    gate = Gate()
    assert decide(gate, "a", queued=2, detached=2) is None
    assert decide(gate, "b", queued=2, detached=2) is None
    assert decide(gate, "c", queued=2, detached=2) == "queue_full"
    gate.begun("a")
    assert decide(gate, "c", queued=2, detached=2) is None
    assert decide(gate, "d", RESERVE_S, queued=2, detached=2) is None
    assert gate.reserved(0.0) == 0


@pytest.mark.parametrize(
    ("limits", "load", "code"),
    [
        (Connections(), {"store_down": True}, "store_down"),
        (Connections(total=5), {"open_total": 5}, "too_many_connections"),
        (Connections(total=5), {"open_total": 4}, None),
        (Connections(per_address=2), {"open_address": 2, "named": True}, "too_many_connections"),
        (Connections(min_workers=2), {"workers": 1}, "no_workers"),
        (Connections(min_workers=2), {"workers": 2}, None),
    ],
)
def test_process_limits_apply_to_all(
    limits: Connections, load: dict[str, Any], code: str | None
) -> None:
    assert decide(Gate(limits), "a", **load) == code


def test_busy_is_shown_before_it_is_full() -> None:
    gate = Gate()
    assert not gate.busy(Load(queued=7, queue_limit=10), 0.0)
    decide(gate, "a", queue_limit=10)
    assert gate.busy(Load(queued=7, queue_limit=10), 0.0)
    assert decide(gate, "b", queued=8, queue_limit=10) is None


# ----------------------------------------------------------------------- forecasts


def test_a_forecast_needs_a_measurement_and_somebody_who_serves() -> None:
    service = Service()
    assert forecast(3, service, 2) == QueuePlace(position=3)
    service.add(4.0)
    assert forecast(3, service, 0) == QueuePlace(position=3)
    place = forecast(3, service, 2)
    assert (place.eta_s, place.low_s, place.high_s) == (6.0, 6.0, 6.0)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=50), st.integers(1, 500))
def test_the_interval_holds_the_estimate(samples: list[float], position: int) -> None:
    service = Service()
    for sample in samples:
        service.add(sample)
    assert min(samples) - 1e-9 <= service.mean_s <= max(samples) + 1e-9
    place = forecast(position, service, 4)
    assert place.eta_s is not None and place.low_s is not None and place.high_s is not None
    assert 0 <= place.low_s <= place.eta_s <= place.high_s


def test_the_mean_follows_what_is_new() -> None:
    service = Service()
    for _ in range(50):
        service.add(1.0)
    for _ in range(50):
        service.add(3.0)
    assert service.mean_s == pytest.approx(3.0, abs=0.02)


def test_the_drain_rate_is_what_came_back_lately() -> None:
    drain = Drain()
    assert drain.rate(0.0) is None
    for at in range(300):
        drain.add(at * 0.5)
    assert drain.rate(150.0) == pytest.approx(2.0, rel=0.1)
    assert drain.rate(150.0 + 1000) is None


def test_retry_after_follows_the_drain_rate_and_is_spread_out() -> None:
    assert retry_after_s(10, 2.0, 0.0) == 5.0
    assert retry_after_s(10, 2.0, 1.0) == 7.5
    assert retry_after_s(0, 100.0, 0.0) == 1.0
    assert retry_after_s(1000, 0.5, 0.0) == 40.0
    assert retry_after_s(1000, 0.5, 1.0) == 60.0
    assert retry_after_s(1, None, 0.0) == 5.0


def test_idle_time_does_not_make_a_pool_slower() -> None:
    place = QueuePlace(position=4, eta_s=4.0, each_s=1.0)
    assert busy_rate(0.066, place) == busy_rate(None, place) == 1.0
    assert busy_rate(2.0, place) == 2.0  # it does better than its mean
    unknown = QueuePlace(position=4)
    assert (busy_rate(0.5, unknown), busy_rate(None, unknown)) == (0.5, None)
    assert busy_rate(None, QueuePlace(position=4, eta_s=0.0, each_s=0.0)) is None
    for facts in ({"queued": 12}, {"tenant_jobs": 3}):
        some = JobFacts(workers=1, drain_rate=0.066, place=place, **facts)
        error = refuse_job(some, LIMITS, jitter=0.0)
        assert error is not None and error.retry_after_s is not None
        assert error.retry_after_s <= 3.0


def test_a_place_at_a_free_credit_begins_now_and_says_how_fast_places_come_free() -> None:
    place = QueuePlace(position=1, eta_s=3.0, low_s=2.0, high_s=4.0, each_s=3.0)
    now = QueuePlace(position=1, eta_s=0.0, low_s=0.0, high_s=0.0, each_s=3.0)
    assert at_once(place) == now


PLACE = QueuePlace(position=2, eta_s=12.0, low_s=10.0, high_s=14.0, each_s=6.0)


def told(place: QueuePlace = PLACE, age_s: float = 0.0, late_s: float = -12.0, by: int = 0) -> Any:
    found = corrected(place, age_s=age_s, late_s=late_s, advanced=by)
    return found.eta_s, found.low_s, found.high_s


def test_a_forecast_counts_down_but_not_below_one_place_after_the_other() -> None:
    assert corrected(PLACE, age_s=0.0, late_s=-12.0, advanced=0) is PLACE
    together = QueuePlace(position=2, eta_s=20.0, low_s=18.0, high_s=22.0, each_s=6.0)
    assert told(together, age_s=5.0, late_s=-15.0) == (15.0, 13.0, 17.0)
    assert told(together, age_s=15.0, late_s=-5.0) == (12.0, 10.0, 14.0)
    unknown = QueuePlace(position=2)
    assert corrected(unknown, age_s=9.0, late_s=9.0, advanced=0) is unknown
    assert told(QueuePlace(position=2, eta_s=5.0), age_s=9.0, late_s=-1.0) == (0.0, 0.0, 0.0)


def test_a_late_wait_is_expected_to_last_as_long_again() -> None:
    assert told(age_s=15.0, late_s=3.0) == (12.0, 10.0, 14.0)  # the mean still says more
    assert told(age_s=42.0, late_s=30.0) == (60.0, 0.0, 120.0)  # two places, none came free
    assert told(age_s=1.0, late_s=30.0, by=9) == (12.0, 10.0, 14.0)  # ten did: slow, not stuck
    assert told(QueuePlace(position=1, eta_s=5.0), late_s=7.0) == (7.0, 0.0, 14.0)


def test_a_place_that_was_promised_is_kept_for_its_start() -> None:
    gate = Gate()
    load = Load(queued=4, queue_limit=5)
    assert gate.decide("a", load, 0.0, jitter=0) is None
    assert gate.promised("a", 0.0)
    assert not gate.promised("b", 0.0)
    assert not gate.promised("a", RESERVE_S)
    assert refused(JobLimits(queue=9), queued=9) == "queue_full"
    assert refused(JobLimits(queue=9), queued=9, promised=True) is None


def test_who_may_be_coming_back_is_promised_nothing() -> None:
    gate = Gate()
    assert gate.decide("a", Load(queued=9, queue_limit=5, detached=1), 0.0, jitter=0) is None
    assert not gate.promised("a", 0.0)


def test_places_come_free_no_faster_than_the_slots_can_work() -> None:
    held, work = Service(), Service()
    held.add(9.0)
    work.add(1.0)
    assert forecast(10, held, 9).eta_s == 10.0
    assert forecast(10, held, 9, work, 1).eta_s == 10.0
    held.mean_s = 1.0  # sessions that only catch up hold a credit for as long as they work
    assert forecast(10, held, 9, work, 1).eta_s == 10.0
    assert forecast(10, Service(), 9, work, 1).eta_s == 10.0
    assert forecast(10, Service(), 9, Service(), 1).eta_s is None
    assert forecast(10, held, 0, work, 1).eta_s is None


def test_who_began_together_ends_together() -> None:
    held, work = Service(), Service()
    work.add(1.0)
    eleven = {"running": 11, "busy_s": 0.5}  # speak at once to one slot, which they share
    for position in (1, 2, 51):
        place = forecast(position, held, 20, work, 1, **eleven)
        assert (place.eta_s, place.each_s) == (10.5 + position - 1, 1.0)
    assert forecast(3, held, 20, work, 1, running=11, busy_s=60.0).eta_s == 3.0
    assert forecast(3, held, 20, work, 1, running=0, busy_s=0.5).eta_s == 3.0
    held.add(8.0)
    work.mean_s = 0.1
    at_once = [forecast(n, held, 4, work, 1, running=4, busy_s=2.0).eta_s for n in range(1, 7)]
    assert at_once == [6.0, 6.0, 6.0, 8.0, 10.0, 12.0]  # four places come free in six seconds
    assert forecast(1, held, 4, work, 1, running=3, busy_s=2.0).eta_s == 2.0  # one is free
    held.var_s2 = 16.0  # some take half the time, so half of it is waited for
    assert forecast(1, held, 4, work, 1, running=4, busy_s=2.0).eta_s == 3.0
    held.var_s2 = 81.0
    assert forecast(1, held, 4, work, 1, running=4, busy_s=2.0).eta_s == 2.0
    nothing = Service(count=1)
    assert forecast(1, nothing, 4, running=4, busy_s=2.0).eta_s == 0.0


def test_each_who_is_sent_away_is_given_a_later_time_and_the_count_goes_down_again() -> None:
    gate = Gate()
    full = Load(queued=10, queue_limit=10, drain_rate=2.0)

    def sent_away(name: str, now: float) -> float:
        error = gate.decide(name, full, now, jitter=0.0)
        assert error is not None and error.retry_after_s is not None
        return error.retry_after_s

    assert [sent_away(f"a{n}", 0.0) for n in range(6)] == [1.0, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert sent_away("b", 1.0) == 2.5, "two have come in meanwhile"
    for n in range(1000):
        sent_away(f"c{n}", 1.0)
    assert sent_away("d", 1.0) == 40.0
    assert sent_away("e", 70.0) == 1.0, "the crowd is gone"

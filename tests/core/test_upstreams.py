"""Several model servers: exact shares, breakers, and who is asked when one is gone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.upstreams import Balancer, Breaker, Upstream, parse_upstreams


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any), st.integers(1, 5))
def test_shares_are_exact_over_every_whole_round(weights: list[int], rounds: int) -> None:
    balancer, total = Balancer(weights), sum(weights)
    first = Counter(balancer.order(0.0)[0] for _ in range(total * rounds))
    assert all(abs(first[at] - weight * rounds) <= 1 for at, weight in enumerate(weights))


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=5).filter(any),
    st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.floats(0, 3)), max_size=60),
)
def test_everybody_is_in_the_order_once_and_the_well_come_first(
    weights: list[float], story: list[tuple[int, bool, float]]
) -> None:
    balancer, now = Balancer(weights), 0.0
    for at, good, pause_s in story:
        now += pause_s
        at %= len(weights)
        balancer.began(at, now)
        balancer.good(at) if good else balancer.bad(at, now)
        order = balancer.order(now)
        assert sorted(order) == list(range(len(weights)))
        waits = [balancer.breakers[one].wait_s(now) for one in order]
        ill = [wait_s for wait_s in waits if wait_s]
        assert waits == [0.0] * (len(waits) - len(ill)) + sorted(ill)


def test_a_standby_is_asked_only_when_the_others_are_gone() -> None:
    balancer = Balancer([1, 0])
    assert [balancer.order(0.0)[0] for _ in range(5)] == [0] * 5
    for _ in range(3):
        balancer.bad(0, 0.0)
    assert balancer.order(0.1) == [1, 0]
    balancer.began(0, 0.6)  # its pause is over: one request tries
    assert balancer.order(0.6) == [1, 0]
    balancer.good(0)
    assert balancer.order(0.7) == [0, 1]


def test_with_nobody_well_the_soonest_allowed_is_tried() -> None:
    balancer = Balancer([1, 1], failures=1)
    balancer.bad(0, 0.0)
    balancer.bad(1, 0.2)
    assert balancer.order(0.3) == [0, 1]
    assert Balancer([0, 0]).order(0.0) in ([0, 1], [1, 0])


def test_a_breaker_opens_lets_one_try_and_waits_longer_each_time() -> None:
    breaker = Breaker()
    for _ in range(5):
        assert breaker.refuse_s(0.0) == 0.0
        breaker.bad(0.0)
    assert breaker.open
    assert breaker.refuse_s(0.1) == pytest.approx(0.4)
    assert breaker.refuse_s(0.6) == 0.0
    assert breaker.refuse_s(0.6) > 0
    breaker.bad(0.7)
    assert breaker.refuse_s(1.0) > 0.5
    breaker.good()
    assert not breaker.open
    assert breaker.wait_s(1.0) == 0.0


def test_addresses_are_written_with_model_and_weight() -> None:
    assert parse_upstreams("http://a:1, q4@http://b:2/v1*0.1 http://u@c:3*2 http://u@d") == [
        Upstream("http://a:1"),
        Upstream("http://b:2/v1", 0.1, "q4"),
        Upstream("http://u@c:3", 2.0),
        Upstream("http://u@d"),
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [(" , ", "no address"), ("http://a*0", "above 0"), ("http://a*x", "no number"),
     ("http://a*-1", "no number"), ("http://a*nan", "no number")],
)  # fmt: skip
def test_what_is_malformed_is_said(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_upstreams(text)

"""Fences, strikes, byte credit and beats."""

from __future__ import annotations

import pytest
from test_job import job

from forebay.core.job import Phase
from forebay.core.lease import (
    CREDIT_BYTES,
    CREDIT_LUMP_BYTES,
    TTL_S,
    Beats,
    ByteCredit,
    cleared,
    exclusive,
    holds,
    strike,
)
from forebay.errors import Fenced


def test_only_the_holder_of_the_newest_attempt_is_in_charge() -> None:
    it = job(phase=Phase.RUNNING, attempt=2, worker="w")
    holds(it, "w", 2)
    for worker, attempt in (("w", 1), ("w", 3), ("v", 2)):
        with pytest.raises(Fenced):
            holds(it, worker, attempt)
    it.phase = Phase.PARKED
    with pytest.raises(Fenced):
        holds(it, "w", 2)


def test_two_strikes_isolate_and_the_third_is_poison() -> None:
    it = job(phase=Phase.RUNNING, attempt=1)
    assert (strike(it, 1), exclusive(it)) == (False, False)
    assert (strike(it, 1), exclusive(it)) == (False, True)
    assert strike(it, 1)


def test_a_commit_clears_strikes() -> None:
    it = job(phase=Phase.RUNNING, attempt=1, strikes=2)
    assert cleared(it)
    assert not cleared(it)
    assert not exclusive(it)


def test_a_word_about_an_old_attempt_or_a_finished_job_is_no_strike() -> None:
    assert not strike(job(attempt=2, strikes=2), 1)
    done = job(phase=Phase.CANCELLED, attempt=2, strikes=2)
    assert not strike(done, 2)
    assert done.strikes == 2


def test_byte_credit_goes_back_in_lumps_and_never_over_the_limit() -> None:
    credit = ByteCredit()
    assert credit.spend(CREDIT_LUMP_BYTES - 1)
    assert credit.lump() == 0
    assert credit.spend(1)
    assert credit.lump() == CREDIT_LUMP_BYTES
    assert credit.left == CREDIT_BYTES
    assert not credit.spend(CREDIT_BYTES + 1)
    assert credit.left == CREDIT_BYTES


def test_a_worker_is_overdue_after_its_time_to_live() -> None:
    beats = Beats()
    assert beats.deadline is None
    beats.heard("a", 10.0)
    beats.heard("b", 10.5)
    assert beats.deadline == 10.0 + TTL_S
    assert beats.overdue(10.79) == []
    assert beats.overdue(10.81) == ["a"]
    beats.heard("a", 10.81)
    assert beats.overdue(10.9) == []
    assert "a" in beats
    beats.forget("a")
    beats.forget("a")
    assert "a" not in beats


def test_after_a_pause_everybody_has_a_full_time_to_live() -> None:
    beats = Beats()
    beats.heard("a", 10.0)
    beats.heard("b", 12.0)
    beats.grace(20.0)
    assert beats.overdue(20.5) == []
    assert sorted(beats.overdue(21.0)) == ["a", "b"]

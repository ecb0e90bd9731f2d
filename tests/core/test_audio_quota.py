"""Seconds of audio per session and per tenant: counted once, refused with the time to wait."""

from __future__ import annotations

import pytest

from forebay.core import audio_quota
from forebay.core.audio_quota import SMALLEST_S, AudioLedger, AudioLimits


def ledger(**limits: float) -> AudioLedger:
    made = AudioLedger(AudioLimits(**limits))
    for job in ("a", "b"):
        made.open(job, "t")
    return made


def test_without_limits_everything_comes_in() -> None:
    book = ledger()
    book.count("a", 1e6, 0.0)
    assert book.refuse_more("a", "t", 1e6, 0.0) is None
    assert book.refuse_tenant("t", 0.0, 1.0) is None
    assert (book.used_s("t", 0.0), book.room_s("t", 0.0)) == (0.0, None)


def test_a_session_may_bring_so_much_and_waiting_does_not_help() -> None:
    book = ledger(session_s=10)
    book.count("a", 6.0, 0.0)
    assert book.refuse_more("a", "t", 4.0, 0.0) is None
    refusal = book.refuse_more("a", "t", 4.5, 0.0)
    assert refusal is not None and refusal.retry_after_s is None
    assert "10.5 s" in refusal.message and refusal.details["limit_s"] == 10
    assert book.refuse_more("b", "t", 10.0, 0.0) is None
    assert book.room_s("t", 0.0) == 10


def test_what_is_known_counts_once() -> None:
    book = ledger(tenant_s=100)
    for total in (5.0, 3.0, 5.0, 8.0):
        book.count("a", total, 0.0)
    book.open("a", "t", 50.0)
    book.open("c", "t", 50.0)  # those were counted by another gateway
    book.count("c", 51.0, 0.0)
    book.count("unknown", 51.0, 0.0)
    assert (book.used_s("t", 0.0), book.total_s("a"), book.total_s("x")) == (9.0, 8.0, 0.0)
    book.close("a")
    book.close("a")
    book.count("a", 80.0, 0.0)
    assert book.used_s("t", 0.0) == 9.0


def test_a_tenants_hour_slides_by_the_minute_and_says_when_it_is_free() -> None:
    book = ledger(tenant_s=100, session_s=80)
    book.count("a", 60.0, 30.0)
    book.count("b", 30.0, 100.0)
    book.count("b", 40.0, 110.0)
    assert book.used_s("t", 110.0) == 100.0 and book.room_s("t", 110.0) == 0.0
    refusal = book.refuse_tenant("t", 110.0, SMALLEST_S)
    assert refusal is not None and refusal.http_status == 429
    assert refusal.retry_after_s == 3660 - 110
    much = book.refuse_tenant("t", 110.0, 70.0)
    assert much is not None and much.retry_after_s == 3720 - 110
    assert book.refuse_more("a", "t", 0.0, 110.0) is None
    assert book.refuse_tenant("other", 110.0, 100.0) is None
    assert book.used_s("t", 3659.0) == 100.0
    assert book.used_s("t", 3661.0) == 40.0
    assert book.refuse_tenant("t", 3661.0, 60.0) is None
    assert book.room_s("t", 3661.0) == 60.0


def test_more_than_a_whole_hour_is_refused_at_once() -> None:
    book = ledger(tenant_s=100)
    refusal = book.refuse_tenant("t", 0.0, 101.0)
    assert refusal is not None and refusal.retry_after_s == 3600.0


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_quota, "MAX_TENANTS", 3)
    monkeypatch.setattr(audio_quota, "MAX_JOBS", 3)
    book = AudioLedger(AudioLimits(tenant_s=10))
    for n in range(9):
        book.open(f"j{n}", f"t{n}")
        book.count(f"j{n}", 1.0, n * 7000.0)
        book.count(f"j{n}", 2.0, n * 7000.0 + 1)
    assert len(book._tenants) == len(book._jobs) == 3
    assert book.used_s("t8", 56_000.0) == 2.0 and book.used_s("t0", 56_000.0) == 0.0

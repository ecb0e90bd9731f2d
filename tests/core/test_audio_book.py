"""One tenant's hour of audio at several gateways: one book, and what each knows of it."""

from __future__ import annotations

import pytest

from forebay.core import audio_quota
from forebay.core.audio_quota import AudioBook, AudioLedger, AudioLimits


def gateway() -> AudioLedger:
    made = AudioLedger(AudioLimits(tenant_s=100))
    made.open("a", "t")
    return made


def tell(ledger: AudioLedger, book: AudioBook, now: float, ahead_s: float = 0.0) -> None:
    """``ahead_s``: of the book's clock."""
    ledger.seen("t", book.count("t", ledger.take("t"), now + ahead_s), now)


def test_what_came_in_elsewhere_counts_here() -> None:
    book, one, two = AudioBook(), gateway(), gateway()
    two.open("b", "t")
    one.count("a", 60.0, 5.0)
    assert one.unsaid("t") and not two.unsaid("t")
    tell(one, book, 5.0)
    assert not one.unsaid("t")
    two.count("b", 30.0, 6.0)
    assert two.refuse_tenant("t", 6.0, 20.0) is None  # it has not asked yet
    tell(two, book, 6.0)
    assert two.used_s("t", 6.0) == 90.0
    refusal = two.refuse_tenant("t", 6.0, 20.0)
    assert refusal is not None and refusal.retry_after_s == 3660 - 6


def test_a_session_that_moves_is_counted_once_and_wholly() -> None:
    book, one, two = AudioBook(), gateway(), AudioLedger(AudioLimits(tenant_s=100))
    one.count("a", 40.0, 0.0)
    tell(one, book, 0.0)
    one.count("a", 50.0, 1.0)  # it dies before it can tell
    two.open("a", "t", already_s=50.0)
    assert two.unsaid("t")
    two.count("a", 55.0, 2.0)
    tell(two, book, 2.0)
    assert two.used_s("t", 2.0) == 55.0
    assert book.count("t", {"a": 55.0}, 3.0) == [(3.0, 55.0)]


def test_what_comes_while_the_book_is_asked_is_added_to_its_answer() -> None:
    book, one = AudioBook(), gateway()
    one.count("a", 10.0, 0.0)
    totals = one.take("t")
    one.count("a", 15.0, 0.5)
    one.seen("t", book.count("t", totals, 0.2), 0.6)
    assert one.used_s("t", 0.6) == 15.0 and one.unsaid("t")
    tell(one, book, 1.0)
    assert one.used_s("t", 1.0) == 15.0


def test_what_the_book_did_not_hear_is_told_again() -> None:
    book, one = AudioBook(), gateway()
    one.count("a", 10.0, 0.0)
    totals = one.take("t")
    one.count("a", 12.0, 0.5)
    one.back("t", totals)
    assert one.used_s("t", 1.0) == 12.0
    assert one.take("t") == {"a": 12.0}
    one.back("t", {"a": 12.0})
    tell(one, book, 1.0)
    assert one.used_s("t", 1.0) == 12.0


def test_the_books_minutes_pass_like_ones_own() -> None:
    book, one = AudioBook(), gateway()
    for minute in range(3):
        one.count("a", 10.0 * (minute + 1), 60.0 * minute + 1)
        tell(one, book, 60.0 * minute + 1, ahead_s=999.0)
    assert one.used_s("t", 121.0) == 30.0
    one.count("a", 31.0, 122.0)
    assert one.used_s("t", 122.0) == 31.0
    assert one.used_s("t", 3700.0) == 11.0
    assert book.count("t", {}, 99_000.0) == []
    assert AudioLedger(AudioLimits()).unsaid("t") is False


def test_without_a_tenants_quota_the_book_has_nothing_to_hear() -> None:
    one = AudioLedger(AudioLimits(session_s=10))
    one.open("a", "t", 3.0)
    one.count("a", 5.0, 0.0)
    assert not one.unsaid("t") and (one.tenant_of("a"), one.tenant_of("b")) == ("t", None)


def test_the_book_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_quota, "MAX_TENANTS", 3)
    monkeypatch.setattr(audio_quota, "MAX_JOBS", 3)
    book = AudioBook()
    for n in range(9):
        book.count(f"t{n}", {f"j{n}": 1.0}, float(n))
    assert len(book._windows) == len(book._totals) == 3

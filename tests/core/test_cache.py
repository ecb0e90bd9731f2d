"""Answers kept by exact request: bounded in bytes and in time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forebay.core.cache import Cache


def test_an_answer_is_found_until_its_time_has_passed() -> None:
    cache: Cache[str] = Cache(ttl_s=10, limit_bytes=100)
    assert cache.put(b"a", "x", 5, 0.0)
    assert cache.get(b"a", 9.9) == "x"
    assert cache.get(b"b", 0.0) is None
    assert cache.get(b"a", 10.0) is None
    assert (len(cache), cache.bytes) == (0, 0)


def test_what_was_used_longest_ago_makes_room() -> None:
    cache: Cache[int] = Cache(ttl_s=10, limit_bytes=10)
    for number, key in enumerate((b"a", b"b")):
        cache.put(key, number, 5, 0.0)
    cache.get(b"a", 1.0)
    cache.put(b"c", 2, 5, 1.0)
    assert cache.get(b"b", 1.0) is None
    assert cache.get(b"a", 1.0) == 0
    assert not cache.put(b"a", 3, 11, 2.0)
    assert cache.get(b"a", 2.0) is None


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 12), st.floats(0, 9)), max_size=50)
)
def test_it_never_holds_more_than_it_may(story: list[tuple[str, int, float]]) -> None:
    cache: Cache[int] = Cache(ttl_s=3, limit_bytes=20)
    now = 0.0
    for key, size, pause_s in story:
        now += pause_s
        kept = cache.put(key.encode(), size, size, now)
        assert kept
        assert cache.bytes <= 20
        assert cache.get(key.encode(), now) == size

"""When a caption stood on the last display of one gateway."""

from __future__ import annotations

from forebay.core.events import Caption
from forebay.core.shown import (
    GIVE_UP,
    OPEN,
    REPORTERS,
    WAIT_S,
    Settled,
    Shown,
    Tally,
    news,
    signal,
)


def caption(offset: int) -> Caption:
    return Caption(user="Ada", text="x", client="c", seq=offset + 100, offset=offset)


def tally(*displays: str) -> Tally:
    made = Tally()
    assert all(made.come(name) for name in displays)
    return made


def shown(offset: int, displays: int, of: int, ago_ms: int = 0) -> Shown:
    return Shown(
        client="c", seq=offset + 100, offset=offset, displays=displays, of=of, ago_ms=ago_ms
    )


def test_the_last_display_settles_a_caption() -> None:
    t = tally("a", "b")
    assert not t.wrote(caption(1), 10.0)
    assert not t.told("a", [(1, 0.0)], 10.02)
    assert t.told("b", [(1, 0.03)], 10.1) == [Settled(shown(1, 2, 2, 30), 10.1 - 0.03 - 10.0)]
    assert not t.told("b", [(1, 0.0)], 10.2)
    assert t.due_at is None


def test_what_is_told_of_one_caption_goes_for_all_before_it() -> None:
    t = tally("a")
    for offset in (1, 2, 3):
        t.wrote(caption(offset), 1.0)
    found = t.told("a", [(2, 0.1), (1, 0.2)], 1.5)
    assert [(one.shown.offset, one.shown.ago_ms) for one in found] == [(1, 200), (2, 100)]
    assert t.due_at == 1.0 + WAIT_S


def test_nothing_stood_there_before_it_was_written() -> None:
    t = tally("a")
    t.wrote(caption(1), 5.0)
    assert t.told("a", [(1, 60.0)], 5.5) == [Settled(shown(1, 1, 1, 500), 0.0)]


def test_who_tells_nothing_in_time_is_missing_and_later_not_waited_for() -> None:
    t = tally("a", "hidden")
    for n in range(1, GIVE_UP + 1):
        t.wrote(caption(n), 10.0 * n)
        t.told("a", [(n, 0.0)], 10.0 * n + 0.1)
        assert not t.due(10.0 * n + WAIT_S - 0.1)
        (late,) = t.due(10.0 * n + WAIT_S)
        assert (late.shown.displays, late.shown.of) == (1, 2)
        assert late.slowest_s is not None and abs(late.slowest_s - 0.1) < 1e-6
    t.wrote(caption(9), 100.0)
    (now,) = t.told("a", [(9, 0.0)], 100.1)
    assert (now.shown.displays, now.shown.of) == (1, 1)
    t.told("hidden", [], 101.0)
    t.wrote(caption(10), 102.0)
    assert not t.told("a", [(10, 0.0)], 102.1)


def test_nobody_told_is_said_as_such() -> None:
    t = tally("a")
    t.wrote(caption(1), 0.0)
    assert t.due(WAIT_S) == [Settled(shown(1, 0, 1), None)]


def test_who_leaves_is_waited_for_no_more() -> None:
    t = tally("a", "b", "c")
    t.wrote(caption(1), 0.0)
    t.told("a", [(1, 0.0)], 0.1)
    assert not t.go("b", 0.2)
    assert t.go("c", 0.3) == [Settled(shown(1, 1, 1, 200), 0.1)]
    assert not t.go("c", 0.4) and not t.empty
    t.wrote(caption(2), 1.0)
    assert not t.go("a", 1.1)  # nobody is left: there is nothing to say
    assert t.empty and t.due_at is None
    assert not t.wrote(caption(3), 2.0)
    assert not t.told("a", [(3, 0.0)], 2.1)


def test_a_display_that_showed_it_and_left_counts() -> None:
    t = tally("a", "b")
    t.wrote(caption(1), 0.0)
    t.told("a", [(1, 0.0)], 0.1)
    t.go("a", 0.2)
    (one,) = t.told("b", [(1, 0.0)], 0.3)
    assert (one.shown.displays, one.shown.of) == (2, 2)


def test_no_more_displays_are_asked_and_no_more_captions_open_than_the_bounds() -> None:
    t = tally(*(f"d{n}" for n in range(REPORTERS)))
    assert not t.come("one more")
    for offset in range(1, OPEN + 1):
        assert not t.wrote(caption(offset), 0.0)
    (oldest,) = t.wrote(caption(OPEN + 1), 0.0)
    assert oldest.shown == shown(1, 0, REPORTERS)


def test_a_signal_says_what_was_settled_and_is_no_caption() -> None:
    one = shown(7, 2, 3, 40)
    sent = signal(one)
    assert sent.preview and not sent.user and news(sent) == one
    assert one.body() == {
        "client_id": "c", "seq": 107, "id": 7, "displays": 2, "of": 3, "ago_ms": 40,
    }  # fmt: skip
    assert news(caption(1)) is None
    assert news(Caption(user="Ada", text="hel", preview=True)) is None
    odd = Caption(user="", text="", preview=True, style={"id": "x"})
    assert news(odd) == Shown(client="", seq=0, offset=0, displays=0, of=0, ago_ms=0)

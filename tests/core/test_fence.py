"""Who may write, and what is a repeat."""

from __future__ import annotations

import pytest

from forebay.core.fence import IdentityFence, InputFence, OutputFence
from forebay.errors import Fenced, OffsetGap


@pytest.mark.parametrize("lease", [None, 1, 3])
def test_an_attempt_that_is_not_the_leases_is_fenced(lease: int | None) -> None:
    with pytest.raises(Fenced) as caught:
        OutputFence.check(2, [1], lease, 0)
    assert not isinstance(caught.value, OffsetGap)
    assert caught.value.details["attempt"] == 2


@pytest.mark.parametrize(
    ("offsets", "answer"),
    [([], "append"), ([5], "append"), ([5, 6], "append"), ([4], "already"), ([3, 4], "already")],
)
def test_new_batches_are_appended_and_old_ones_are_already_there(
    offsets: list[int], answer: str
) -> None:
    assert OutputFence.check(1, offsets, 1, 4) == answer


@pytest.mark.parametrize("offsets", [[6], [5, 7], [4, 5], [2, 4], [5, 5], [6, 5]])
def test_a_batch_that_skips_or_straddles_is_refused(offsets: list[int]) -> None:
    with pytest.raises(OffsetGap):
        OutputFence.check(1, offsets, 1, 4)


def test_a_newer_attachment_fences_the_older() -> None:
    fence = InputFence()
    assert fence.client_pos == 0
    first, second = fence.attach(), fence.attach()
    assert (first, second) == (1, 2)
    with pytest.raises(Fenced):
        fence.check(first, 1)
    assert fence.check(second, 1) == "append"


def test_what_an_earlier_attachment_recorded_is_a_repeat() -> None:
    fence = InputFence()
    holder = fence.attach()
    for position in (1, 2, 3):
        assert fence.check(holder, position) == "append"
    holder = fence.attach()
    assert [fence.check(holder, position) for position in (2, 3, 4)] == [
        "repeat",
        "repeat",
        "append",
    ]
    assert fence.client_pos == 4


def test_within_an_attachment_repeated_and_falling_positions_are_accepted() -> None:
    fence = InputFence()
    holder = fence.attach()
    assert [fence.check(holder, position) for position in (5, 5, 3)] == ["append"] * 3
    assert fence.client_pos == 5


def test_a_first_position_of_zero_is_no_repeat() -> None:
    fence = InputFence()
    assert fence.check(fence.attach(), 0) == "append"


def test_a_protocol_without_positions_is_never_a_repeat() -> None:
    fence = InputFence(number=4, client_pos=9)
    assert fence.check(4, None) == "append"
    assert fence.client_pos == 9


def test_a_pipe_must_rise_and_may_skip() -> None:
    fence = IdentityFence()
    assert [fence.check(offset) for offset in (1, 4, 4, 2, 5)] == [
        "append",
        "append",
        "repeat",
        "repeat",
        "append",
    ]
    assert fence.last == 5

"""What follows from a kind's row of numbers."""

from __future__ import annotations

from forebay.core.kinds import KINDS, WHOLE_ITEM_BYTES, Cut, Kind


def test_an_input_that_is_cut_into_steps_comes_in_small_items():
    row = KINDS[Kind.SPEECH]
    assert row.cut is not Cut.WHOLE
    assert row.item_limit_bytes == row.item_bytes


def test_a_whole_prompt_may_be_as_large_as_its_store_or_one_frame_carries():
    row = KINDS[Kind.TEXT]
    assert row.cut is Cut.WHOLE
    assert row.item_limit_bytes == min(row.input_bytes, WHOLE_ITEM_BYTES) > row.item_bytes

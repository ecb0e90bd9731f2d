"""Answers that run in circles or are no text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.garble import MAX_CHARS, measure

PROSE = (
    "Streaming moves words as soon as they exist. A gateway that waits for a full buffer trades "
    "the reader's time for a little processor time, and on a quiet machine it gains nothing. "
    "What arrives while the transport is busy may travel together; nothing else should wait."
)


def test_prose_code_and_chinese_are_fine() -> None:
    code = "\n".join(f"def step_{n}(x):\n\treturn x + {n} * rate_{n}" for n in range(20))
    chinese = (
        "网关把模型产生的文字立刻送到读者那里，而不是等缓冲区装满。安静的机器上等待没有任何好处。"
    )
    for text in (PROSE, code, chinese, "", "ok", "no " * 8):
        found = measure(text)
        assert found.verdict == "fine", text
        assert found.repeat_rate < 0.2


@pytest.mark.parametrize("loop", ["the cat sat on the mat. ", "我不知道该怎么办。", "yes "])
def test_a_loop_is_found_also_at_the_end_of_a_good_answer(loop: str) -> None:
    assert measure(loop * 40).verdict == "repeats"
    assert measure(PROSE + loop * 400).verdict == "repeats"


@pytest.mark.parametrize("junk", ["\ufffd", "\x00", "\ue000", "Ã©", "\ud800", "â€œ"])
def test_what_no_text_has_is_garble(junk: str) -> None:
    found = measure("word " * 3 + (junk + "ab ") * 8)
    assert found.verdict == "garbled"
    assert measure(PROSE + junk).verdict == "fine"


@given(st.text(max_size=400))
def test_any_text_has_a_measure(text: str) -> None:
    found = measure(text)
    assert 0 <= found.repeat_rate <= 1
    assert found.garble_rate >= 0
    assert measure("x" * MAX_CHARS + text) == measure(("x" * MAX_CHARS + text)[-MAX_CHARS:])

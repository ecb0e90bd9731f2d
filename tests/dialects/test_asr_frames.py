"""The two messages that every chunk is answered with are written by hand, to the same letter."""

from __future__ import annotations

import pytest

from forebay.core.events import Heard
from forebay.core.intents import Took
from forebay.dialects import About
from forebay.dialects.asr import AsrDialect, _frame

DIALECT = AsrDialect(new_id=lambda: "new")
NAMES = ("", "s", 'a "quoted" \\ name', "名字", "\u2028\x00\n")
TEXTS = ("", "hello", ' "she said" \\', "你好\u2028", "\x1f\ttab")


@pytest.mark.parametrize("name", NAMES)
def test_an_acknowledgement_reads_as_the_encoder_writes_it(name: str) -> None:
    (said,) = DIALECT.answer(Took(seq=7), About(session=name, params={}))
    assert said == _frame("ack", name, 7, status="received")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_result_reads_as_the_encoder_writes_it(name: str, text: str) -> None:
    heard = Heard(seq=-3, samples=160, text=text)
    (said,) = DIALECT.encode(heard, About(session=name, params={}))
    assert said == _frame("chunk_result", name, -3, text=text or None)

"""Does an answer run in circles, or is it no text at all? A measure, not a judgement of sense.

A model that was quantised too far, or served with a wrong template, shows itself by two
things that can be counted: the same words again and again, and characters that no text has.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

__all__ = ["MAX_CHARS", "Measure", "Verdict", "measure"]

MAX_CHARS = 8000
"""The end of a longer answer is looked at: that is where it runs in circles."""
GRAM = 6
MIN_GRAMS = 12
REPEATS_FROM = 0.5
GARBLED_FROM = 0.02
MIN_GARBLED = 3

Verdict = Literal["fine", "repeats", "garbled"]

# One character of Chinese, Japanese or Korean counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u9fff\uac00-\ud7af]+")
_MOJIBAKE = re.compile(r"Ã[\u0080-\u00bf]|Â[\u0080-\u00bf]|â€|ï¿½")
_NO_TEXT = frozenset({"Cc", "Cn", "Co", "Cs"})
_SPACE = "\t\n\r\f"


@dataclass(frozen=True, slots=True)
class Measure:
    """``repeat_rate``: share of runs of six words that were there before; of plain prose it
    is under 0.1. ``garble_rate``: share of characters that no text has."""

    repeat_rate: float
    garble_rate: float
    verdict: Verdict


def measure(text: str) -> Measure:
    """Measure one answer."""
    text = text[-MAX_CHARS:]
    repeats, garble, count = _repeat_rate(text), 0.0, _garbled(text)
    if text:
        garble = count / len(text)
    verdict: Verdict = "fine"
    if count >= MIN_GARBLED and garble >= GARBLED_FROM:
        verdict = "garbled"
    elif repeats >= REPEATS_FROM:
        verdict = "repeats"
    return Measure(round(repeats, 4), round(garble, 4), verdict)


def _repeat_rate(text: str) -> float:
    words = _WORD.findall(text.lower())
    grams = [tuple(words[at : at + GRAM]) for at in range(len(words) - GRAM + 1)]
    if len(grams) < MIN_GRAMS:
        return 0.0
    return 1 - len(set(grams)) / len(grams)


def _garbled(text: str) -> int:
    odd = sum(
        1
        for char in text
        if char == "\ufffd" or (char not in _SPACE and unicodedata.category(char) in _NO_TEXT)
    )
    return odd + len(_MOJIBAKE.findall(text))

"""Clusters as UAX 29 has them, numbers and words as people do."""

from __future__ import annotations

import pytest

from forebay.core.textbreak import (
    forced_break,
    is_break,
    is_cluster_break,
    is_number_break,
    marks_in,
    speakable,
)


def clusters(text: str) -> list[str]:
    cuts = [0, *(at for at in range(1, len(text)) if is_cluster_break(text, at)), len(text)]
    return [text[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


@pytest.mark.parametrize(
    "parts",
    [
        ["a", "b"],
        ["\r\n", "\n"],
        ["e\u0301", "é", "x\u0308\u0323"],
        ["👩\u200d👩\u200d👧", "👍🏽", "❤\ufe0f"],
        ["🇩🇪", "🇫🇷", "🇮"],
        ["a", "🇩🇪", "🇫🇷"],
        ["1\ufe0f\u20e3", "2"],
        ["각", "각", "ᄀ\u1161\u11a8", "a"],
        ["ᄁ각", "\u1161\u11a8", "가\u11a8"],
        ["\ua960\ud7b0\ud7cb", "가"],
        ["क्ष", "नि"],
        ["क्\u20e3ष"],
        ["กำ", "ก"],
        ["か\u3099", "ｶﾞ"],
        ["🏴\U000e0067\U000e007f", "x"],
        ["\u0600١", "١"],
        ["த", "மி", "ழ்"],
    ],
)
def test_clusters_stay_whole(parts: list[str]) -> None:
    assert clusters("".join(parts)) == parts


@pytest.mark.parametrize("number", ["3.14", "1,000", "12:30", "10 000", "1'000", "2024-12-03"])
def test_no_break_inside_a_number(number: str) -> None:
    assert not any(is_number_break(number, at) for at in range(1, len(number)))
    assert is_number_break(number, len(number))
    assert not is_number_break(number, len(number), open_end=True)


def test_han_numerals_are_numbers() -> None:
    assert not any(is_number_break("三万5千二百", at) for at in range(1, 6))
    assert is_number_break("三百个", 2)
    assert is_number_break("3 a", 2)


@pytest.mark.parametrize(
    ("text", "at", "ends"),
    [
        ("ab cd", 3, True),
        ("ab cd", 2, False),
        ("ab cd", 1, False),
        ("ab", 2, True),
        ("你好", 1, True),
        ("你（好", 1, True),
        ("（你好", 1, False),
        ("你。", 1, False),
        ("你”", 1, False),
        ("キャ", 1, False),
        ("3月", 1, False),
        ("ab你", 2, True),
        ("没a", 1, True),
        ("e\u0301", 1, False),
    ],
)
def test_words_end_where_people_see_it(text: str, at: int, ends: bool) -> None:
    assert is_break(text, at) is ends


def test_an_open_end_is_a_break_only_after_a_space_or_an_unspaced_script() -> None:
    assert not is_break("ab", 2, open_end=True)
    assert is_break("ab ", 3, open_end=True)
    assert is_break("你好", 2, open_end=True)
    assert not is_break("10 ", 3, open_end=True)


def test_forced_breaks_prefer_words_then_clusters_outside_numbers() -> None:
    assert forced_break("one two three", 9) == 8
    assert forced_break("abc12345678", 5) == 3
    assert forced_break("123456789", 5) == 5
    assert forced_break("e" + "\u0301" * 9, 5) == 5


def test_a_symbol_is_speakable_and_a_mark_is_not() -> None:
    assert speakable("…😀")
    assert not speakable(" …!)\n")


def test_a_variation_selector_stays_with_its_mark() -> None:
    assert [mark.end for mark in marks_in("Oh\u2049\ufe0f so", False)] == [4]

"""Choosing a language for each stretch of text, and cutting it for slow voices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.engines.kokoro import normalise
from forebay.engines.script import ends, foreign, pieces, runs, speakable


def split(text: str, default: str = "en") -> list[tuple[str, str]]:
    return [(run.language, run.text) for run in runs(text, default)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The quick brown fox.", [("en", "The quick brown fox.")]),
        ("今天天气很好。", [("zh", "今天天气很好。")]),
        ("他在2026年买了3.5公斤。", [("zh", "他在2026年买了3.5公斤。")]),
        ("我用Python写代码", [("zh", "我用Python写代码")]),
        ("2026", [("en", "2026")]),
        ("“你好”", [("zh", "“你好”")]),
        (
            "The word for hello in Chinese is 你好, as you may know from travelling there.",
            [
                ("en", "The word for hello in Chinese is "),
                ("zh", "你好, "),
                ("en", "as you may know from travelling there."),
            ],
        ),
        (
            "It is now exactly 12 o'clock in the town of Xi'an 2026年",
            [("en", "It is now exactly 12 o'clock in the town of Xi'an "), ("zh", "2026年")],
        ),
        ("", []),
        ("...", [("en", "...")]),
    ],
)
def test_text_is_split_where_the_language_changes(text: str, expected: list[tuple[str, str]]):
    assert split(text) == expected


def test_text_without_letters_follows_the_language_before():
    assert split("2026!", default="zh") == [("zh", "2026!")]


@given(st.text(alphabet="aé 你好,.，。12%\n😀のЖ", max_size=60), st.sampled_from(["en", "zh"]))
def test_runs_and_pieces_cover_every_character_once(text: str, default: str):
    found = runs(text, default)
    assert "".join(run.text for run in found) == text
    assert [run.start for run in found] == [
        sum(len(r.text) for r in found[:i]) for i in range(len(found))
    ]
    assert all(a.language != b.language for a, b in zip(found, found[1:], strict=False))
    for run in found:
        cut = pieces(run.text, 5, 20)
        assert "".join(cut) == run.text
        assert all(cut)


def test_pieces_end_at_clause_marks_and_never_inside_a_number():
    text = "我们今天买了三点五公斤苹果，花了1,250.75元整呢真的，很便宜。"
    assert pieces(text, 10, 40) == [
        "我们今天买了三点五公斤苹果，",
        "花了1,250.75元整呢真的，",
        "很便宜。",
    ]


def test_text_without_any_mark_is_cut_at_the_limit():
    assert [len(piece) for piece in pieces("好" * 95, 10, 40)] == [40, 40, 15]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Привет, мир", "Cyrillic"),
        ("こんにちは", "Hiragana"),
        ("안녕하세요", "Hangul"),
        ("the letter π", ""),
        ("日本の", ""),
        ("123 ...", ""),
        ("élève naïve", ""),
    ],
)
def test_only_text_mostly_in_another_script_is_foreign(text: str, expected: str):
    assert foreign(text) == expected


def test_how_a_text_ends_decides_its_pause():
    assert [ends(t) for t in ("Yes.", "好。”", "and,", "，", "and", " ", "")] == [
        *("sentence", "sentence", "clause", "clause", "", "", "")
    ]


def test_punctuation_and_pictures_are_not_speakable():
    assert not any(speakable(t) for t in ("", " \n", "...", "😀", "—“”", "\u200b"))
    assert all(speakable(t) for t in ("a", "7", "好", "é"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22", "2026年11月22日"),
        ("7:30", "7点30分"),
        ("花了￥120", "花了120元"),
        ("$5.30", "5.30美元"),
        ("1,250人", "1250人"),
        ("3-5个", "3到5个"),
        ("１２", "12"),
        ("1" * 18, "一" * 18),
    ],
)
def test_numbers_are_written_as_chinese_says_them(text: str, expected: str):
    assert normalise(text) == expected

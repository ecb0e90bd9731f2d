"""Which language a stretch of text is to be spoken in, by its script. Pure.

`runs` splits a segment so that every character is in exactly one run. Digits, spaces and
punctuation have no script of their own: they go with the words they touch. Short foreign
words inside Chinese stay with the Chinese run, because changing the voice for one word
sounds worse than an accent.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Run", "ends", "foreign", "is_han", "pieces", "runs", "speakable"]

SHORT_CHARS = 24  # a Latin stretch up to this long inside Chinese is spoken by the Chinese voice

_SENTENCE = frozenset(".!?。！？…\n")
_CLAUSE = frozenset(",;:，、；：—")
_HAN = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)
_HAN_SIGNS = frozenset("々〇")


@dataclass(frozen=True, slots=True)
class Run:
    """``text`` begins at character ``start`` of the segment; ``language`` is en or zh."""

    language: str
    start: int
    text: str


def is_han(char: str) -> bool:
    point = ord(char)
    return char in _HAN_SIGNS or any(low <= point <= high for low, high in _HAN)


def speakable(text: str) -> bool:
    """Whether anything in it makes a sound: a letter, a digit or a Han character."""
    return any(char.isalnum() for char in text)


def ends(text: str) -> str:
    """How ``text`` ends: "sentence", "clause" or "" (inside one)."""
    last = text.rstrip(" \t\"'”’」』)）]】》")[-1:] if text.strip() else text[-1:]
    if last in _SENTENCE:
        return "sentence"
    return "clause" if last in _CLAUSE else ""


def foreign(text: str) -> str:
    """The script of ``text`` when most of its letters are neither Latin nor Han, else ""."""
    ours, theirs, name = 0, 0, ""
    for char in text:
        if not char.isalpha() and not is_han(char):
            continue
        script = _script(char)
        if script in ("LATIN", "HAN"):
            ours += 1
        else:
            theirs, name = theirs + 1, name or script.capitalize()
    return name if theirs > ours else ""


def runs(text: str, default: str) -> list[Run]:
    """Split ``text`` by language, in order, covering it exactly once.

    ``default`` is for text without any letter. An empty text has no runs.
    """
    if not text:
        return []
    languages = _languages(text, default)
    spans = list(_spans(languages))
    if any(language == "zh" for language, _, _ in spans):
        spans = _absorb(spans)
    return [Run(language, start, text[start:end]) for language, start, end in spans]


def pieces(text: str, wish: int, limit: int) -> list[str]:
    """Cut ``text`` after a clause mark once ``wish`` characters are in, or at ``limit``.

    For models that give a whole call's audio at once: shorter calls sound sooner and can be
    cancelled sooner. Joined, the pieces are ``text``.
    """
    found, start, last = [], 0, len(text)
    for at in range(1, last):
        length = at - start
        marked = text[at - 1] in _CLAUSE or text[at - 1] in _SENTENCE
        inside = text[at - 1].isdigit() and text[at] in ".,:" or text[at] in _CLAUSE | _SENTENCE
        word = text[at - 1].isascii() and text[at].isascii() and text[at].isalnum()
        if (marked and length >= wish and not inside) or (length >= limit and not word):
            if speakable(text[at:]):
                found.append(text[start:at])
                start = at
    return [*found, text[start:]]


def _languages(text: str, default: str) -> list[str]:
    """The language of each character: its own, else that of what it touches."""
    own = ["zh" if is_han(c) else "en" if c.isalpha() else "" for c in text]
    _numbers(text, own)
    last = next((language for language in own if language), default)
    for index, language in enumerate(own):
        last = own[index] = language or last
    return own


def _numbers(text: str, own: list[str]) -> None:
    """A number written against a Han character is read in Chinese, on either side of it."""
    end = len(text)
    while end > 0:
        start = end
        while start > 0 and (text[start - 1].isdigit() or text[start - 1] in ".,%￥¥"):
            start -= 1
        if start == end:
            end -= 1
            continue
        after = own[end] if end < len(own) else ""
        before = own[start - 1] if start else ""
        if "zh" in (after, before) and any(c.isdigit() for c in text[start:end]):
            own[start:end] = ["zh"] * (end - start)
        end = start


def _spans(languages: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    start = 0
    for index in range(1, len(languages) + 1):
        if index == len(languages) or languages[index] != languages[start]:
            yield languages[start], start, index
            start = index


def _absorb(spans: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Short English stretches become part of the Chinese around them."""
    joined: list[tuple[str, int, int]] = []
    for language, start, end in spans:
        if language == "en" and end - start <= SHORT_CHARS:
            language = "zh"
        if joined and joined[-1][0] == language:
            joined[-1] = (language, joined[-1][1], end)
        else:
            joined.append((language, start, end))
    return joined


def _script(char: str) -> str:
    if is_han(char):
        return "HAN"
    name = unicodedata.name(char, "")
    return "LATIN" if name.startswith(("LATIN", "FULLWIDTH LATIN")) else name.split(" ")[0]

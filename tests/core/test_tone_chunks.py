"""Chunks of exactly one word, which are read in one go, sound like any other cut."""

from __future__ import annotations

import pytest

from forebay.core.tones import WORD_SAMPLES, Reader, speak

SILENCE, NOISE = bytes(2 * WORD_SAMPLES), b"\x11\x22" * WORD_SAMPLES


@pytest.mark.parametrize(
    "pieces",
    [
        [speak([1]), speak([2]), speak([3])],
        [speak([1]), SILENCE, speak([2])],
        [NOISE, speak([7]), NOISE],
        [SILENCE[:100], speak([4]), speak([5]), speak([6])],
    ],
)
def test_words_and_places_do_not_depend_on_the_cut(pieces: list[bytes]) -> None:
    by_word, by_ten, whole = Reader(), Reader(), Reader()
    sound = b"".join(pieces)
    found = [word for piece in pieces for word in by_word.feed(piece)]
    small = [word for at in range(0, len(sound), 10) for word in by_ten.feed(sound[at : at + 10])]
    assert found == small == whole.feed(sound)
    assert by_word.at == by_ten.at == whole.at
    assert found

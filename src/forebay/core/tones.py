"""Sound that says which words are in it, for the synthetic recogniser and for load tools.

A word is ``w<number>`` and lasts `WORD_S`. Its samples are a tone of its own between two
marks that carry the number and a check: what was lost, doubled, shortened or moved is heard
as other words or none. Exact only in 16 kHz PCM (also inside a WAV): no codec keeps it.

Silence says nothing. Sound without marks is heard as ``x<checksum>``, one word for each
`WORD_S`, so that a real microphone shows something too, and so does damage.
"""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["MAX_WORD", "RATE", "WORD_S", "WORD_SAMPLES", "Reader", "Word", "speak", "words_in"]

RATE = 16_000
WORD_S = 0.1
WORD_SAMPLES = 1600
MAX_WORD = 2**30 - 1

_BYTES = 2 * WORD_SAMPLES
_MAGIC = b"\x5a\x5a\xa5\xa5"
_HEAD_BYTES = 12
_AMPLITUDE = 6000
_TONES_HZ = tuple(220 + 20 * n for n in range(32))  # whole periods in a word


class Word(NamedTuple):
    """A word and its samples, counted from the first that the reader was given."""

    text: str
    start: int
    end: int


def words_in(samples: int) -> int:
    """How many words fit."""
    return samples // WORD_SAMPLES


def speak(words: Iterable[str | int]) -> bytes:
    """16 kHz s16le mono that says ``words`` (``w12``, or 12). Raises ValueError for others."""
    return b"".join(_word(_number(word)) for word in words)


def _number(word: str | int) -> int:
    number = word if isinstance(word, int) else int(word.removeprefix("w"))
    if not 0 <= number <= MAX_WORD:
        raise ValueError(f"word {number}, expected 0 to {MAX_WORD}")
    return number


def _mark(number: int) -> bytes:
    data = number.to_bytes(4, "little")
    return _MAGIC + data + zlib.crc32(data).to_bytes(4, "little")


def _tone(hertz: int) -> bytes:
    step = 2 * math.pi * hertz / RATE
    return array(
        "h", (round(_AMPLITUDE * math.sin(step * n)) for n in range(WORD_SAMPLES))
    ).tobytes()


_tones: dict[int, bytes] = {}


def _word(number: int) -> bytes:
    hertz = _TONES_HZ[number % len(_TONES_HZ)]
    tone = _tones.get(hertz)
    if tone is None:
        tone = _tones[hertz] = _tone(hertz)
    mark = _mark(number)
    return mark + tone[_HEAD_BYTES:-_HEAD_BYTES] + mark[::-1]


class Reader:
    """Hears the words of one sound that comes in pieces. It holds back less than one word."""

    def __init__(self) -> None:
        self._held = b""
        self._at = 0  # samples before `_held`

    @property
    def at(self) -> int:
        """Samples that are heard: the end of the last whole word, or of the silence after."""
        return self._at

    def feed(self, data: bytes) -> list[Word]:
        """The words that are whole now. ``data``: an even number of bytes."""
        found: list[Word] = []
        at = 0
        while not self._held and len(data) - at >= _BYTES:  # as well cut chunks are
            said = _said(data[at : at + _BYTES])
            if not said:
                break
            found.append(Word(said, self._at, self._at + WORD_SAMPLES))
            self._at += WORD_SAMPLES
            at += _BYTES
        if at < len(data):
            self._held += data[at:]
            found.extend(self._words())
        return found

    def _words(self) -> Iterator[Word]:
        at = 0
        while len(self._held) - at >= _BYTES:
            frame = self._held[at : at + _BYTES]
            word = _said(frame)
            size = _BYTES if word else _to_mark(frame)
            if not word and any(frame[:size]):
                word = f"x{zlib.crc32(frame[:size]):08x}"
            start = self._at + at // 2
            at += size
            if word:
                yield Word(word, start, start + size // 2)
        self._held = self._held[at:]
        self._at += at // 2


def _said(frame: bytes) -> str:
    """The word of a whole frame; "" if it is none."""
    head = frame[:_HEAD_BYTES]
    number = int.from_bytes(head[4:8], "little")
    whole = head == _mark(number) and frame[-_HEAD_BYTES:] == head[::-1]
    return f"w{number}" if whole else ""


def _to_mark(frame: bytes) -> int:
    """Bytes of a frame that is no word before what may be the next word's mark."""
    at = frame.find(_MAGIC, 2)
    while at > 0 and at % 2:
        at = frame.find(_MAGIC, at + 1)
    return at if at > 0 else len(frame)

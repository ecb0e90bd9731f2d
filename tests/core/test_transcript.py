"""Joining finals, and sound that carries its words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.events import Consumed, Final, Heard, Partial, Sound, size_of
from forebay.core.job import remaining_input
from forebay.core.stream import Stamper, StreamLog, Window
from forebay.core.tones import MAX_WORD, WORD_SAMPLES, Reader, speak, words_in
from forebay.core.transcript import TRANSCRIPT_BYTES, Transcript, joint


@pytest.mark.parametrize(
    ("before", "text", "joined"),
    [
        ("", " Hello ", "Hello"),
        ("Hello.", "World", " World"),
        ("你好。", "今天", "今天"),
        ("你好", "Hello", "Hello"),
        ("Hello", "你好", "你好"),
        ("Hello ", "there", "there"),
        ("안녕", "하세요", " 하세요"),
        ("Hello", "  ", ""),
    ],
)
def test_a_final_carries_the_space_its_script_needs(before: str, text: str, joined: str) -> None:
    assert joint(before, text) == joined


def test_a_transcript_over_its_bound_keeps_the_newest_part() -> None:
    said = Transcript()
    for n in range(40_000):
        said.add(f" 语音{n:06d}")
    whole = "".join(f" 语音{n:06d}" for n in range(40_000))
    assert said.chars == len(whole)
    assert whole.endswith(said.text)
    assert TRANSCRIPT_BYTES - 4 <= len(said.text.encode()) <= TRANSCRIPT_BYTES
    again = Transcript(said.text, said.chars)
    again.add("end")
    assert again.text.endswith("039999end") and again.chars == len(whole) + 3


@given(st.lists(st.integers(0, MAX_WORD), max_size=8), st.integers(1, 5000), st.integers(0, 700))
def test_words_are_heard_wherever_the_sound_is_cut(
    numbers: list[int], step: int, silence: int
) -> None:
    pcm = bytes(2 * silence) + speak(numbers)
    reader, heard = Reader(), []
    for at in range(0, len(pcm), 2 * step):
        heard += reader.feed(pcm[at : at + 2 * step])
    if numbers:  # less than a word is held back
        heard += reader.feed(bytes(2 * WORD_SAMPLES))
    assert [w.text for w in heard] == [f"w{n}" for n in numbers]
    assert all(w.end - w.start == WORD_SAMPLES for w in heard)
    assert words_in(len(pcm) // 2) >= len(numbers)
    assert all(w.end <= reader.at for w in heard)


@given(st.integers(0, 9), st.integers(1, 3000))
def test_what_is_lost_from_the_sound_is_missing_from_the_words(at: int, lost: int) -> None:
    pcm = speak(range(12))
    start = 2 * (at * WORD_SAMPLES)
    heard = [w.text for w in Reader().feed(pcm[:start] + pcm[start + 2 * lost :])]
    assert [w for w in heard if w.startswith("w")] != [f"w{n}" for n in range(12)]


def test_numbers_of_recognition_go_on_over_attempts() -> None:
    stamper = Stamper(4, {"final": 2, "heard": 1}, {"chars": 5, "consumed": 100, "told": 5})
    final = stamper.stamp(Final(text=" abc", start=100, end=90))
    assert (final.offset, final.n, final.chars, final.end) == (5, 3, 9, 100)
    heard = stamper.stamp(Heard(seq=7, samples=160, text=" abc"))
    assert (heard.n, heard.told, heard.samples) == (2, 9, 160)
    assert stamper.stamp(Heard(seq=8, samples=150)).samples == 160
    assert stamper.marks == {"chars": 9, "consumed": 100, "told": 9, "heard": 160}


def test_only_the_newest_partial_keeps_its_text_and_its_bytes() -> None:
    log: StreamLog = StreamLog("e", Window(replaceable="partial"))
    stamper = Stamper(0, {}, {})
    for n in range(100):
        log.append([stamper.stamp(Partial(text=f"hello {n}" * 10, start=0))])
    assert log.bytes < 100 * 64 + 200
    assert [e.text for e in log.after(97)] == ["", "", "hello 99" * 10]
    log.append([stamper.stamp(Final(text="hello", start=0, end=9))])
    assert log.bytes == sum(size_of(e) for e in log.after(0))
    assert log.bytes_after(99) == sum(size_of(e) for e in log.after(99))
    assert log.bytes_after(0) == log.bytes


def test_what_remains_of_sound_begins_at_the_last_final() -> None:
    items = [
        Sound(data=bytes(3200), seq=1, offset=1),
        Sound(data=bytes(3200), seq=2, offset=2),
        Sound(data=b"RIFF", form="file", seq=3, offset=3),
    ]
    left = remaining_input(list(items), Consumed(offset=1, fine=2000, heard=3, at=1600))
    assert [(s.seq, len(s.data)) for s in left if isinstance(s, Sound)] == [(2, 2400), (3, 4)]


def test_a_number_that_is_no_word_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 to"):
        speak([MAX_WORD + 1])


def test_what_only_looks_like_a_mark_is_sound_like_any_other() -> None:
    magic = b"\x5a\x5a\xa5\xa5"
    odd = b"\0" * 101 + magic + b"\0" * (2 * WORD_SAMPLES - 105)
    assert [w.text[0] for w in Reader().feed(odd)] == ["x"]
    both = b"\0" * 101 + magic + b"\0" * 95 + speak([5])
    assert [w.text for w in Reader().feed(both + bytes(4000))][-1] == "w5"

"""Any text, in any pieces, at any pace: every unit once, in order, nothing broken."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from forebay.core.segment import Segment, Segmenter
from forebay.core.textbreak import is_break, is_cluster_break, is_number_break, last_break

NUMBER = re.compile(r"\d+(?:[.,:'’/ -]\d+)*")
TOKENS = [
    *"Hello I word word's well-known naïve e\u0301te\u0301 Mr. e.g. U.S. no. v1.2".split(),
    *"3.14 1,000 12:30 5 1,2 7. 10% $5 x2".split(),
    *("10 000", "2 000 000", "\u0301", "\ufe0f", "\u3099"),
    *"你好 世界 今天 二百三十 三点五 こんにちは がぎ ッキー 한국어 สวัสดี नमस्ते क्षत्रिय".split(),
    *"😀 👩\u200d🚀 🇩🇪🇫🇷 👍🏽 ❤\ufe0f 1\ufe0f\u20e3".split(),
    *', . ! ? ; : … — 。 ， ！ ？ 、 ： " ” ( ) 》 ...'.split(),
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\r\n",
]
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "HENTAIGANA", "IDEO")


def unspaced(text: str) -> bool:
    """Whether any character is of a script written without spaces (by its Unicode name)."""
    return any(unicodedata.name(char, "").startswith(UNSPACED) for char in text)


texts = st.lists(st.sampled_from(TOKENS), min_size=1, max_size=40).map("".join) | st.text(
    min_size=1, max_size=60
)
gaps = st.sampled_from([0.0, 0.0, 0.01, 0.2, 0.45, 1.6, 6.0])


@dataclass
class Run:
    text: str
    segments: list[Segment]
    known: list[int]  # how much of the text had been fed when each was cut
    quiet_s: list[float]  # and for how long nothing had come


def play(text: str, pieces: list[tuple[int, float]], *, first: bool, ends: bool) -> Run:
    segmenter = Segmenter(first=first, max_units=40)
    run = Run(text, [], [], [])
    now, fed, fed_s = 0.0, 0, 0.0

    def drain(until: float) -> None:
        nonlocal now
        while (due := segmenter.deadline) is not None and due <= until:
            now = max(now, due)
            segment = segmenter.take(now)
            assert segment is not None
            run.segments.append(segment)
            run.known.append(fed)
            run.quiet_s.append(now - fed_s)
        now = max(now, until)
        assert segmenter.take(now) is None

    for size, gap in [*pieces, (len(text), 0.0)]:
        drain(now + gap)
        piece = text[fed : fed + size]
        segmenter.feed(piece, fed, 1, now)
        if piece:
            fed_s = now
        fed += len(piece)
        drain(now)
    if ends:
        segmenter.end(now)
        drain(now)
        assert segmenter.done
    else:
        drain(fed_s + 1.5)
    assert segmenter.pending_units == 0
    assert segmenter.deadline is None
    return run


runs = st.builds(
    play,
    texts,
    st.lists(st.tuples(st.integers(1, 6), gaps), max_size=60),
    first=st.booleans(),
    ends=st.booleans(),
)


@given(runs)
def test_every_unit_is_in_exactly_one_segment_in_order(run: Run) -> None:
    assert "".join(segment.text for segment in run.segments) == run.text
    unit = 0
    for segment in run.segments:
        assert segment.unit == unit
        assert 1 <= len(segment.text) <= 40
        unit += len(segment.text)


@given(runs)
def test_nothing_is_broken_where_what_follows_was_known(run: Run) -> None:
    for segment, known in zip(run.segments, run.known, strict=True):
        cut = segment.unit + len(segment.text)
        if cut >= known or len(segment.text) > 20:  # open end, or maybe forced by the bound
            continue
        seen = run.text[segment.unit : known]
        at = len(segment.text)
        assert is_cluster_break(seen, at), segment
        assert not unicodedata.combining(seen[at]), segment
        inside = [m for m in NUMBER.finditer(seen) if m.start() < at < m.end()]
        assert not inside or "\n" in seen or seen[at - 1] in ",.", segment
        both = seen[at - 1] + seen[at]
        assert not both.isalnum() or unspaced(both), segment


@given(runs)
def test_a_word_or_number_at_the_open_end_is_cut_only_when_the_text_rests(run: Run) -> None:
    rows = zip(run.segments, run.known, run.quiet_s, strict=True)
    for segment, known, quiet_s in list(rows)[:-1]:
        cut = segment.unit + len(segment.text)
        last = segment.text[-1]
        if cut == known and last.isalnum() and not unspaced(last):
            assert quiet_s >= 1.5 - 1e-9 or len(segment.text) == 40, segment


@given(texts, st.data())
def test_a_new_attempt_goes_on_wherever_the_old_one_was_committed(
    text: str, data: st.DataObject
) -> None:
    done = data.draw(st.integers(0, len(text)))
    segmenter = Segmenter(first=done == 0, unit=done)
    segmenter.feed(text, 0, 1, 0.0)
    segmenter.end(0.0)
    spoken = ""
    while (segment := segmenter.take(0.0)) is not None:
        assert segment.unit == done + len(spoken)
        spoken += segment.text
    assert spoken == text[done:]


@given(texts, st.booleans(), st.integers(1, 30))
def test_the_last_break_is_a_break_and_the_last(text: str, open_end: bool, longest: int) -> None:
    at = last_break(text, open_end, longest)
    assert 0 <= at <= min(longest, len(text))
    if at:
        assert is_break(text, at, open_end=open_end)
        assert at == len(text) or is_number_break(text, at, open_end=open_end)
        later = range(at + 1, min(len(text), longest) + 1)
        assert not any(is_break(text, other, open_end=open_end) for other in later)

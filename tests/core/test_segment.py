"""When text is spoken: early enough to be quick, late enough to be whole."""

from __future__ import annotations

import pytest

from forebay.core.segment import Segment, Segmenter
from forebay.errors import Fenced, OffsetGap


class Typist:
    """Feeds a segmenter on virtual time and takes every segment the moment it is due."""

    def __init__(self, **settings: object) -> None:
        self.segmenter = Segmenter(**settings)  # type: ignore[arg-type]
        self.now = 0.0
        self.unit = self.segmenter.next_unit
        self.cuts: list[tuple[float, str]] = []
        self.segments: list[Segment] = []

    def until(self, now: float) -> Typist:
        while (due := self.segmenter.deadline) is not None and due <= now:
            self.now = max(self.now, due)
            segment = self.segmenter.take(self.now)
            assert segment is not None, "a deadline came and nothing was due"
            self.segments.append(segment)
            self.cuts.append((round(self.now, 3), segment.text))
        self.now = max(self.now, now)
        assert self.segmenter.take(self.now) is None
        return self

    def feed(self, text: str, at: float = 0.0, seq: int = 1) -> Typist:
        self.until(at)
        self.segmenter.feed(text, self.unit, seq, self.now)
        self.unit += len(text)
        return self.until(at)

    def type(self, text: str, per_s: float, at: float = 0.0) -> Typist:
        for index, char in enumerate(text):
            self.feed(char, at + index / per_s)
        return self

    def end(self, at: float | None = None) -> Typist:
        self.until(self.now if at is None else at)
        self.segmenter.end(self.now)
        return self.until(self.now)

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.cuts]


def later(**settings: object) -> Typist:
    return Typist(first=False, **settings)


# ------------------------------------------------------------------- first segment


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Well, I think so. Yes", "Well, "),
        ("好的，我们走。", "好的，"),
        ("Yes! And", "Yes! "),
        ("First line\nsecond", "First line\n"),
        ("Note: this", "Note: "),
        ("Hello,", "Hello,"),
        ("你好。", "你好。"),
        ('"Go!" he said', '"Go!" '),
    ],
)
def test_the_first_segment_ends_at_the_first_mark_at_once(text: str, first: str) -> None:
    assert Typist().feed(text).cuts[0] == (0.0, first)


def test_without_a_mark_the_first_segment_ends_after_400_ms_at_the_last_word() -> None:
    typist = Typist().feed("the quick brown fo").until(0.39)
    assert typist.cuts == []
    assert typist.until(0.4).cuts == [(0.4, "the quick brown ")]


def test_the_wait_counts_from_the_first_unit_and_then_takes_the_first_word() -> None:
    assert Typist().type("the quick", per_s=5).cuts == [(0.6, "the ")]


def test_two_han_characters_are_enough() -> None:
    assert Typist().type("你好吗我很好", per_s=2.5).cuts[0] == (0.4, "你好")
    assert Typist().feed("你").until(1.4).cuts == []
    assert Typist().feed("こん").until(0.4).texts == ["こん"]


def test_han_numerals_are_not_split() -> None:
    assert Typist().feed("有一百二十").until(0.4).texts == []
    assert Typist().feed("我有一百二十个").until(0.4).texts == ["我有一百二十个"]


def test_a_mark_in_new_text_comes_before_an_older_deadline() -> None:
    typist = Typist().feed("Extra").feed("ordinary, my dear friend ", at=1.0)
    assert typist.cuts[0] == (1.0, "Extraordinary, ")


# ------------------------------------------------------------------ later segments


def test_later_segments_end_at_sentences() -> None:
    assert later().feed("One two. Three four! 五六。七").texts == [
        "One two. ",
        "Three four! ",
        "五六。",
    ]


def test_a_short_clause_waits_and_a_long_one_is_cut() -> None:
    assert later().feed("Well, I, for one, am not so sure, you know").texts == [
        "Well, I, for one, am not so sure, "
    ]


def test_idle_text_is_spoken_whole_after_one_and_a_half_seconds() -> None:
    typist = later().feed("and so").feed(" on", at=1.0).until(2.49)
    assert typist.cuts == []
    assert typist.until(2.5).cuts == [(2.5, "and so on")]


def test_a_mark_at_the_end_waits_for_what_follows_but_not_long() -> None:
    assert later().feed("He left.").cuts == []
    assert later().feed("He left.").until(0.3).cuts == [(0.3, "He left.")]
    assert later().feed("He left.").feed('" ', at=0.1).cuts == [(0.1, 'He left." ')]


def test_text_without_marks_moves_on_after_five_seconds() -> None:
    typist = later().type("one two three four five six seven", per_s=5)
    assert typist.cuts[0] == (5.0, "one two three four five ")


def test_text_without_marks_is_cut_at_a_word_before_the_bound() -> None:
    typist = later().feed("word " * 60)
    assert typist.texts == ["word " * 40]


def test_an_endless_word_is_cut_between_clusters() -> None:
    family = "👨\u200d👩\u200d👧"  # five units
    typist = later(max_units=23).feed(family * 10)
    assert typist.texts[:2] == [family * 4, family * 4]
    assert later().feed("x" * 450).texts == ["x" * 200, "x" * 200]


# ------------------------------------------------- numbers, abbreviations, addresses


@pytest.mark.parametrize(
    "whole",
    [
        "It costs 3.14 dollars. ",
        "At 12:30 we met. ",
        "Over 1,000 people. ",
        "Over 10 000 people. ",
        "Mr. Smith and Dr. J. R. Jones left. ",
        "Marks, e.g. this one, i.e. it. ",
        "In the U.S. it is so. ",
        "See fig. 3 and no. 5. ",
        "Read www.example.com/a?b=c now. ",
        "Go to http://example.com:80 now. ",
        "Version v1.2.3 is out. ",
        "现在12：30了。",
        "1. First of all. ",
    ],
)
def test_points_inside_numbers_names_and_addresses_end_nothing(whole: str) -> None:
    assert later(clause_units=1000).feed(whole + "And").texts == [whole]
    assert later(clause_units=1000).type(whole + "And", per_s=10).texts == [whole]


def test_a_word_that_is_an_abbreviation_only_before_a_number() -> None:
    assert later().feed("He said no. Then he left").texts == ["He said no. "]
    assert later().feed("He said no. ").texts == []


def test_a_quote_that_opens_stays_with_its_word() -> None:
    assert later().feed('He said!"Go" and').texts == ["He said!"]


def test_a_clause_after_an_abbreviation_is_no_sentence() -> None:
    assert later().feed("Pets, e.g., cats").texts == []
    assert Typist().feed("Etc., and so on").texts == ["Etc., "]


def test_a_point_after_a_digit_waits_for_the_next_digit() -> None:
    typist = Typist().feed("3.").until(1.4)
    assert typist.cuts == []
    assert typist.feed("14 is pi. ", at=1.4).texts == ["3.14 is pi. "]


def test_a_point_after_a_digit_does_not_wait_for_ever() -> None:
    assert Typist().feed("It is 3.").until(2).cuts == [(0.4, "It is "), (1.5, "3.")]


def test_a_word_joined_by_a_point_is_one_word() -> None:
    assert later().feed("It is Hello.").feed("World today! ", at=0.2).texts == [
        "It is Hello.World today! "
    ]


# ----------------------------------------------------------- marks, spaces, the end


def test_marks_and_spaces_do_not_stand_alone() -> None:
    assert Typist().feed('... "Hello," he').texts == ['... "Hello," ']
    assert Typist().feed("  \n\n Hi! ").texts == ["  \n\n Hi! "]
    assert later().feed("Hi :-) ...").end().texts == ["Hi :-) ..."]
    assert Typist().feed("Hi! ").texts == ["Hi! "]


def test_the_end_flushes_the_rest_by_sentence() -> None:
    typist = Typist().feed("Well, so it is. And 3.").end(0.1)
    assert typist.cuts == [(0.0, "Well, "), (0.0, "so it is. "), (0.1, "And 3.")]
    assert typist.segmenter.done


def test_the_end_keeps_a_last_word_with_its_segment() -> None:
    typist = Typist(first_wait_s=9).feed("all of it").end(1.0)
    assert typist.texts == ["all of it"]
    assert later().feed("a 😀\n").feed(" ?!", at=0.0).end().texts == ["a 😀\n", " ?!"]


def test_the_end_alone_is_nothing() -> None:
    typist = Typist().end()
    typist.end()
    assert typist.cuts == []
    assert typist.segmenter.done
    assert typist.segmenter.deadline is None


def test_only_marks_are_still_given_at_the_end() -> None:
    assert Typist().feed("?!").end().texts == ["?!"]


def test_the_end_of_a_very_long_text_keeps_the_bound() -> None:
    typist = later().feed("x" * 150 + " " + "y" * 300)
    assert typist.end().texts == ["x" * 150 + " ", "y" * 200, "y" * 100]


# ------------------------------------------------------------------- units and seq


def test_segments_carry_units_and_the_newest_client_number() -> None:
    typist = Typist().feed("Hi, ", seq=3).feed("you. ", seq=5)
    assert typist.segments == [
        Segment(text="Hi, ", unit=0, seq=3),
        Segment(text="you. ", unit=4, seq=5),
    ]


def test_a_new_attempt_goes_on_in_the_middle_of_what_it_is_fed() -> None:
    segmenter = Segmenter(first=False, unit=7)
    segmenter.feed("Well, ", 0, 1, 0.0)
    assert segmenter.deadline is None
    segmenter.feed("so it is. ", 6, 2, 0.0)
    assert segmenter.take(0.0) == Segment(text="o it is. ", unit=7, seq=2)
    assert (segmenter.next_unit, segmenter.pending_units) == (16, 0)


def test_missing_units_and_text_after_the_end_are_refused() -> None:
    segmenter = Segmenter()
    with pytest.raises(OffsetGap, match="unit 1, expected 0"):
        segmenter.feed("a", 1, 1, 0.0)
    segmenter.end(0.0)
    with pytest.raises(Fenced):
        segmenter.feed("a", 0, 1, 0.0)

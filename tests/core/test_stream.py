"""A stream answers exactly or by a named refusal."""

from __future__ import annotations

import pytest

from forebay.core.events import (
    Audio,
    End,
    Ended,
    InputItem,
    Notice,
    OutputEvent,
    Prompt,
    Text,
    TextDelta,
    Usage,
    size_of,
)
from forebay.core.kinds import row
from forebay.core.stream import Stamper, StreamLog, Window, tag_of
from forebay.errors import EngineFailed, Fenced, OffsetGap, ResumeNotAvailable

DONE = Ended(state="completed")


def audio(unit: int, text: str = "ab", frames: int = 10) -> Audio:
    return Audio(data=b"\0\0" * frames, text=text, unit=unit, frames=frames)


def log_of(*events: OutputEvent, window: Window | None = None) -> StreamLog[OutputEvent]:
    log: StreamLog[OutputEvent] = StreamLog("e1", window)
    stamper = Stamper(0, {}, {})
    log.append([stamper.stamp(event) for event in events])
    return log


def refusal(log: StreamLog[OutputEvent], *where: object) -> str:
    with pytest.raises(ResumeNotAvailable) as caught:
        if len(where) == 1:
            log.after(*where)  # type: ignore[arg-type]
        else:
            log.after_mark(*where)  # type: ignore[arg-type]
    return str(caught.value.details["reason"])


def offsets(events: list[OutputEvent]) -> list[int]:
    return [event.offset for event in events]


# ------------------------------------------------------------------------ append


def test_a_new_stream_is_empty() -> None:
    log = log_of()
    assert (log.first, log.head, log.bytes, log.ended, len(log)) == (1, 0, 0, False, 0)
    assert log.after(0) == []
    assert log.after_mark("units", 0) == []


def test_append_counts_bytes_marks_and_events() -> None:
    events = [audio(0), audio(2, "c"), TextDelta(text="hé", count=2), DONE]
    log = log_of(*events)
    assert log.bytes == sum(size_of(event) for event in log.after(0))
    assert log.marks == {"units": 3, "samples": 20, "chars": 2, "tokens": 2}
    assert log.counts == {"audio": 2, "delta": 1, "ended": 1}
    assert log.ended


@pytest.mark.parametrize("offset", [0, 2, 7])
def test_an_offset_that_does_not_go_on_from_the_head_is_refused(offset: int) -> None:
    log = log_of()
    with pytest.raises(OffsetGap, match=f"got offset {offset}, expected 1"):
        log.append([TextDelta(text="a", offset=offset)])
    assert log.head == 0


def test_a_batch_with_a_gap_changes_nothing() -> None:
    log = log_of()
    with pytest.raises(OffsetGap):
        log.append([TextDelta(text="a", offset=1), TextDelta(text="b", offset=3)])
    assert (log.head, len(log), log.counts) == (0, 0, {})


def test_nothing_is_appended_after_the_end() -> None:
    log = log_of(DONE)
    with pytest.raises(Fenced):
        log.append([TextDelta(text="late", offset=2)])
    with pytest.raises(Fenced):
        log_of(DONE, TextDelta(text="late"))


def test_input_is_numbered_by_the_store_and_counts_units() -> None:
    log: StreamLog[InputItem] = StreamLog("e1")
    log.append(log.numbered([Text(text="Hi ", unit=0), Text(text="you", unit=3)]))
    log.append(log.numbered([End()]))
    assert [item.offset for item in log.after(0)] == [1, 2, 3]
    assert log.marks == {"units": 6}
    assert log.ended


def test_an_item_without_counters_has_none() -> None:
    log: StreamLog[InputItem] = StreamLog("e1")
    log.append(log.numbered([Prompt(messages=[])]))
    assert log.marks == {}
    assert tag_of(Prompt(messages=[])) == "prompt"


# -------------------------------------------------------------------- read by offset


def test_after_gives_the_rest_oldest_first_up_to_the_limit() -> None:
    log = log_of(*(TextDelta(text="a") for _ in range(5)))
    assert offsets(log.after(2)) == [3, 4, 5]
    assert offsets(log.after(2, 2)) == [3, 4]
    assert log.after(5) == []


def test_a_position_past_the_head_is_refused() -> None:
    assert refusal(log_of(audio(0)), 2) == "ahead_of_head"


def test_a_position_older_than_the_window_is_refused() -> None:
    log = log_of(*(TextDelta(text="a") for _ in range(5)))
    assert log.drop_through(3) == 3 * size_of(TextDelta(text="a"))
    assert log.first == 4
    assert offsets(log.after(3)) == [4, 5]
    assert refusal(log, 2) == "window_expired"


# ---------------------------------------------------------------------- read by mark


def test_after_mark_begins_with_the_event_that_passes_the_value() -> None:
    log = log_of(audio(0), audio(2), audio(4), DONE)
    assert offsets(log.after_mark("units", 0)) == [1, 2, 3, 4]
    assert offsets(log.after_mark("units", 2)) == [2, 3, 4]
    assert offsets(log.after_mark("units", 3)) == [2, 3, 4]
    assert offsets(log.after_mark("samples", 20, 1)) == [3]


def test_a_reader_that_has_every_unit_still_gets_the_end() -> None:
    log = log_of(audio(0), Usage(prompt_tokens=1, completion_tokens=1), DONE)
    assert offsets(log.after_mark("units", 2)) == [2, 3]


def test_audio_that_speaks_no_unit_is_given_again_rather_than_lost() -> None:
    log = log_of(audio(0), audio(2, ""), audio(2))
    assert offsets(log.after_mark("units", 2)) == [2, 3]
    assert offsets(log.after_mark("units", 1)) == [1, 2, 3]


def test_a_reader_that_has_nothing_gets_what_came_before_the_first_unit() -> None:
    log = log_of(Notice(code="cut", message="prompt cut"), TextDelta(text="a"))
    assert offsets(log.after_mark("chars", 0)) == [1, 2]


def test_a_counter_that_never_rose_answers_from_the_start() -> None:
    log = log_of(DONE)
    assert offsets(log.after_mark("units", 0)) == [1]
    assert refusal(log, "units", 1) == "ahead_of_head"


def test_a_mark_outside_the_stream_is_refused() -> None:
    log = log_of(audio(0), audio(2), audio(4))
    log.drop_through(1)
    assert refusal(log, "units", 7) == "ahead_of_head"
    assert refusal(log, "units", 1) == "window_expired"
    assert offsets(log.after_mark("units", 2)) == [2, 3]


def test_a_log_that_goes_on_knows_what_it_no_longer_has() -> None:
    log: StreamLog[OutputEvent] = StreamLog(
        "e1", last_offset=3, marks={"units": 6, "samples": 30}, counts={"audio": 3}
    )
    stamper = Stamper(log.head, log.counts, log.marks)
    log.append([stamper.stamp(audio(6))])
    assert log.after(3)[0].n == 4
    assert offsets(log.after_mark("units", 6)) == [4]
    assert refusal(log, "units", 5) == "window_expired"
    assert refusal(log, 2) == "window_expired"


# -------------------------------------------------------------------------- window


def test_text_keeps_at_most_its_bytes_and_always_the_newest() -> None:
    size = size_of(TextDelta(text="a"))
    log = log_of(*(TextDelta(text="a") for _ in range(6)), window=Window(max_bytes=2 * size))
    assert log.trim(delivered=0) == 4 * size
    assert (log.first, log.bytes) == (5, 2 * size)
    assert log.trim(delivered=6) == 0

    small = log_of(TextDelta(text="a" * 100), window=Window(max_bytes=1))
    assert small.trim(delivered=1) == 0
    assert offsets(small.after(0)) == [1]


def test_speech_keeps_the_newest_seconds_and_what_was_not_sent() -> None:
    window = Window.of(row("speech"), rate=1)
    assert window == Window(max_marks=("samples", 120), keep_undelivered=True)
    log = log_of(*(audio(2 * i, frames=10) for i in range(20)), window=window)
    assert log.trim(delivered=3) > 0
    assert log.first == 4  # 5..8 are old too, but nobody has been sent them
    log.trim(delivered=20)
    assert log.first == 9  # 12 events of 10 s


def test_an_event_partly_inside_the_span_is_kept() -> None:
    log = log_of(audio(0), audio(2), audio(4), window=Window(max_marks=("samples", 15)))
    log.trim(delivered=3)
    assert log.first == 2


def test_a_span_without_its_counter_trims_nothing() -> None:
    log = log_of(DONE, window=Window(max_marks=("samples", 1)))
    assert log.trim(delivered=1) == 0


def test_a_window_in_bytes_comes_from_the_kind() -> None:
    assert Window.of(row("text")) == Window(max_bytes=1024 * 1024)
    with pytest.raises(ValueError, match="sample rate"):
        Window.of(row("speech"))


def test_dropping_what_is_not_there_is_nothing() -> None:
    log = log_of(audio(0))
    assert log.drop_through(0) == 0
    assert log.drop_through(9) == size_of(audio(0))
    assert (log.first, log.head, log.bytes) == (2, 1, 0)
    assert log.after_mark("units", 2) == []


# ------------------------------------------------------------------------- stamper


def test_a_stamper_goes_on_from_the_attempt_before() -> None:
    stamper = Stamper(4, {"audio": 3, "notice": 1}, {"units": 9, "samples": 90})
    event = stamper.stamp(audio(9))
    assert isinstance(event, Audio)
    assert (event.offset, event.n, event.units, event.samples) == (5, 4, 11, 100)
    end = stamper.stamp(DONE)
    assert (end.offset, end.n) == (6, 1)
    assert stamper.last_offset == 6


def test_text_counts_characters_and_tokens() -> None:
    stamper = Stamper(0, {}, {})
    stamper.stamp(TextDelta(text="你好", count=1))
    event = stamper.stamp(TextDelta(text="!", count=3))
    assert isinstance(event, TextDelta)
    assert (event.chars, event.tokens) == (3, 4)


def test_audio_that_skips_a_unit_is_an_engine_failure_and_counts_nothing() -> None:
    stamper = Stamper(0, {}, {})
    with pytest.raises(EngineFailed, match="begins at unit 1, expected 0"):
        stamper.stamp(audio(1))
    assert (stamper.last_offset, stamper.counts, stamper.marks) == (0, {}, {})

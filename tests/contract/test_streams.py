"""What a reader gets: in order, once each, exactly from where it stood, or refused by name."""

from __future__ import annotations

import pytest
from homes import TEXT, Home, text_spec

from forebay.broker import Delivered
from forebay.core.events import Audio, Ended, Prompt, TextDelta
from forebay.errors import NotFound, ResumeNotAvailable


async def reason(call: object) -> str:
    with pytest.raises(ResumeNotAvailable) as refused:
        await call  # type: ignore[misc]
    return str(refused.value.details["reason"])


async def test_output_is_pushed_in_order_and_stored_alike(home: Home) -> None:
    worker = await home.worker("w1")
    await home.speech("a", "hello", end=True)
    await home.settle()
    worker.speak("a", "he")
    worker.speak("a", "llo", through=1)
    worker.end("a")
    stored = await home.stored("a")
    assert [event.offset for event in stored] == [1, 2, 3]
    assert [type(event) for event in stored] == [Audio, Audio, Ended]
    assert home.output("a") == stored


async def test_a_retried_commit_changes_nothing(home: Home) -> None:
    worker = await home.worker("w1")
    await home.speech("a", "hello")
    await home.settle()
    worker.speak("a", "he")
    piece = home_piece = worker.commit("a", Audio(data=b"", text="l", unit=2, frames=1))
    worker.again("a", piece)
    worker.again("a", home_piece)
    stored = await home.stored("a")
    assert [event.offset for event in stored] == [1, 2]
    assert home.output("a") == stored


async def test_events_can_be_read_after_any_offset_and_after_any_unit(home: Home) -> None:
    worker = await home.worker("w1")
    await home.speech("a", "abcdef", end=True)
    await home.settle()
    for letter in "abcdef":
        worker.speak("a", letter)
    worker.end("a")
    await home.settle()
    everything = await home.broker.read_after("a", 0)
    for offset in range(8):
        assert await home.broker.read_after("a", offset) == everything[offset:]
    for units in range(7):
        assert await home.broker.read_after_mark("a", "units", units) == everything[units:]
    assert await home.broker.read_after("a", 1, limit=2) == everything[1:3]


async def test_reading_ahead_of_the_head_or_of_an_unknown_job_is_refused(home: Home) -> None:
    await home.worker("w1")
    await home.speech("a", "x")
    assert await reason(home.broker.read_after("a", 1)) == "ahead_of_head"
    assert await reason(home.broker.read_after_mark("a", "units", 5)) == "ahead_of_head"
    assert await reason(home.broker.read_after("nope", 0)) == "unknown"


async def test_another_epoch_is_refused_as_lost_state(home: Home) -> None:
    await home.worker("w1")
    await home.speech("a", "x")
    view = await home.broker.status("a")
    assert await home.broker.read_after("a", 0, epoch=view.epoch) == []
    assert await reason(home.broker.read_after("a", 0, epoch="other")) == "state_lost"


async def test_a_cursor_older_than_the_window_is_refused_and_newer_ones_are_exact(
    home: Home,
) -> None:
    worker = await home.worker("w1")
    await home.speech("a", "x" * 400)
    await home.settle()
    for at in range(1, 201):  # a second each: 200 s into a window of 120 s
        worker.speak("a", "x", frames=16_000)
        if at % 4 == 0:
            await home.settle()
            await home.broker.delivered("g1", {"a": at})
    await home.settle()
    view = await home.broker.status("a")
    assert view.head == 200
    assert view.first == 81
    assert await reason(home.broker.read_after("a", 79)) == "window_expired"
    assert [e.offset for e in await home.broker.read_after("a", 80, limit=3)] == [81, 82, 83]
    assert await reason(home.broker.read_after_mark("a", "units", 79)) == "window_expired"


async def test_what_no_reader_was_sent_is_never_trimmed(home: Home) -> None:
    worker = await home.worker("w1")
    await home.speech("a", "x" * 400)
    await home.settle()
    for at in range(150):
        worker.speak("a", "x", frames=16_000)
        if at % 4 == 0:
            await home.settle()
    assert len(await home.stored("a")) == 150


async def test_a_reader_on_another_gateway_sees_the_same_stream(home: Home) -> None:
    worker = await home.worker("w1")
    await home.speech("a", "hello")
    await home.settle()
    worker.speak("a", "he")
    await home.settle()
    other: list[object] = []
    home.broker.open("g2", other.append)
    attachment = await home.broker.attach("a", gateway="g2", write=False)
    seen = await home.broker.read_after("a", 0)
    assert attachment.view.head == len(seen) == 1
    worker.speak("a", "l")
    await home.settle()
    assert [p.events[0].offset for p in other if hasattr(p, "events")] == [2]
    await home.broker.detach(attachment)
    worker.speak("a", "l")
    await home.settle()
    assert len(other) == 1
    assert len(home.output("a")) == 3


async def test_delivered_positions_reach_the_worker_as_media(home: Home) -> None:
    worker = await home.worker("w1")
    await home.speech("a", "hello")
    await home.settle()
    worker.speak("a", "h", frames=100)
    worker.speak("a", "e", frames=50)
    await home.settle()
    await home.broker.delivered("g1", {"a": 2, "gone": 7})
    await home.broker.delivered("g1", {"a": 1})
    await home.settle()
    news = [p for p in worker.pushes if isinstance(p, Delivered)]
    assert [(p.delivered, p.attached) for p in news] == [(150, True)]
    view = await home.broker.status("a")
    assert view.delivered == 2
    assert view.delivered_marks == {"units": 2, "samples": 150}


async def test_nothing_follows_the_terminal_event(home: Home) -> None:
    worker = await home.worker("w1")
    await home.speech("a", "x", end=True)
    await home.settle()
    worker.end("a")
    await home.settle()
    worker.speak("a", "x")
    stored = await home.stored("a")
    assert [type(event) for event in stored] == [Ended]
    assert (await home.broker.status("a")).state == "completed"


async def test_an_ended_stream_goes_after_its_time_and_frees_its_memory(home: Home) -> None:
    worker = await home.worker("w1")
    await home.speech("a", "x", end=True)
    await home.settle()
    worker.speak("a", "x", frames=10_000)
    worker.end("a")
    await home.advance(119)
    assert len(await home.stored("a")) == 2
    await home.advance(2)
    with pytest.raises(NotFound):
        await home.broker.status("a")
    assert await home.broker.find("local", "tts", "a") is None
    assert await reason(home.broker.read_after("a", 0)) == "unknown"
    assert home.used_bytes() == 0


async def test_text_counters_go_on_over_a_continued_answer(home: Home) -> None:
    one = await home.worker("w1", pools=[TEXT], sessions=1, capabilities=["prefix"])
    await home.broker.submit(
        text_spec("t"), [Prompt(messages=[{"role": "user", "content": "hi"}])], gateway="g1"
    )
    await home.settle()
    one.say("t", "one ", "two ")
    await home.settle()
    two = await home.worker("w2", pools=[TEXT], sessions=1, capabilities=["prefix"])
    await one.die(stepping=["t"])
    lease = two.leases["t"]
    assert (lease.attempt, lease.text, lease.last_offset) == (2, "one two ", 2)
    assert [type(item) for item in lease.input] == [Prompt]
    two.say("t", "three")
    two.end("t")
    stored = await home.stored("t")
    assert [e.offset for e in stored] == [1, 2, 3, 4]
    assert [e.chars for e in stored if isinstance(e, TextDelta)] == [4, 8, 13]
    assert home.output("t") == stored

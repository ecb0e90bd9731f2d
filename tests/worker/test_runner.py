"""What a worker does with the leases it is given."""

from __future__ import annotations

import asyncio

from worker_bench import RATE, ScriptEngine, passes, running, speech, text

from forebay.broker import Delivered, LeaseLost
from forebay.core.events import Audio, Consumed, End, Prompt, TextDelta, Usage
from forebay.core.kinds import Kind
from virtual import virtual

LONG = "abcdefghi, " * 4
PROMPT = Prompt(messages=[{"role": "user", "content": "hi"}], offset=1)


@virtual
async def test_a_text_job_is_answered_stamped_and_completed() -> None:
    engine = ScriptEngine(Kind.TEXT, step_s=1.0)
    async with running(engine) as (broker, _):
        broker.assign("j", kind=Kind.TEXT, params={}, input=[PROMPT])
        await passes(5)
    *deltas, usage, ended = broker.events("j")
    assert [(d.text, d.offset, d.n, d.chars, d.tokens) for d in deltas] == [
        ("one ", 1, 1, 4, 1),
        ("two ", 2, 2, 8, 2),
        ("three", 3, 3, 13, 3),
    ]
    assert isinstance(usage, Usage)
    assert (ended.state, ended.offset, ended.n) == ("completed", 5, 1)
    assert broker.written[-1].consumed == Consumed(1, 0)
    assert sum(w.model_s for w in broker.written) == 3.0
    assert broker.parked == []


@virtual
async def test_a_second_attempt_goes_on_with_the_numbers_of_the_first() -> None:
    engine = ScriptEngine(Kind.TEXT)
    async with running(engine) as (broker, _):
        broker.assign(
            "j",
            kind=Kind.TEXT,
            params={},
            attempt=2,
            input=[PROMPT],
            text="zero ",
            last_offset=1,
            counts={"delta": 1},
            marks={"chars": 5, "tokens": 1},
        )
        await passes(1)
    first = broker.events("j")[0]
    assert (first.offset, first.n, first.chars, first.tokens) == (2, 2, 9, 2)
    assert engine.opened[0].text == "zero "
    assert engine.opened[0].attempt == 2
    assert engine.opened[0].tokens == 1


@virtual
async def test_speech_covers_every_unit_once_and_ends_with_the_newest_seq() -> None:
    async with running(ScriptEngine()) as (broker, _):
        broker.assign("j")
        broker.feed("j", text("Hello there. ", seq=1))
        broker.feed("j", text("General Kenobi.", offset=2, unit=13, seq=2))
        broker.feed("j", End(offset=3, seq=7))
        await passes(0.5)
    assert broker.spoken("j") == "Hello there. General Kenobi."
    assert broker.ended("j").state == "completed"
    assert broker.ended("j").seq == 7
    assert broker.written[-1].consumed == Consumed(3, 28)
    units = [e for e in broker.events("j") if isinstance(e, Audio)]
    assert all(e.unit + len(e.text) == e.units for e in units)


@virtual
async def test_no_piece_of_audio_is_longer_than_a_second() -> None:
    async with running(ScriptEngine()) as (broker, _):
        broker.assign("j", input=[text("x" * 100 + "."), End(offset=2)])
        await passes(1)
    pieces = [e for e in broker.events("j") if isinstance(e, Audio)]
    assert max(p.frames for p in pieces) <= RATE
    assert "".join(p.text for p in pieces) == "x" * 100 + "."


@virtual
async def test_the_first_piece_leaves_before_the_rest_is_made() -> None:
    engine = ScriptEngine(step_s=1.0, piece_units=5)
    async with running(engine) as (broker, _):
        broker.assign("j", input=[text("abcde fghi."), End(offset=2)])
        await passes(1.5)
        assert broker.spoken("j") == "abcde"
        await passes(5)
    assert broker.spoken("j") == "abcde fghi."


@virtual
async def test_with_another_rate_every_unit_leaves_once_and_the_length_is_right() -> None:
    engine = ScriptEngine(step_s=1.0, piece_units=5)
    async with running(engine) as (broker, _):
        broker.assign(
            "j",
            params={"sample_rate": 24_000, "channels": 2},
            input=[text("abcde fghi jk."), End(offset=2)],
        )
        await passes(1.5)
        assert broker.spoken("j") == "abcd"
        await passes(5)
    pieces = [e for e in broker.events("j") if isinstance(e, Audio)]
    assert broker.spoken("j") == "abcde fghi jk."
    assert sum(p.frames for p in pieces) == 14 * 960
    assert all(len(p.data) == p.frames * 4 for p in pieces)


@virtual
async def test_a_new_attempt_skips_what_was_consumed() -> None:
    async with running(ScriptEngine()) as (broker, _):
        broker.assign(
            "j",
            attempt=2,
            last_offset=1,
            counts={"audio": 1},
            marks={"units": 7, "samples": 7 * 640},
            consumed=Consumed(0, 7),
            input=[text("Hello, world. "), End(offset=2)],
        )
        await passes(1)
    pieces = [e for e in broker.events("j") if isinstance(e, Audio)]
    assert broker.spoken("j") == "world. "
    assert (pieces[0].unit, pieces[0].offset, pieces[0].n) == (7, 2, 2)
    assert pieces[-1].units == 14


@virtual
async def test_no_more_steps_run_at_once_than_there_are_slots() -> None:
    engine = ScriptEngine(step_s=1.0)
    async with running(engine, slots=2) as (broker, _):
        for i in range(5):
            broker.assign(f"j{i}", input=[text("Hello."), End(offset=2)])
        await passes(10)
    assert engine.most_inside == 2
    assert all(broker.ended(f"j{i}").state == "completed" for i in range(5))


@virtual
async def test_tenants_take_turns_for_a_slot() -> None:
    engine = ScriptEngine(step_s=1.0)
    async with running(engine) as (broker, _):
        for i in range(4):
            broker.assign(
                f"a{i}", tenant="a", params={"who": "a"}, input=[text("Hi."), End(offset=2)]
            )
        broker.assign("b0", tenant="b", params={"who": "b"}, input=[text("Hi."), End(offset=2)])
        await passes(10)
    assert engine.order.index("b") <= 2


@virtual
async def test_a_session_idle_for_two_seconds_is_parked_and_closed() -> None:
    engine = ScriptEngine()
    async with running(engine) as (broker, _):
        broker.assign("j", input=[text("Hello. ")])
        await passes(1.9)
        assert broker.parked == []
        await passes(0.5)
        assert broker.parked == [("j", 1)]
    assert engine.closed == 1
    assert broker.ended("j") is None


@virtual
async def test_a_session_with_text_that_waits_for_its_cut_is_not_parked() -> None:
    async with running(ScriptEngine()) as (broker, _):
        broker.assign("j", input=[text("Hello. and then")])
        await passes(1.45)
        broker.feed("j", text(" more", offset=2, unit=15))
        await passes(1.2)
        assert broker.parked == []
        await passes(4)
    assert broker.spoken("j") == "Hello. and then more"
    assert broker.parked == [("j", 1)]


@virtual
async def test_the_engine_stops_at_its_lead_and_goes_on_when_the_reader_has_more() -> None:
    async with running(ScriptEngine()) as (broker, _):
        sentence = "a" * 99 + ". "
        items = [text(sentence, offset=i + 1, unit=101 * i) for i in range(10)]
        broker.assign("j", input=[*items, End(offset=11)])
        await passes(30)
        made_s = broker.events("j")[-1].samples / RATE
        assert 10 <= made_s < 15
        assert broker.parked == []
        broker.push(Delivered(job="j", attempt=1, delivered=int(10 * RATE), attached=True))
        await passes(1)
        assert 20 <= broker.events("j")[-1].samples / RATE < 25
        broker.push(Delivered(job="j", attempt=1, delivered=int(10 * RATE), attached=False))
        await passes(1)
        assert broker.ended("j").state == "completed"


@virtual
async def test_a_job_out_of_byte_credit_pauses_and_goes_on_when_some_is_given() -> None:
    async with running(ScriptEngine(), refill=False) as (broker, _):
        broker.assign(
            "j",
            params={"sample_rate": RATE, "channels": 2},
            input=[text("x" * 150 + "."), End(offset=2)],
        )
        await passes(5)
        held = broker.spoken("j")
        assert 0 < len(held) < 151
        broker.grant("j", 1, 256 * 1024)
        await passes(1)
    assert broker.spoken("j") == "x" * 150 + "."
    assert broker.ended("j").state == "completed"


@virtual
async def test_cancel_stops_the_step_writes_nothing_and_gives_the_credit_back_after_it() -> None:
    engine = ScriptEngine(step_s=1.0, piece_units=1)
    async with running(engine) as (broker, _):
        broker.assign("j", input=[text("Hello.")])
        await passes(2.5)
        broker.cancel("j")
        assert broker.parked == []
        await passes(0.01)
        assert broker.parked == [("j", 1)]
        assert engine.inside == 0 and engine.closed == 1
        count = len(broker.events("j"))
        await passes(5)
    assert len(broker.events("j")) == count
    assert broker.ended("j") is None


@virtual
async def test_cancel_before_the_step_has_begun_leaks_no_slot() -> None:
    engine = ScriptEngine(step_s=1.0)
    async with running(engine) as (broker, _):
        broker.assign("j", input=[text("Hello.")])
        broker.cancel("j")
        broker.assign("k", input=[text("Hello."), End(offset=2)])
        await passes(5)
    assert ("j", 1) in broker.parked
    assert broker.events("j") == []
    assert broker.ended("k").state == "completed"


@virtual
async def test_cancel_of_a_job_that_waits_for_a_slot_takes_it_out_of_the_line() -> None:
    engine = ScriptEngine(step_s=1.0)
    async with running(engine) as (broker, _):
        broker.assign("j", input=[text("Hello."), End(offset=2)])
        broker.assign("k", params={"who": "k"}, input=[text("Hello."), End(offset=2)])
        await passes(0.5)
        broker.cancel("k")
        assert broker.parked == [("k", 1)]
        await passes(5)
    assert engine.order == [""]


@virtual
async def test_the_slot_of_an_engine_that_cannot_abort_is_free_when_it_has_left() -> None:
    async def stubborn(session: object, items: list[object]) -> object:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            await asyncio.sleep(3)
            raise
        yield speech(items[0])

    engine = ScriptEngine(script=stubborn)
    async with running(engine) as (broker, _):
        broker.assign("j", input=[text("Hello.")])
        await passes(1)
        broker.cancel("j")
        await passes(2.9)
        assert broker.parked == []
        await passes(0.2)
        assert broker.parked == [("j", 1)]


@virtual
async def test_a_lost_lease_is_dropped_without_a_word_in_the_stream() -> None:
    engine = ScriptEngine(step_s=1.0, piece_units=1)
    async with running(engine) as (broker, _):
        broker.assign("j", input=[text("Hello.")])
        await passes(2.5)
        broker.push(LeaseLost(job="j", attempt=1))
        await passes(5)
    assert broker.spoken("j") == "He"
    assert engine.closed == 1


@virtual
async def test_a_newer_attempt_of_the_same_job_replaces_the_older() -> None:
    engine = ScriptEngine(step_s=1.0)
    async with running(engine, slots=2) as (broker, _):
        broker.assign("j", input=[text("Hello."), End(offset=2)])
        await passes(0.5)
        broker.assign("j", attempt=2, input=[text("Hello."), End(offset=2)])
        await passes(5)
    assert {w.attempt for w in broker.written} == {2}
    assert broker.ended("j").state == "completed"


@virtual
async def test_model_time_past_the_run_deadline_expires_the_job_and_frees_the_slot() -> None:
    engine = ScriptEngine(step_s=3.0, piece_units=1)
    async with running(engine) as (broker, _):
        broker.assign("j", run_left_s=4.0, input=[text("Hello."), End(offset=2)])
        broker.assign("k", input=[text("A."), End(offset=2)])
        await passes(4.01)
        ended = broker.ended("j")
        assert (ended.state, ended.code) == ("expired", "deadline_exceeded")
        assert broker.spoken("j") == "H"
        await passes(10)
    assert broker.ended("k").state == "completed"


@virtual
async def test_waiting_for_input_is_not_model_time() -> None:
    engine = ScriptEngine(step_s=1.0)
    async with running(engine) as (broker, _):
        broker.assign("j", run_left_s=2.5, input=[text("One. ")])
        await passes(2.5)
        broker.feed("j", text("Two. ", offset=2, unit=5))
        await passes(1.5)
        broker.feed("j", End(offset=3))
        await passes(1)
    assert broker.ended("j").state == "completed"
    assert sum(w.model_s for w in broker.written) == 2.0


@virtual
async def test_a_terminal_event_waits_for_byte_credit_and_is_not_lost() -> None:
    engine = ScriptEngine(step_s=2.0)
    async with running(engine, refill=False) as (broker, _):
        broker.assign("j", run_left_s=1.0, credit_bytes=10, input=[text("Hello.")])
        await passes(3)
        assert broker.events("j") == []
        assert engine.inside == 0
        broker.grant("j", 1, 100_000)
        assert broker.ended("j").state == "expired"


async def test_bytes_reach_a_client_in_an_encoded_format() -> None:  # threads: real time
    async with running(ScriptEngine()) as (broker, _):
        broker.assign(
            "j",
            params={"sample_rate": RATE, "format": "mp3"},
            input=[text("Hello there."), End(offset=2)],
        )
        async with asyncio.timeout(10):
            while not broker.ended("j"):
                await passes(0.01)
    data = b"".join(e.data for e in broker.events("j") if isinstance(e, Audio))
    assert data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    assert broker.spoken("j") == "Hello there."


@virtual
async def test_a_delta_goes_out_as_soon_as_the_engine_has_it() -> None:
    async with running(ScriptEngine(Kind.TEXT, step_s=1.0)) as (broker, _):
        broker.assign("j", kind=Kind.TEXT, params={}, input=[PROMPT])
        await passes(1.001)
        assert [type(e) for e in broker.events("j")] == [TextDelta]

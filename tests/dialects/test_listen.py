"""The native recognition protocol `/v1/listen` against a whole gateway, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voice_world import Client, World, run, world

from forebay.client import ListenState, Transcript
from forebay.core.kinds import Kind
from forebay.core.tones import WORD_SAMPLES, speak
from forebay.dialects.listen import FRAME_BYTES, ListenDialect
from forebay.errors import JobFailed
from forebay.gateway.connection import serve_websocket

FAST = {"rtf": 0.0, "words": 2}


def connect(w: World) -> Client:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        dialect = ListenDialect(new_session=w.ctx.new_id())
        await serve_websocket(scope, receive, send, w.ctx, dialect)

    return Client(endpoint)


def start(session: str | None = "s", **more: Any) -> dict[str, Any]:
    return {"type": "start", "session_id": session, **more}


def words(first: int, count: int = 2) -> bytes:
    return speak(range(first, first + count))


def text(first: int, count: int = 2) -> str:
    return " ".join(f"w{n}" for n in range(first, first + count))


async def begin(c: Client, **more: Any) -> dict[str, Any]:
    c.say(start(**more))
    found = await c.hear()
    assert found is not None and found["type"] == "started", found
    return found


def joined(messages: list[dict[str, Any]]) -> str:
    return "".join(m["text"] for m in messages if m["type"] == "final").strip()


def test_sound_goes_up_words_come_down_and_every_sample_is_acknowledged() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            assert await begin(c) == {
                "type": "started", "session_id": "s", "resumed": False, "samples": 0,
                "finished": False, "ttl_s": 120.0,
            }  # fmt: skip
            for n in range(3):
                c.say(words(2 * n))
            c.say({"type": "end"})
            heard = await c.until("ended")
            acks = [m["samples"] for m in heard if m["type"] == "ack"]
            assert acks == [2 * WORD_SAMPLES * n for n in (1, 2, 3)]
            assert joined(heard) == text(0, 6)
            finals = [m for m in heard if m["type"] == "final"]
            assert finals[0]["start"] == 0 and finals[-1]["end"] == 0.6
            assert heard[-1]["text"] == text(0, 6)
            assert heard[-1]["audio_s"] == 0.6
            await c.gone()
            assert c.code == 1000

    run(body())


def test_event_numbers_rise_and_a_client_gets_only_what_it_lacks() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            first = connect(w)
            await begin(first)
            for n in range(4):
                first.say(words(2 * n))
            heard = await first.rest(1)
            numbers = [m["event"] for m in heard if "event" in m]
            assert numbers == sorted(set(numbers))
            known = [m for m in heard if m["type"] == "final"][:2]
            await first.leave()
            again = connect(w)
            started = await begin(again, after_event=known[-1]["event"])
            assert started["resumed"] and started["samples"] == 8 * WORD_SAMPLES
            again.say({"type": "from", "sample": started["samples"]})
            again.say(words(8))
            again.say({"type": "end"})
            rest = await again.until("ended")
            assert all(m["event"] > known[-1]["event"] for m in rest if "event" in m)
            assert joined([*known, *rest]) == text(0, 10)
            assert rest[-1]["text"] == text(0, 10)
            await again.gone()

    run(body())


def test_an_overlap_is_cut_off_sample_by_sample() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            sound = words(0, 6)
            first = connect(w)
            await begin(first)
            first.say(sound[:5000])
            await first.until("ack")
            await first.leave()
            again = connect(w)
            assert (await begin(again))["samples"] == 2500
            again.say(sound)  # from the very first sample, as a simple client does
            ack = (await again.until("ack"))[-1]
            assert ack["samples"] == 6 * WORD_SAMPLES
            again.say({"type": "end"})
            assert (await again.until("ended"))[-1]["text"] == text(0, 6)
            await again.gone()

    run(body())


def test_an_end_that_lies_behind_what_is_stored_is_a_hole_too() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            first = connect(w)
            await begin(first)
            first.say(words(0))
            await first.until("ack")
            await first.leave()
            c = connect(w)
            await begin(c)
            c.say({"type": "from", "sample": 4 * WORD_SAMPLES})
            c.say({"type": "end"})
            error = (await c.until("error"))[-1]
            assert (error["code"], error["details"]["stored"]) == ("bad_request", 2 * WORD_SAMPLES)
            await c.gone()
            again = connect(w)  # nothing has ended: what is missing can still be said
            await begin(again)
            again.say(words(0, 4))
            again.say({"type": "end"})
            assert (await again.until("ended"))[-1]["text"] == text(0, 4)
            await again.gone()

    run(body())


def test_who_comes_back_to_a_session_nobody_knows_is_not_given_another_one() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            c.say(start("lost", after_event=3))
            error = await c.hear()
            assert error is not None and error["code"] == "resume_not_available"
            assert error["details"] == {"reason": "unknown"}
            await c.gone()
            fresh = connect(w)
            assert not (await begin(fresh, after_event=0))["resumed"]
            fresh.say(words(0))
            fresh.say({"type": "end"})
            last = (await fresh.until("ended"))[-1]
            await fresh.gone()
            other = connect(w)  # over, and still to be read: with what it was begun with
            other.say(start(after_event=last["event"], sample_rate=8000))
            error = await other.hear()
            assert error is not None and error["code"] == "bad_request"
            assert error["details"] == {"parameters": ["sample_rate"]}
            await other.gone()

    run(body())


def test_who_was_away_too_long_is_told_so() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            first = connect(w)
            await begin(first)
            first.say(words(0))
            await first.until("final")
            await first.leave()
            await asyncio.sleep(125)
            c = connect(w)
            assert (await begin(c))["finished"]
            last = (await c.until("ended"))[-1]
            assert last["state"] == "cancelled"
            assert last["message"] == "the client was away for 120 s"
            await c.gone()

    run(body())


def test_a_hole_is_refused_with_what_is_stored() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            await begin(c)
            c.say(words(0))
            c.say({"type": "from", "sample": 9999})
            c.say(words(4))
            error = (await c.until("error"))[-1]
            assert error["code"] == "bad_request"
            assert error["details"]["stored"] == 2 * WORD_SAMPLES
            await c.gone()

    run(body())


def test_times_and_words_go_on_over_a_killed_worker() -> None:
    async def body() -> None:
        async with world() as w:
            dying = await w.worker(Kind.RECOGNITION, rtf=0.2, words=2)
            c = connect(w)
            await begin(c)
            for n in range(10):
                c.say(words(2 * n))
            await c.until("final")
            await w.worker(Kind.RECOGNITION, **FAST)
            dying.die()
            for n in range(10, 20):
                c.say(words(2 * n))
            c.say({"type": "end"})
            heard = await c.until("ended")
            assert heard[-1]["text"] == text(0, 40)
            finals = [m for m in heard if m["type"] == "final"]
            assert finals[-1]["end"] == 4.0
            assert all(a["end"] <= b["start"] for a, b in zip(finals, finals[1:], strict=False))
            await c.gone()

    run(body())


def test_a_session_that_ended_can_be_read_again_and_takes_nothing_more() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            await begin(c)
            c.say(words(0))
            c.say({"type": "end"})
            await c.until("ended")
            await c.gone()
            again = connect(w)
            assert (await begin(again))["finished"]
            heard = await again.until("ended")
            assert heard[-1]["text"] == text(0)
            await again.gone()

    run(body())


def test_a_newer_connection_supersedes_the_older() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            old, new = connect(w), connect(w)
            await begin(old)
            await begin(new)
            await old.rest(1)
            assert old.code == 4409
            await old.gone()
            await new.leave()

    run(body())


def test_a_waiting_client_hears_its_place_unless_it_opted_out() -> None:
    async def body() -> None:
        async with world(recognition={"rtf": 0.5, "words": 2, "sessions": 1}) as w:
            busy, waiting, quiet = connect(w), connect(w), connect(w)
            await begin(busy, session="busy")
            busy.say(words(0, 10))
            await busy.until("final")
            await begin(waiting, session="waiting")
            waiting.say(words(0))
            status = (await waiting.until("queue_status"))[-1]
            assert status["position"] == 1
            await begin(quiet, session="quiet", queue=False)
            quiet.say(words(0))
            assert [m["type"] for m in await quiet.rest(3)] == ["ack"]
            busy.say({"type": "end"})
            after = await waiting.until("final")
            assert any(m["type"] == "queue_status" and m["position"] == 0 for m in after)
            for c in (busy, waiting, quiet):
                await c.gone()

    async def begin(c: Client, session: str, **more: Any) -> None:
        c.say(start(session, **more))
        assert (await c.hear() or {})["type"] == "started"

    run(body())


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"\0\0", "bad_request"),
        ({"type": "end"}, "bad_request"),
        ("not json", "bad_request"),
        ({"type": "start", "sample_rate": 0}, "bad_request"),
        ({"type": "start", "after_event": -1}, "bad_request"),
        ({"type": "start", "session_id": ""}, "bad_request"),
        ({"type": "nonsense"}, "bad_request"),
    ],
)
def test_what_cannot_be_meant_is_named_and_ends_the_connection(said: Any, code: str) -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            c.say(said)
            error = await c.hear()
            assert error is not None and (error["type"], error["code"]) == ("error", code)
            await c.gone()

    run(body())


@pytest.mark.parametrize(
    ("frame", "code"),
    [(b"\0", "bad_audio"), (b"\0\0" * FRAME_BYTES, "too_large")],
)
def test_a_bad_frame_ends_the_connection_and_not_the_session(frame: bytes, code: str) -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            await begin(c)
            c.say(words(0))
            c.say(frame)
            assert (await c.until("error"))[-1]["code"] == code
            await c.gone()
            again = connect(w)
            assert (await begin(again))["samples"] == 2 * WORD_SAMPLES
            await again.leave()

    run(body())


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_samples_are_counted_at_the_clients_rate_and_times_in_seconds(rate: int) -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            await begin(c, sample_rate=rate)
            for _ in range(10):
                c.say(b"\x10\x10" * (rate // 10))
            c.say({"type": "end"})
            heard = await c.until("ended")
            acks = [m["samples"] for m in heard if m["type"] == "ack"]
            assert acks[-1] == 10 * (rate // 10)
            assert heard[-1]["audio_s"] == pytest.approx(1.0, abs=0.01)
            await c.gone()

    run(body())


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 9000), min_size=1, max_size=12),
    drops=st.sets(st.integers(0, 11), max_size=4),
    back=st.lists(st.integers(0, 4000), min_size=4, max_size=4),
)
def test_no_cutting_dropping_or_repeating_loses_or_doubles_a_word(
    cuts: list[int], drops: set[int], back: list[int]
) -> None:
    async def body() -> None:
        sound = words(0, 8)
        async with world(recognition=FAST) as w:
            state = ListenState("s")
            c = await _join(w, state)
            at, returns = 0, iter(back)
            for index, cut in enumerate([*cuts, len(sound)]):
                piece = sound[at : at + 2 * cut]
                at += len(piece)
                for frame in state.say(piece):
                    c.say(frame)
                if index in drops:
                    for message in (await c.rest(0.1))[: next(returns) % 5]:
                        state.read(message)
                    await c.leave()
                    c = await _join(w, state)
            c.say(state.end())
            while not state.over:
                message = await c.hear()
                assert message is not None
                found = state.read(message)
                assert not (isinstance(found, Transcript) and found.final and not found.text)
            assert state.text.strip() == text(0, 8)
            assert state.end_message["text"] == text(0, 8)
            assert state.repeats == 0
            await c.gone()

    run(body())


async def _join(w: World, state: ListenState) -> Client:
    c = connect(w)
    c.say(state.start())
    started = await c.hear()
    assert started is not None and started["type"] == "started", started
    for what in state.comeback(started):
        c.say(what)
    return c


def test_a_client_that_did_not_cancel_hears_why_its_session_was() -> None:
    state = ListenState(session_id="s")
    message = {"type": "ended", "event": 4, "state": "cancelled", "message": "away for 120 s"}
    with pytest.raises(JobFailed, match="away for 120 s"):
        state.read(message)
    state.cancel()
    assert state.read(message) is None and state.over

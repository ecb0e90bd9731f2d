"""The voice protocol `/tts` against a whole gateway, in virtual time."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from voice_world import Client, World, run, samples, spoken, world

from forebay.core.kinds import KINDS, Kind
from forebay.dialects.tts import TtsDialect
from forebay.gateway.connection import serve_websocket

FAST = {"rtf": 0.0, "unit_ms": 40}


def connect(w: World, **how: Any) -> Client:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await serve_websocket(scope, receive, send, w.ctx, TtsDialect(), **how)

    return Client(endpoint)


def start(session: str = "s", **more: Any) -> dict[str, Any]:
    return {
        "type": "start",
        "session_id": session,
        "audio_format": "pcm16_wav",
        "sample_rate": 16000,
        "channels": 1,
        **more,
    }


def delta(text: str, seq: int, session: str = "s") -> dict[str, Any]:
    return {"type": "text_delta", "session_id": session, "seq": seq, "text": text}


def end(seq: int, session: str = "s") -> dict[str, Any]:
    return {"type": "text_end", "session_id": session, "seq": seq}


def cancel(seq: int, session: str = "s") -> dict[str, Any]:
    return {"type": "cancel", "session_id": session, "seq": seq}


def resume(last: int, session: str = "s") -> dict[str, Any]:
    return {"type": "resume", "session_id": session, "last_unit_index_received": last}


def test_a_session_from_start_to_end() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            c = connect(w)
            c.say(start())
            ack = await c.hear()
            assert ack is not None
            assert ack["ttl_s"] == 120.0
            assert len(ack["wav_header_base64"]) == 60
            c.say(delta("Hello there, my friend.", 1))
            c.say(end(2))
            rest = await c.rest()
            assert spoken(rest) == "Hello there, my friend."
            assert rest[-1] == {
                "type": "tts_end",
                "session_id": "s",
                "seq": 2,
                "cancelled": False,
            }
            assert c.code == 1000
            assert [m["chunk_seq"] for m in rest[:-1]] == list(range(1, len(rest)))
            assert w.metrics.voice_sessions == 1
            assert len(w.metrics.ttfa_ms) == 1
            await c.gone()
            assert w.metrics.voice_connections == 0

    run(body())


def test_text_end_without_text_is_just_the_end() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            c = connect(w)
            c.say(start())
            c.say(end(1))
            assert [m["type"] for m in await c.rest()] == ["start_ack", "tts_end"]
            await c.gone()

    run(body())


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_offered_rate_is_resampled_to(rate: int, channels: int) -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            c = connect(w)
            c.say(start(sample_rate=rate, channels=channels))
            c.say(delta("Ten units.", 1))
            c.say(end(2))
            heard = await c.rest()
            assert spoken(heard) == "Ten units."
            audio = [m for m in heard if m["type"] == "audio_chunk"]
            assert {(m["sample_rate"], m["channels"]) for m in audio} == {(rate, channels)}
            assert sum(map(samples, audio)) == pytest.approx(0.4 * rate, rel=0.02)
            await c.gone()

    run(body())


def test_resume_repeats_and_loses_nothing() -> None:
    text = "This is a sentence of some length, and then another one. " * 4

    async def body() -> None:
        async with world(speech=FAST) as w:
            first = connect(w)
            first.say(start())
            first.say(delta(text, 1))
            heard = [await first.hear() for _ in range(3)]
            last = heard[-1]["unit_index_end"]  # type: ignore[index]
            await first.leave()
            second = connect(w)
            second.say(start())
            ack = await second.hear()
            assert ack is not None
            assert (ack["units_received"], ack["last_seq_received"]) == (len(text), 1)
            second.say(resume(last))
            second.say(end(2))
            rest = await second.rest()
            assert spoken(rest, last + 1) == text[last + 1 :]
            assert rest[-1]["type"] == "tts_end"
            await second.gone()

    run(body())


def test_resume_trims_a_chunk_the_client_has_part_of() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            first = connect(w)
            first.say(start())
            first.say(delta("abcdefghij klmnop.", 1))
            first.say(end(2))
            whole = await first.rest()
            audio = [m for m in whole if m["type"] == "audio_chunk"]
            await first.gone()
            second = connect(w)
            second.say(start())
            second.say(resume(4))
            rest = await second.rest()
            assert spoken(rest, 5) == "fghij klmnop."
            again = [m for m in rest if m["type"] == "audio_chunk"]
            assert [m["chunk_seq"] for m in again] == [m["chunk_seq"] for m in audio][-len(again) :]
            assert samples(again[0]) < samples(audio[0])
            await second.gone()

    run(body())


def test_resume_with_nothing_missing_simply_goes_on() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            first = connect(w)
            first.say(start())
            first.say(delta("One sentence. ", 1))
            heard = await first.until("start_ack")
            while spoken(heard) != "One sentence. ":
                message = await first.hear()
                assert message is not None
                heard.append(message)
            await first.leave()
            second = connect(w)
            second.say(start())
            second.say(resume(13))
            second.say(delta("Another.", 2))
            second.say(end(3))
            rest = await second.rest()
            assert [m for m in rest if m["type"] == "error"] == []
            assert spoken(rest, 14) == "Another."
            await second.gone()

    run(body())


@pytest.mark.parametrize("last", [14, 1000, 2**53])
def test_resume_past_the_head_is_refused_by_name_and_the_session_goes_on(last: int) -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            first = connect(w)
            first.say(start())
            first.say(delta("One sentence. ", 1))
            await first.until("audio_chunk")
            await first.leave()
            second = connect(w)
            second.say(start())
            second.say(resume(last))
            heard = await second.until("error")
            assert heard[-1]["code"] == "resume_not_available"
            assert heard[-1]["reason"] == "ahead_of_head"
            assert second.code is None
            second.say(end(2))
            assert (await second.rest())[-1]["type"] == "tts_end"
            await second.gone()

    run(body())


def test_start_alone_delivers_nothing_until_a_second_of_silence() -> None:
    async def body() -> None:
        async with world(speech={"rtf": 1.0, "unit_ms": 40}) as w:
            first = connect(w)
            first.say(start())
            first.say(delta("Some text that takes a while to speak, it is long.", 1))
            heard = await first.until("audio_chunk")
            await first.leave()
            second = connect(w)
            second.say(start())
            assert (await second.hear())["type"] == "start_ack"  # type: ignore[index]
            assert await second.hear(within_s=0.9) is None
            after = spoken(heard)
            rest = await second.until("audio_chunk", within_s=3)
            assert rest[0]["unit_index_start"] == len(after)
            second.say(end(2))
            await second.rest()
            await second.gone()

    run(body())


def test_text_to_a_returning_session_begins_delivery_at_once() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            first = connect(w)
            first.say(start())
            first.say(delta("First. ", 1))
            heard = await first.until("audio_chunk")
            await first.leave()
            second = connect(w)
            second.say(start())
            second.say(delta("Second.", 2))
            second.say(end(3))
            rest = await second.rest()
            assert spoken(heard) + spoken(rest, len(spoken(heard))) == "First. Second."
            await second.gone()

    run(body())


def test_repeated_text_of_a_returning_client_is_dropped() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            first = connect(w)
            first.say(start())
            first.say(delta("First. ", 1))
            first.say(delta("Second. ", 2))
            await first.until("audio_chunk")
            await first.leave()
            second = connect(w)
            second.say(start())
            second.say(resume(-1))
            second.say(delta("Second. ", 2))
            second.say(delta("Third.", 3))
            second.say(end(4))
            assert spoken(await second.rest()) == "First. Second. Third."
            await second.gone()

    run(body())


def test_text_to_a_finished_session_begins_a_new_one_at_unit_0() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            for text in ("Once.", "Twice."):
                c = connect(w)
                c.say(start())
                c.say(delta(text, 1))
                c.say(end(2))
                heard = await c.rest()
                assert [m["type"] for m in heard].count("start_ack") == 1
                assert spoken(heard) == text
                assert heard[-1]["type"] == "tts_end"
                await c.gone()

    run(body())


def test_other_parameters_on_a_live_id_are_refused() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            first = connect(w)
            first.say(start())
            await first.hear()
            second = connect(w)
            second.say(start(sample_rate=8000))
            answer = await second.hear()
            assert answer is not None
            assert answer["code"] == "bad_request"
            assert second.code == 1000
            first.say(delta("Still here.", 1))
            first.say(end(2))
            assert spoken(await first.rest()) == "Still here."
            await second.gone()
            await first.gone()

    run(body())


def test_a_newer_socket_supersedes_the_older() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            first = connect(w)
            first.say(start())
            first.say(delta("Words. ", 1))
            heard = await first.until("audio_chunk")
            second = connect(w)
            second.say(start())
            await second.hear()
            assert await first.hear() is None
            assert first.code == 4409
            await first.gone()
            second.say(resume(heard[-1]["unit_index_end"]))
            second.say(delta("More.", 2))
            second.say(end(3))
            rest = await second.rest()
            assert spoken(rest, len("Words. ")) == "More."
            await second.gone()

    run(body())


def test_cancel_while_it_speaks_is_answered_and_no_audio_follows() -> None:
    async def body() -> None:
        async with world(speech={"rtf": 1.0, "unit_ms": 100, "piece_ms": 100}) as w:
            c = connect(w)
            c.say(start())
            c.say(delta("A long sentence that is being spoken now, slowly. " * 3, 1))
            await c.until("audio_chunk")
            at = asyncio.get_running_loop().time()
            c.say(cancel(2))
            rest = await c.rest()
            assert rest[-1] == {"type": "tts_end", "session_id": "s", "seq": 2, "cancelled": True}
            assert c.wire.times[-1] - at < 0.05
            assert c.code == 1000
            await c.gone()
            await asyncio.sleep(0.2)
            (pool,) = w.broker.pools()
            assert pool.running == 0
            assert pool.free_credits == 100

    run(body())


def test_cancel_before_any_text_is_answered() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            c = connect(w)
            c.say(start())
            c.say(cancel(1))
            assert (await c.rest())[-1]["cancelled"] is True
            await c.gone()

    run(body())


def test_audio_is_paced_four_seconds_ahead_of_the_listener() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            c = connect(w)
            c.say(start())
            c.say(delta("x" * 400 + ".", 1))  # 16 s of audio
            c.say(end(2))
            await c.rest()
            chunks = [
                (at, m)
                for at, m in zip(c.wire.times, map(_json, c.wire.taken), strict=True)
                if m["type"] == "audio_chunk"
            ]
            began = chunks[0][0]
            total = 0.0
            for at, m in chunks:
                total += samples(m) / 16000
                assert total - (at - began) <= 4.0 + 0.001
            assert total == pytest.approx(401 * 0.04, rel=0.01)
            assert chunks[-1][0] - began == pytest.approx(total - 4.0, abs=1.0)
            await c.gone()

    run(body())


def test_cancel_skips_what_the_pace_holds_back() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            c = connect(w)
            c.say(start())
            c.say(delta("x" * 400 + ".", 1))
            c.say(end(2))
            heard = await c.until("audio_chunk")
            await asyncio.sleep(0.5)
            c.say(cancel(3))
            heard += await c.rest()
            assert heard[-1]["cancelled"] is True
            assert len(spoken(heard)) < 150  # 4 s ahead and what has been played, 40 ms each
            await c.gone()

    run(body())


def test_a_slow_reader_hears_backpressure_exactly_once() -> None:
    async def body() -> None:
        rows = {Kind.SPEECH: replace(KINDS[Kind.SPEECH], pace_s=None)}
        async with world(speech=FAST, rows=rows) as w:
            c = connect(w)
            c.say(start())
            await c.hear()
            c.wire.stalled = True
            c.say(delta("x" * 1000 + ".", 1))
            await asyncio.sleep(29)
            assert c.code is None
            await asyncio.sleep(3)
            assert c.code == 1000
            c.wire.flow()
            heard = await c.rest()
            errors = [m for m in heard if m["type"] == "error"]
            assert [m["code"] for m in errors] == ["backpressure"]
            assert heard[-1] is errors[0] or heard[-1] == errors[0]
            assert w.metrics.backpressure == 1
            await c.gone()
            view = await w.broker.find("local", "tts", "s")
            assert view is not None
            assert (view.state, view.code) == ("failed", "backpressure")

    run(body())


def test_a_reader_that_stalls_for_a_while_catches_up_without_loss() -> None:
    async def body() -> None:
        rows = {Kind.SPEECH: replace(KINDS[Kind.SPEECH], pace_s=None)}
        async with world(speech=FAST, rows=rows) as w:
            c = connect(w)
            c.say(start())
            await c.hear()
            c.wire.stalled = True
            text = "x" * 1000 + "."
            c.say(delta(text, 1))
            c.say(end(2))
            await asyncio.sleep(20)
            c.wire.flow()
            heard = await c.rest()
            assert spoken(heard) == text
            assert heard[-1]["type"] == "tts_end"
            await c.gone()

    run(body())


def test_a_worker_killed_while_speaking_costs_nothing_that_can_be_heard() -> None:
    async def body() -> None:
        async with world() as w:
            slow = {"rtf": 0.2, "unit_ms": 40, "piece_ms": 40}
            first = await w.worker(Kind.SPEECH, **slow)
            await w.worker(Kind.SPEECH, **slow)
            text = "A sentence here, another there, and one more to end it. " * 3
            c = connect(w)
            c.say(start())
            c.say(delta(text, 1))
            c.say(end(2))
            heard = await c.until("audio_chunk")
            first.die()
            heard += await c.rest()
            assert spoken(heard) == text
            assert heard[-1]["cancelled"] is False
            await c.gone()

    run(body())


def test_no_worker_is_told_as_backpressure_with_a_time_to_wait() -> None:
    async def body() -> None:
        async with world() as w:
            c = connect(w)
            c.say(start())
            answer = await c.hear()
            assert answer is not None
            assert answer["code"] == "backpressure"
            assert answer["detail_code"] == "no_workers"
            assert answer["retry_after_s"] > 0
            assert c.code == 1000
            await c.gone()

    run(body())


def test_a_detached_session_is_over_after_its_time_to_live() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            c = connect(w)
            c.say(start())
            await c.hear()
            await c.leave()
            await asyncio.sleep(119)
            assert (await w.broker.find("local", "tts", "s")).state == "queued"  # type: ignore[union-attr]
            await asyncio.sleep(2)
            assert (await w.broker.find("local", "tts", "s")).state == "cancelled"  # type: ignore[union-attr]

    run(body())


def test_a_second_start_on_the_same_socket_switches_session() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            c = connect(w)
            c.say(start("one"))
            c.say(delta("In one. ", 1, "one"))
            await c.until("audio_chunk")
            c.say(start("two"))
            c.say(delta("In two.", 1, "two"))
            c.say(end(2, "two"))
            heard = await c.rest()
            assert heard[0]["session_id"] == "two"
            assert spoken(heard) == "In two."
            await c.gone()
            back = connect(w)
            back.say(start("one"))
            back.say(resume(-1, "one"))
            back.say(end(2, "one"))
            assert spoken(await back.rest()) == "In one. "
            await back.gone()

    run(body())


def test_a_silent_client_is_closed_where_the_port_says_so() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            c = connect(w, first_message_s=5.0)
            await asyncio.sleep(4.9)
            assert c.code is None
            await asyncio.sleep(0.2)
            assert c.code == 4408
            await c.gone()
            patient = connect(w)
            await asyncio.sleep(100)
            assert patient.code is None
            await patient.leave()

    run(body())


def test_queue_places_are_told_to_those_who_ask() -> None:
    async def body() -> None:
        async with world(speech=None) as w:
            await w.worker(Kind.SPEECH, sessions=1, rtf=1.0, unit_ms=1000)
            busy = connect(w)
            busy.say(start("busy"))
            busy.say(delta("Busy for a while.", 1, "busy"))
            await busy.until("audio_chunk")
            told, untold = connect(w), connect(w)
            told.say(start("told", notices=True))
            told.say(delta("Hi.", 1, "told"))
            untold.say(start("untold"))
            untold.say(delta("Hi.", 1, "untold"))
            await asyncio.sleep(3)
            busy.say(cancel(2, "busy"))
            await asyncio.sleep(3)
            told_types = [_json(f) for f in told.wire.taken]
            places = [m["position"] for m in told_types if m["type"] == "queue_status"]
            assert places
            assert places[-1] == 0
            assert not [f for f in untold.wire.taken if "queue_status" in str(f)]
            for c in (told, untold, busy):
                await c.gone()

    run(body())


def _json(frame: str | bytes) -> dict[str, Any]:
    return dict(json.loads(frame))


def test_a_gateway_that_shuts_down_sends_idle_clients_away_and_lets_others_finish() -> None:
    async def body() -> None:
        async with world(speech={"rtf": 1.0, "unit_ms": 100}) as w:
            waiting, silent, busy = connect(w), connect(w), connect(w)
            waiting.say(start("waiting"))
            busy.say(start("busy"))
            busy.say(delta("Words that take a while.", 1, "busy"))
            busy.say(end(2, "busy"))
            heard = await busy.until("audio_chunk")
            for tell in tuple(w.ctx.drain_watchers):
                tell()
            assert (waiting.code, silent.code, busy.code) == (1012, 1012, None)
            heard += await busy.rest()
            assert spoken(heard) == "Words that take a while."
            for c in (waiting, silent, busy):
                await c.gone()
            assert w.ctx.drain_watchers == []

    run(body())

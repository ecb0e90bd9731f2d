"""The recognition protocol `/ws/asr` against a whole gateway, in virtual time."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import wave
from dataclasses import replace
from typing import Any

import pytest
from voice_world import Client, World, run, world

from forebay.core.admission import GRACE, RESERVE_S
from forebay.core.kinds import KINDS, Kind
from forebay.core.tones import RATE, speak
from forebay.dialects.asr import AsrDialect
from forebay.gateway.connection import serve_websocket

FAST = {"rtf": 0.0, "words": 2}


def connect(w: World, *, threshold: int = 0, promised: bool = False, **how: Any) -> Client:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        if promised:
            scope["forebay.promised_until"] = w.ctx.clock() + RESERVE_S
        dialect = AsrDialect(new_id=w.ctx.new_id, notice_threshold=threshold)
        await serve_websocket(scope, receive, send, w.ctx, dialect, **how)

    return Client(endpoint)


def start(session: str | None = "s", **more: Any) -> dict[str, Any]:
    return {"action": "start", "session_id": session, **more}


def chunk(index: int, audio: bytes, session: str = "s") -> dict[str, Any]:
    data = base64.b64encode(audio).decode()
    return {
        "action": "chunk", "session_id": session, "chunk_index": index, "audio_data": data
    }  # fmt: skip


def finish(session: str = "s") -> dict[str, Any]:
    return {"action": "finish", "session_id": session}


def words(first: int, count: int = 2) -> bytes:
    return speak(range(first, first + count))


def text(first: int, count: int = 2) -> str:
    return " ".join(f"w{n}" for n in range(first, first + count))


def wav(audio: bytes, rate: int = RATE, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(audio)
    return file.getvalue()


async def say(c: Client, message: Any, *types: str) -> dict[str, Any]:
    """Send and return the one message that answers, which must be one of ``types``."""
    c.say(message)
    heard = await c.hear()
    assert heard is not None, message
    assert heard["type"] in types, heard
    return heard


def test_the_strict_order_of_a_session_with_nothing_in_between() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            ack = await say(c, start(), "ack")
            assert ack == {
                "type": "ack", "session_id": "s", "chunk_index": 0, "status": "session_started"
            }  # fmt: skip
            for n in range(3):
                ack = await say(c, chunk(n, words(2 * n)), "ack")
                assert ack == {
                    "type": "ack", "session_id": "s", "chunk_index": n, "status": "received"
                }  # fmt: skip
                result = await c.hear()
                said = text(0) if n == 0 else " " + text(2 * n)
                assert result == {
                    "type": "chunk_result", "session_id": "s", "chunk_index": n, "text": said
                }  # fmt: skip
            final = await say(c, finish(), "final_result")
            assert final["text"] == text(0, 6)
            assert final["chunk_count"] == 3
            assert final["audio_s"] == 0.6
            assert isinstance(final["duration"], float)
            assert await c.hear(5) is None
            assert c.code is None, "the socket stays for the next session"
            await c.leave()

    run(body())


def test_several_sessions_follow_one_another_on_one_socket() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            for n in range(40):
                name = f"s{n}"
                await say(c, start(name), "ack")
                await say(c, chunk(0, words(n), name), "ack")
                result = await c.hear()
                assert result is not None and result["text"] == text(n)
                final = await say(c, finish(name), "final_result")
                assert (final["session_id"], final["text"]) == (name, text(n))
            await c.leave()

    run(body())


def test_sessions_may_overlap_and_finish_blocks_nobody() -> None:
    async def body() -> None:
        async with world(recognition={"rtf": 2.0, "words": 2}) as w:
            c = connect(w)
            await say(c, start("a"), "ack")
            await say(c, chunk(0, words(0, 10), "a"), "ack")
            c.say(finish("a"))
            ack = await say(c, start("b"), "ack")
            assert ack["session_id"] == "b"
            c.say(chunk(0, words(20), "b"))
            c.say(finish("b"))
            heard = [m for m in await c.rest(20) if m["type"] == "final_result"]
            assert {m["session_id"]: m["text"] for m in heard} == {
                "a": text(0, 10), "b": text(20)
            }  # fmt: skip
            await c.leave()

    run(body())


def test_duration_is_wall_time_since_the_start() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            await say(c, start(), "ack")
            await asyncio.sleep(3)
            await say(c, chunk(0, words(0)), "ack")
            final = (await _finish(c))[-1]
            assert 3.0 <= final["duration"] < 3.5
            await c.leave()

    run(body())


async def _finish(c: Client, session: str = "s") -> list[dict[str, Any]]:
    c.say(finish(session))
    return await c.until("final_result", "error")


def test_chunk_texts_joined_are_the_final_text_however_finals_fall() -> None:
    async def body() -> None:
        async with world(recognition={"rtf": 0.0, "words": 7}) as w:
            c = connect(w)
            await say(c, start(), "ack")
            for n in range(20):
                c.say(chunk(n, words(n, 1)))
            heard = await _finish(c)
            results = [m for m in heard if m["type"] == "chunk_result"]
            assert [m["chunk_index"] for m in results] == list(range(20))
            final = heard[-1]["text"]
            assert final == text(0, 20)
            joined = "".join(m.get("text", "") for m in results)
            assert final.startswith(joined)
            assert any("text" not in m for m in results), "no text, no field"
            await c.leave()

    run(body())


def test_a_chunk_may_be_a_whole_wav_file_and_the_next_one_bare_samples() -> None:
    async def body() -> None:
        async with world(recognition={"rtf": 0.0, "words": 100}) as w:
            c = connect(w)
            await say(c, start(), "ack")
            await say(c, chunk(0, wav(words(0, 3))), "ack")
            result = await c.hear()
            assert result is not None
            assert result["text"] == text(0, 3), "a complete file is a whole utterance"
            await say(c, chunk(1, words(3, 3)), "ack")
            heard = await _finish(c)
            assert heard[-1]["text"] == text(0, 6)
            assert heard[-1]["chunk_count"] == 2
            await c.leave()

    run(body())


def test_a_chunk_of_many_seconds_is_taken_whole() -> None:
    async def body() -> None:
        async with world(recognition={"rtf": 0.0, "words": 50}) as w:
            c = connect(w)
            await say(c, start(), "ack")
            c.say(chunk(0, words(0, 200)))  # 640 KB, more than one stream item
            c.say(chunk(1, words(200, 200)))
            heard = await _finish(c)
            assert heard[-1]["text"] == text(0, 400)
            assert [m["chunk_index"] for m in heard if m["type"] == "chunk_result"] == [0, 1]
            await c.leave()

    run(body())


def test_silence_and_empty_audio_are_legal() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            await say(c, start(), "ack")
            await say(c, chunk(0, b""), "ack")
            result = await c.hear()
            assert result == {"type": "chunk_result", "session_id": "s", "chunk_index": 0}
            await say(c, chunk(1, bytes(3200)), "ack")
            assert "text" not in (await c.hear() or {})
            final = (await _finish(c))[-1]
            assert (final["text"], final["chunk_count"]) == ("", 2)
            await c.leave()

    run(body())


def test_a_session_without_audio_just_ends() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            await say(c, start(), "ack")
            final = (await _finish(c))[-1]
            assert (final["type"], final["chunk_count"]) == ("final_result", 0)
            await c.leave()

    run(body())


def test_a_missing_id_is_made_and_other_fields_do_not_matter() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            ack = await say(c, {"action": "start", "audio_format": "pcm", "x": {"y": 1}}, "ack")
            name = ack["session_id"]
            assert len(name) >= 32
            view = await w.broker.find("local", "asr", name)
            assert view is not None and view.spec.params["user"] == "anonymous"
            await c.leave()

    run(body())


# ------------------------------------------------------------------------- coming back


def test_starting_again_continues_where_the_session_was() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            await say(c, start(), "ack")
            for n in range(3):
                await say(c, chunk(n, words(2 * n)), "ack")
                assert (await c.hear() or {})["type"] == "chunk_result"
            await asyncio.sleep(0.5)  # what was delivered has been reported
            await c.leave()
            c = connect(w)
            ack = await say(c, start(), "ack")
            assert (ack["resumed"], ack["last_chunk_index"]) == (True, 2)
            c.say(chunk(2, words(4)))  # a repeat: acknowledged, not heard twice
            assert (await c.hear() or {})["status"] == "received"
            await say(c, chunk(3, words(6)), "ack")
            heard = await _finish(c)
            assert [m["chunk_index"] for m in heard if m["type"] == "chunk_result"] == [3]
            assert heard[-1]["text"] == text(0, 8)
            await c.leave()

    run(body())


def test_what_became_ready_while_the_client_was_away_comes_at_once() -> None:
    async def body() -> None:
        async with world(recognition={"rtf": 1.0, "words": 2}) as w:
            c = connect(w)
            await say(c, start(), "ack")
            await say(c, chunk(0, words(0)), "ack")
            await say(c, chunk(1, words(2)), "ack")
            c.say(finish())
            await asyncio.sleep(0.01)
            await c.leave()
            await asyncio.sleep(5)
            c = connect(w)
            c.say(start())
            heard = await c.until("final_result")
            assert [m["type"] for m in heard] == [
                "ack", "chunk_result", "chunk_result", "final_result"
            ]  # fmt: skip
            assert heard[0]["finished"] is True
            assert heard[-1]["text"] == text(0, 4)
            await c.leave()

    run(body())


def test_finish_again_after_the_end_gives_the_result_again() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            await say(c, start(), "ack")
            await say(c, chunk(0, words(0)), "ack")
            first = (await _finish(c))[-1]
            await asyncio.sleep(0.5)
            await c.leave()
            c = connect(w)
            ack = await say(c, start(), "ack")
            assert ack["finished"] is True
            assert await c.hear(2) is None, "it was delivered: nothing is said unasked"
            again = (await _finish(c))[-1]
            assert (again["text"], again["chunk_count"]) == (first["text"], first["chunk_count"])
            assert again["duration"] == first["duration"]
            await c.leave()

    run(body())


def test_a_finished_id_with_new_audio_is_a_new_session() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            for run_number in range(3):
                await say(c, start(), "ack")
                await say(c, chunk(0, words(10 * run_number)), "ack")
                heard = await _finish(c)
                assert [m["type"] for m in heard] == ["chunk_result", "final_result"]
                assert heard[-1]["text"] == text(10 * run_number)
                await asyncio.sleep(0.5)
            await c.leave()

    run(body())


def test_a_newer_socket_supersedes_the_older() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            old, new = connect(w), connect(w)
            await say(old, start(), "ack")
            await say(new, start(), "ack")
            assert await old.hear(1) is None
            assert old.code == 4409
            await say(new, chunk(0, words(0)), "ack")
            assert (await _finish(new))[-1]["text"] == text(0)
            await new.leave()

    run(body())


# --------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ("{", "Invalid message format"),
        ("[]", "Invalid message format"),
        ('"start"', "Invalid message format"),
        (b"\x00\x01\x02", "Invalid message format"),
        ('{"action":5}', "Invalid message format"),
        ('{"action":"chunk","session_id":"s","chunk_index":"x"}', "Invalid message format"),
        ('{"action":"chunk","session_id":7}', "Invalid message format"),
        ("[" * 5000, "Invalid message format"),
        ('{"action":"dance"}', "Unknown action: dance"),
        ("{}", "Unknown action: "),
        (json.dumps(chunk(0, b"", "nobody")), "Session not found: nobody"),
        (json.dumps(finish("nobody")), "Session not found: nobody"),
        (json.dumps({"action": "cancel", "session_id": "nobody"}), "Session not found: nobody"),
    ],
)
def test_mistakes_are_answered_in_the_originals_words_and_end_nothing(
    frame: str | bytes, message: str
) -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            for _ in range(2):  # before any session, and inside one
                error = await say(c, frame, "error")
                assert error["message"] == message
                assert error["chunk_index"] == 0
                await say(c, start(), "ack")
            await say(c, chunk(0, words(0)), "ack")
            assert (await _finish(c))[-1]["text"] == text(0)
            await c.leave()

    run(body())


def test_bad_audio_is_named_with_its_chunk_and_the_session_goes_on() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            await say(c, start(), "ack")
            bad = {"action": "chunk", "session_id": "s", "chunk_index": 4, "audio_data": "@@@"}
            error = await say(c, bad, "error")
            assert (error["chunk_index"], error["session_id"]) == (4, "s")
            error = await say(c, chunk(5, b"\0\0\0"), "error")
            assert (error["chunk_index"], error["code"]) == (5, "bad_audio")
            await say(c, chunk(6, words(0)), "ack")
            assert (await _finish(c))[-1]["text"] == text(0)
            await c.leave()

    run(body())


def test_an_id_that_its_client_cancelled_is_free_for_a_new_session() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            await say(c, start(), "ack")
            await say(c, chunk(0, words(0)), "ack")
            await c.until("chunk_result")
            await say(c, {"action": "cancel", "session_id": "s"}, "ack")
            again = await say(c, start(), "ack")
            assert again["finished"] is True
            await say(c, chunk(0, words(2)), "ack")
            assert (await _finish(c))[-1]["text"] == text(2)
            await c.leave()

    run(body())


def test_audio_after_finish_is_told_and_changes_nothing() -> None:
    async def body() -> None:
        async with world(recognition={"rtf": 1.0, "words": 2}) as w:
            c = connect(w)
            await say(c, start(), "ack")
            await say(c, chunk(0, words(0)), "ack")
            c.say(finish())
            c.say(chunk(1, words(2)))
            c.say(finish())
            heard = await c.until("final_result")
            assert [m["type"] for m in heard] == ["error", "chunk_result", "final_result"]
            assert heard[0]["chunk_index"] == 1
            assert heard[-1]["text"] == text(0)
            late = await say(c, chunk(2, words(4)), "error")
            assert late["message"] == "Session not found: s"
            await c.leave()

    run(body())


def test_after_cancel_late_input_is_ignored() -> None:
    async def body() -> None:
        async with world(recognition={"rtf": 5.0, "words": 2}) as w:
            c = connect(w)
            await say(c, start(), "ack")
            await say(c, chunk(0, words(0, 20)), "ack")
            ack = await say(c, {"action": "cancel", "session_id": "s"}, "ack")
            assert ack["status"] == "session_cancelled"
            for n in range(3):
                c.say(chunk(n, words(0)))
            c.say(finish())
            assert await c.hear(3) is None
            view = await w.broker.find("local", "asr", "s")
            assert view is not None and view.state == "cancelled"
            await say(c, start("next"), "ack")
            await c.leave()

    run(body())


def test_one_more_session_than_a_socket_may_hold_is_refused() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            for n in range(16):
                await say(c, start(f"s{n}"), "ack")
            error = await say(c, start("s16"), "error")
            assert error["session_id"] == "s16"
            await say(c, finish("s0"), "final_result")
            await say(c, start("s16"), "ack")
            await c.leave()

    run(body())


@pytest.mark.parametrize(
    "file",
    [
        wav(words(0))[:40],
        wav(words(0))[:24] + bytes(4) + wav(words(0))[28:],  # a rate of zero
        wav(words(0))[:22] + b"\xff\xff" + wav(words(0))[24:],  # 65,535 channels
        b"OggS" + bytes(100),
        b"\x1a\x45\xdf\xa3" + bytes(1000),
        b"fLaC" + b"\xff" * 300,
    ],
    ids=["short", "rate 0", "channels", "ogg", "webm", "flac"],
)
def test_a_lying_or_broken_file_is_an_error_of_its_session_only(file: bytes) -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            c = connect(w)
            await say(c, start("good"), "ack")
            await say(c, start("bad"), "ack")
            c.say(chunk(0, file, "bad"))
            c.say(chunk(1, words(2), "bad"))
            heard = await c.until("chunk_result")
            [error] = [m for m in heard if m["type"] == "error"]
            assert (error["session_id"], error["chunk_index"]) == ("bad", 0)
            assert error["code"] == "bad_audio"
            assert (await _finish(c, "bad"))[-1]["text"] == text(2)
            await say(c, chunk(0, words(0), "good"), "ack")
            assert (await _finish(c, "good"))[-1]["text"] == text(0)
            await c.leave()

    asyncio.run(body())  # files are decoded in threads, which know no virtual time


# ---------------------------------------------------------------------- queue, refusals


def test_a_waiting_client_is_told_its_place_and_others_are_not() -> None:
    async def body() -> None:
        async with world(recognition={"rtf": 0.5, "words": 2, "sessions": 1}) as w:
            busy, waiting = connect(w), connect(w)
            await say(busy, start("busy"), "ack")
            for n in range(10):
                await say(busy, chunk(n, words(10 * n, 10), "busy"), "ack", "chunk_result")
            await say(waiting, start("waiting"), "ack")
            await say(waiting, chunk(0, words(0), "waiting"), "ack")
            said_at = asyncio.get_running_loop().time()
            status = await waiting.hear()
            assert status is not None
            assert (status["type"], status["chunk_index"]) == ("queue_status", 0)
            assert (status["position"], status["pending"]) == (1, 1)
            assert asyncio.get_running_loop().time() - said_at >= 0.49
            busy.say(finish("busy"))
            await busy.until("final_result", within_s=60)
            heard = await _finish(waiting, "waiting")
            assert heard[-1]["text"] == text(0)
            assert all(m["type"] != "queue_status" for m in heard[-2:])
            assert b"forebay_eta_error_ratio" in w.metrics.render()
            assert w.metrics.voice_sessions == 0, "listening is not speaking"
            for c in (busy, waiting):
                await c.leave()

    run(body())


def test_the_threshold_keeps_short_queues_to_ourselves() -> None:
    async def body() -> None:
        async with world(recognition={"rtf": 1.0, "words": 2, "sessions": 1}) as w:
            busy, waiting = connect(w), connect(w, threshold=5)
            await say(busy, start("busy"), "ack")
            await say(busy, chunk(0, words(0, 50), "busy"), "ack")
            busy.say(finish("busy"))
            await say(waiting, start("waiting"), "ack")
            await say(waiting, chunk(0, words(0), "waiting"), "ack")
            heard = await _finish(waiting, "waiting")
            assert [m["type"] for m in heard] == ["chunk_result", "final_result"]
            for c in (busy, waiting):
                await c.leave()

    run(body())


def test_no_worker_is_said_and_a_queue_deadline_is_system_busy() -> None:
    async def body() -> None:
        async with world() as w:
            c = connect(w)
            error = await say(c, start(), "error")
            assert error["code"] == "no_workers"
            await c.leave()
        short = {Kind.RECOGNITION: replace(KINDS[Kind.RECOGNITION], queue_s=2.0)}
        stuck = {"rtf": 5.0, "words": 2, "sessions": 1}
        async with world(recognition=stuck, rows=short) as w:
            busy, waiting = connect(w), connect(w)
            await say(busy, start("busy"), "ack")
            await say(busy, chunk(0, words(0, 90), "busy"), "ack")
            await say(waiting, start("waiting"), "ack")
            await say(waiting, chunk(0, words(0), "waiting"), "ack")
            error = (await waiting.until("error"))[-1]
            assert error["message"] == "System busy"
            assert error["code"] == "deadline_exceeded"
            for c in (busy, waiting):
                await c.leave()

    run(body())


def test_who_was_promised_a_place_is_not_sent_away_just_before_his_turn() -> None:
    async def body() -> None:
        short = {Kind.RECOGNITION: replace(KINDS[Kind.RECOGNITION], queue_s=10.0)}
        stuck = {"rtf": 5.0, "words": 2, "sessions": 1}
        async with world(recognition=stuck, rows=short) as w:
            busy, stranger, guest = connect(w), connect(w), connect(w, promised=True)
            await say(busy, start("busy"), "ack")
            await say(busy, chunk(0, words(0, 90), "busy"), "ack")
            begun = w.ctx.clock()
            for name, c in (("stranger", stranger), ("guest", guest)):
                await say(c, start(name), "ack")
                await say(c, chunk(0, words(0), name), "ack")
            waited = []
            for c in (stranger, guest):
                error = (await c.until("error"))[-1]
                assert error["message"] == "System busy"
                waited.append(w.ctx.clock() - begun)
            assert waited == pytest.approx([10.0, 10.0 * GRACE], abs=0.2)
            for c in (busy, stranger, guest):
                await c.leave()

    run(body())


def test_a_killed_worker_costs_no_word() -> None:
    async def body() -> None:
        async with world(recognition={"rtf": 0.5, "words": 3}) as w:
            c = connect(w)
            first = await w.worker(Kind.RECOGNITION, rtf=0.5, words=3)
            await say(c, start(), "ack")
            for n in range(30):
                c.say(chunk(n, words(n, 1)))
            await asyncio.sleep(0.7)
            first.die()
            heard = await _finish(c)
            results = [m["chunk_index"] for m in heard if m["type"] == "chunk_result"]
            assert results == list(range(30))
            assert heard[-1]["text"] == text(0, 30)
            await c.leave()

    run(body())

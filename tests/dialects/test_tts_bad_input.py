"""Malformed frames and wrong order on `/tts`: the documented error, and nobody else disturbed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_tts import FAST, cancel, connect, delta, end, resume, start
from voice_world import run, spoken, world

ANY_START = start()
BEFORE_START = [
    "",
    "not json",
    "[]",
    "null",
    "3",
    '"text"',
    "{}",
    '{"type":',
    '{"type":"nonsense"}',
    '{"type":5}',
    '{"type":"start"}',
    "[" * 100_000,
    '{"type":"start","x":' + "[" * 5000 + "]" * 5000 + "}",
    '{"type":"start","session_id":"\\ud800"',
    json.dumps(delta("x", 1)),
    json.dumps(end(1)),
    json.dumps(cancel(1)),
    json.dumps(resume(0)),
    *(
        json.dumps({**ANY_START, **wrong})
        for wrong in (
            {"session_id": ""},
            {"session_id": 5},
            {"session_id": None},
            {"session_id": "x" * 300},
            {"audio_format": "mp3"},
            {"audio_format": ""},
            {"audio_format": 1},
            {"sample_rate": 0},
            {"sample_rate": -16000},
            {"sample_rate": 7999},
            {"sample_rate": 48001},
            {"sample_rate": 2**63},
            {"sample_rate": 10**400},
            {"sample_rate": "16000"},
            {"sample_rate": 16000.5},
            {"sample_rate": True},
            {"sample_rate": None},
            {"channels": 0},
            {"channels": 3},
            {"channels": 9},
            {"channels": "1"},
            {"voice": 5},
            {"speed": 0},
            {"speed": 100},
            {"speed": "fast"},
            {"language": 5},
            {"model": "no-such-model"},
            {"notices": "yes"},
        )
    ),
    *(
        json.dumps({k: v for k, v in ANY_START.items() if k != missing})
        for missing in ("session_id", "audio_format", "sample_rate", "channels")
    ),
]
AFTER_START = [
    "not json",
    "[]",
    '{"type":"nonsense","session_id":"s"}',
    json.dumps(delta("", 1)),
    json.dumps({"type": "text_delta", "session_id": "s", "text": "x"}),
    json.dumps({"type": "text_delta", "session_id": "s", "seq": 1}),
    json.dumps({"type": "text_delta", "session_id": "s", "seq": "1", "text": "x"}),
    json.dumps({"type": "text_delta", "session_id": "s", "seq": 2**63, "text": "x"}),
    json.dumps({"type": "text_delta", "session_id": "s", "seq": 1, "text": 5}),
    '{"type":"text_delta","session_id":"s","seq":1,"text":"\\ud800"}',
    json.dumps(delta("x", 1, "other")),
    json.dumps(end(1, "other")),
    json.dumps(cancel(1, "other")),
    json.dumps(resume(0, "other")),
    json.dumps(resume(-2)),
    json.dumps(resume(2**63)),
    json.dumps({"type": "resume", "session_id": "s"}),
    json.dumps({"type": "resume", "session_id": "s", "last_unit_index_received": "0"}),
    json.dumps({"type": "text_end", "session_id": "s"}),
    json.dumps({"type": "cancel"}),
]


def test_every_malformed_first_frame_is_a_bad_request() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            for frame in BEFORE_START:
                c = connect(w)
                c.say(frame)
                (error,) = await c.rest(within_s=1)
                assert error["type"] == "error", frame[:80]
                assert error["code"] == "bad_request", frame[:80]
                named = "s" if "no-such-model" in frame else ""
                assert (error["session_id"], error["seq"]) == (named, 0)
                assert len(error["message"]) < 300
                assert c.code == 1000
                await c.gone()
            assert await w.broker.jobs() == []
            assert w.metrics.errors["bad_request"] == len(BEFORE_START)
            assert w.metrics.voice_connections == 0

    run(body())


def test_every_malformed_later_frame_is_a_bad_request_on_that_session() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            neighbour = connect(w)
            neighbour.say(start("neighbour"))
            for frame in AFTER_START:
                c = connect(w)
                c.say(start())
                await c.until("start_ack")
                c.say(frame)
                (error,) = await c.rest(within_s=1)
                assert error["code"] == "bad_request", frame[:80]
                assert error["session_id"] == "s"
                assert c.code == 1000
                await c.gone()
            neighbour.say(delta("Unharmed.", 1, "neighbour"))
            neighbour.say(end(2, "neighbour"))
            assert spoken(await neighbour.rest()) == "Unharmed."
            await neighbour.gone()

    run(body())


def test_text_after_text_end_is_refused() -> None:
    async def body() -> None:
        async with world(speech={"rtf": 1.0, "unit_ms": 100}) as w:
            c = connect(w)
            c.say(start())
            c.say(delta("Some words to be said.", 1))
            c.say(end(2))
            c.say(delta("Too late.", 3))
            heard = await c.rest()
            assert heard[-1]["code"] == "bad_request"
            assert heard[-1]["seq"] == 3
            await c.gone()

    run(body())


def test_binary_frames_and_unknown_fields_are_ignored() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            c = connect(w)
            c.say(b"\x00\xff")
            c.say(start(colour="blue", nested={"a": [1, 2]}))
            c.say(b"\x00")
            c.say({**delta("Fine.", 1), "more": None})
            c.say(end(2))
            assert spoken(await c.rest()) == "Fine."
            await c.gone()

    run(body())


@pytest.mark.parametrize("size", [60_000, 240_000])
def test_a_large_delta_is_spoken_or_refused_but_never_half(size: int) -> None:
    async def body() -> None:
        async with world(speech={"rtf": 0.0, "unit_ms": 1}) as w:
            c = connect(w)
            c.say(start())
            text = ("word " * (size // 5)).strip()
            c.say(delta(text, 1))
            c.say(end(2))
            heard = await c.rest(within_s=1000)
            if heard[-1]["type"] == "error":
                assert heard[-1]["code"] == "bad_request"
            else:
                assert spoken(heard) == text
            await c.gone()

    run(body())


def test_a_client_that_sends_faster_than_it_listens_is_not_read_further() -> None:
    async def body() -> None:
        async with world(speech={"rtf": 1.0, "unit_ms": 40}) as w:
            c = connect(w)
            c.say(start())
            for n in range(40):
                c.say(delta("many words in one delta " * 200, n + 1))
            await c.until("audio_chunk")
            view: Any = await w.broker.find("local", "tts", "s")
            row = w.ctx.rows[view.spec.kind]
            assert view.units * 1 <= row.input_bytes + 2 * 4800
            await c.leave()

    run(body())

"""What a client hears that waits behind somebody who does not stop, in virtual time."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from typing import Any

from structlog.testing import capture_logs
from voice_world import Client, World, run, world

from forebay.core.kinds import KINDS, Kind
from forebay.core.tones import speak
from forebay.dialects.asr import AsrDialect
from forebay.gateway.connection import serve_websocket


def connect(w: World) -> Client:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await serve_websocket(scope, receive, send, w.ctx, AsrDialect(new_id=w.ctx.new_id))

    return Client(endpoint)


async def speaks(c: Client, name: str, count: int) -> None:
    data = base64.b64encode(speak(range(count))).decode()
    c.say({"action": "start", "session_id": name})
    await c.until("ack")
    c.say({"action": "chunk", "session_id": name, "chunk_index": 0, "audio_data": data})
    await c.until("ack")


async def serve_one(w: World, name: str) -> None:
    c = connect(w)
    await speaks(c, name, 4)
    c.say({"action": "finish", "session_id": name})
    await c.until("final_result", within_s=60)
    await c.leave()


def test_who_waits_in_vain_is_told_ever_longer_times_and_is_counted() -> None:
    async def body() -> None:
        rows = {Kind.RECOGNITION: replace(KINDS[Kind.RECOGNITION], queue_s=40.0)}
        stuck = {"rtf": 10.0, "words": 2, "sessions": 1}
        async with world(recognition=stuck, rows=rows) as w:
            for n in range(3):
                await serve_one(w, f"short{n}")
            w.metrics.eta_errors.clear()
            busy, waiting, leaving = connect(w), connect(w), connect(w)
            await speaks(busy, "busy", 90)  # takes much longer than those before
            await speaks(waiting, "waiting", 2)
            await speaks(leaving, "leaving", 2)
            with capture_logs() as events:
                since = asyncio.get_running_loop().time()
                heard = await waiting.until("error", within_s=60)
                assert asyncio.get_running_loop().time() - since > 39
            told = [m["eta_s"] for m in heard if m["type"] == "queue_status"]
            assert {m["position"] for m in heard if m["type"] == "queue_status"} == {1}
            assert told == sorted(told) and 3 <= len(told) <= 8 and told[-1] > 10
            assert heard[-1]["code"] == "deadline_exceeded"
            said = [e for e in events if e["event"] == "queue.longer_than_told"]
            assert [e["begun"] for e in said] == [False]
            assert sum(w.metrics.eta_errors["recognition"].counts) == 1
            for c in (busy, waiting, leaving):
                await c.leave()

    run(body())

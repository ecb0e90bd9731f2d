"""Quotas by seconds of audio on every path, counted from what was really there."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import aiohttp
import test_asr as asr
import test_listen as listen
from test_asr_rest import Rest, rest
from voice_world import World, run, world

from forebay.core.audio_quota import AudioLimits
from forebay.core.tones import RATE
from forebay.gateway.audio_door import AudioDoor

FAST = {"rtf": 0.0, "words": 2}
SECOND = bytes(2 * RATE)


def limit(w: World, **limits: float) -> None:
    """As on a listener where keys are demanded."""
    w.ctx.auth.limits = lambda port: True  # type: ignore[method-assign]
    w.ctx.audio = AudioDoor(AudioLimits(**limits), w.ctx.clock)
    if w.ctx.scribe is not None:
        w.ctx.scribe.on_ended = w.ctx.audio.ended


def lying_wav(seconds: int) -> bytes:
    """Its header speaks of a tenth of it, at no rate that is its own."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(SECOND * seconds)
    data = bytearray(file.getvalue())
    data[4:8] = data[40:44] = bytes(4)
    return bytes(data)


async def until(c: Any, kind: str) -> dict[str, Any]:
    while True:
        found: dict[str, Any] | None = await c.hear()
        assert found is not None
        if found["type"] == kind:
            return found


def test_a_session_over_its_bound_ends_by_name_and_the_socket_stays() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            limit(w, session_s=2.5)
            c = asr.connect(w)
            c.say(asr.start("s"))
            for n in range(3):
                c.say(asr.chunk(n, SECOND))
            error = await until(c, "error")
            assert error["session_id"] == "s" and error["code"] == "quota_exceeded"
            assert "3.0 s of audio" in error["message"] and "retry_after_s" not in error
            found = await w.broker.find("local", "asr", "s")
            assert found is not None and found.state == "failed"
            c.say(asr.start("other"))
            told = await c.hear()
            assert told is not None and (told["type"], told["session_id"]) == ("ack", "other")
            await c.leave()

    run(body())


def test_files_in_a_session_count_by_what_was_decoded() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            limit(w, session_s=2.5)
            c = asr.connect(w)
            c.say(asr.start("s"))
            c.say(asr.chunk(0, lying_wav(2)))
            await until(c, "chunk_result")
            assert sum(job.total_s for job in w.ctx.audio.ledger._jobs.values()) == 2.0
            c.say(asr.chunk(1, lying_wav(1)))
            assert (await until(c, "error"))["code"] == "quota_exceeded"
            await c.leave()

    run(body())


def test_a_tenants_hour_is_one_for_all_its_sessions_and_comes_back() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            limit(w, tenant_s=4)
            c = listen.connect(w)
            await listen.begin(c)
            c.say(SECOND * 1)
            assert (await until(c, "ack"))["samples"] == RATE
            again = listen.connect(w)  # the same session: nothing counts twice
            again.say(listen.start("s"))
            assert (await until(again, "started"))["samples"] == RATE
            assert w.ctx.audio.ledger.used_s("local", w.ctx.clock()) == 1.0
            other = asr.connect(w)
            other.say(asr.start("b"))
            other.say(asr.chunk(0, SECOND * 3, "b"))
            other.say(asr.finish("b"))
            assert (await until(other, "final_result"))["audio_s"] == 3.0
            again.say({"type": "from", "sample": RATE})
            again.say(SECOND)
            error = await until(again, "error")
            assert error["code"] == "quota_exceeded" and 3500 < error["retry_after_s"] <= 3660
            other.say(asr.start("c"))
            assert (await until(other, "error"))["retry_after_s"] > 3500
            w.ctx.audio._clock = lambda: w.ctx.clock() + 3700
            new = asr.connect(w)
            new.say(asr.start("c"))
            assert (await until(new, "ack"))["session_id"] == "c"
            for client in (c, again, other, new):
                await client.leave()

    run(body())


def test_on_loopback_nothing_is_counted() -> None:
    async def body() -> None:
        async with world(recognition=FAST) as w:
            w.ctx.audio = AudioDoor(AudioLimits(session_s=0.5, tenant_s=0.5), w.ctx.clock)
            c = asr.connect(w)
            c.say(asr.start("s"))
            c.say(asr.chunk(0, SECOND * 3))
            c.say(asr.finish("s"))
            assert (await until(c, "final_result"))["audio_s"] == 3.0
            await c.leave()

    run(body())


async def transcribe(r: Rest, data: bytes) -> tuple[int, Any, str | None]:
    form = aiohttp.FormData()
    form.add_field("file", data, filename="a.wav")
    url = r.base + "/v1/audio/transcriptions"
    async with r.http.post(url, data=form) as answer:
        return answer.status, await answer.json(), answer.headers.get("retry-after")


async def test_files_are_held_to_what_is_left_and_then_refused(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST) as r:
        limit(r.w, tenant_s=10, session_s=6)
        status, body, _ = await transcribe(r, lying_wav(7))
        assert (status, body["error"]["code"]) == (429, "quota_exceeded")
        used = r.w.ctx.audio.ledger.used_s("local", r.w.ctx.clock())
        assert 6.0 < used <= 7.0, "what was decoded of it counts"
        assert (await transcribe(r, lying_wav(2)))[0] == 200
        status, body = await r.submit(lying_wav(5))
        assert status == 200
        failed = await r.done(body["task_id"])
        assert failed["status"] == "failed" and "more than" in failed["error"]
        status, body, wait = await transcribe(r, lying_wav(1))
        assert (status, wait) == (429, "30") and body["error"]["retry_after_s"] > 3000
        assert (await r.submit(lying_wav(1)))[0] == 429
        assert not r.w.ctx.audio.ledger._jobs


async def test_with_trust_a_start_names_its_tenant(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST, trust=True) as r:
        for user, tenant in (("ada", "ada"), ("no/tenant", "local"), ("anonymous", "local")):
            await r.speak(f"s-{tenant}-{len(user)}", 0, 1, user_id=user)
            found = await r.w.broker.find(tenant, "asr", f"s-{tenant}-{len(user)}")
            assert found is not None and found.spec.tenant == tenant
    async with rest(tmp_path / "b", engine=FAST) as r:
        await r.speak("s", 0, 1, user_id="ada")
        assert await r.w.broker.find("ada", "asr", "s") is None

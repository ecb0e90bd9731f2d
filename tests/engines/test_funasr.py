"""A FunASR server that hears pieces, corrects them, hangs up and says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import WSMsgType, web
from engine_helpers import load

from forebay.core.events import End, Final, OutputEvent, Partial, Sound
from forebay.engines import Resume
from forebay.engines.funasr import FunAsr, FunAsrSession
from forebay.errors import CannotBoot, ConfigError, UpstreamCut, UpstreamTimeout

SECOND = Sound(data=bytes(32_000))
Talk = Callable[[web.WebSocketResponse, dict[str, object]], Awaitable[None]]


@asynccontextmanager
async def serving(talk: Talk, **options: object) -> AsyncIterator[FunAsr]:
    async def answer(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("binary",))
        await socket.prepare(request)
        first = await socket.receive()
        if first.type is WSMsgType.TEXT:
            await talk(socket, msgspec.json.decode(first.data))
        return socket

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    engine = FunAsr(url=f"ws://127.0.0.1:{runner.addresses[0][1]}", **options)
    await load(engine)
    try:
        yield engine
    finally:
        await engine.unload()
        await runner.cleanup()


async def two_passes(socket: web.WebSocketResponse, hello: dict[str, object]) -> None:
    """A piece for every second of sound; the whole, corrected, at the end."""
    assert hello["mode"] == "2pass" and hello["audio_fs"] == 16_000
    seconds = 0
    async for message in socket:
        if message.type is WSMsgType.BINARY:
            seconds += 1
            await socket.send_json({"mode": "2pass-online", "text": f"p{seconds} "})
        else:
            said = msgspec.json.decode(message.data)
            assert said == {"is_speaking": False, "is_end": True}
            text = f"all {seconds} for {hello['hotwords']}"
            await socket.send_json({"mode": "2pass-offline", "text": text, "is_final": True})


async def step(engine: FunAsr, session: FunAsrSession, *items: Sound | End) -> list[OutputEvent]:
    return [event async for event in engine.step(session, items)]


async def until_said(session: FunAsrSession) -> None:
    for _ in range(1000):
        if session.line is not None and not session.line.results.empty():
            return
        await asyncio.sleep(0.005)


async def test_pieces_are_partials_and_the_correction_is_final() -> None:
    async with serving(two_passes) as engine:
        session = await engine.open({"prompt": "forebay"}, Resume())
        assert await step(engine, session, SECOND) == []
        await until_said(session)
        assert await step(engine, session, SECOND) == [Partial(text="p1 ", start=0, end=32_000)]
        found = await step(engine, session, End())
        finals = [event for event in found if isinstance(event, Final)]
        assert finals == [Final(text="all 2 for forebay", start=0, end=32_000)]
        assert session.line is None
        await engine.close(session)


async def test_a_session_goes_on_after_an_end() -> None:
    async with serving(two_passes) as engine:
        session = await engine.open({"partials": False}, Resume())
        await step(engine, session, SECOND, End())
        found = await step(engine, session, SECOND, End())
        assert found == [Final(text="all 1 for ", start=16_000, end=32_000)]
        assert await step(engine, session, End()) == []
        await engine.close(session)


async def test_a_final_amid_speech_leaves_the_newest_sound_to_a_new_attempt() -> None:
    async def talk(socket: web.WebSocketResponse, hello: dict[str, object]) -> None:
        await socket.receive()
        await socket.send_json({"mode": "2pass-offline", "text": "one"})
        await socket.receive()

    async with serving(talk) as engine:
        session = await engine.open({}, Resume())
        await step(engine, session, SECOND)
        await until_said(session)
        assert await step(engine, session) == [Final(text="one", start=0, end=16_000 - 11_200)]
        await engine.close(session)


@pytest.mark.parametrize("python", [True, False], ids=["python", "c++"])
async def test_what_was_on_its_way_at_the_end_is_not_the_last_word(python: bool) -> None:
    async def talk(socket: web.WebSocketResponse, hello: dict[str, object]) -> None:
        async def say(mode: str, text: str, last: bool = False) -> None:
            final = not last if python else last
            await socket.send_json({"mode": f"2pass-{mode}", "text": text, "is_final": final})

        await socket.receive()
        await say("online", "one")
        await socket.receive()  # the end, which it has not looked at yet
        await say("offline", "One.")
        await asyncio.sleep(0.05)
        await say("online", " tw")
        await say("online", "o")
        await asyncio.sleep(0.05)
        await say("offline", " Two.", last=True)
        await socket.receive()

    async with serving(talk) as engine:
        session = await engine.open({"partials": False}, Resume())
        await step(engine, session, SECOND)
        await until_said(session)
        found = await step(engine, session, End())
        assert [event.text for event in found if isinstance(event, Final)] == ["One.", " Two."]
        assert session.line is None


async def test_a_server_that_marks_no_last_word_is_not_waited_for_long() -> None:
    async def talk(socket: web.WebSocketResponse, hello: dict[str, object]) -> None:
        await socket.receive()
        await socket.send_json({"mode": "2pass-online", "text": "one"})
        await socket.receive()
        await socket.send_json({"mode": "2pass-offline", "text": "One."})
        await socket.receive()

    async with serving(talk, timeout_s=600) as engine:
        session = await engine.open({"partials": False}, Resume())
        await step(engine, session, SECOND)
        await until_said(session)
        async with asyncio.timeout(30):
            found = await step(engine, session, End())
        assert [event.text for event in found if isinstance(event, Final)] == ["One."]


async def test_a_server_that_answers_the_end_itself_is_believed() -> None:
    async def talk(socket: web.WebSocketResponse, hello: dict[str, object]) -> None:
        await socket.receive()
        await socket.receive()
        await socket.send_json({"is_end": True, "is_final": True})
        await socket.receive()

    async with serving(talk, timeout_s=600) as engine:
        session = await engine.open({}, Resume())
        async with asyncio.timeout(30):
            assert await step(engine, session, SECOND, End()) == []


async def test_a_connection_that_breaks_is_an_error_of_this_session() -> None:
    async def talk(socket: web.WebSocketResponse, hello: dict[str, object]) -> None:
        await socket.close()

    async with serving(talk) as engine:
        session = await engine.open({}, Resume())
        with pytest.raises(UpstreamCut):
            for _ in range(50):
                await step(engine, session, SECOND)
                await asyncio.sleep(0.01)
        await engine.close(session)


async def test_a_server_without_a_last_word_is_given_up() -> None:
    async def talk(socket: web.WebSocketResponse, hello: dict[str, object]) -> None:
        async for _ in socket:
            pass

    async with serving(talk, timeout_s=0.1) as engine:
        session = await engine.open({}, Resume())
        with pytest.raises(UpstreamTimeout):
            await step(engine, session, SECOND, End())
        await engine.close(session)


async def test_nobody_at_the_address_is_said_at_start() -> None:
    with pytest.raises(CannotBoot):
        await load(FunAsr(url="ws://127.0.0.1:9", connect_timeout_s=0.5))
    with pytest.raises(ConfigError):
        FunAsr(url="http://127.0.0.1:9")

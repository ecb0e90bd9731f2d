"""What a session of the SDK does when its gateway leaves: where it goes, and when."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from forebay.client import ListenSession, SpeechSession

Talk = Callable[[web.WebSocketResponse], Any]


@asynccontextmanager
async def gateway(talk: Talk) -> AsyncIterator[str]:
    """A server that accepts a WebSocket and lets ``talk`` do the rest; its address."""

    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await talk(socket)
        return socket

    app = web.Application()
    app.router.add_get("/", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    yield f"ws://127.0.0.1:{port}/"
    await runner.cleanup()


async def started(socket: web.WebSocketResponse) -> dict[str, Any]:
    message = await socket.receive_json()
    await socket.send_json({"type": "started", "samples": 0, "resumed": False})
    return message


async def ended(socket: web.WebSocketResponse) -> None:
    await socket.send_json({"type": "ended", "event": 1, "state": "completed"})
    while (await socket.receive()).type not in (WSMsgType.CLOSE, WSMsgType.CLOSED):
        pass


async def test_the_next_url_is_tried_after_a_lost_connection() -> None:
    seen: list[str] = []

    async def leaves(socket: web.WebSocketResponse) -> None:
        seen.append((await started(socket))["session_id"])
        await socket.close(code=1012, message=b"going away, retry_after_ms=0")

    async def stays(socket: web.WebSocketResponse) -> None:
        seen.append((await started(socket))["session_id"])
        await ended(socket)

    async with gateway(leaves) as first, gateway(stays) as second:
        session = ListenSession([first, second])
        session.url = first
        async with session:
            async for _ in session:
                pass
        assert session.url == second
        assert seen == [session.state.session_id] * 2


async def test_a_url_that_does_not_answer_is_passed_over_at_the_beginning() -> None:
    async def talk(socket: web.WebSocketResponse) -> None:
        await started(socket)
        await ended(socket)

    async with gateway(talk) as there:
        session = ListenSession(["ws://127.0.0.1:1/", there])
        session.url = session.urls[0]
        async with session:
            async for _ in session:
                pass
        assert session.url == there


async def test_a_server_that_leaves_says_when_to_come_back_and_is_believed() -> None:
    left_at: list[float] = []
    back_at: list[float] = []

    async def talk(socket: web.WebSocketResponse) -> None:
        await started(socket)
        if not left_at:
            left_at.append(time.monotonic())
            await socket.close(code=1012, message=b"going away, retry_after_ms=300")
        else:
            back_at.append(time.monotonic())
            await ended(socket)

    async with gateway(talk) as url, ListenSession(url, backoff_s=0.0001) as session:
        async for _ in session:
            pass
    assert back_at[0] - left_at[0] >= 0.29


async def test_a_session_the_server_lost_is_begun_anew_with_what_was_not_heard() -> None:
    heard: list[dict[str, Any]] = []

    async def talk(socket: web.WebSocketResponse) -> None:
        start = await socket.receive_json()
        await socket.send_json({"type": "start_ack", "session_id": start["session_id"]})
        async for message in socket:
            heard.append(said := json.loads(message.data))
            if said["type"] != "text_delta":
                continue
            if len({m["session_id"] for m in heard}) == 1:
                await socket.send_json({"type": "error", "code": "state_lost"})
            else:
                await socket.send_json({"type": "tts_end"})

    async with gateway(talk) as url, SpeechSession(url, backoff_s=0.001) as voice:
        await voice.say("Hello.")
        async with asyncio.timeout(60):
            async for _ in voice:
                pass
    assert [m["text"] for m in heard if m["type"] == "text_delta"] == ["Hello."] * 2
    assert voice.state.restarts == 1


def test_a_session_needs_somewhere_to_go() -> None:
    with pytest.raises(Exception, match="at least one url"):
        SpeechSession([])

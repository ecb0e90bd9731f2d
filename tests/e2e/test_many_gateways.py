"""Two gateways and their workers around one real store, as processes: any may die."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from forebay.client import SpeechSession
from forebay.lab.chaos_cluster import SPEECH, Cluster, Server, until
from forebay.lab.chaos_people import Crowd, history


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster() as cluster:
        yield cluster


async def pair(cluster: Cluster) -> Server:
    return await cluster.serve("--broker", "redis", "--gateways", "2")


async def test_a_session_goes_on_at_another_gateway_when_its_own_is_killed(
    cluster: Cluster,
) -> None:
    server = await pair(cluster)
    text = "One sentence is here. Another one follows it. And a third."
    heard = ""
    async with SpeechSession(server.tts) as voice:
        await voice.say(text[:20])
        for gateway in server.gateways():  # the one that serves it is among them
            gateway.kill()
        await voice.say(text[20:])
        await voice.end()
        async with asyncio.timeout(60):
            async for chunk in voice:
                heard += chunk.text
    assert heard == text
    assert voice.resumed >= 1
    assert (voice.state.duplicates, voice.state.gaps) == (0, 0)


async def test_a_rolling_restart_replaces_every_process_and_no_session_notices(
    cluster: Cluster,
) -> None:
    server = await cluster.serve(
        "--broker", "redis", "--gateways", "2", env={"FOREBAY_SERVER_DRAIN_S": "4"}
    )
    before = {process.pid for process in (*server.gateways(), *server.workers())}
    crowd = Crowd(cluster.http, [server.tts], 4, 8.0)
    await crowd.begin()
    server.send(signal.SIGUSR2)
    await until(lambda: server.text('"supervisor.rolled"'), 60, "the end of the roll")
    after = {process.pid for process in (*server.gateways(), *server.workers())}
    assert len(after) == len(before)
    assert not after & before
    assert [c.what for c in history(await crowd.finish()) if c.held is False] == []


async def test_a_notebook_asked_at_another_gateway_shows_the_cell_that_runs(
    cluster: Cluster,
) -> None:
    kernel = ("--engine", f"speech={SPEECH}", "--engine", "kernel=synthetic")
    server = await cluster.serve("--broker", "redis", "--gateways", "2", *kernel)
    book = "across"

    async def execution(session: aiohttp.ClientSession) -> dict[str, Any]:
        # A connection of its own each: which gateway takes it is the system's choice.
        async with session.get(
            f"{server.http}/execution_status/{book}", headers={"connection": "close"}
        ) as answer:
            return await answer.json() | {"code": answer.status}

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        body = {"notebook_id": book, "code": "lines=300 every_ms=100"}
        running = asyncio.create_task(session.post(f"{server.http}/execute", json=body))
        for _ in range(200):
            if "line 1" in str((await execution(session)).get("outputs")):
                break
            await asyncio.sleep(0.1)
        seen = [await execution(session) for _ in range(12)]
        assert {said["status"] for said in seen} == {"running"}
        assert [s for s in seen if "line 1" not in str(s["outputs"])] == []
        assert all(0 < said["elapsed_time"] < 30 for said in seen)
        async with session.post(f"{server.http}/cancel_execution/{book}") as answer:
            assert (await answer.json())["status"] == "ok"
        assert (await (await running).json())["status"] == "cancelled"
        assert {(await execution(session))["status"] for _ in range(12)} == {"cancelled"}

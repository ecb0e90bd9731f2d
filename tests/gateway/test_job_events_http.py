"""Event streams over real sockets: resume, queue news, keep-alive, tenants, WebSockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from http_helpers import Stand, stand

from forebay.core.events import OutputEvent, Prompt, TextDelta
from forebay.core.kinds import Kind
from forebay.core.spec import Lease
from forebay.gateway import sse


@pytest.fixture(params=["ours", "stock"])
async def gateway(request: pytest.FixtureRequest) -> AsyncIterator[Stand]:
    async with stand(stock=request.param == "stock") as made:
        yield made


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def submit(at: Stand, tenant: str = "local") -> str:
    spec = at.ctx.spec(Kind.TEXT, {}, tenant=tenant, dialect="test", detach_s=60)
    items = [Prompt(messages=[{"role": "user", "content": "x"}])]
    return (await at.broker.submit(spec, items)).spec.id


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Events as (id, event, data), comments left out."""
    found: dict[str, Any] = {}
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if not line and found:
            yield found
            found = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            found[name] = json.loads(value) if name == "data" else value


async def all_of(response: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    return [event async for event in events(response)]


def gated(count: int, go: asyncio.Event) -> Any:
    async def script(lease: Lease) -> AsyncIterator[OutputEvent]:
        for number in range(count):
            if number == 2:
                await go.wait()
            yield TextDelta(text=f"{number} ")

    return script


async def test_a_stream_tells_everything_once_and_ends(gateway: Stand, client: Any) -> None:
    job = await submit(gateway)
    async with client.get(f"{gateway.url}/v1/jobs/{job}/events") as response:
        got = await all_of(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert got[0]["event"] == "job"
    assert "id" not in got[0]
    stored = [event for event in got if "id" in event]
    assert [e["event"] for e in stored] == ["delta"] * 3 + ["usage", "ended"]
    assert [e["id"].split(":")[1] for e in stored] == ["1", "2", "3", "4", "5"]
    assert stored[-1]["data"]["state"] == "completed"


async def test_a_client_goes_on_where_it_was(gateway: Stand, client: Any) -> None:
    go = asyncio.Event()
    gateway.text.script = gated(4, go)
    job = await submit(gateway)
    url = f"{gateway.url}/v1/jobs/{job}/events"
    last = ""
    async with client.get(url) as response:
        async for event in events(response):
            last = event.get("id", last)
            if event["event"] == "delta" and event["data"]["offset"] == 2:
                break
    go.set()
    async with client.get(url, headers={"Last-Event-ID": last}) as response:
        got = await all_of(response)
    assert [e["data"]["offset"] for e in got if "id" in e] == [3, 4, 5]
    async with client.get(url, params={"after": "3"}) as response:
        assert [e["data"]["offset"] for e in await all_of(response) if "id" in e] == [4, 5]
    # the header, which a browser sends by itself, is newer than the address
    async with client.get(f"{url}?after=1", headers={"Last-Event-ID": got[-2]["id"]}) as response:
        assert [e["data"]["offset"] for e in await all_of(response) if "id" in e] == [5]
    async with client.get(url, headers={"Last-Event-ID": got[-1]["id"]}) as response:
        assert response.status == 204


async def test_a_position_that_cannot_be_answered_is_refused_by_name(
    gateway: Stand, client: Any
) -> None:
    job = await submit(gateway)
    url = f"{gateway.url}/v1/jobs/{job}/events"
    for after, status, code in (
        ("other:1", 410, "resume_not_available"),
        ("99", 410, "resume_not_available"),
        ("x", 400, "bad_request"),
    ):
        async with client.get(url, params={"after": after}) as response:
            assert response.status == status
            assert (await response.json())["error"]["code"] == code


async def test_another_tenants_job_is_not_there(client: Any) -> None:
    async with stand() as at:
        job = await submit(at, tenant="someone")
        for name in (job, "f" * 32):
            async with client.get(f"{at.url}/v1/jobs/{name}/events") as response:
                assert response.status == 404
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await client.ws_connect(f"{at.url}/v1/jobs/{name}/ws")
            assert refused.value.status == 404


async def test_who_waits_hears_its_place_and_then_that_it_runs(client: Any) -> None:
    async with stand() as at:
        go = asyncio.Event()
        at.text.script = gated(3, go)
        for _ in range(4):
            await submit(at)
        job = await submit(at)  # the player has four slots
        got = []
        async with client.get(f"{at.url}/v1/jobs/{job}/events") as response:
            async for event in events(response):
                got.append(event)
                if event["event"] == "queued":
                    go.set()
    names = [event["event"] for event in got]
    assert names[:2] == ["job", "queued"]
    assert got[1]["data"]["position"] == 1
    assert "running" in names
    assert names[-1] == "ended"
    assert all("id" not in e for e in got if e["event"] in ("job", "queued", "running"))


async def test_silence_is_filled_with_comments(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stand() as at:
        go = asyncio.Event()
        at.text.script = gated(3, go)

        monkeypatch.setattr(
            sse.serve_events, "__kwdefaults__", {"keepalive_s": 0.02, "headers": None}
        )
        job = await submit(at)
        async with client.get(f"{at.url}/v1/jobs/{job}/events") as response:
            text = b""
            while b": still here" not in text:
                text += await response.content.readany()
            go.set()
            text += await response.content.read()
    assert b"event: ended" in text


async def test_leaving_a_stream_ends_nothing(gateway: Stand, client: Any) -> None:
    go = asyncio.Event()
    gateway.text.script = gated(4, go)
    job = await submit(gateway)
    async with client.get(f"{gateway.url}/v1/jobs/{job}/events") as response:
        await response.content.readline()
    for _ in range(200):
        if gateway.ctx.hub.readers(job) == 0:
            break
        await asyncio.sleep(0.01)
    assert gateway.ctx.hub.readers(job) == 0
    assert (await gateway.broker.status(job)).state == "running"
    go.set()


async def test_a_websocket_has_the_same_events(gateway: Stand, client: Any) -> None:
    job = await submit(gateway)
    async with client.ws_connect(f"{gateway.url}/v1/jobs/{job}/ws") as socket:
        got = [json.loads(message.data) async for message in socket]
        assert socket.close_code == 1000
    assert [e["type"] for e in got] == ["job", "delta", "delta", "delta", "usage", "ended"]
    assert got[1]["id"].endswith(":1")
    async with client.ws_connect(f"{gateway.url}/v1/jobs/{job}/ws?after=4") as socket:
        await socket.send_str("anything")
        assert [json.loads(m.data)["type"] async for m in socket] == ["job", "ended"]


async def test_a_websocket_that_is_left_gives_the_job_back(gateway: Stand, client: Any) -> None:
    go = asyncio.Event()
    gateway.text.script = gated(4, go)
    job = await submit(gateway)
    async with client.ws_connect(f"{gateway.url}/v1/jobs/{job}/ws") as socket:
        await socket.receive()
    for _ in range(200):
        if gateway.ctx.hub.readers(job) == 0:
            break
        await asyncio.sleep(0.01)
    assert gateway.ctx.hub.readers(job) == 0
    go.set()


async def test_a_shutdown_sends_readers_away_to_come_back(client: Any) -> None:
    async with stand() as at:
        go = asyncio.Event()
        at.text.script = gated(4, go)
        job = await submit(at)
        async with (
            client.get(f"{at.url}/v1/jobs/{job}/events") as response,
            client.ws_connect(f"{at.url}/v1/jobs/{job}/ws") as socket,
        ):
            await response.content.readline()
            await socket.receive()
            for tell in tuple(at.ctx.drain_watchers):
                tell()
            names = [event.get("event") for event in await all_of(response)]
            while not (message := await socket.receive()).type == aiohttp.WSMsgType.CLOSE:
                assert message.type == aiohttp.WSMsgType.TEXT
            assert message.data == 1012
        assert "ended" not in names
        go.set()

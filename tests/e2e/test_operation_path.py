"""`forebay serve` for notebook front ends: port 18600's manners, every upstream fault, a killed
worker, and a background response, over real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import aiohttp
import openai
import pytest
from benchmarks.harness import Server, free_port, serving
from test_openai_path import MODEL, Upstream

QUESTION = {
    "notebook_id": "t1", "operation": {"type": "user_question", "payload": {"QId": ["q"]}}
}  # fmt: skip


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


@pytest.fixture(scope="module")
def notebook_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(upstream: Upstream, notebook_port: int) -> Iterator[Server]:
    text = (
        f"text=openai:base_url={upstream.fake.url},model={MODEL},prefix=yes,connect_retries=0,"
        "first_token_timeout_s=1,stall_timeout_s=0.5"
    )
    env = {**os.environ, "FOREBAY_COMPAT_NOTEBOOK_PORT": str(notebook_port)}
    arguments = ("--engine", text, "--workers", "speech=0", "--compat", "notebook")
    with serving(*arguments, env=env) as running:
        yield running


@pytest.fixture(autouse=True)
def normal(upstream: Upstream) -> Iterator[None]:
    yield
    upstream.fake.mode, upstream.fake.tokens, upstream.fake.interval_s = "normal", 20, 0.01


async def operate(url: str, **headers: str) -> list[Any]:
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/send_operation", json=QUESTION, headers=headers) as answer,
    ):
        assert answer.status == 200
        return [json.loads(line) async for line in answer.content if line.strip()]


def said(events: list[Any]) -> str:
    return "".join(
        e["data"]["payload"]["content"] for e in events if e["type"] == "addContentToAnswer"
    )


async def test_the_port_that_front_ends_hard_code_answers_them(
    server: Server, upstream: Upstream, notebook_port: int
) -> None:
    url = f"http://127.0.0.1:{notebook_port}"
    events = await operate(url)
    assert said(events) == "".join(upstream.fake.words())
    assert events[-1]["type"] == "ok"
    origin = {"Origin": "http://localhost:3000"}
    async with aiohttp.ClientSession() as http:
        asked = {**origin, "Access-Control-Request-Method": "POST"}
        async with http.options(f"{url}/send_operation", headers=asked) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
        async with http.get(url) as answer:
            assert (await answer.json())["port"] == "notebook"


@pytest.mark.parametrize(
    ("mode", "begins"),
    [
        ("rate_limited", False),
        ("stall_first", False),
        ("stall_mid", True),
        ("garbage_line", False),
        ("cut", True),
        ("no_done", True),
        ("html", False),
    ],
)
async def test_whatever_the_model_server_does_the_stream_is_closed_with_a_reason(
    server: Server, upstream: Upstream, mode: str, begins: bool
) -> None:
    upstream.fake.mode = mode
    calls = upstream.fake.calls
    async with asyncio.timeout(60):
        events = await operate(server.http)
    kinds = [event["type"] for event in events]
    assert kinds[0] == "initStreamingAnswer"
    assert kinds[-1] == "ok"
    assert (kinds[-2] == "error") or mode == "no_done"
    if kinds[-2] == "error":
        assert events[-2]["payload"]["error"] == events[-2]["error"] != ""
        assert "finishStreamingAnswer" not in kinds
    if begins:
        assert said(events)
        assert upstream.fake.calls == calls + 1


async def test_leaving_reaches_the_model_server(server: Server, upstream: Upstream) -> None:
    upstream.fake.tokens = 1000
    closed = upstream.fake.closed_early
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{server.http}/send_operation", json=QUESTION) as answer,
    ):
        await answer.content.readline()
        await answer.content.readline()
    async with asyncio.timeout(60):
        while upstream.fake.closed_early == closed:  # noqa: ASYNC110 - another thread's count
            await asyncio.sleep(0.01)


async def test_a_killed_worker_and_a_lost_connection_cost_no_character(
    server: Server, upstream: Upstream
) -> None:
    server.wait_spares()
    upstream.fake.tokens, upstream.fake.interval_s = 150, 0.01
    seen: list[Any] = []
    async with aiohttp.ClientSession() as http:
        head = {"X-Forebay-Stream": "new"}
        url = f"{server.http}/send_operation"
        async with http.post(url, json=QUESTION, headers=head) as answer:
            name = answer.headers["X-Forebay-Stream"]
            while len(seen) < 20:
                seen.append(json.loads(await answer.content.readline()))
        os.kill(server.regular_worker("text").pid, signal.SIGKILL)
        async with http.get(f"{url}/{name}?after={seen[-1]['id']}") as answer:
            rest = [json.loads(line) async for line in answer.content if line.strip()]
    assert said(seen) + said(rest) == "".join(upstream.fake.words())
    assert rest[-2]["data"]["payload"]["response"] == "".join(upstream.fake.words())


async def test_a_background_response_is_read_again_through_all_processes(
    server: Server, upstream: Upstream
) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.http}/v1", api_key="none") as sdk:
        stream = await sdk.responses.create(
            model=MODEL, input="count", stream=True, background=True
        )
        seen: list[Any] = []
        async for event in stream:
            seen.append(event)
            if len(seen) == 8:
                break
        await stream.close()
        rest: list[Any] = [
            event
            async for event in await sdk.responses.retrieve(
                seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number
            )
        ]
    deltas = [e.delta for e in (*seen, *rest) if e.type == "response.output_text.delta"]
    assert "".join(deltas) == "".join(upstream.fake.words())

"""OpenAI's Responses through its own SDK, unmodified: streamed, whole, in the background."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from http_helpers import Player, Stand, stand

from forebay.broker.journal import Journal
from forebay.broker.local import LocalBroker, Settings
from forebay.core.events import OutputEvent, Prompt, TextDelta, ToolCalls, Usage
from forebay.core.kinds import Kind
from forebay.core.spec import Lease, WorkerInfo
from forebay.errors import UpstreamCut
from forebay.gateway.app import GatewayApp
from forebay.gateway.auth import Auth
from forebay.gateway.context import GatewayContext
from forebay.gateway.endpoints import routes
from forebay.gateway.hub import Hub
from forebay.gateway.metrics import GatewayMetrics
from forebay.gateway.options import GatewayOptions
from forebay.gateway.personality import MAIN
from forebay.gateway.server import GatewayServer

WORDS = [f"w{number} " for number in range(30)]


@pytest.fixture
async def gateway() -> AsyncIterator[Stand]:
    async with stand() as made:
        yield made


@pytest.fixture
async def sdk(gateway: Stand) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as c:
        yield c


class Halting:
    """Says ten words, waits for ``go_on``, says the rest."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, lease: Lease) -> AsyncIterator[OutputEvent]:
        for number, word in enumerate(WORDS):
            if number == 10:
                await self.go_on.wait()
            yield TextDelta(text=word)
        yield Usage(prompt_tokens=3, completion_tokens=30)


async def test_an_answer_comes_whole_and_streamed(sdk: openai.AsyncOpenAI) -> None:
    whole = await sdk.responses.create(model="tiny", input="count", instructions="slowly")
    assert whole.output_text == "one two three"
    assert (whole.status, whole.usage and whole.usage.total_tokens) == ("completed", 7)
    stream = await sdk.responses.create(model="tiny", input="count", stream=True)
    events = [event async for event in stream]
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    last: Any = events[-1]
    assert last.response.output_text == "one two three"
    found = await sdk.responses.retrieve(last.response.id)
    assert found.output_text == "one two three"
    assert found.status == "completed"


async def test_the_sdks_own_accumulator_agrees(sdk: openai.AsyncOpenAI) -> None:
    async with sdk.responses.stream(model="tiny", input="count") as stream:
        text = "".join([e.delta async for e in stream if e.type == "response.output_text.delta"])
        final = await stream.get_final_response()
    assert text == final.output_text == "one two three"


async def test_a_conversation_and_tools_reach_the_model(
    sdk: openai.AsyncOpenAI, gateway: Stand
) -> None:
    async def calling(lease: Lease) -> AsyncIterator[OutputEvent]:
        call = {"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"a":1}'}}
        yield ToolCalls(calls=[call], delta=[call])
        yield Usage(prompt_tokens=3, completion_tokens=2, finish="tool_calls")

    gateway.text.script = calling
    conversation: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "1+1"}]},
        {"type": "function_call", "call_id": "c0", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c0", "output": "2"},
    ]
    tool: Any = {"type": "function", "name": "add", "parameters": {}, "strict": False}
    got = await sdk.responses.create(model="tiny", input=conversation, tools=[tool])
    item: Any = got.output[0]
    assert (item.type, item.call_id, item.name, item.arguments) == (
        "function_call", "c1", "add", '{"a":1}'
    )  # fmt: skip
    messages = gateway.text.leases[-1].input[0].messages
    assert [m["role"] for m in messages] == ["user", "assistant", "tool"]
    stream = await sdk.responses.create(model="tiny", input="x", tools=[tool], stream=True)
    events = [event async for event in stream]
    assert "response.function_call_arguments.done" in [event.type for event in events]


async def test_an_answer_cut_by_its_length_is_incomplete(
    sdk: openai.AsyncOpenAI, gateway: Stand
) -> None:
    async def cut(lease: Lease) -> AsyncIterator[OutputEvent]:
        yield TextDelta(text="so")
        yield Usage(prompt_tokens=3, completion_tokens=1, finish="length")

    gateway.text.script = cut
    got = await sdk.responses.create(model="tiny", input="x", max_output_tokens=1)
    assert got.status == "incomplete"
    assert got.incomplete_details is not None
    assert got.incomplete_details.reason == "max_output_tokens"
    stream = await sdk.responses.create(model="tiny", input="x", stream=True)
    assert [event.type async for event in stream][-1] == "response.incomplete"


async def test_a_background_answer_goes_on_alone_and_is_read_from_any_position(
    sdk: openai.AsyncOpenAI, gateway: Stand
) -> None:
    gateway.text.script = halting = Halting()
    stream = await sdk.responses.create(model="tiny", input="x", stream=True, background=True)
    seen: list[Any] = []
    async for event in stream:
        seen.append(event)
        if len(seen) == 9:
            break
    await stream.close()
    response = seen[0].response
    assert response.background is True
    assert (await sdk.responses.retrieve(response.id)).status == "in_progress"
    halting.go_on.set()
    after = seen[-1].sequence_number
    rest: list[Any] = [
        event
        async for event in await sdk.responses.retrieve(
            response.id, stream=True, starting_after=after
        )
    ]
    deltas = [e.delta for e in (*seen, *rest) if e.type == "response.output_text.delta"]
    assert deltas == WORDS
    numbers = [event.sequence_number for event in (*seen, *rest)]
    assert numbers == sorted(set(numbers))
    whole: list[Any] = [e async for e in await sdk.responses.retrieve(response.id, stream=True)]
    assert [e.sequence_number for e in whole] == numbers
    assert whole[-1].response.output_text == "".join(WORDS)


@asynccontextmanager
async def beside(gateway: Stand) -> AsyncIterator[str]:
    """A second gateway on the same broker; its address."""
    options, metrics = GatewayOptions(), GatewayMetrics()
    async with Hub(gateway.broker, "g2", asyncio.get_running_loop().time) as hub:
        ctx = GatewayContext(
            broker=gateway.broker, hub=hub, gateway_id="g2", metrics=metrics, options=options,
            auth=Auth(options),
        )  # fmt: skip
        server = GatewayServer(GatewayApp(ctx, routes()), options, metrics)
        await server.start([(socket.create_server(("127.0.0.1", 0)), MAIN)])
        try:
            yield f"http://127.0.0.1:{server.ports['main']}"
        finally:
            await server.close()


async def test_an_answer_deleted_at_one_gateway_is_gone_at_the_other(gateway: Stand) -> None:
    async with (
        beside(gateway) as other,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as one,
        openai.AsyncOpenAI(base_url=f"{other}/v1", api_key="x", max_retries=0) as two,
    ):
        whole = await one.responses.create(model="tiny", input="x")
        assert (await two.responses.retrieve(whole.id)).output_text == "one two three"
        gateway.text.script = Halting()
        running = await one.responses.create(model="tiny", input="x", background=True)
        for response in (whole, running):
            await two.responses.delete(response.id)
            for sdk in (one, two):
                with pytest.raises(openai.NotFoundError):
                    await sdk.responses.retrieve(response.id)
                with pytest.raises(openai.NotFoundError):
                    await sdk.responses.cancel(response.id)
                with pytest.raises(openai.NotFoundError):
                    await sdk.responses.delete(response.id)


async def test_another_gateway_goes_on_where_the_first_one_stopped(gateway: Stand) -> None:
    """Two gateways on one broker; the answer is begun at one, read on and stopped at the other."""
    gateway.text.script = halting = Halting()
    async with beside(gateway) as other:
        async with (
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x") as one,
            openai.AsyncOpenAI(base_url=f"{other}/v1", api_key="x") as two,
            aiohttp.ClientSession() as http,
        ):
            begun = await one.responses.create(
                model="tiny", input="x", stream=True, background=True
            )
            seen: list[Any] = []
            async for event in begun:
                seen.append(event)
                if len(seen) == 9:
                    break
            job = seen[0].response.id
            halting.go_on.set()
            rest: list[Any] = [
                e
                async for e in await two.responses.retrieve(
                    job, stream=True, starting_after=seen[-1].sequence_number
                )
            ]
            await begun.close()
            question = {"notebook_id": "n", "operation": {
                "type": "user_question", "payload": {"QId": "q"}}}  # fmt: skip
            head = {"X-Forebay-Stream": "new"}
            url = f"{gateway.url}/send_operation"
            async with http.post(url, json=question, headers=head) as answer:
                name = answer.headers["X-Forebay-Stream"]
                first = [await answer.content.readline() for _ in range(4)]
            after = json.loads(first[-1])["id"]
            async with http.get(f"{other}/send_operation/{name}?after={after}") as answer:
                lines = [*first, *[line async for line in answer.content if line.strip()]]
    deltas = [e.delta for e in (*seen, *rest) if e.type == "response.output_text.delta"]
    assert deltas == WORDS
    content = [json.loads(line)["data"].get("payload", {}).get("content", "") for line in lines]
    assert "".join(content) == "".join(WORDS)


async def test_a_background_answer_is_polled_cancelled_and_deleted(
    sdk: openai.AsyncOpenAI, gateway: Stand
) -> None:
    gateway.text.script = Halting()
    begun = await sdk.responses.create(model="tiny", input="x", background=True)
    assert begun.status in ("queued", "in_progress")
    ended = await sdk.responses.cancel(begun.id)
    assert ended.status == "cancelled"
    events = [e async for e in await sdk.responses.retrieve(begun.id, stream=True)]
    last: Any = events[-1]
    assert (last.type, last.response.status) == ("response.failed", "cancelled")
    await sdk.responses.delete(begun.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.retrieve(begun.id)


async def test_a_chat_with_a_handle_goes_on_and_is_read_where_it_stopped(
    gateway: Stand, sdk: openai.AsyncOpenAI
) -> None:
    gateway.text.script = halting = Halting()
    messages: Any = [{"role": "user", "content": "x"}]
    body = {"messages": messages, "stream": True}
    async with aiohttp.ClientSession() as http:
        head = {"X-Forebay-Stream": "new"}
        url = f"{gateway.url}/v1/chat/completions"
        async with http.post(url, json=body, headers=head) as answer:
            job, place, text = answer.headers["X-Forebay-Job"], "", ""
            async for raw in answer.content:
                line = raw.decode().strip()
                if line.startswith("id: "):
                    place = line[4:]
                elif line.startswith("data: "):
                    text += json.loads(line[6:])["choices"][0]["delta"]["content"]
                    if text.endswith("w7 "):
                        break
            answer.close()
        halting.go_on.set()
        events = f"{gateway.url}/v1/jobs/{job}/events"
        async with http.get(events, headers={"Last-Event-ID": place}) as answer:
            async for raw in answer.content:
                line = raw.decode().strip()
                if line.startswith("data: "):
                    text += json.loads(line[6:]).get("text") or ""
    assert text == "".join(WORDS)
    stream = await sdk.chat.completions.create(
        model="tiny", messages=messages, stream=True, extra_headers=head
    )
    whole = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(whole) == "".join(WORDS)


async def test_leaving_a_plain_answer_stops_the_model(
    sdk: openai.AsyncOpenAI, gateway: Stand
) -> None:
    gateway.text.script = Halting()
    stream = await sdk.responses.create(model="tiny", input="x", stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    async with asyncio.timeout(60):
        await gateway.text.stopped.wait()


async def test_failures_have_the_sdks_own_shapes(sdk: openai.AsyncOpenAI, gateway: Stand) -> None:
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.retrieve("resp_" + "0" * 32)
    with pytest.raises(openai.BadRequestError):
        await sdk.responses.retrieve("nonsense")
    with pytest.raises(openai.APIStatusError, match="previous_response_id"):
        await sdk.responses.create(model="tiny", input="x", previous_response_id="resp_1")

    async def broken(lease: Lease) -> AsyncIterator[OutputEvent]:
        yield TextDelta(text="so")
        raise UpstreamCut("model server broke off")

    gateway.text.script = broken
    with pytest.raises(openai.APIStatusError, match="broke off"):
        await sdk.responses.create(model="tiny", input="x")
    stream = await sdk.responses.create(model="tiny", input="x", stream=True, background=True)
    events = [event async for event in stream]
    failed: Any = events[-1]
    assert failed.type == "response.failed"
    assert failed.response.error.code == "upstream_cut"
    kept = await sdk.responses.retrieve(failed.response.id)
    assert (kept.status, kept.output_text) == ("failed", "so")


async def test_another_tenants_response_is_not_there(gateway: Stand) -> None:
    kept = {"response": {"created_at": 1}}
    spec = gateway.ctx.spec(
        Kind.TEXT, kept, tenant="somebody", dialect="openai-responses", detach_s=60
    )
    await gateway.broker.submit(spec, [Prompt(messages=[])])
    async with aiohttp.ClientSession() as http:
        for path in ("responses/resp_{}", "responses/resp_{}?stream=true", "jobs/{}/events"):
            async with http.get(f"{gateway.url}/v1/{path.format(spec.id)}") as answer:
                assert answer.status == 404


async def test_a_background_answer_survives_the_gateway(tmp_path: Path) -> None:
    """Killed in the middle, come back from the journal, resumed at the same number."""
    halting = Halting()
    async with _gateway(tmp_path) as (url, player, _):
        player.script = halting
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as sdk:
            begun = await sdk.responses.create(model="tiny", input="x", background=True)
            seen: list[Any] = []
            async for event in await sdk.responses.retrieve(begun.id, stream=True):
                seen.append(event)
                if len(seen) == 14:
                    break
    async with _gateway(tmp_path) as (url, player, leased):
        halting.go_on.set()

        async def rest(lease: Lease) -> AsyncIterator[OutputEvent]:
            leased.append(lease)
            for word in WORDS[len(lease.text.split()) :]:
                yield TextDelta(text=word)
            yield Usage(prompt_tokens=3, completion_tokens=30)

        player.script = rest
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as sdk:
            again = [
                e
                async for e in await sdk.responses.retrieve(
                    begun.id, stream=True, starting_after=seen[-1].sequence_number
                )
            ]
    assert leased[0].attempt == 2
    deltas = [e.delta for e in (*seen, *again) if e.type == "response.output_text.delta"]
    assert "".join(deltas) == "".join(WORDS)


@asynccontextmanager
async def _gateway(folder: Path) -> AsyncIterator[tuple[str, Player, list[Lease]]]:
    journal = Journal(folder)
    broker = LocalBroker(Settings(), journal=journal)
    options, metrics = GatewayOptions(), GatewayMetrics()
    async with Hub(broker, "g1", asyncio.get_running_loop().time) as hub:
        ctx = GatewayContext(
            broker=broker, hub=hub, gateway_id="g1", metrics=metrics, options=options,
            auth=Auth(options),
        )  # fmt: skip
        server = GatewayServer(GatewayApp(ctx, routes()), options, metrics)
        player = Player(broker, "text/tiny")
        going_on = WorkerInfo(
            id="player-text/tiny", pools=["text/tiny"], slots=4, sessions=4,
            capabilities=["prefix"],
        )  # fmt: skip
        broker.worker_register(going_on)
        await server.start([(socket.create_server(("127.0.0.1", 0)), MAIN)])
        try:
            yield f"http://127.0.0.1:{server.ports['main']}", player, []
        finally:
            await server.close()
            await player.close()
            journal.close()

"""`/send_operation` on a real server: order, headers, errors, leaving and coming back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from http_helpers import Stand, stand

from forebay.core.events import OutputEvent, TextDelta, Usage
from forebay.core.spec import Lease
from forebay.errors import UpstreamCut
from forebay.gateway.context import OperationOptions


@pytest.fixture
async def gateway() -> AsyncIterator[Stand]:
    async with stand() as made:
        yield made


def asked(kind: str, payload: Any = None, **more: Any) -> dict[str, Any]:
    operation = {"type": kind, "payload": payload or {}}
    return {"notebook_id": "test", "operation": operation, **more}


QUESTION = asked("user_question", {"QId": "q1", "content": "the test notebook?"})


async def told(gateway: Stand, body: Any, **headers: str) -> tuple[aiohttp.ClientResponse, Any]:
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{gateway.url}/send_operation", json=body, headers=headers) as answer,
    ):
        text = await answer.text()
        return answer, [json.loads(line) for line in text.split("\n") if line.strip()]


async def test_every_kind_of_operation_ends_with_ok(gateway: Stand) -> None:
    """The notebook is called "test" and the text says so: nothing is dropped for it."""
    for kind, first in (
        ("ping", "ok"),
        ("user_question", "initStreamingAnswer"),
        ("user_command", "addCell2EndWithContent"),
        ("code_output", "addNewContent2CurrentCellDescription"),
        ("code_error_should_debug", "convertCurrentCodeCellToHybridCell"),
        ("check_video_generation_status", "video_generation_status_update"),
        ("dance", "error"),
    ):
        answer, events = await told(gateway, asked(kind, {"QId": ["q"], "commandId": "c"}))
        assert answer.status == 200
        assert events[0]["type"] == first
        assert events[-1]["type"] == "ok"


async def test_headers_are_those_a_stream_needs_and_no_others(gateway: Stand) -> None:
    answer, _ = await told(gateway, QUESTION)
    head = answer.headers
    assert head["Content-Type"] == "application/json"
    assert head["Cache-Control"] == "no-cache, no-store, must-revalidate, proxy-revalidate"
    assert (head["Pragma"], head["Expires"], head["X-Accel-Buffering"]) == ("no-cache", "0", "no")
    assert head["Connection"] == "keep-alive"
    assert head["X-Content-Type-Options"] == "nosniff"
    assert head.getall("Transfer-Encoding") == ["chunked"]
    for harmful in ("Content-Encoding", "ETag", "Keep-Alive", "X-Forebay-Stream"):
        assert harmful not in head


async def test_a_connection_that_its_client_closes_is_not_promised_to_be_kept(
    gateway: Stand,
) -> None:
    answer, events = await told(gateway, QUESTION, Connection="close")
    assert answer.headers.getall("Connection") == ["close"]
    assert events[-1]["type"] == "ok"


async def test_the_first_line_does_not_wait_for_the_model(gateway: Stand) -> None:
    go_on = asyncio.Event()

    async def slow(lease: Lease) -> AsyncIterator[OutputEvent]:
        await go_on.wait()
        yield TextDelta(text="late")

    gateway.text.script = slow
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{gateway.url}/send_operation", json=QUESTION) as answer,
    ):
        assert b"initStreamingAnswer" in await answer.content.readline()
        go_on.set()
        assert b"late" in await answer.content.readline()


async def test_a_silent_stream_gets_blank_lines() -> None:
    async def silent(lease: Lease) -> AsyncIterator[OutputEvent]:
        await asyncio.sleep(0.3)
        yield TextDelta(text="late")

    async with stand(operations=OperationOptions(heartbeat_s=0.05)) as gateway:
        gateway.text.script = silent
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{gateway.url}/send_operation", json=QUESTION) as answer,
        ):
            await answer.content.readline()
            assert await answer.content.readline() == b"\n"
            rest = (await answer.read()).strip().split(b"\n")
        assert json.loads(rest[-1])["type"] == "ok"


async def test_failures_are_told_in_the_stream_and_close_it(gateway: Stand) -> None:
    async def broken(lease: Lease) -> AsyncIterator[OutputEvent]:
        yield TextDelta(text="so ")
        raise UpstreamCut("model server broke off")

    gateway.text.script = broken
    answer, events = await told(gateway, {**QUESTION, "lang": "zh"})
    assert answer.status == 200
    assert [e["type"] for e in events][-2:] == ["error", "ok"]
    assert events[-2]["error"] == "模型服务器中断了回答（model server broke off）"
    _, events = await told(gateway, asked("user_question", {"content": "?"}))
    assert [e["type"] for e in events] == ["error", "ok"]
    assert "QId" in events[0]["payload"]["error"]


async def test_what_cannot_be_read_is_refused_with_a_message(gateway: Stand) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{gateway.url}/send_operation", data=b"{") as answer:
            assert answer.status == 400
            assert "json" in (await answer.json())["message"]
        async with http.get(f"{gateway.url}/send_operation/nobody") as answer:
            assert answer.status == 404
            assert "message" in await answer.json()


async def test_leaving_stops_the_model(gateway: Stand) -> None:
    async def endless(lease: Lease) -> AsyncIterator[OutputEvent]:
        while True:
            yield TextDelta(text="on ")
            await asyncio.sleep(0.01)

    gateway.text.script = endless
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{gateway.url}/send_operation", json=QUESTION) as answer:
            await answer.content.readline()
            await answer.content.readline()
    async with asyncio.timeout(60):
        await gateway.text.stopped.wait()


async def test_with_a_handle_leaving_is_not_the_end_and_nothing_is_lost(gateway: Stand) -> None:
    go_on = asyncio.Event()

    async def counting(lease: Lease) -> AsyncIterator[OutputEvent]:
        for number in range(20):
            if number == 8:
                await go_on.wait()
            yield TextDelta(text=f"{number} ")
        yield Usage(prompt_tokens=1, completion_tokens=20)

    gateway.text.script = counting
    url = f"{gateway.url}/send_operation"
    async with aiohttp.ClientSession() as http:
        head = {"X-Forebay-Stream": "new"}
        async with http.post(url, json=QUESTION, headers=head) as answer:
            stream = answer.headers["X-Forebay-Stream"]
            first = [json.loads(await answer.content.readline()) for _ in range(5)]
        go_on.set()
        after = str(first[-1]["id"])
        async with http.get(f"{url}/{stream}?after={after}") as answer:
            assert answer.headers["X-Forebay-Stream"] == stream
            rest = [json.loads(line) async for line in answer.content if line.strip()]
        async with http.get(f"{url}/{stream}", headers={"Last-Event-ID": after}) as answer:
            again = [json.loads(line) async for line in answer.content if line.strip()]
        async with http.get(f"{url}/{stream}?after=x") as answer:
            assert answer.status == 400

    def text(events: list[Any]) -> str:
        return "".join(
            e["data"]["payload"]["content"] for e in events if e["type"] == "addContentToAnswer"
        )

    assert text(first) + text(rest) == "".join(f"{n} " for n in range(20))
    assert text(again) == text(rest)
    assert [e["type"] for e in rest][-2:] == ["finishStreamingAnswer", "ok"]
    assert not gateway.text.cancelled


async def test_text_waits_by_the_rule_and_never_past_its_deadline() -> None:
    """Fifteen pieces at once, then a pause: the original would have kept the last ones back."""
    go_on = asyncio.Event()

    async def bursts(lease: Lease) -> AsyncIterator[OutputEvent]:
        for number in range(33):
            yield TextDelta(text=f"{number} ")
        await go_on.wait()

    options = OperationOptions(flush_interval_ms=500, flush_items=15, flush_cap=20)
    async with stand(operations=options) as gateway:
        gateway.text.script = bursts
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{gateway.url}/send_operation", json=QUESTION) as answer,
        ):
            await answer.content.readline()
            pieces: list[str] = []
            async with asyncio.timeout(60):
                while sum(len(piece.split()) for piece in pieces) < 33:
                    event = json.loads(await answer.content.readline())
                    pieces.append(event["data"]["payload"]["content"])
            go_on.set()
            rest = await answer.read()
    assert [len(piece.split()) for piece in pieces] == [1, 15, 15, 2]
    assert "".join(pieces) == "".join(f"{n} " for n in range(33))
    assert rest.count(b"\n") == 2


async def test_past_the_limit_operations_are_refused_with_a_time() -> None:
    async def forever(lease: Lease) -> AsyncIterator[OutputEvent]:
        await asyncio.Event().wait()
        yield TextDelta(text="")

    async with stand(operations=OperationOptions(concurrency=1)) as gateway:
        gateway.text.script = forever
        async with aiohttp.ClientSession() as http:
            async with http.post(f"{gateway.url}/send_operation", json=QUESTION) as first:
                await first.content.readline()
                answer, events = await told(gateway, asked("ping"))
                assert answer.status == 503
                assert answer.headers["Retry-After"] in ("1", "2")
                assert "expected no more than 1" in events[0]["message"]
        async with asyncio.timeout(60):
            while (await told(gateway, asked("ping")))[0].status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

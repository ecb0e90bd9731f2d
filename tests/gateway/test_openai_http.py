"""OpenAI's surfaces over real sockets: what a client sees, whole, streamed and broken."""

from __future__ import annotations

import asyncio
import io
import json
import wave
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from http_helpers import Stand, stand, words

from forebay.core.events import Audio, Notice, OutputEvent, TextDelta, ToolCalls, Usage
from forebay.core.spec import Lease
from forebay.errors import PromptTooLong, UpstreamCut, UpstreamFailed
from forebay.gateway import http
from forebay.gateway.calls import CallOptions

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "count"}]}
SAY = {"model": "tone", "input": "hello there", "voice": "alloy"}


@pytest.fixture(params=["ours", "stock"])
async def gateway(request: pytest.FixtureRequest) -> AsyncIterator[Stand]:
    async with stand(stock=request.param == "stock") as made:
        yield made


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def chat(client: aiohttp.ClientSession, at: Stand, **more: Any) -> aiohttp.ClientResponse:
    return await client.post(f"{at.url}/v1/chat/completions", json={**ASK, **more})


async def say(client: aiohttp.ClientSession, at: Stand, **more: Any) -> aiohttp.ClientResponse:
    return await client.post(f"{at.url}/v1/audio/speech", json={**SAY, **more})


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    """The payloads of an event stream, in order; ``[DONE]`` as that text."""
    lines = (await response.text()).split("\n")
    data = [line[6:] for line in lines if line.startswith("data: ")]
    return [d if d == "[DONE]" else json.loads(d) for d in data]


def tone(lease: Lease) -> AsyncIterator[OutputEvent]:
    async def play() -> AsyncIterator[OutputEvent]:
        text = "".join(item.text for item in lease.input if hasattr(item, "text"))
        half = len(text) // 2
        for unit, part in ((0, text[:half]), (half, text[half:])):
            yield Audio(data=b"\x01\x02" * 240, text=part, unit=unit, frames=240)

    return play()


# ------------------------------------------------------------------------- chat


async def test_a_whole_answer_has_openais_shape(
    gateway: Stand, client: aiohttp.ClientSession
) -> None:
    response = await chat(client, gateway, temperature=0.5, max_completion_tokens=9, user="x")
    answer = await response.json()
    assert response.status == 200
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "tiny"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "one two three"}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
    params = gateway.text.leases[0].spec.params
    assert params["temperature"] == 0.5
    assert params["max_tokens"] == 9
    assert "user" not in params
    job = response.headers["X-Forebay-Job"]
    assert answer["id"] == f"chatcmpl-{job}"
    stages = [part.partition(";")[0] for part in response.headers["Server-Timing"].split(", ")]
    assert stages == ["accept", "dispatch", "queue", "first_output"]
    assert response.headers["X-Request-Id"]


async def test_a_streamed_answer_ends_with_its_reason_usage_and_done(
    gateway: Stand, client: aiohttp.ClientSession
) -> None:
    response = await chat(client, gateway, stream=True, stream_options={"include_usage": True})
    got = await events(response)
    assert response.content_type == "text/event-stream"
    assert [c["choices"][0]["delta"] for c in got[:3]] == [
        {"role": "assistant", "content": "one "},
        {"content": "two "},
        {"content": "three"},
    ]
    assert got[3]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert got[4]["choices"] == []
    assert got[4]["usage"]["total_tokens"] == 7
    assert got[5:] == ["[DONE]"]
    assert gateway.ctx.metrics.first_bytes()["ttft_ms"]["n"] == 1


async def test_words_leave_one_by_one_and_the_first_at_once(
    gateway: Stand, client: aiohttp.ClientSession
) -> None:
    go = asyncio.Event()

    async def script(lease: Lease) -> AsyncIterator[OutputEvent]:
        yield TextDelta(text="now")
        await go.wait()
        yield TextDelta(text="later")
        yield Usage(prompt_tokens=1, completion_tokens=2)

    gateway.text.script = script
    async with asyncio.timeout(60):
        response = await chat(client, gateway, stream=True)
        first = await response.content.readline()
        assert json.loads(first[6:])["choices"][0]["delta"]["content"] == "now"
        go.set()
        assert "later" in (await response.text())


async def test_tool_calls_and_notices_are_passed_on(
    gateway: Stand, client: aiohttp.ClientSession
) -> None:
    async def script(lease: Lease) -> AsyncIterator[OutputEvent]:
        yield Notice(code="prompt_truncated", message="cut", details={"dropped": 2})
        call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{"}}
        yield ToolCalls(calls=[call], delta=[call])
        rest = {"index": 0, "id": "", "function": {"name": "", "arguments": "}"}}
        whole = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{}"}}
        yield ToolCalls(calls=[whole], delta=[rest])
        yield Usage(prompt_tokens=1, completion_tokens=2, finish="tool_calls")

    gateway.text.script = script
    tools = [{"type": "function", "function": {"name": "f"}}]
    answer = await (await chat(client, gateway, tools=tools)).json()
    message = answer["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]
    assert answer["forebay"]["notices"][0]["code"] == "prompt_truncated"
    got = await events(await chat(client, gateway, tools=tools, stream=True))
    assert got[0]["forebay"]["notices"][0]["details"] == {"dropped": 2}
    parts = [c["choices"][0]["delta"]["tool_calls"][0] for c in got[1:3]]
    assert parts[0]["type"] == "function"
    assert parts[1] == {"index": 0, "function": {"arguments": "}"}}
    assert got[3]["choices"][0]["finish_reason"] == "tool_calls"


async def test_what_fails_before_the_first_word_is_a_status(
    gateway: Stand, client: aiohttp.ClientSession
) -> None:
    async def script(lease: Lease) -> AsyncIterator[OutputEvent]:
        raise PromptTooLong("prompt has 9 tokens, expected fewer than 4", tokens=9, limit=4)
        yield

    gateway.text.script = script
    for stream in (False, True):
        response = await chat(client, gateway, stream=stream)
        error = (await response.json())["error"]
        assert response.status == 400
        assert error["type"] == "invalid_request_error"
        assert error["code"] == "context_length_exceeded"
        assert error["details"] == {"tokens": 9, "limit": 4}


async def test_a_busy_upstream_is_503_with_its_retry_after(
    gateway: Stand, client: aiohttp.ClientSession
) -> None:
    async def script(lease: Lease) -> AsyncIterator[OutputEvent]:
        error = UpstreamFailed("model server is over its rate limit", status=429)
        error.details["retry_after_s"] = 7.0
        raise error
        yield

    gateway.text.script = script
    response = await chat(client, gateway, stream=True)
    assert response.status == 503
    assert 5 <= int(response.headers["Retry-After"]) <= 9
    assert (await response.json())["error"]["retry_after_s"] == 7


async def test_a_cut_answer_never_looks_finished(
    gateway: Stand, client: aiohttp.ClientSession
) -> None:
    async def script(lease: Lease) -> AsyncIterator[OutputEvent]:
        yield TextDelta(text="half an ")
        await asyncio.sleep(0.05)
        raise UpstreamCut("model server closed after 1 chunks, expected [DONE]")

    gateway.text.script = script
    got = await events(await chat(client, gateway, stream=True))
    assert got[0]["choices"][0]["delta"]["content"] == "half an "
    assert got[-1]["error"]["code"] == "upstream_cut"
    assert "[DONE]" not in got
    assert not any(c.get("choices", [{}])[0].get("finish_reason") for c in got[:-1])
    response = await chat(client, gateway)
    assert response.status == 502
    assert (await response.json())["error"]["code"] == "upstream_cut"


async def test_a_client_that_leaves_cancels_its_job(
    gateway: Stand, client: aiohttp.ClientSession
) -> None:
    async def script(lease: Lease) -> AsyncIterator[OutputEvent]:
        yield TextDelta(text="one ")
        await asyncio.Event().wait()

    gateway.text.script = script
    async with asyncio.timeout(60):
        response = await chat(client, gateway, stream=True)
        await response.content.readline()
        response.close()
        await gateway.text.stopped.wait()
        assert gateway.text.cancelled == [response.headers["X-Forebay-Job"]]
        gateway.text.stopped.clear()
        waiting = asyncio.create_task(chat(client, gateway))
        while len(gateway.text.leases) < 2:  # noqa: ASYNC110 - the other side is another task
            await asyncio.sleep(0.01)
        waiting.cancel()
        await gateway.text.stopped.wait()


async def test_a_silent_stream_gets_its_head_and_comments(
    client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()

    async def script(lease: Lease) -> AsyncIterator[OutputEvent]:
        await go.wait()
        async for event in words(lease):
            yield event

    monkeypatch.setattr(http, "DEFAULTS", CallOptions(hold_head_s=0.05, keepalive_s=0.05))
    async with stand() as gateway:
        gateway.text.script = script
        async with asyncio.timeout(60):
            response = await chat(client, gateway, stream=True)
            assert response.status == 200
            assert (await response.content.readline()).startswith(b":")
            go.set()
            got = await events(response)
    assert got[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages[0].content[0]"),
        ({"n": 2}, "n"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": 1.5}, "top_p"),
        ({"stop": ["a"] * 99}, "stop"),
        ({"stream_options": 3}, "stream_options"),
        ({"logprobs": True}, "logprobs"),
        ({"seed": 10**30}, "seed"),
    ],
)
async def test_a_bad_request_names_the_field(
    client: aiohttp.ClientSession, body: dict[str, Any], param: str
) -> None:
    async with stand() as gateway:
        response = await chat(client, gateway, **body)
        error = (await response.json())["error"]
        assert gateway.text.leases == []
    assert response.status == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"][0].islower()


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"temperature":NaN}', b'{"messages":' + b"[" * 20_000, b'{"seed":' + b"9" * 6000 + b"}",
        b'{"messages":[{"role":"user","content":"x"}],"tools":[' + b'{"a":' * 60 + b"1" + b"}" * 60 + b"]}",
    ],
)  # fmt: skip
async def test_hostile_json_is_a_bad_request(client: aiohttp.ClientSession, raw: bytes) -> None:
    async with stand() as gateway:
        for path in ("chat/completions", "audio/speech"):
            response = await client.post(f"{gateway.url}/v1/{path}", data=raw)
            assert response.status == 400
            assert (await response.json())["error"]["message"]


async def test_too_large_a_prompt_and_an_unknown_model_are_refused(
    client: aiohttp.ClientSession,
) -> None:
    async with stand() as gateway:
        big = [{"role": "user", "content": "x" * 400_000}]
        response = await chat(client, gateway, messages=big)
        assert response.status == 413
        response = await chat(client, gateway, model="nobody")
        error = (await response.json())["error"]
    assert response.status == 404
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "tiny" in error["message"]


# ------------------------------------------------------------------------ speech


async def test_pcm_is_streamed_as_it_is_made(gateway: Stand, client: aiohttp.ClientSession) -> None:
    gateway.speech.script = tone
    response = await say(client, gateway, response_format="pcm", speed=1.5)
    assert await response.read() == b"\x01\x02" * 480
    assert response.content_type == "audio/pcm"
    params = gateway.speech.leases[0].spec.params
    assert params == {
        "sample_rate": 24000, "channels": 1, "format": "pcm16", "speed": 1.5, "voice": "alloy",
    }  # fmt: skip


async def test_wav_declares_an_unknown_length_streamed_and_its_own_whole(
    gateway: Stand, client: aiohttp.ClientSession
) -> None:
    gateway.speech.script = tone
    streamed = await (await say(client, gateway, response_format="wav")).read()
    assert streamed[4:8] == streamed[40:44] == b"\xff" * 4
    assert streamed[44:] == b"\x01\x02" * 480
    response = await say(client, gateway, response_format="wav", stream=False)
    whole = await response.read()
    assert int(response.headers["Content-Length"]) == len(whole) == 44 + 960
    with wave.open(io.BytesIO(whole)) as read:
        assert (read.getframerate(), read.getnchannels(), read.getnframes()) == (24000, 1, 480)


async def test_speech_as_events(gateway: Stand, client: aiohttp.ClientSession) -> None:
    gateway.speech.script = tone
    got = await events(await say(client, gateway, response_format="pcm", stream_format="sse"))
    assert [e["type"] for e in got] == ["speech.audio.delta"] * 2 + ["speech.audio.done"]
    assert got[-1]["usage"]["input_tokens"] == len(SAY["input"])


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_audio_that_breaks_is_an_incomplete_body(
    gateway: Stand, client: aiohttp.ClientSession
) -> None:
    async def script(lease: Lease) -> AsyncIterator[OutputEvent]:
        yield Audio(data=b"\x01\x02" * 240, text="hello", unit=0, frames=240)
        await asyncio.sleep(0.05)
        raise UpstreamCut("the voice broke")

    gateway.speech.script = script
    response = await say(client, gateway, response_format="pcm")
    assert response.status == 200
    with pytest.raises(aiohttp.ClientPayloadError):
        await response.read()
    got = await events(await say(client, gateway, stream_format="sse"))
    assert got[-1]["type"] == "error"
    assert got[-1]["error"]["code"] == "upstream_cut"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": ""}, 400, "input"),
        ({"input": 5}, 400, "input"),
        ({"input": "x" * 20_001}, 413, "input"),
        ({"speed": 9}, 400, "speed"),
        ({"response_format": "midi"}, 400, "response_format"),
        ({"voice": 3}, 400, "voice"),
    ],
)
async def test_a_bad_speech_request_names_the_field(
    client: aiohttp.ClientSession, body: dict[str, Any], status: int, param: str
) -> None:
    async with stand() as gateway:
        response = await say(client, gateway, **body)
        assert response.status == status
        assert (await response.json())["error"]["param"] == param


# ------------------------------------------------------------------------ models


async def test_models_lists_every_pool(client: aiohttp.ClientSession) -> None:
    async with stand() as gateway:
        listed = await (await client.get(f"{gateway.url}/v1/models")).json()
        one = await (await client.get(f"{gateway.url}/v1/models/tiny")).json()
        none = await client.get(f"{gateway.url}/v1/models/some/one")
        assert none.status == 404
    assert [(m["id"], m["object"], m["kind"]) for m in listed["data"]] == [
        ("tiny", "model", "text"),
        ("tone", "model", "speech"),
    ]
    assert one == listed["data"][0]
    assert one["max_model_len"] == 4096

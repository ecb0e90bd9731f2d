"""Compressed streams: every piece can be read in the moment it arrives, and a cut shows."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from http_helpers import Stand, stand

from forebay.core.events import OutputEvent, TextDelta
from forebay.core.spec import Lease
from forebay.gateway.context import OperationOptions
from forebay.gateway.packing import Packer

PACKED = OperationOptions(compress=True)
QUESTION = {
    "notebook_id": "n",
    "operation": {"type": "user_question", "payload": {"QId": "q", "content": "?"}},
}
CHAT = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "?"}]}


@pytest.fixture
async def gateway() -> AsyncIterator[Stand]:
    async with stand(operations=PACKED) as made:
        yield made


async def words(lease: Lease) -> AsyncIterator[OutputEvent]:
    for number in range(100):
        yield TextDelta(text=f"word {number} ")


def raw(**more: Any) -> aiohttp.ClientSession:
    """A client that says what it takes and decodes nothing."""
    return aiohttp.ClientSession(auto_decompress=False, **more)


def test_each_piece_is_whole_and_the_end_is_marked() -> None:
    packer, reader = Packer(), zlib.decompressobj(31)
    for piece in (b"a", "é漢".encode(), b"x" * 100_000, b'{"a": 1}\n'):
        assert reader.decompress(packer.pack(piece)) == piece
    assert not reader.eof
    assert reader.decompress(packer.end()) == b""
    assert reader.eof


async def test_a_piece_is_readable_before_the_next_is_there(gateway: Stand) -> None:
    go_on = asyncio.Event()

    async def slow(lease: Lease) -> AsyncIterator[OutputEvent]:
        yield TextDelta(text="first")
        await go_on.wait()
        yield TextDelta(text="second")

    gateway.text.script = slow
    reader, text = zlib.decompressobj(31), b""
    async with (
        raw() as http,
        http.post(f"{gateway.url}/send_operation", json=QUESTION) as answer,
    ):
        assert answer.headers["Content-Encoding"] == "gzip"
        assert "accept-encoding" in answer.headers["Vary"]
        while b"first" not in text:
            text += reader.decompress(await answer.content.readany())
        assert text.endswith(b"\n")
        go_on.set()
        async for data in answer.content.iter_any():
            text += reader.decompress(data)
    assert reader.eof
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[-1]["type"] == "ok"
    assert b"second" in text


async def test_it_is_smaller_and_says_the_same(gateway: Stand) -> None:
    gateway.text.script = words
    sizes, said = {}, {}
    for accepts in ("gzip", "identity"):
        async with (
            raw(headers={"Accept-Encoding": accepts}) as http,
            http.post(f"{gateway.url}/v1/chat/completions", json=CHAT) as answer,
        ):
            body = await answer.read()
        sizes[accepts] = len(body)
        if accepts == "gzip":
            body = zlib.decompress(body, 31)
        events = [line[6:] for line in body.splitlines() if line.startswith(b"data: {")]
        deltas = [json.loads(event)["choices"] for event in events]
        said[accepts] = "".join(d[0]["delta"].get("content") or "" for d in deltas if d)
    assert said["gzip"] == said["identity"]
    assert sizes["gzip"] * 3 < sizes["identity"]


async def test_an_event_stream_resumes_compressed(gateway: Stand) -> None:
    gateway.text.script = words
    async with aiohttp.ClientSession() as http:
        asked = {"X-Forebay-Stream": "1"}
        url = f"{gateway.url}/send_operation"
        async with http.post(url, json=QUESTION, headers=asked) as answer:
            job = answer.headers["X-Forebay-Stream"]
            await answer.read()
        where = {"Last-Event-ID": "90"}
        async with http.get(f"{gateway.url}/v1/jobs/{job}/events", headers=where) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            body = await answer.text()
    assert "word 89" not in body
    assert "word 99" in body


@pytest.mark.parametrize("accepts", ["identity", "br", "gzip;q=0", "gzip; q=0.000", "deflate, *"])
async def test_who_did_not_ask_for_gzip_gets_plain_text(gateway: Stand, accepts: str) -> None:
    async with (
        raw(headers={"Accept-Encoding": accepts}) as http,
        http.post(f"{gateway.url}/send_operation", json=QUESTION) as answer,
    ):
        assert "Content-Encoding" not in answer.headers
        assert "accept-encoding" in answer.headers["Vary"]
        assert b'"type":"ok"' in await answer.read()


async def test_sound_and_whole_answers_are_left_alone(gateway: Stand) -> None:
    spoken = {"model": "tone", "voice": "a", "input": "hello", "response_format": "pcm"}
    async with raw() as http:
        async with http.post(f"{gateway.url}/v1/audio/speech", json=spoken) as answer:
            assert "Content-Encoding" not in answer.headers
            await answer.read()
        whole = {**CHAT, "stream": False}
        async with http.post(f"{gateway.url}/v1/chat/completions", json=whole) as answer:
            assert "Content-Encoding" not in answer.headers
            assert json.loads(await answer.read())["choices"]

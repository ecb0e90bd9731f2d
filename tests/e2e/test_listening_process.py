"""Recognition through real processes: the SDK, OpenAI's upload, capacity, metrics."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from benchmarks.harness import Server, serving

from forebay.client import ListenSession, Transcript
from forebay.core.audio import wav_header
from forebay.core.tones import speak

WORDS = [f"w{n}" for n in range(60)]
SOUND = speak(WORDS)
TEXT = " ".join(WORDS)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(
        "--engine", "recognition=synthetic:rtf=0.02,slots=2",
        "--workers", "recognition=2", "--workers", "text=0", "--workers", "speech=0",
    ) as running:  # fmt: skip
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def wav(sound: bytes) -> bytes:
    return wav_header(16_000, 1, data_bytes=len(sound)) + sound


async def upload(
    http: aiohttp.ClientSession, server: Server, data: bytes, **fields: str
) -> tuple[int, Any, str]:
    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(data), filename="../a.wav", content_type="audio/wav")
    for name, value in fields.items():
        form.add_field(name, value)
    async with http.post(f"{server.http}/v1/audio/transcriptions", data=form) as answer:
        return answer.status, answer.headers, await answer.text()


async def test_a_recording_goes_on_over_lost_connections_and_a_killed_worker(
    server: Server,
) -> None:
    async with ListenSession(f"ws://127.0.0.1:{server.port}/v1/listen", backoff_s=0.02) as ear:

        async def talk() -> None:
            for at in range(0, len(SOUND), 6400):
                await ear.say(SOUND[at : at + 6400])
                await asyncio.sleep(0.02)
                if at in (6400 * 8, 6400 * 16):
                    assert ear._ws is not None
                    await ear._ws.close()
                if at == 6400 * 12:
                    await asyncio.to_thread(server.regular_worker("recognition").kill)
            await ear.end()

        talking = asyncio.ensure_future(talk())
        finals = [n async for n in ear if isinstance(n, Transcript) and n.final]
        await talking
    assert "".join(f.text for f in finals).strip() == TEXT
    assert ear.state.end_message["text"] == TEXT
    assert finals[-1].end == 6.0
    assert ear.resumed == 2 and ear.state.repeats == 0


@pytest.mark.parametrize("seconds", [6, 60], ids=["in the stream", "beside it"])
async def test_every_form_of_a_transcription(
    server: Server, http: aiohttp.ClientSession, seconds: int
) -> None:
    said = list(range(seconds * 10))
    data = wav(speak(said))
    text = " ".join(f"w{n}" for n in said)
    status, headers, body = await upload(http, server, data, prompt="x", temperature="0.2")
    assert status == 200 and json.loads(body)["text"] == text
    assert json.loads(body)["usage"] == {"type": "duration", "seconds": float(seconds)}
    assert headers["x-forebay-ignored"] == "prompt, temperature"
    assert (await upload(http, server, data, response_format="text"))[2] == text + "\n"
    verbose = json.loads((await upload(http, server, data, response_format="verbose_json"))[2])
    assert verbose["duration"] == float(seconds) and verbose["text"] == text
    assert verbose["segments"][0]["start"] == 0
    srt = (await upload(http, server, data, response_format="srt"))[2]
    assert srt.startswith("1\n00:00:00,000 --> 00:00:0")
    vtt = (await upload(http, server, data, response_format="vtt"))[2]
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:0")
    async with asyncio.timeout(60):  # the answer leaves first
        while any((server.log.parent / "blobs").glob("*")):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)


async def test_a_streamed_transcription_says_each_word_once(
    server: Server, http: aiohttp.ClientSession
) -> None:
    status, headers, body = await upload(http, server, wav(SOUND), stream="true")
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: ")]
    deltas = [e["delta"] for e in events if e["type"] == "transcript.text.delta"]
    assert "".join(deltas).strip() == TEXT
    assert events[-1]["type"] == "transcript.text.done" and events[-1]["text"] == TEXT


@pytest.mark.parametrize(
    ("data", "fields", "status"),
    [
        (b"nonsense", {}, 422),
        (b"", {}, 422),
        (wav_header(0, 1) + b"12345678", {}, 422),
        (wav(SOUND), {"response_format": "xml"}, 400),
        (wav(SOUND), {"stream": "true", "response_format": "srt"}, 400),
        (wav(SOUND), {"stream": "perhaps"}, 400),
        (wav(SOUND), {"model": "nobody"}, 404),
    ],
)
async def test_what_cannot_be_transcribed_is_refused_by_name(
    server: Server, http: aiohttp.ClientSession, data: bytes, fields: dict[str, str], status: int
) -> None:
    got, _, body = await upload(http, server, data, **fields)
    assert got == status, body
    assert json.loads(body)["error"]["message"]


async def test_capacity_and_metrics_tell_what_was_measured(
    server: Server, http: aiohttp.ClientSession
) -> None:
    for _ in range(60):  # what else the machine does is measured too, and passes
        await upload(http, server, wav(SOUND))
        async with http.get(f"{server.http}/v1/capacity") as answer:
            pools = (await answer.json())["pools"]
        pool = next(p for p in pools if p["kind"] == "recognition")
        assert pool["rtf"] >= 0.0199, "faster than the engine is"
        if pool["rtf"] <= 0.05:
            break
    assert pool["rtf"] == pytest.approx(0.02, abs=0.03)
    assert pool["spare_streams"] > 0 and pool["wait_now_s"] == 0
    assert pool["simple_rule"]["utilisation"] == 0.8
    async with http.get(f"{server.http}/v1/capacity?max_wait=x") as answer:
        assert answer.status == 400
    async with http.get(f"{server.http}/metrics") as answer:
        text = await answer.text()
    for name in ("load", "sessions", "resident_bytes", "cpu_seconds_total", "busy_seconds_total"):
        assert f"forebay_worker_{name}{{" in text, name

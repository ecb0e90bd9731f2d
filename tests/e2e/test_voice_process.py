"""`/tts` and `/chat` over real sockets, with real processes: what the voice promises are worth."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import urllib.parse
import urllib.request
from typing import Any

import psutil
import pytest
from test_serve_process import Served, speech_workers
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from forebay.client import SpeechSession

ENGINES = (
    "--engine",
    "speech=synthetic:rtf=0.2,latency_ms=10,piece_ms=200",
    "--engine",
    "text=synthetic:token_ms=30,tokens=20",
)
TEXT = "This is a sentence that goes on for a while, and here is another one. " * 3


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = Served(tmp_path_factory.mktemp("voice"), *ENGINES)
    server.wait_ready()
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


class Talk:
    """One connection and what came over it."""

    def __init__(self, ws: ClientConnection, session: str) -> None:
        self.ws = ws
        self.session = session
        self.heard: list[dict[str, Any]] = []

    async def say(self, type: str, **more: Any) -> None:
        await self.ws.send(json.dumps({"type": type, "session_id": self.session, **more}))

    async def start(self) -> dict[str, Any]:
        await self.say("start", audio_format="pcm16_wav", sample_rate=16000, channels=1)
        return await self.until("start_ack")

    async def until(self, *types: str) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while True:
                message = json.loads(await self.ws.recv())
                self.heard.append(message)
                if message["type"] in types:
                    return message

    async def rest(self) -> int | None:
        """Read to the end; the close code."""
        try:
            async with asyncio.timeout(60):
                async for frame in self.ws:
                    self.heard.append(json.loads(frame))
        except ConnectionClosed:
            pass
        return self.ws.close_code

    def text(self) -> str:
        return "".join(m["delta"] for m in self.heard if m["type"] == "llm_delta")

    def units(self, first: int = 0) -> str:
        text = ""
        for m in self.heard:
            if m["type"] == "audio_chunk":
                assert m["unit_index_start"] == first + len(text)
                text += m["units_text"]
        return text


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read(), "utf-8")


def talk(served: Served, path: str = "/tts") -> connect:
    return connect(served.url.replace("http", "ws") + path, max_size=None)


async def test_a_sentence_is_spoken(served):
    async with talk(served) as ws:
        t = Talk(ws, "plain")
        ack = await t.start()
        assert ack["ttl_s"] == 120.0
        await t.say("text_delta", seq=1, text=TEXT)
        await t.say("text_end", seq=2)
        assert await t.rest() == 1000
        assert t.units() == TEXT
        assert t.heard[-1]["type"] == "tts_end"


async def test_a_worker_killed_mid_sentence_and_a_lost_connection_cost_no_unit(served):
    async with talk(served) as ws:
        first = Talk(ws, "lost")
        await first.start()
        await first.say("text_delta", seq=1, text=TEXT)
        await first.until("audio_chunk")
        speech_workers(served)[0].kill()
        await first.until("audio_chunk")
        ws.transport.abort()
    have = len(first.units())
    async with talk(served) as ws:
        second = Talk(ws, "lost")
        ack = await second.start()
        assert ack["units_received"] == len(TEXT)
        await second.say("resume", last_unit_index_received=have - 1)
        await second.say("text_end", seq=2)
        assert await second.rest() == 1000
        assert first.units() + second.units(have) == TEXT
        assert second.heard[-1]["type"] == "tts_end"


async def test_a_gateway_that_stood_still_hears_a_resume_before_it_takes_silence_for_one(served):
    gateway = next(
        p for p in psutil.Process(served.process.pid).children() if "_gateway" in p.cmdline()
    )
    async with talk(served) as ws:
        first = Talk(ws, "still")
        await first.start()
        await first.say("text_delta", seq=1, text=TEXT)
        await first.until("audio_chunk")
        await asyncio.sleep(0.5)  # more is on its way, and will not be read
        ws.transport.abort()
    have = len(first.units())
    async with talk(served) as ws:
        second = Talk(ws, "still")
        await second.start()
        gateway.suspend()
        await second.say("resume", last_unit_index_received=have - 1)
        await asyncio.sleep(1.3)  # past the second after which silence counts as an answer
        gateway.resume()
        await second.say("text_end", seq=2)
        assert await second.rest() == 1000
        assert first.units() + second.units(have) == TEXT


async def test_cancel_is_answered_at_once_and_frees_the_slot(served):
    async with talk(served) as ws:
        t = Talk(ws, "cancelled")
        await t.start()
        await t.say("text_delta", seq=1, text=TEXT * 20)
        await t.until("audio_chunk")
        await t.say("cancel", seq=2)
        assert (await t.until("tts_end"))["cancelled"] is True
        assert 0 < len(t.units()) < len(TEXT) * 10, "not at once: half of it was spoken"
        assert await t.rest() == 1000
    until = time.monotonic() + 60
    while time.monotonic() < until:
        pools = {p["name"]: p for p in served.get("/api/status")["pools"]}
        if pools["speech/synthetic"]["running"] == 0:
            break
        await asyncio.sleep(0.05)
    assert pools["speech/synthetic"]["running"] == 0


async def test_a_newer_socket_takes_over(served):
    async with talk(served) as one, talk(served) as two:
        first, second = Talk(one, "taken"), Talk(two, "taken")
        await first.start()
        await first.say("text_delta", seq=1, text="Some words. ")
        await first.until("audio_chunk")
        await second.start()
        assert await first.rest() == 4409
        await second.say("resume", last_unit_index_received=-1)
        await second.say("text_end", seq=2)
        assert await second.rest() == 1000
        assert second.units() == "Some words. "


@pytest.mark.parametrize(
    "frame", ["", "nonsense", "[]", '{"type":"start"}', "[" * 50_000, '{"type":"cancel"}']
)
async def test_malformed_frames_get_one_error_and_a_normal_close(served, frame):
    async with talk(served) as ws:
        await ws.send(frame)
        t = Talk(ws, "bad")
        assert await t.rest() == 1000
        assert [m["code"] for m in t.heard] == ["bad_request"]


async def test_a_prompt_is_answered_and_spoken(served):
    for name in [f"chat{n}" for n in range(10)]:
        async with talk(served, "/chat") as ws:
            await ws.send(json.dumps({"prompt": "Say something.", "session_id": name}))
            t = Talk(ws, name)
            assert await t.rest() == 1000
        kinds = [m["type"] for m in t.heard]
        assert kinds[:2] == ["orchestrator_start", "start_ack"]
        assert kinds[-1] == "tts_end"
        written = "".join(m["delta"] for m in t.heard if m["type"] == "llm_delta")
        assert t.units() == written != ""
        if kinds.index("audio_chunk") < kinds.index("llm_done"):
            return  # where voices get no processor for half a second, not the first time
    raise AssertionError("never spoken while it was still written")


async def test_an_answer_survives_a_dropped_socket_and_killed_workers(served):
    ask = {"prompt": "Say something long.", "session_id": "again", "resumable": True}
    async with talk(served, "/chat") as ws:
        await ws.send(json.dumps(ask))
        first = Talk(ws, "again")
        assert (await first.until("orchestrator_start"))["resumable"] is True
        await first.until("audio_chunk")
        ws.transport.abort()
    speech_workers(served)[0].kill()
    await asyncio.sleep(0.3)
    chars, units = len(first.text()), len(first.units())
    async with talk(served, "/chat") as ws:
        back = {"chars_received": chars, "last_unit_index_received": units - 1}
        second = Talk(ws, "again")
        await second.say("resume", **back)
        assert await second.rest() == 1000
    kinds = [m["type"] for m in second.heard]
    assert kinds[:2] == ["orchestrator_start", "start_ack"]
    assert kinds[-1] == "tts_end" and kinds.count("llm_done") == 1
    done = next(m for m in second.heard if m["type"] == "llm_done")
    whole = first.text() + second.text()
    assert first.units() + second.units(units) == whole
    assert len(whole) == done["full_text_len"]
    async with talk(served, "/chat") as ws:  # all is over, and can be had once more
        third = Talk(ws, "again")
        await third.say("resume", chars_received=3, last_unit_index_received=2)
        assert await third.rest() == 1000
        assert third.text() == third.units(3) == whole[3:]


async def test_a_hundred_sessions_at_once_are_all_whole(served):
    async def one(n: int) -> None:
        async with talk(served) as ws:
            t = Talk(ws, f"many-{n}")
            await t.start()
            for seq, word in enumerate(TEXT[:60].split(" "), 1):
                await t.say("text_delta", seq=seq, text=word + " ")
            await t.say("text_end", seq=99)
            assert await t.rest() == 1000
            assert t.units() == " ".join(TEXT[:60].split(" ")) + " "

    async with asyncio.TaskGroup() as tasks:
        for n in range(100):
            tasks.create_task(one(n))


async def test_a_client_that_stops_reading_hears_backpressure_once(tmp_path):
    server = Served(
        tmp_path,
        "--engine",
        "speech=synthetic:rtf=0,unit_ms=200",
        env={"FOREBAY_SPEECH_SLOW_READER_S": "2"},
    )
    try:
        server.wait_ready()
        url = server.url.replace("http", "ws") + "/tts"
        # A system that buffers megabytes for its reader would hide that it does not read.
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        sock.connect(("127.0.0.1", urllib.parse.urlsplit(url).port))
        facts = {"sock": sock, "max_size": None, "max_queue": 1, "ping_interval": None}
        async with connect(url, **facts) as ws:
            t = Talk(ws, "slow")
            await t.say("start", audio_format="pcm16_wav", sample_rate=48000, channels=2)
            await t.say("text_delta", seq=1, text="x" * 400)
            await t.say("text_end", seq=2)
            await asyncio.sleep(5)  # reads nothing; 4 s of this audio are over a megabyte
            assert await t.rest() == 1000
            assert t.heard[-1]["type"] == "error"
            assert [m["code"] for m in t.heard if m["type"] == "error"] == ["backpressure"]
            assert len(t.units()) < 400
        metrics = await asyncio.to_thread(read, server.url + "/metrics")
        assert "ws_gateway_backpressure_total 1.0" in metrics
    finally:
        server.stop()


async def test_the_sdk_speaks_on_over_lost_connections_and_no_unit_comes_twice(served):
    url = served.url.replace("http", "ws") + "/tts"
    heard = ""
    async with SpeechSession(url, backoff_s=0.02) as voice:
        await voice.say(TEXT)
        await voice.end()
        async for chunk in voice:
            assert chunk.unit == len(heard)
            heard += chunk.text
            if voice.resumed < 2:
                assert voice._ws is not None
                await voice._ws.close()
    assert heard == TEXT
    assert voice.resumed == 2
    assert voice.end_message is not None

"""`/ws/asr` and its REST with real processes: killed workers, a restart, a real PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import sys
import urllib.request
import wave
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_serve_process import Served
from websockets.asyncio.client import connect

from forebay.core.tones import RATE, speak

sys.path.append(str(Path(__file__).parent.parent / "history"))
import postgres  # noqa: E402 - the history's tests own it

ENGINES = (
    "--workers", "text=0", "--workers", "speech=0",
    "--engine", "recognition=synthetic:rtf=0.2,words=3,slots=20", "--workers", "recognition=3",
)  # fmt: skip


class Quick(Served):
    """Without the harness's own choice of engine."""

    def __init__(self, folder: Path, *words: str, env: dict[str, str] | None = None) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(folder, *ENGINES, *words, env=env)

    def post(self, path: str, body: bytes, kind: str) -> Any:
        request = urllib.request.Request(
            self.url + path, data=body, headers={"Content-Type": kind}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


def text(first: int, count: int) -> str:
    return " ".join(f"w{n}" for n in range(first, first + count))


def workers(served: Served) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(served.process.pid).children():
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if "recognition" in words and "--standby" not in words:
            found.append(child)
    return found


async def speak_all(served: Served, session: str, first: int, chunks: int) -> list[dict[str, Any]]:
    """A paced speaker: one word a chunk, in twice real time."""
    heard: list[dict[str, Any]] = []
    url = served.url.replace("http", "ws") + "/ws/asr?uid=7"
    async with connect(url, max_size=None) as ws, asyncio.timeout(60):
        await ws.send(json.dumps({"action": "start", "session_id": session, "user_id": "e2e"}))
        for n in range(chunks):
            data = base64.b64encode(speak([first + n])).decode()
            await ws.send(
                json.dumps(
                    {"action": "chunk", "session_id": session, "chunk_index": n, "audio_data": data}
                )
            )
            await asyncio.sleep(0.05)
        await ws.send(json.dumps({"action": "finish", "session_id": session}))
        while not heard or heard[-1]["type"] not in ("final_result", "error"):
            heard.append(json.loads(await ws.recv()))
    return heard


def check(heard: list[dict[str, Any]], first: int, chunks: int) -> None:
    """Every chunk acknowledged and answered once, in order; every word once."""
    assert heard[-1]["type"] == "final_result", heard[-1]
    assert heard[-1]["text"] == text(first, chunks)
    assert heard[-1]["chunk_count"] == chunks
    results = [m["chunk_index"] for m in heard if m["type"] == "chunk_result"]
    assert results == list(range(chunks))
    acks = [m["chunk_index"] for m in heard if m.get("status") == "received"]
    assert acks == list(range(chunks))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = Quick(tmp_path_factory.mktemp("asr") / "one")
    server.wait_ready()
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


async def test_twenty_speak_at_once_while_workers_are_killed(served):
    async def kill() -> None:
        for _ in range(3):
            await asyncio.sleep(0.7)
            (victim, *_) = workers(served)
            os.kill(victim.pid, signal.SIGKILL)

    talks = [speak_all(served, f"k{n}", 100 * n, 50) for n in range(20)]
    *heard, _ = await asyncio.gather(*talks, kill())
    for n, messages in enumerate(heard):
        check(messages, 100 * n, 50)


async def test_the_history_has_them_and_their_recordings(served):
    check(await speak_all(served, "kept", 7, 10), 7, 10)
    async with asyncio.timeout(60):
        while True:
            records = await asyncio.to_thread(served.get, "/api/v1/history")
            found = [r for r in records["records"] if r["session_id"] == "kept"]
            if found:
                break
            await asyncio.sleep(0.1)
    path = served.log.parent / "data" / found[0]["audio_path"]
    assert path.read_bytes()[44:] == speak(range(7, 17))


async def test_what_must_be_decoded_is_recorded_by_a_process_of_its_own(served):
    """Stereo WAV stands here for every container: the gateway opens none of them."""
    url = served.url.replace("http", "ws") + "/ws/asr"
    async with connect(url, max_size=None) as ws, asyncio.timeout(60):
        await ws.send(json.dumps({"action": "start", "session_id": "both"}))
        for n in range(2):
            data = base64.b64encode(_wav(10 * n, 10, channels=2)).decode()
            await ws.send(
                json.dumps(
                    {"action": "chunk", "session_id": "both", "chunk_index": n, "audio_data": data}
                )
            )
        await ws.send(json.dumps({"action": "finish", "session_id": "both"}))
        while json.loads(await ws.recv())["type"] != "final_result":
            continue
    async with asyncio.timeout(60):
        while True:
            records = await asyncio.to_thread(served.get, "/api/v1/history")
            found = [r for r in records["records"] if r["session_id"] == "both"]
            if found and "audio_path" in found[0]:
                break
            await asyncio.sleep(0.1)
    path = served.log.parent / "data" / found[0]["audio_path"]
    assert path.read_bytes()[44:] == speak(range(20))


def _wav(first: int, count: int, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(RATE)
        sound = speak(range(first, first + count))
        pairs = (sound[at : at + 2] * channels for at in range(0, len(sound), 2))
        out.writeframes(b"".join(pairs))
    return file.getvalue()


def _form(data: bytes) -> tuple[bytes, str]:
    head = b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a.wav"\r\n\r\n'
    return head + data + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


async def test_a_task_survives_a_restart_of_everything(tmp_path):
    words = ("--engine", "recognition=synthetic:rtf=1.0,words=3", "--workers", "recognition=1")
    first = Served(tmp_path, *ENGINES[:4], *words)
    first.wait_ready()
    made = Quick.post(first, "/api/v1/asr/submit", *_form(_wav(0, 80)))
    await asyncio.sleep(1.0)
    assert [*tmp_path.rglob("blobs/*")], "too large for the stream"
    first.process.kill()
    first.process.wait(30)
    await asyncio.sleep(1.0)
    again = Served(tmp_path, *ENGINES[:4], *words)
    again.wait_ready()
    try:
        async with asyncio.timeout(60):
            while True:
                path = f"/api/v1/asr/result/{made['task_id']}"
                found = await asyncio.to_thread(again.get, path)
                if found["status"] in ("done", "failed"):
                    break
                await asyncio.sleep(0.2)
        assert (found["status"], found["text"]) == ("done", text(0, 80)), found
        async with asyncio.timeout(10):
            while [*tmp_path.rglob("blobs/*")]:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
    finally:
        assert again.stop() == 0


@pytest.mark.skipif(postgres.binaries() is None, reason="no PostgreSQL on this machine")
async def test_the_history_may_live_in_postgresql_under_the_originals_names(tmp_path):
    with postgres.server() as url:
        port = url.rpartition(":")[2].partition("/")[0]
        env = {
            "DB_HOST": "127.0.0.1", "DB_PORT": port, "DB_USER": "forebay", "DB_NAME": "asr",
            "DB_PASSWORD": "pw", "DB_SSLMODE": "disable", "AUTO_CREATE_DB": "true",
        }  # fmt: skip
        served = Quick(tmp_path / "pg", env=env)
        try:
            served.wait_ready()
            check(await speak_all(served, "pg", 0, 5), 0, 5)
            async with asyncio.timeout(60):
                listed = asyncio.to_thread
                while not (await listed(served.get, "/api/v1/history"))["total"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        finally:
            assert served.stop() == 0
        assert not (tmp_path / "pg" / "data" / "history.db").exists()

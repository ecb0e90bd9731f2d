"""Recognition's REST over real HTTP: both originals' paths, the history and the recordings."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import av
import numpy as np
import pytest
from voice_world import World, world

from forebay.blobs import LocalBlobs
from forebay.core.kinds import Kind
from forebay.core.tones import RATE, speak
from forebay.gateway import tape
from forebay.gateway.app import GatewayApp
from forebay.gateway.bind import bind
from forebay.gateway.context import RecognitionOptions
from forebay.gateway.endpoints import routes
from forebay.gateway.options import GatewayOptions
from forebay.gateway.personality import PERSONALITIES
from forebay.gateway.scribe import Scribe
from forebay.gateway.server import GatewayServer
from forebay.history import History, HistoryOptions, Recordings

FAST = {"rtf": 0.0, "words": 2}


def text(first: int, count: int) -> str:
    return " ".join(f"w{n}" for n in range(first, first + count))


def wav(first: int, count: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(speak(range(first, first + count)))
    return file.getvalue()


def files(folder: Path, pattern: str) -> list[Path]:
    return [path for path in folder.rglob(pattern) if path.is_file()]


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


class Rest:
    """A gateway with a history behind real sockets, and its HTTP client."""

    def __init__(self, w: World, http: aiohttp.ClientSession, base: str, scribe: Scribe) -> None:
        self.w = w
        self.http = http
        self.base = base
        self.scribe = scribe

    async def ask(self, method: str, path: str, **how: Any) -> tuple[int, Any]:
        async with self.http.request(method, self.base + path, **how) as answer:
            body = await answer.read()
            is_json = answer.content_type == "application/json"
            return answer.status, json.loads(body) if is_json and body else body

    async def get(self, path: str, status: int = 200) -> Any:
        got, body = await self.ask("GET", path)
        assert got == status, (got, body)
        return body

    async def submit(self, data: bytes, name: str = "x.wav", **how: Any) -> tuple[int, Any]:
        form = aiohttp.FormData()
        form.add_field("audio", data, filename=name)
        return await self.ask("POST", "/api/v1/asr/submit", data=form, **how)

    async def done(self, task: str) -> Any:
        async with asyncio.timeout(60):
            while True:
                found = await self.get(f"/api/v1/asr/result/{task}")
                if found["status"] in ("done", "failed"):
                    return found
                await asyncio.sleep(0.02)

    async def speak(self, session: str, first: int, chunks: int, **start: Any) -> Any:
        """A whole session over the WebSocket; its final result."""
        async with self.http.ws_connect(self.base + "/ws/asr?uid=1") as ws:
            await ws.send_json({"action": "start", "session_id": session, **start})
            for n in range(chunks):
                data = base64.b64encode(speak([first + n])).decode()
                await ws.send_json(
                    {"action": "chunk", "session_id": session, "chunk_index": n, "audio_data": data}
                )
            await ws.send_json({"action": "finish", "session_id": session})
            async with asyncio.timeout(60):
                while (message := await ws.receive_json())["type"] != "final_result":
                    assert message["type"] != "error", message
            return message

    async def written(self, session: str) -> Any:
        """The session in the history, once it is there."""
        async with asyncio.timeout(60):
            while True:
                found = await self.get("/api/v1/history")
                for record in found["records"]:
                    if record["session_id"] == session:
                        return record
                await asyncio.sleep(0.02)


@asynccontextmanager
async def rest(
    folder: Path,
    *,
    port: str = "main",
    engine: dict[str, Any] | None = None,
    options: HistoryOptions | None = None,
    limits: RecognitionOptions | None = None,
    trust: bool = False,
) -> AsyncIterator[Rest]:
    kept = options or HistoryOptions()
    _make(folder)
    blobs = LocalBlobs(folder / "blobs")
    async with (
        world(recognition=engine) as w,
        History(f"sqlite:///{folder}/history.db") as history,
        Scribe(w.hub, history, Recordings(folder / "recordings"), kept, blobs=blobs) as scribe,
        aiohttp.ClientSession() as http,
    ):
        gateway_options = GatewayOptions(trust_client_tenant=trust)
        w.ctx.scribe, w.ctx.blobs = scribe, blobs
        w.ctx.recognition = limits or RecognitionOptions()
        w.ctx.options = w.ctx.auth.options = gateway_options
        server = GatewayServer(GatewayApp(w.ctx, routes()), gateway_options, w.metrics)
        sock = bind("127.0.0.1", 0, sndbuf_bytes=0)
        await server.start([(sock, PERSONALITIES[port])])
        try:
            yield Rest(w, http, f"http://127.0.0.1:{sock.getsockname()[1]}", scribe)
        finally:
            await http.close()
            await server.close()


# -------------------------------------------------------------------------- sessions


async def test_a_finished_session_is_in_the_history_with_its_recording(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST) as r:
        final = await r.speak("one", 0, 10, user_id="ann")
        assert final["text"] == text(0, 10)
        record = await r.written("one")
        assert record["text"] == text(0, 10)
        assert record["chunk_count"] == 10
        assert record["duration"] >= 0
        path = tmp_path / record["audio_path"]
        assert path.read_bytes()[44:] == speak(range(10))
        with wave.open(str(path)) as heard:
            assert (heard.getnframes(), heard.getframerate()) == (16000, RATE)
        assert "ann" not in record["audio_path"] and "one" not in record["audio_path"]
        assert await r.get("/api/v1/session/one/audio") == path.read_bytes()


async def test_a_session_is_shown_live_finished_and_from_the_history(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST) as r, r.http.ws_connect(r.base + "/ws/asr") as ws:
        await ws.send_json({"action": "start", "session_id": "live", "user_id": "u"})
        await ws.receive_json()
        shown = await r.get("/api/v1/session/live")
        assert (shown["id"], shown["user_id"], shown["status"]) == ("live", "u", "recording")
        data = base64.b64encode(speak([5, 6])).decode()
        await ws.send_json(
            {"action": "chunk", "session_id": "live", "chunk_index": 3, "audio_data": data}
        )
        while (await ws.receive_json())["type"] != "chunk_result":
            pass
        shown = await r.get("/api/v1/session/live")
        assert shown["results"] == {"3": "w5 w6"}
        assert shown["completed"] == {"3": True}
        await ws.send_json({"action": "finish", "session_id": "live"})
        while (await ws.receive_json())["type"] != "final_result":
            pass
        shown = await r.get("/api/v1/session/live")
        assert (shown["status"], shown["final_text"]) == ("done", "w5 w6")
        assert shown["completed_at"] > shown["created_at"]
        await r.written("live")
        again = await r.scribe.history.session("local", "live")
        assert again is not None and again.status == "done"


async def test_an_unknown_session_is_the_originals_error(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST) as r:
        for method in ("GET", "DELETE"):
            status, body = await r.ask(method, "/api/v1/session/nobody")
            assert (status, body["error"]) == (404, "Session not found")


async def test_deleting_a_session_cancels_it_or_forgets_it(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST) as r:
        await r.speak("gone", 0, 3)
        record = await r.written("gone")
        assert await r.ask("DELETE", "/api/v1/session/gone") == (
            200, {"message": "Delete successful"}
        )  # fmt: skip
        assert (await r.get("/api/v1/history"))["total"] == 0
        assert (await r.ask("GET", "/api/v1/session/gone"))[0] == 404
        assert not (tmp_path / record["audio_path"]).exists()
        async with r.http.ws_connect(r.base + "/ws/asr") as ws:
            await ws.send_json({"action": "start", "session_id": "live"})
            await ws.receive_json()
            status, _ = await r.ask("DELETE", "/api/v1/session/live")
            assert status == 200
            told = await ws.receive_json()
            assert (told["type"], told["code"]) == ("error", "cancelled")


async def test_the_newest_recordings_of_a_user_are_kept(tmp_path: Path) -> None:
    options = HistoryOptions(recordings=2)
    async with rest(tmp_path, engine=FAST, options=options) as r:
        for n in range(4):
            await r.speak(f"s{n}", n, 2, user_id="ann")
            await r.written(f"s{n}")
        await r.speak("other", 9, 2, user_id="bob")
        await r.written("other")
        async with asyncio.timeout(60):
            while len(files(tmp_path, "*.wav")) != 3:  # noqa: ASYNC110 - seen from outside
                await asyncio.sleep(0.05)
        records = (await r.get("/api/v1/history"))["records"]
        assert [s["session_id"] for s in records if "audio_path" in s] == ["other", "s3", "s2"]
        assert len(records) == 5


async def test_nothing_is_recorded_where_nobody_wants_it_or_where_it_is_no_pcm(
    tmp_path: Path,
) -> None:
    async with rest(tmp_path, engine=FAST, options=HistoryOptions(recordings=0)) as r:
        await r.speak("quiet", 0, 2)
        assert "audio_path" not in await r.written("quiet")
    assert not files(tmp_path, "*.wav")


def plain_wav(data: bytes) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(data)
    return file.getvalue()


@pytest.mark.parametrize("forms", ["ppp", "www", "pwp"])
async def test_a_recording_is_the_sound_whether_it_came_as_samples_or_as_wav(
    tmp_path: Path, forms: str
) -> None:
    async with rest(tmp_path, engine=FAST) as r, r.http.ws_connect(r.base + "/ws/asr") as ws:
        parts = [speak(range(n, n + 20))[:32_000].ljust(32_000, b"\0") for n in (0, 20, 40)]
        await ws.send_json({"action": "start", "session_id": "s"})
        for n, (form, part) in enumerate(zip(forms, parts, strict=True)):
            sent = base64.b64encode(part if form == "p" else plain_wav(part)).decode()
            await ws.send_json(
                {"action": "chunk", "session_id": "s", "chunk_index": n, "audio_data": sent}
            )
        await ws.send_json({"action": "finish", "session_id": "s"})
        data = (tmp_path / (await r.written("s"))["audio_path"]).read_bytes()
        assert len(data) == 96_044 and data[44:] == b"".join(parts)


def compressed(sound: bytes, what: str) -> bytes:
    container, codec = {"webm": ("webm", "libopus"), "flac": ("flac", "flac")}[what]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=48_000 if what == "webm" else RATE)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(
            np.frombuffer(sound, "<i2").reshape(1, -1), format="s16", layout="mono"
        )
        frame.sample_rate = RATE
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


async def say(ws: Any, parts: list[bytes]) -> None:
    await ws.send_json({"action": "start", "session_id": "s", "user_id": "ann"})
    for n, part in enumerate(parts):
        sent = base64.b64encode(part).decode()
        await ws.send_json(
            {"action": "chunk", "session_id": "s", "chunk_index": n, "audio_data": sent}
        )
    await ws.send_json({"action": "finish", "session_id": "s"})
    while (await ws.receive_json())["type"] not in ("final_result", "error"):
        continue


async def recorded(r: Rest) -> bytes:
    """The recording, which comes after the session's row where it must be decoded."""
    async with asyncio.timeout(60):
        while "audio_path" not in await r.written("s"):  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.05)
    heard: bytes = await r.get("/api/v1/session/s/audio")
    return heard


async def test_a_session_of_containers_has_its_decoded_sound_as_recording(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST) as r, r.http.ws_connect(r.base + "/ws/asr") as ws:
        parts = [speak(range(n, n + 5)) for n in (0, 5, 10)]
        # Samples, a file that loses nothing, samples again: the order is theirs.
        await say(ws, [parts[0], compressed(parts[1], "flac"), parts[2]])
        data = await recorded(r)
        with wave.open(io.BytesIO(data)) as heard:
            assert (heard.getnchannels(), heard.getframerate()) == (1, RATE)
            assert heard.readframes(heard.getnframes()) == b"".join(parts)
        assert len(files(tmp_path / "recordings", "*")) == 1  # nothing is left beside it


async def test_a_browsers_own_recording_is_kept_too(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST) as r, r.http.ws_connect(r.base + "/ws/asr") as ws:
        await say(ws, [compressed(speak(range(20)), "webm")] * 2)
        with wave.open(io.BytesIO(await recorded(r))) as heard:
            assert heard.getframerate() == RATE
            assert heard.getnframes() / RATE == pytest.approx(4.0, abs=0.1)
        await r.ask("DELETE", "/api/v1/session/s")
        assert not files(tmp_path / "recordings", "*")


async def test_a_chunk_that_cannot_be_decoded_is_left_out_of_the_recording(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST) as r, r.http.ws_connect(r.base + "/ws/asr") as ws:
        await say(ws, [speak([1]), b"OggS" + bytes(100)])
        await r.scribe.settle((await r.w.broker.find("local", "asr", "s")).spec.id)  # type: ignore[union-attr]
        async with asyncio.timeout(60):
            while "audio_path" not in (shown := await r.get("/api/v1/session/s")):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (tmp_path / shown["audio_path"]).read_bytes()[44:] == speak([1])


async def test_a_session_deleted_while_it_is_decoded_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tape, "DECODER", "http.server")  # never done by itself
    async with rest(tmp_path, engine=FAST) as r, r.http.ws_connect(r.base + "/ws/asr") as ws:
        await say(ws, [compressed(speak(range(20)), "flac")])
        await r.written("s")
        assert (await r.ask("DELETE", "/api/v1/session/s"))[0] == 200
        async with asyncio.timeout(60):
            while files(tmp_path / "recordings", "*"):  # noqa: ASYNC110 - another thread
                await asyncio.sleep(0.02)


async def test_more_containers_than_are_kept_leave_a_session_without_a_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tape, "MAX_REEL_BYTES", 20_000)
    async with rest(tmp_path, engine=FAST) as r, r.http.ws_connect(r.base + "/ws/asr") as ws:
        await say(ws, [compressed(speak(range(20)), "flac")] * 4)
        await r.scribe.settle((await r.w.broker.find("local", "asr", "s")).spec.id)  # type: ignore[union-attr]
        assert "audio_path" not in await r.get("/api/v1/session/s")
    assert not files(tmp_path / "recordings", "*")


async def test_twenty_are_listed_newest_first(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST) as r:
        for n in range(22):
            await r.speak(f"s{n}", n, 1)
        await r.written("s21")
        found = await r.get("/api/v1/history")
        assert found["total"] == 22
        assert [s["session_id"] for s in found["records"]][:2] == ["s21", "s20"]
        assert len(found["records"]) == 20


async def test_a_session_whose_client_left_is_written_all_the_same(tmp_path: Path) -> None:
    async with rest(tmp_path, engine={"rtf": 1.0, "words": 2}) as r:
        async with r.http.ws_connect(r.base + "/ws/asr") as ws:
            await ws.send_json({"action": "start", "session_id": "left"})
            data = base64.b64encode(speak(range(8))).decode()
            await ws.send_json(
                {"action": "chunk", "session_id": "left", "chunk_index": 0, "audio_data": data}
            )
            await ws.send_json({"action": "finish", "session_id": "left"})
            while (await ws.receive_json()).get("status") != "received":
                pass
        assert (await r.written("left"))["text"] == text(0, 8)


# ----------------------------------------------------------------------------- tasks


async def test_a_file_is_recognised_and_can_be_heard_again(tmp_path: Path) -> None:
    async with rest(tmp_path, port="api", engine=FAST) as r:
        data = wav(0, 20)
        status, made = await r.submit(data)
        assert status == 200
        assert made["status"] == "queued"
        assert len(made["task_id"]) == 8
        assert {"position", "estimated_wait"} <= made.keys()
        found = await r.done(made["task_id"])
        assert found["status"] == "done"
        assert found["text"] == text(0, 20)
        assert found["duration"] == 2.0
        assert (found["error"], found["retry_url"], found["progress"]) == (None, None, 1.0)
        status, heard = await r.ask("GET", found["audio_url"])
        assert (status, heard) == (200, data)
        listed = await r.get("/api/v1/asr/history?limit=5")
        assert [t["task_id"] for t in listed["tasks"]] == [made["task_id"]]
        stats = await r.get("/api/v1/stats")
        assert (stats["total_tasks"], stats["total_duration"]) == (1, 2.0)
        assert stats["storage_used"].endswith(" MB")


async def test_a_large_file_lies_beside_the_stream(tmp_path: Path) -> None:
    async with rest(tmp_path, engine={"rtf": 0.0, "words": 50}) as r:
        status, made = await r.submit(wav(0, 300))  # 960 KB
        assert status == 200
        assert files(tmp_path / "blobs", "*")
        found = await r.done(made["task_id"])
        assert found["text"] == text(0, 300)
        assert not files(tmp_path / "blobs", "*"), "it is needed no more"


@pytest.mark.parametrize(
    ("name", "data", "status"),
    [
        ("x.txt", b"hello", 400),
        ("x.wav", b"MZ not audio at all", 400),
        ("wav", wav(0, 1), 400),
        ("../../etc/passwd.wav", wav(0, 1), 200),
        ("\u202e" * 200 + ".wav", wav(0, 1), 200),
    ],
)
async def test_names_and_contents_of_files(
    tmp_path: Path, name: str, data: bytes, status: int
) -> None:
    async with rest(tmp_path / "x" / "y", engine=FAST) as r:
        got, body = await r.submit(data, name)
        assert got == status, body
        if status == 400:
            assert body["detail"].startswith("Invalid file format")
        else:
            await r.done(body["task_id"])
        for path in files(tmp_path, "*"):
            assert "passwd" not in path.name and "\u202e" not in path.name


async def test_requests_that_lack_something(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST) as r:
        assert (await r.ask("POST", "/api/v1/asr/submit"))[0] == 422
        form = aiohttp.FormData()
        form.add_field("other", b"x", filename="x.wav")
        assert (await r.ask("POST", "/api/v1/asr/submit", data=form))[0] == 422
        for limit in ("101", "0", "-1", "x", "9" * 30):
            await r.get(f"/api/v1/asr/history?limit={limit}", 422)
        body = await r.get("/api/v1/asr/result/00000000", 404)
        assert body["detail"] == "Task not found"
        await r.get("/api/v1/asr/audio/00000000", 404)
        assert (await r.ask("POST", "/api/v1/asr/retry/00000000"))[0] == 404
        assert (await r.ask("DELETE", "/api/v1/asr/task/00000000"))[0] == 404


async def test_a_failed_task_says_why_and_can_be_tried_again(tmp_path: Path) -> None:
    async with rest(tmp_path, engine={**FAST, "fail": 1.0}) as r:
        _, made = await r.submit(wav(0, 4))
        task = made["task_id"]
        found = await r.done(task)
        assert found["status"] == "failed"
        assert found["error"]
        assert found["retry_url"] == f"/api/v1/asr/retry/{task}"
        assert (await r.get("/api/v1/asr/queue/status"))["failed"] == 1
        status, again = await r.ask("POST", found["retry_url"])
        assert (status, again["task_id"], again["status"]) == (200, task, "queued")
        assert (await r.done(task))["status"] == "failed"
        assert (await r.ask("DELETE", f"/api/v1/asr/task/{task}"))[0] == 200
        await r.get(f"/api/v1/asr/result/{task}", 404)
        assert not files(tmp_path, "*.wav")


async def test_only_a_failed_task_is_tried_again(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST) as r:
        _, made = await r.submit(wav(0, 2))
        await r.done(made["task_id"])
        status, body = await r.ask("POST", f"/api/v1/asr/retry/{made['task_id']}")
        assert (status, body["detail"]) == (400, "Task is not failed")


async def test_a_waiting_task_has_a_place_and_can_be_deleted(tmp_path: Path) -> None:
    async with rest(tmp_path, engine={"rtf": 5.0, "words": 2, "sessions": 1}) as r:
        made = [(await r.submit(wav(10 * n, 10)))[1]["task_id"] for n in range(3)]
        await asyncio.sleep(0.05)
        shown = [await r.get(f"/api/v1/asr/result/{task}") for task in made]
        assert [s["status"] for s in shown] == ["processing", "queued", "queued"]
        assert [s["position"] for s in shown] == [None, 1, 2]
        status = await r.get("/api/v1/asr/queue/status")
        assert (status["queued"], status["processing"], status["workers"]) == (2, 1, 1)
        assert (await r.ask("DELETE", f"/api/v1/asr/task/{made[1]}"))[0] == 200
        assert (await r.get("/api/v1/asr/queue/status"))["queued"] == 1


async def test_tenants_do_not_see_each_others(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST, trust=True) as r:
        ann, bob = {"X-Tenant": "ann"}, {"X-Tenant": "bob"}
        _, made = await r.submit(wav(0, 2), headers=ann)
        task = made["task_id"]
        await asyncio.sleep(0.2)
        for method, path in (
            ("GET", f"/api/v1/asr/result/{task}"),
            ("GET", f"/api/v1/asr/audio/{task}"),
            ("POST", f"/api/v1/asr/retry/{task}"),
            ("DELETE", f"/api/v1/asr/task/{task}"),
        ):
            assert (await r.ask(method, path, headers=bob))[0] == 404
        assert (await r.ask("GET", f"/api/v1/asr/result/{task}", headers=ann))[0] == 200


# ------------------------------------------------------------------ health, gates


@pytest.mark.parametrize(
    ("port", "status"), [("main", "ready"), ("voice", "ready"), ("api", "ready")]
)
async def test_health_has_the_fields_of_both_originals(
    tmp_path: Path, port: str, status: str
) -> None:
    async with rest(tmp_path, port=port, engine=FAST) as r:
        found = await r.get("/api/v1/health")
        assert found["status"] == status
        assert (found["funasr_ready"], found["workers_ready"]) == (True, 1)
        assert (found["model_loaded"], found["workers_active"]) == (True, 1)


async def test_health_without_a_worker(tmp_path: Path) -> None:
    async with rest(tmp_path / "a", port="voice") as r:
        found = await r.get("/api/v1/health")
        assert (found["status"], found["workers_ready"]) == ("ready", 0)
    async with rest(tmp_path / "b", port="api") as r:
        found = await r.get("/api/v1/health")
        assert found["status"] == "unavailable"
        assert found["error"]


async def test_the_dashboard_of_the_original_is_fed(tmp_path: Path) -> None:
    async with rest(tmp_path, port="api-alt", engine=FAST) as r:
        for base in ("/api/v1", ""):
            results = await r.get(base + "/test/results/latest")
            assert results["active_workers"] == 1
            assert results["memory_mb"] > 0
            assert {"total_requests", "success", "throughput"} <= (
                await r.get(base + "/test/report/latest")
            ).keys()


async def _refused(r: Rest, path: str = "/ws/asr") -> tuple[int, Any, Any]:
    key = base64.b64encode(b"0123456789abcdef").decode()
    headers = {
        "Connection": "Upgrade", "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key,
    }  # fmt: skip
    async with r.http.get(r.base + path, headers=headers) as answer:
        return answer.status, answer.headers, json.loads(await answer.read())


async def test_without_workers_a_handshake_is_refused_in_the_originals_form(
    tmp_path: Path,
) -> None:
    async with rest(tmp_path, port="voice") as r:
        status, headers, body = await _refused(r)
        assert status == 503
        assert 1 <= int(headers["retry-after"]) <= 30
        assert isinstance(body["error"], str)
        await r.w.worker(Kind.RECOGNITION, **FAST)
        assert (await r.speak("x", 0, 2))["text"] == text(0, 2)


async def test_no_more_connections_than_the_setting_allows(tmp_path: Path) -> None:
    limits = RecognitionOptions(max_connections=2)
    async with rest(tmp_path, engine=FAST, limits=limits) as r:
        one = await r.http.ws_connect(r.base + "/ws/asr")
        two = await r.http.ws_connect(r.base + "/ws/asr")
        status, _, body = await _refused(r)
        assert (status, body["code"]) == (503, "too_many_connections")
        await one.close()
        await asyncio.sleep(0.05)
        three = await r.http.ws_connect(r.base + "/ws/asr")
        for ws in (two, three):
            await ws.close()


async def test_a_full_queue_refuses_strangers_and_lets_the_known_pass(tmp_path: Path) -> None:
    async with rest(tmp_path, engine={"rtf": 5.0, "words": 2, "sessions": 1}) as r:
        r.w.ctx.queue_limit = 2
        for n in range(3):
            await r.submit(wav(10 * n, 10))
        status, headers, body = await _refused(r)
        assert (status, body["code"]) == (503, "queue_full")
        assert "retry-after" in headers
        status, body = await r.submit(wav(0, 1))
        assert (status, body["code"]) == (503, "queue_full")
        r.w.ctx.queue_limit = 3
        ws = await r.http.ws_connect(r.base + "/ws/asr")
        await ws.send_json({"action": "start", "session_id": "mine"})
        assert (await ws.receive_json())["type"] == "ack"
        r.w.ctx.queue_limit = 2
        again = await r.http.ws_connect(r.base + "/ws/asr?session_id=mine")
        for open_ws in (ws, again):
            await open_ws.close()


async def test_a_message_of_many_megabytes_is_taken_here(tmp_path: Path) -> None:
    async with rest(tmp_path, port="voice", engine={"rtf": 0.0, "words": 1000}) as r:
        async with r.http.ws_connect(r.base + "/ws/asr", max_msg_size=0) as ws:
            await ws.send_json({"action": "start", "session_id": "big"})
            data = base64.b64encode(speak(range(600))).decode()  # 2.5 MB in one message
            await ws.send_json(
                {"action": "chunk", "session_id": "big", "chunk_index": 0, "audio_data": data}
            )
            await ws.send_json({"action": "finish", "session_id": "big"})
            async with asyncio.timeout(60):
                while (message := await ws.receive_json())["type"] != "final_result":
                    assert message["type"] != "error", message
            assert message["text"] == text(0, 600)
        async with r.http.ws_connect(r.base + "/ws/asr") as ws:
            with contextlib.suppress(ConnectionError, aiohttp.ClientError):
                await ws.send_str("x" * (16 * 1024 * 1024 + 1))
            assert (await ws.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)

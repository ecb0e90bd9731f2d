"""What is left of recognition's sessions and tasks when they end, fail or are deleted."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest
from test_asr_rest import FAST, Rest, files, rest, wav

from forebay.core.events import Ended
from forebay.core.tones import speak
from forebay.errors import QueueFull
from forebay.gateway import asr_sessions

SLOW = {"rtf": 5.0, "words": 2, "sessions": 1}
LARGE = wav(0, 300)  # 960 KB: beside the stream


def large_and_broken() -> bytes:
    return LARGE[:24] + bytes(4) + LARGE[28:]  # of 0 samples a second


async def begin(ws: Any, session: str, data: bytes | None = None) -> None:
    """A session of which one chunk was heard."""
    await ws.send_json({"action": "start", "session_id": session})
    chunk = base64.b64encode(speak([1, 2]) if data is None else data).decode()
    await ws.send_json(
        {"action": "chunk", "session_id": session, "chunk_index": 0, "audio_data": chunk}
    )
    if data is None:
        await told(ws, "chunk_result")


async def told(ws: Any, kind: str) -> Any:
    async with asyncio.timeout(30):
        while (message := await ws.receive_json())["type"] != kind:
            pass
    return message


async def no_blobs(folder: Path) -> None:
    async with asyncio.timeout(30):
        while files(folder / "blobs", "*"):  # noqa: ASYNC110 - another thread
            await asyncio.sleep(0.02)


# -------------------------------------------------------------------------- sessions


async def test_a_live_session_that_is_deleted_is_gone_and_its_client_told(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST) as r, r.http.ws_connect(r.base + "/ws/asr") as ws:
        await begin(ws, "live")
        assert (await r.ask("DELETE", "/api/v1/session/live"))[0] == 200
        await r.get("/api/v1/session/live", 404)
        assert (await r.ask("DELETE", "/api/v1/session/live"))[0] == 404
        assert (await told(ws, "error"))["code"] == "cancelled"
        assert await r.w.broker.find("local", "asr", "live") is None
        await begin(ws, "live")  # another one of that name knows nothing of it
        assert (await r.get("/api/v1/session/live"))["chunk_count"] == 1
        await ws.send_json({"action": "finish", "session_id": "live"})
        assert (await told(ws, "final_result"))["text"] == "w1 w2"


async def test_a_deleted_session_is_hidden_until_its_reader_has_had_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rest(tmp_path, engine=FAST) as r, r.http.ws_connect(r.base + "/ws/asr") as ws:
        await begin(ws, "live")
        behind = True
        monkeypatch.setattr(r.w.hub, "readers", lambda job: int(behind))
        assert (await r.ask("DELETE", "/api/v1/session/live"))[0] == 200
        await r.get("/api/v1/session/live", 404)
        await r.get("/api/v1/session/live/audio", 404)
        kept = await r.w.broker.find("local", "asr", "live")
        assert kept is not None, "its reader could not be told otherwise"
        behind = False
        async with asyncio.timeout(asr_sessions.LAST_WORD_S):
            while await r.w.broker.find("local", "asr", "live"):  # noqa: ASYNC110 - another task
                await asyncio.sleep(0.01)
        assert await r.scribe.history.session("local", "live") is None
        assert not files(tmp_path / "recordings", "*")


async def test_a_session_deleted_while_its_end_is_written_stays_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rest(tmp_path, engine=FAST) as r:
        finish, held = r.scribe.tape.finish, asyncio.Event()

        async def slowly(*args: Any) -> str:
            path = await finish(*args)
            await held.wait()
            return path

        monkeypatch.setattr(r.scribe.tape, "finish", slowly)
        await r.speak("done", 0, 3)
        async with asyncio.timeout(30):
            while not r.scribe._writing:  # noqa: ASYNC110 - another task
                await asyncio.sleep(0.01)
        assert (await r.ask("DELETE", "/api/v1/session/done"))[0] == 200
        held.set()
        async with asyncio.timeout(30):
            while r.scribe._writing:  # noqa: ASYNC110 - another task
                await asyncio.sleep(0.01)
        await r.get("/api/v1/session/done", 404)
        assert not files(tmp_path / "recordings", "*")


@pytest.mark.parametrize("state", ["failed", "cancelled"])
async def test_how_a_session_ended_has_the_historys_word(tmp_path: Path, state: str) -> None:
    async with rest(tmp_path, engine=FAST) as r, r.http.ws_connect(r.base + "/ws/asr") as ws:
        await begin(ws, "s")
        view = await r.w.broker.find("local", "asr", "s")
        assert view is not None
        await r.w.broker.expire(view.spec.id, Ended(state=state, code="x", message="y"))
        shown = await r.get("/api/v1/session/s")
        assert (shown["status"], shown["error"]) == (state, "y")
        await r.scribe.settle(view.spec.id)
        record = await r.scribe.history.session("local", "s")
        assert record is not None and record.status == state


async def test_a_deleted_sessions_files_go(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=SLOW) as r, r.http.ws_connect(r.base + "/ws/asr") as ws:
        await begin(ws, "big", LARGE)
        async with asyncio.timeout(30):
            while not files(tmp_path / "blobs", "*"):  # noqa: ASYNC110 - another thread
                await asyncio.sleep(0.02)
        assert (await r.ask("DELETE", "/api/v1/session/big"))[0] == 200
        await no_blobs(tmp_path)


# ----------------------------------------------------------------------------- tasks


async def failed(r: Rest, data: bytes) -> str:
    _, made = await r.submit(data)
    assert (await r.done(made["task_id"]))["status"] == "failed"
    return str(made["task_id"])


async def test_of_four_that_try_a_task_again_at_once_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rest(tmp_path, engine={**FAST, "fail": 1.0}) as r:
        task = await failed(r, wav(0, 4))
        r.w.ctx.queue_limit = 10
        real, refused = r.w.broker.submit, asyncio.Event()

        async def later(*args: Any, **how: Any) -> Any:
            await refused.wait()  # it must not fail again before all have asked
            return await real(*args, **how)

        monkeypatch.setattr(r.w.broker, "submit", later)
        asked = [
            asyncio.ensure_future(r.ask("POST", f"/api/v1/asr/retry/{task}")) for _ in range(4)
        ]
        async with asyncio.timeout(30):
            while sum(one.done() for one in asked) < 3:  # noqa: ASYNC110 - whichever they are
                await asyncio.sleep(0.01)
        refused.set()
        answers = await asyncio.gather(*asked)
        monkeypatch.setattr(r.w.broker, "submit", real)
        assert sorted(status for status, _ in answers) == [200, 400, 400, 400]
        for status, body in answers:
            assert status == 200 or body["detail"] == "Task is not failed"
        assert (await r.done(task))["status"] == "failed"
        assert len(await r.w.broker.jobs()) == 1, "the job of the first try is forgotten"
        assert (await r.ask("POST", f"/api/v1/asr/retry/{task}"))[0] == 200


async def test_a_task_whose_second_try_is_refused_is_failed_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rest(tmp_path, engine={**FAST, "fail": 1.0}) as r:
        task = await failed(r, LARGE)
        before = await r.get(f"/api/v1/asr/result/{task}")
        real = r.w.broker.submit

        async def refuse(*args: Any, **how: Any) -> Any:
            raise QueueFull("9 wait, expected no more than 9")

        monkeypatch.setattr(r.w.broker, "submit", refuse)
        assert (await r.ask("POST", f"/api/v1/asr/retry/{task}"))[0] == 503
        assert await r.get(f"/api/v1/asr/result/{task}") == before
        await no_blobs(tmp_path)
        monkeypatch.setattr(r.w.broker, "submit", real)
        assert (await r.ask("POST", f"/api/v1/asr/retry/{task}"))[0] == 200
        await r.done(task)


async def test_a_failed_tasks_large_file_goes_too(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST) as r:
        task = await failed(r, large_and_broken())
        await no_blobs(tmp_path)
        assert (await r.ask("POST", f"/api/v1/asr/retry/{task}"))[0] == 200
        assert (await r.done(task))["status"] == "failed"
        await no_blobs(tmp_path)
        assert files(tmp_path / "recordings", "*.wav"), "for whoever tries it again"


async def test_a_dead_letter_keeps_its_large_file_until_its_task_is_deleted(
    tmp_path: Path,
) -> None:
    async with rest(tmp_path, engine=SLOW) as r:
        _, made = await r.submit(LARGE)
        view = await r.w.broker.find("local", "asr-task", made["task_id"])
        assert view is not None
        blobs = r.w.ctx.blobs
        assert blobs is not None
        r.w.broker._core.drop_blobs = lambda names: [blobs.drop(n) for n in names] and None
        await r.w.broker.expire(view.spec.id, Ended(state="failed", code="poison", message="x"))
        assert (await r.done(made["task_id"]))["status"] == "failed"
        await asyncio.sleep(0.1)
        assert files(tmp_path / "blobs", "*")
        assert (await r.ask("DELETE", f"/api/v1/asr/task/{made['task_id']}"))[0] == 200
        assert await r.w.broker.jobs(dead=True) == []
        await no_blobs(tmp_path)


async def test_what_an_operator_retries_comes_to_the_tasks_owner(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST | {"sessions": 1}) as r:
        _, made = await r.submit(LARGE)
        view = await r.w.broker.find("local", "asr-task", made["task_id"])
        assert view is not None
        await r.w.broker.expire(view.spec.id, Ended(state="failed", code="poison", message="x"))
        assert (await r.done(made["task_id"]))["status"] == "failed"
        status, again = await r.ask("POST", f"/api/jobs/{view.spec.id}/retry")
        assert status == 200 and again["id"] != view.spec.id
        found = await r.done(made["task_id"])
        assert (found["status"], found["error"]) == ("done", None)
        assert found["text"].startswith("w0 w1")
        assert await r.w.broker.jobs(dead=True) == []


@pytest.mark.parametrize("end", ["deleted", "failed", "cancelled"])
async def test_files_of_a_task_that_an_earlier_process_began_go_at_its_end(
    tmp_path: Path, end: str
) -> None:
    async with rest(tmp_path, engine=SLOW) as r:
        _, made = await r.submit(LARGE)
        view = await r.w.broker.find("local", "asr-task", made["task_id"])
        assert view is not None
        blobs = r.w.ctx.blobs
        assert blobs is not None
        r.w.broker._core.drop_blobs = lambda names: [blobs.drop(n) for n in names] and None
        r.scribe._open.pop(view.spec.id).unlisten()  # as a new process: it has the row only
        await r.scribe._catch_up()
        assert files(tmp_path / "blobs", "*")
        if end == "deleted":
            assert (await r.ask("DELETE", f"/api/v1/asr/task/{made['task_id']}"))[0] == 200
        else:
            state: Any = end
            await r.w.broker.expire(view.spec.id, Ended(state=state, code="x", message="y"))
            found = await r.done(made["task_id"])
            assert (found["status"], found["error"]) == ("failed", "y")
        await no_blobs(tmp_path)


async def test_what_another_gateway_wrote_or_deleted_is_not_written_again(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=SLOW) as r:
        made = [(await r.submit(wav(0, 4)))[1]["task_id"] for _ in range(2)]
        tasks = [await r.scribe.history.task("local", task) for task in made]
        written, deleted = tasks
        assert written is not None and deleted is not None
        done = Ended(state="completed", details={"text": "said"})
        r.scribe.history.put(r.scribe._task_record(written, r.scribe._open[written.job].view, done))
        await r.scribe.history.delete_task("local", deleted.id)
        for task in (written, deleted):
            await r.w.broker.cancel(task.job)
            r.scribe._open[task.job].ended = None
            await r.w.broker.forget(task.job)
            r.scribe._open[task.job].ended = None
            await r.scribe.settle(task.job)
        assert (await r.get(f"/api/v1/asr/result/{written.id}"))["text"] == "said"
        await r.get(f"/api/v1/asr/result/{deleted.id}", 404)


async def test_an_empty_file_is_said_to_be_empty(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST) as r:
        status, body = await r.submit(b"")
        assert status == 400 and "0 bytes" in body["detail"]

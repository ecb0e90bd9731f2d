"""Photo enhancement over real sockets: upload, follow, download, batches, cancel, refusals."""

from __future__ import annotations

import asyncio
import io
import json
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from asgi_calls import application, call, context
from photo_stand import PhotoStand, bomb, jpeg, photo_stand, post

from forebay.blobs import Limits
from forebay.core.events import Picture
from forebay.gateway.context import PhotoOptions
from forebay.gateway.personality import PERSONALITIES


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[PhotoStand]:
    async with photo_stand(tmp_path) as made:
        yield made


async def ask(client: Any, at: PhotoStand, path: str) -> Any:
    async with client.get(at.url + path) as response:
        return await response.json()


async def done(client: Any, at: PhotoStand, task: str) -> dict[str, Any]:
    for _ in range(300):
        found = await ask(client, at, f"/api/v1/status/{task}")
        if found["status"] in ("completed", "failed"):
            return found
        await asyncio.sleep(0.01)
    raise AssertionError("it never ended")


async def test_a_photo_goes_in_and_its_result_comes_out(gateway: PhotoStand, client: Any) -> None:
    response = await post(client, gateway, jpeg(), name="holiday.jpg", query={"tile_size": "300"},
                          fields={"tile_size": "512", "quality_level": "medium"})  # fmt: skip
    assert response.status == 200
    made = await response.json()
    assert made["status"] == "queued"
    assert made["created_at"] == pytest.approx(time.time(), abs=30)
    found = await done(client, gateway, made["task_id"])
    assert (found["status"], found["progress"], found["error"]) == ("completed", 1.0, None)
    assert found["result_url"] == f"/api/v1/download/{made['task_id']}"
    assert found["processing_time"] is not None
    assert found["updated_at"] >= found["created_at"] == made["created_at"]
    async with client.get(gateway.url + found["result_url"]) as result:
        assert result.content_type == "image/jpeg"
        assert 'filename="holiday_enhanced.jpg"' in result.headers["content-disposition"]
        assert await result.read() == jpeg(80, 60)
    spec = gateway.image.leases[0].spec
    assert spec.durable
    assert spec.params["tile_size"] == 300  # the query wins
    assert spec.params["quality_level"] == "medium"
    picture = gateway.image.leases[0].input[0]
    assert isinstance(picture, Picture)
    assert (picture.type, picture.width, picture.height) == ("image/jpeg", 40, 30)


async def test_progress_is_told_while_it_works(gateway: PhotoStand, client: Any) -> None:
    gateway.go.clear()
    made = await (await post(client, gateway, jpeg())).json()
    for _ in range(200):
        found = await ask(client, gateway, f"/api/v1/status/{made['task_id']}")
        if found["progress"]:
            break
        await asyncio.sleep(0.01)
    assert found["status"] == "processing"
    assert 0 < found["progress"] < 1
    assert found["tiles_done"] == 1
    async with client.get(f"{gateway.url}/api/v1/download/{made['task_id']}") as response:
        assert response.status == 400
        assert (await response.json())["detail"] == "Task not completed. Current status: processing"
    waiting = await (await post(client, gateway, jpeg())).json()
    found = await ask(client, gateway, f"/api/v1/status/{waiting['task_id']}")
    assert (found["status"], found["progress"], found["position"]) == ("queued", 0.0, 1)
    listed = await ask(client, gateway, "/api/v1/tasks")
    assert listed["total_tasks"] == 2
    assert {t["task_id"] for t in listed["tasks"]} == {made["task_id"], waiting["task_id"]}
    gateway.go.set()
    assert (await done(client, gateway, waiting["task_id"]))["status"] == "completed"


async def test_a_part_without_content_type_is_sniffed(gateway: PhotoStand, client: Any) -> None:
    body = (b"--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n"
            + jpeg(form="PNG") + b"\r\n--x--\r\n")  # fmt: skip
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    async with client.post(f"{gateway.url}/api/v1/enhance", data=body, headers=headers) as response:
        assert response.status == 200


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
async def test_every_format_is_taken(gateway: PhotoStand, client: Any, form: str) -> None:
    response = await post(client, gateway, jpeg(form=form), name=f"a.{form.lower()}")
    assert response.status == 200


BAD = [
    ("bomb", bomb(), {}, 413, "144.0 million"),
    ("cut", jpeg(400, 300)[:-40], {}, 422, "ends before"),
    ("gif", b"GIF89a" + b"\0" * 60, {}, 415, "not those of"),
    ("text", b"hello there", {}, 415, "not those of"),
    ("zip too", jpeg() + b"PK\x05\x06" + b"\0" * 18, {}, 422, "zip"),
    ("empty", b"", {}, 400, "empty"),
    ("no image", jpeg(), {"kind": "text/plain"}, 400, "File must be an image"),
    ("extension", jpeg(), {"name": "a.exe"}, 400, "Unsupported file format"),
    ("field", jpeg(), {"field": "upload"}, 400, "another field"),
    ("tile", jpeg(), {"fields": {"tile_size": "64"}}, 422, "256 to 512"),
    ("level", jpeg(), {"query": {"quality_level": "best"}}, 422, "fast, medium, high"),
    ("model", jpeg(), {"query": {"model": "other"}}, 404, "model"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "data", "facts", "status", "says"), BAD, ids=[b[0] for b in BAD])
async def test_what_is_wrong_is_refused_before_the_model_sees_it(
    gateway: PhotoStand, client: Any, case: str, data: bytes, facts: Any, status: int, says: str
) -> None:
    response = await post(client, gateway, data, **facts)
    answer = await response.json()
    assert response.status == status, answer
    assert says in answer["detail"]
    assert gateway.image.leases == []
    assert gateway.files() == [], "nothing is kept of it"


async def test_a_form_without_a_file_is_unprocessable(gateway: PhotoStand, client: Any) -> None:
    response = await post(client, gateway, fields={"tile_size": "300"})
    assert response.status in (415, 422)
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("tile_size", "300")
    async with client.post(f"{gateway.url}/api/v1/enhance", data=form) as response:
        assert response.status == 422
        assert (await response.json())["detail"] == "field required: file"


async def test_too_large_a_body_is_refused_without_being_read(
    gateway: PhotoStand, client: Any
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    head = (
        "POST /api/v1/enhance HTTP/1.1\r\nHost: localhost\r\nContent-Length: 53477376\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    writer.write(head.encode())
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), 60)
    assert b" 413 " in answer
    writer.close()


async def test_names_are_text_and_never_paths(gateway: PhotoStand, client: Any) -> None:
    names = ["../../etc/passwd.jpg", "/abs/x.png", "a\\..\\b.jpg", "照片 1.jpg", "x" * 300 + ".jpg",
             "\u202egpj.exe.jpg", ".jpg", "con.jpg", "a\"b;c.jpg"]  # fmt: skip
    gateway.tiles = 1
    for name in names:
        response = await post(client, gateway, jpeg(), name=name)
        assert response.status == 200, name
        task = (await response.json())["task_id"]
        await done(client, gateway, task)
        async with client.get(f"{gateway.url}/api/v1/download/{task}") as result:
            said = result.headers["content-disposition"]
            assert result.status == 200
        assert "/" not in said.partition("filename*=")[0]
        assert ".." not in said
    assert all(len(file) == 32 for file in gateway.files())


# ---------------------------------------------------------------------------------- batch


async def test_a_batch_counts_truthfully_and_comes_as_a_zip(
    gateway: PhotoStand, client: Any
) -> None:
    gateway.go.clear()
    response = await post(client, gateway, jpeg(), jpeg(shade=1), jpeg(shade=2), field="files",
                          path="/api/v1/enhance/batch", name="same.jpg")  # fmt: skip
    made = await response.json()
    assert (response.status, made["total_files"], len(made["sub_tasks"])) == (200, 3, 3)
    batch = f"/api/v1/batch/status/{made['batch_task_id']}"
    for _ in range(200):
        found = await ask(client, gateway, batch)
        if found["status"] == "processing":
            break
        await asyncio.sleep(0.01)
    assert (found["completed_files"], found["failed_files"]) == (0, 0)
    async with client.get(gateway.url + batch.replace("status", "download")) as early:
        assert early.status == 400
    async with client.delete(f"{gateway.url}/api/v1/tasks/{made['sub_tasks'][2]}") as deleted:
        assert (await deleted.json())["message"] == "Task cancelled"
    gateway.go.set()
    for task in made["sub_tasks"][:2]:
        await done(client, gateway, task)
    found = await ask(client, gateway, batch)
    assert found["status"] == "partial_completed"
    assert (found["completed_files"], found["failed_files"], found["progress"]) == (2, 1, 1.0)
    assert [s["filename"] for s in found["sub_tasks"]] == ["same.jpg"] * 3
    assert found["sub_tasks"][2]["error"] == "Task cancelled"
    async with client.get(gateway.url + batch.replace("status", "download")) as packed:
        assert packed.content_type == "application/zip"
        archive = zipfile.ZipFile(io.BytesIO(await packed.read()))
    assert archive.testzip() is None
    assert archive.namelist() == ["same_enhanced.jpg", "same_enhanced (1).jpg"]
    assert archive.read("same_enhanced.jpg") == jpeg(80, 60)


async def test_a_batch_goes_on_without_the_tasks_that_were_deleted(
    gateway: PhotoStand, client: Any
) -> None:
    response = await post(client, gateway, jpeg(), jpeg(shade=1), field="files",
                          path="/api/v1/enhance/batch")  # fmt: skip
    made = await response.json()
    for task in made["sub_tasks"]:
        await done(client, gateway, task)
    batch = f"/api/v1/batch/status/{made['batch_task_id']}"
    archive_url = gateway.url + batch.replace("status", "download")
    await client.delete(f"{gateway.url}/api/v1/tasks/{made['sub_tasks'][0]}")
    found = await ask(client, gateway, batch)
    assert [s["task_id"] for s in found["sub_tasks"]] == made["sub_tasks"][1:]
    assert (found["status"], found["total_files"]) == ("completed", 1)
    async with client.get(archive_url) as packed:
        assert len(zipfile.ZipFile(io.BytesIO(await packed.read())).namelist()) == 1
    await client.delete(f"{gateway.url}/api/v1/tasks/{made['sub_tasks'][1]}")
    async with client.get(archive_url) as gone:
        assert gone.status == 404


async def test_a_batch_is_taken_whole_or_not_at_all(gateway: PhotoStand, client: Any) -> None:
    path = "/api/v1/enhance/batch"
    response = await post(client, gateway, jpeg(), b"nothing", field="files", path=path)
    assert response.status == 415
    assert (await response.json())["detail"].startswith("file 2:")
    many = await post(client, gateway, *[jpeg()] * 21, field="files", path=path)
    assert many.status == 400
    assert "20" in (await many.json())["detail"]
    assert gateway.files() == []
    assert (await ask(client, gateway, "/api/v1/tasks"))["total_tasks"] == 0


async def test_one_photo_does_not_wait_for_anothers_whole_batch(
    gateway: PhotoStand, client: Any
) -> None:
    gateway.go.clear()
    await post(client, gateway, *[jpeg()] * 10, field="files", path="/api/v1/enhance/batch")
    single = await (await post(client, gateway, jpeg())).json()
    found = await ask(client, gateway, f"/api/v1/status/{single['task_id']}")
    assert found["position"] == 1
    gateway.go.set()


# --------------------------------------------------------------------------------- events


async def test_tiles_arrive_as_events_with_urls(gateway: PhotoStand, client: Any) -> None:
    gateway.go.clear()
    made = await (await post(client, gateway, jpeg())).json()
    got: list[dict[str, Any]] = []
    async with client.get(f"{gateway.url}/api/v1/tasks/{made['task_id']}/events") as response:
        async for raw in response.content:
            if raw.startswith(b"data: "):
                got.append(json.loads(raw[6:]))
                if got[-1]["type"] == "tile" and got[-1]["index"] == 0:
                    gateway.go.set()
    names = [event["type"] for event in got]
    assert names[0] == "task"
    assert names[-2:] == ["result", "completed"]
    tiles = [event for event in got if event["type"] == "tile"]
    assert [t["index"] for t in tiles] == [0, 1, 2, 3]
    for tile in tiles:
        async with client.get(gateway.url + tile["url"]) as part:
            assert await part.read() == b"tile %d" % tile["index"]
            assert part.content_type == "image/webp"
    for bad in ("9", "x", "-1"):
        async with client.get(f"{gateway.url}/api/v1/tasks/{made['task_id']}/tiles/{bad}") as part:
            assert part.status in (400, 404)
    async with client.ws_connect(f"{gateway.url}/api/v1/tasks/{made['task_id']}/ws") as socket:
        told = [json.loads(message.data)["type"] async for message in socket]
    assert told[-1] == "completed"


async def test_who_is_cancelled_hears_it_and_its_slot_is_free(
    gateway: PhotoStand, client: Any
) -> None:
    gateway.go.clear()
    made = await (await post(client, gateway, jpeg())).json()
    async with client.get(f"{gateway.url}/api/v1/tasks/{made['task_id']}/events") as response:
        await response.content.readline()
        async with client.delete(f"{gateway.url}/api/v1/tasks/{made['task_id']}") as deleted:
            assert deleted.status == 200
        text = (await response.content.read()).decode()
    assert '"code":"cancelled"' in text
    await asyncio.wait_for(gateway.image.stopped.wait(), 60)
    found = await ask(client, gateway, f"/api/v1/status/{made['task_id']}")
    assert (found["status"], found["error"]) == ("failed", "Task cancelled")


async def test_a_deleted_result_is_gone(gateway: PhotoStand, client: Any) -> None:
    made = await (await post(client, gateway, jpeg())).json()
    await done(client, gateway, made["task_id"])
    url = f"{gateway.url}/api/v1/tasks/{made['task_id']}"
    async with client.delete(url) as deleted:
        assert (await deleted.json())["message"] == "Task deleted"
    for path in (f"status/{made['task_id']}", f"download/{made['task_id']}"):
        async with client.get(f"{gateway.url}/api/v1/{path}") as response:
            assert response.status == 404
    async with client.delete(url) as again:
        assert again.status == 404
    assert (await ask(client, gateway, "/api/v1/tasks"))["total_tasks"] == 0


async def empty(gateway: PhotoStand) -> None:
    async with asyncio.timeout(10):
        while gateway.files():  # noqa: ASYNC110 - another thread
            await asyncio.sleep(0.01)


async def test_a_deleted_task_leaves_no_file_behind(gateway: PhotoStand, client: Any) -> None:
    made = await (await post(client, gateway, jpeg())).json()
    await done(client, gateway, made["task_id"])
    assert len(gateway.files()) >= gateway.tiles + 1  # tiles and the result, at least
    async with client.delete(f"{gateway.url}/api/v1/tasks/{made['task_id']}"):
        pass
    await empty(gateway)


async def test_a_cancelled_task_leaves_no_tile_behind_when_it_is_deleted(
    gateway: PhotoStand, client: Any
) -> None:
    gateway.go.clear()
    made = await (await post(client, gateway, jpeg())).json()
    url = f"{gateway.url}/api/v1/tasks/{made['task_id']}"
    async with client.get(f"{url}/events") as response, asyncio.timeout(10):
        while b"event: tile" not in await response.content.readline():
            continue
        async with client.delete(url) as deleted:
            assert (await deleted.json())["message"] == "Task cancelled"
        await response.content.read()
    async with client.delete(url) as deleted:
        assert (await deleted.json())["message"] == "Task deleted"
    await empty(gateway)


# ------------------------------------------------------------------------------- refusals


async def test_unknown_tasks_are_not_found(gateway: PhotoStand, client: Any) -> None:
    for path in ("status/x", "download/x", "batch/status/x", "batch/download/x", "tasks/x/events"):
        async with client.get(f"{gateway.url}/api/v1/{path}") as response:
            assert response.status == 404, path
            assert "not found" in (await response.json())["detail"]


async def test_no_worker_too_many_tasks_and_a_full_store_say_so(
    tmp_path: Path, client: Any
) -> None:
    async with photo_stand(tmp_path / "a", worker=False) as at:
        response = await post(client, at, jpeg())
        assert response.status == 503
        assert response.headers["Retry-After"]
        assert "detail" in await response.json()
    async with photo_stand(tmp_path / "b", photos=PhotoOptions(max_tasks=1)) as at:
        at.go.clear()
        assert (await post(client, at, jpeg())).status == 200
        response = await post(client, at, jpeg())
        assert (response.status, "expected fewer than 1" in await response.text()) == (503, True)
    async with photo_stand(tmp_path / "c", limits=Limits(tenant_bytes=5000)) as at:
        response = await post(client, at, jpeg(900, 900))
        assert (response.status, "Retry-After" in response.headers) == (429, True)
        assert at.files() == []


async def test_status_calls_do_not_wait_for_the_model(gateway: PhotoStand, client: Any) -> None:
    gateway.go.clear()
    made = await (await post(client, gateway, jpeg())).json()
    for _ in range(50):
        assert (await ask(client, gateway, f"/api/v1/status/{made['task_id']}"))["progress"] < 1
    gateway.go.set()


async def test_root_and_health_have_the_originals_fields() -> None:
    app = application(context())
    port = PERSONALITIES["api"]
    root = (await call(app, "/", personality=port)).json
    assert (root["version"], root["status"]) == ("2.0.0", "running")
    assert root["endpoints"]["enhance"] == "/api/v1/enhance"
    health = (await call(app, "/health", personality=port)).json
    assert health["status"] == "healthy"
    assert set(health["model_status"]) == {"initialized", "cuda_available", "device"}
    assert (await call(app, "/", headers={"accept": "application/json"})).json["version"] == "2.0.0"
    page = await call(app, "/", headers={"accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")

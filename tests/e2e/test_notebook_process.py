"""The notebook backend over all processes: real kernels behind the surface its clients know."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from benchmarks.harness import Server, free_port, serving

NOTEBOOK = "0" * 31 + "1"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def compat_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(compat_port: int) -> Iterator[Server]:
    import os

    env = {**os.environ, "FOREBAY_COMPAT_NOTEBOOK_PORT": str(compat_port)}
    with serving(
        "--engine", "speech=synthetic",
        "--engine", "text=synthetic",
        "--workers", "image=0",
        "--compat", "notebook",
        "--engine", "kernel=python",
        env=env,
    ) as running:  # fmt: skip
        yield running


@pytest.fixture
async def http(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.http) as session:
        yield session


async def post(http: aiohttp.ClientSession, path: str, body: Any = None, **more: Any) -> Any:
    async with http.post(path, json=body, **more) as response:
        return response.status, await response.json()


async def get(http: aiohttp.ClientSession, path: str) -> Any:
    async with http.get(path) as response:
        return response.status, await response.json()


async def run(http: aiohttp.ClientSession, code: str, notebook: str = NOTEBOOK) -> Any:
    status, answer = await post(http, "/execute", {"code": code, "notebook_id": notebook})
    assert status == 200, answer
    return answer


async def test_a_notebook_is_made_runs_code_and_is_shut_down(http: aiohttp.ClientSession) -> None:
    status, made = await post(http, "/initialize")
    assert (status, made["status"]) == (200, "ok"), made
    notebook = made["notebook_id"]
    assert len(notebook) == 32
    assert await get(http, f"/check_notebook_id/{notebook}") == (200, {"exists": True})
    assert await get(http, "/check_notebook_id/nobody") == (200, {"exists": False})
    answer = await run(http, "print('hi')\n6*7", notebook)
    assert answer["status"] == "ok"
    assert [(o["type"], o["content"]) for o in answer["outputs"]] == [
        ("text", "hi\n"),
        ("text", "42"),
    ]
    assert answer["error"] is None
    assert answer["elapsed_time"] > 0
    status, gone = await post(http, "/shutdown", {"notebook_id": notebook})
    assert (status, gone["status"]) == (200, "ok")
    status, unknown = await post(http, "/shutdown", {"notebook_id": "nobody", "lang": "zh"})
    assert (status, unknown) == (200, {"status": "error", "message": "笔记本不存在"})


async def test_an_error_a_picture_and_html_have_their_types(http: aiohttp.ClientSession) -> None:
    failed = await run(http, "1/0")
    assert failed["status"] == "error"
    assert failed["error"] == "ZeroDivisionError: division by zero"
    assert failed["outputs"][0]["type"] == "error"
    assert "ZeroDivisionError" in failed["outputs"][0]["content"]
    code = (
        "from IPython.display import HTML, Image, display\nimport base64, os\n"
        f"png = base64.b64decode({base64.b64encode(PNG).decode()!r})\n"
        "display(HTML('<b>x</b>')); display(Image(data=png, format='png'))\n"
        "display(Image(data=png + os.urandom(300_000), format='png'))"
    )
    shown = (await run(http, code))["outputs"]
    assert [o["type"] for o in shown] == ["html", "image", "image"]
    assert shown[0]["content"] == "<b>x</b>"
    head = "data:image/png;base64,"
    assert base64.b64decode(shown[1]["content"].removeprefix(head)) == PNG
    large = base64.b64decode(shown[2]["content"].removeprefix(head))  # it went by a blob
    assert large.startswith(PNG)
    assert len(large) == len(PNG) + 300_000


async def test_execute_says_where_the_time_went(http: aiohttp.ClientSession) -> None:
    await run(http, "1")
    async with http.post("/execute", json={"code": "print(1)", "notebook_id": NOTEBOOK}) as answer:
        stages = [part.partition(";")[0] for part in answer.headers["Server-Timing"].split(", ")]
        assert stages == ["accept", "queue", "dispatch", "first_output", "run", "flush", "write"]
        assert answer.headers["Cache-Control"] == "no-store"


async def test_status_shows_all_output_while_a_cell_runs_and_cancel_interrupts_it(
    http: aiohttp.ClientSession,
) -> None:
    book = "status-1"
    code = "import time\nfor i in range(600):\n    print(i, flush=True); time.sleep(.05)"
    running = asyncio.create_task(run(http, code, book))
    seen: dict[str, Any] = {}
    for _ in range(200):
        status, seen = await get(http, f"/execution_status/{book}")
        if status == 200 and seen.get("outputs") and "3\n" in seen["outputs"][0]["content"]:
            break
        await asyncio.sleep(0.05)
    assert seen["status"] == "running"
    assert seen["outputs"][0]["content"].startswith("0\n1\n2\n3\n")
    assert seen["start_time"]
    status, told = await post(http, f"/cancel_execution/{book}")
    assert (status, told["status"]) == (200, "ok")
    answer = await running
    assert answer["status"] == "cancelled"
    assert "KeyboardInterrupt" in answer["outputs"][-1]["content"]
    _, after = await get(http, f"/execution_status/{book}")
    assert after["status"] == "cancelled"
    assert (await get(http, "/execution_status/nobody"))[0] == 404
    status, missing = await post(http, "/cancel_execution/nobody")
    assert (status, missing["detail"]) == (404, "Notebook not found")
    _, missing = await post(http, "/cancel_execution/nobody?lang=zh")
    assert missing["detail"] == "笔记本不存在"


async def test_a_client_that_leaves_does_not_end_its_cell(http: aiohttp.ClientSession) -> None:
    book = "leaver"
    await run(http, "1", book)
    with pytest.raises(TimeoutError):
        await http.post(
            "/execute",
            json={"code": "import time; time.sleep(1); print('done')", "notebook_id": book},
            timeout=aiohttp.ClientTimeout(total=0.3),
        )
    seen: dict[str, Any] = {"status": "running"}
    for _ in range(100):
        _, seen = await get(http, f"/execution_status/{book}")
        if seen["status"] != "running":
            break
        await asyncio.sleep(0.05)
    assert seen["status"] == "idle"
    assert seen["outputs"][0]["content"] == "done\n"


@pytest.mark.parametrize("where", ["query", "body"])
async def test_restart_takes_the_id_from_query_or_body_and_keeps_files(
    http: aiohttp.ClientSession, where: str
) -> None:
    book = f"restart-{where}"
    await run(http, "v = 1; open('kept.txt', 'w').write('yes')", book)
    if where == "query":
        status, told = await post(http, f"/restart_kernel?notebook_id={book}")
    else:
        status, told = await post(http, "/restart_kernel", {"notebook_id": book})
    assert (status, told["status"], told["notebook_id"]) == (200, "ok", book)
    after = await run(http, "print('v' in globals(), open('kept.txt').read())", book)
    assert after["outputs"][0]["content"] == "False yes\n"
    status, told = await post(http, f"/restart_kernel?notebook_id=no-{book}&lang=zh")
    assert (status, told["status"], told["message"]) == (200, "error", "笔记本不存在")


async def test_files_are_created_listed_read_and_refused_by_name(
    http: aiohttp.ClientSession,
) -> None:
    book = {"notebook_id": "files-1"}
    status, made = await post(
        http, "/create_file", {**book, "filename": "d/a.txt", "content": "hé"}
    )
    assert (status, made["file"]["path"], made["file"]["size"]) == (200, "d/a.txt", 3)
    status, twice = await post(
        http, "/create_file", {**book, "filename": "d/a.txt", "overwrite": False}
    )
    assert (status, twice["detail"]) == (409, "File already exists")
    for bad in ("../up.txt", "/etc/passwd", "a/../../b", "", "x\u0000y"):
        status, refused = await post(http, "/create_file", {**book, "filename": bad})
        assert status == 400, bad
        assert refused["detail"] == refused["message"]
    status, listed = await get(http, "/list_files/files-1")
    assert [n["name"] for n in listed["files"]] == ["d"]
    assert listed["files"][0]["children"][0]["path"] == "d/a.txt"
    status, text = await post(http, "/get_file", {**book, "filename": "d/a.txt"})
    assert (text["content"], text["size"]) == ("hé", 3)
    status, none = await post(http, "/get_file", {**book, "filename": "none"})
    assert status == 200
    assert none["error"]
    status, info = await post(http, "/get_file_info", {**book, "filename": "d/a.txt"})
    assert (info["name"], info["type"]) == ("a.txt", "file")
    async with http.get("/download_file/files-1/d/a.txt") as response:
        assert await response.read() == "hé".encode()
        assert response.headers["Content-Type"] == "application/octet-stream"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert (await get(http, "/download_file/files-1/none"))[0] == 404
    assert (await get(http, "/download_file/files-1/..%2F..%2Fetc%2Fpasswd"))[0] == 400


async def test_a_link_that_a_notebook_makes_leads_nowhere(http: aiohttp.ClientSession) -> None:
    await run(
        http,
        "import os\nos.symlink('/etc/passwd', 'link'); os.symlink('/etc', 'dir')\nos.mkfifo('pipe')",
        "links",
    )
    for name in ("link", "dir/passwd", "pipe"):
        assert (await get(http, f"/download_file/links/{name}"))[0] == 404
    status, written = await post(
        http, "/create_file", {"notebook_id": "links", "filename": "dir/x", "content": "x"}
    )
    assert status in (400, 404), written
    _, listed = await get(http, "/list_files/links")
    assert listed["files"] == []


async def test_uploads_are_written_all_or_none(http: aiohttp.ClientSession) -> None:
    form = aiohttp.FormData()
    form.add_field("notebook_id", "up-1")
    form.add_field("mode", "multiple")
    form.add_field("allowed_types", json.dumps([".csv", "image/*"]))
    form.add_field("max_files", "3")
    form.add_field("target_dir", ".assets")
    form.add_field("files", b"a,b\n" * 100_000, filename="t.csv")
    form.add_field("files", PNG, filename="p.png", content_type="image/png")
    async with http.post("/upload_file", data=form) as response:
        answer = await response.json()
        assert (response.status, answer["files"]) == (200, ["t.csv", "p.png"]), answer
        assert answer["target_dir"] == ".assets"
    async with http.get("/assets/up-1/p.png") as response:
        assert await response.read() == PNG
        assert response.headers["Content-Type"] == "image/png"
    async with http.get("/download_file/up-1/.assets/t.csv") as response:
        assert len(await response.read()) == 400_000
    for field, value in (
        ("target_dir", "../x"),
        ("allowed_types", '[".csv"]'),
        ("notebook_id", ".."),
    ):
        bad = aiohttp.FormData()
        for name, text in {"notebook_id": "up-1", field: value}.items():
            bad.add_field(name, text)
        bad.add_field("files", b"x", filename="evil.exe")
        async with http.post("/upload_file", data=bad) as response:
            assert response.status == 400
    async with http.delete("/assets/up-1") as response:
        assert response.status == 200
    assert (await get(http, "/assets/up-1/p.png"))[0] == 404


async def test_bad_ids_bodies_and_what_it_never_had_are_refused(
    http: aiohttp.ClientSession,
) -> None:
    status, refused = await post(http, "/execute", {"code": "1", "notebook_id": "../x"})
    assert (status, refused["status"]) == (400, "error")
    assert refused["detail"] == refused["message"]
    status, refused = await post(http, "/execute", {"code": 5, "notebook_id": "a"})
    assert status == 400
    status, refused = await post(
        http, "/execute", {"code": "1", "notebook_id": "a b", "lang": "zh-CN"}
    )
    assert refused["message"].startswith("请求无效")
    assert (await get(http, "/status"))[0] == 404


async def test_the_port_of_the_original_allows_any_origin(server: Server, compat_port: int) -> None:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{compat_port}") as other:
        origin = {"Origin": "http://frontend.example:3000"}
        async with other.get("/check_notebook_id/nobody", headers=origin) as response:
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            assert await response.json() == {"exists": False}
        preflight = {**origin, "Access-Control-Request-Method": "POST"}
        async with other.options("/execute", headers=preflight) as response:
            assert response.status == 204


async def test_a_cell_is_read_from_the_beginning_by_whoever_comes_later(
    http: aiohttp.ClientSession,
) -> None:
    status, made = await post(http, "/v1/notebooks")
    assert status == 201
    base = f"/v1/notebooks/{made['notebook']}"
    code = "import time\nfor i in range(30):\n    print(i, flush=True); time.sleep(.03)"
    status, cell = await post(http, f"{base}/cells", {"code": code, "cell": "c1"})
    assert status == 202
    assert cell["events"] == f"{base}/cells/c1/events"
    first = await events(http, cell["events"], stop_after=6)
    again = await events(http, cell["events"])
    assert [e for e in again if e["type"] == "display"][0]["data"]["text/plain"].startswith("0\n")
    assert "".join(e["data"]["text/plain"] for e in again if e["type"] == "display") == "".join(
        f"{i}\n" for i in range(30)
    )
    assert again[-1]["type"] == "ended"
    assert len(first) >= 6
    _, shown = await get(http, base)
    assert [(c["cell"], c["state"], c["code"]) for c in shown["cells"]] == [
        ("c1", "completed", code)
    ]
    assert shown["kernel"]["language"] == "python"


async def test_the_native_surface_interrupts_and_forgets(http: aiohttp.ClientSession) -> None:
    base = "/v1/notebooks/native-1"
    await post(http, f"{base}/cells", {"code": "print('on')\nwhile True: pass", "cell": "c"})
    await events(http, f"{base}/cells/c/events", stop_on="display")
    status, told = await post(http, f"{base}/interrupt")
    assert (status, told["reached"]) == (200, True)
    seen = await events(http, f"{base}/cells/c/events")
    assert next(e for e in seen if e["type"] == "result")["value"]["status"] == "interrupted"
    async with http.delete(f"{base}/cells/c") as response:
        assert response.status == 200
    assert (await get(http, base))[1]["cells"] == []
    status, _ = await post(http, f"{base}/cells", {"code": "1", "cell": "no/slash"})
    assert status == 400


async def events(
    http: aiohttp.ClientSession, path: str, *, stop_after: int = 10_000, stop_on: str = ""
) -> list[Any]:
    seen: list[Any] = []
    async with http.get(path) as response:
        assert response.status == 200
        async for line in response.content:
            if line.startswith(b"data: "):
                seen.append(json.loads(line[6:]))
                if len(seen) >= stop_after or seen[-1]["type"] == stop_on:
                    break
    return seen

"""Behind a real nginx: with the file we print everything gets through at once, and a proxy that
holds streams back, speaks HTTP/1.0 or cuts silences is named by the doctor."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from benchmarks.harness import FOREBAY, Server, free_port, serving

from forebay.commands import way
from forebay.commands.checks import Finding
from forebay.lab.fault_proxy import FaultProxy

# A proxy before another one, over HTTP/1.0: bodies end with the connection, and nginx with
# proxy_buffering on holds those back (chunked ones it passes on, piece by piece).
CHAIN = """
server {{
    listen 80;
    location / {{
        proxy_pass http://127.0.0.1:@81;
        proxy_http_version 1.0;
        proxy_buffering on;
        {outer}
    }}
}}
server {{
    listen 81;
    location / {{
        proxy_pass http://127.0.0.1:{port};
        proxy_http_version 1.1;
        proxy_buffering off;
        {inner}
    }}
}}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    kinds = ("text", "speech", "recognition")
    with serving(*(word for kind in kinds for word in ("--engine", f"{kind}=synthetic"))) as made:
        yield made


@contextlib.contextmanager
def nginx(block: str, folder: Path) -> Iterator[dict[int, str]]:
    """A private nginx with ``block`` in its http part; its addresses by the port they replace."""
    found = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        pytest.skip("nginx is not here: run scripts/system.sh")
    ports = {int(port): free_port() for port in re.findall(r"listen (\d+);", block)}
    block = re.sub(r"listen (\d+);", lambda m: f"listen 127.0.0.1:{ports[int(m[1])]};", block)
    block = re.sub(r"@(\d+)", lambda m: str(ports[int(m[1])]), block)
    folder.mkdir(exist_ok=True)
    temp = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    conf = folder / "nginx.conf"
    conf.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;\n"
        f"events {{}}\nhttp {{ access_log off;\n{temp}{block}\n}}\n"
    )
    process = subprocess.Popen([found, "-p", str(folder), "-c", str(conf), "-e", "stderr"])
    try:
        end = time.monotonic() + 60
        while not (folder / "pid").exists() and time.monotonic() < end:
            assert process.poll() is None, (folder / "error.log").read_text()
            time.sleep(0.02)
        yield {port: f"http://127.0.0.1:{here}" for port, here in ports.items()}
    finally:
        process.terminate()
        process.wait(10)


def printed(server: Server) -> str:
    return subprocess.run(
        [FOREBAY, "config", "nginx"],
        env={"FOREBAY_SERVER_PORT": str(server.port), "HOME": "/tmp", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.fixture(scope="module")
def ours(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, str]]:
    """nginx with the whole of what `forebay config nginx` prints."""
    with nginx(printed(server), tmp_path_factory.mktemp("ours")) as urls:
        yield urls


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


QUESTION = {
    "notebook_id": "n", "operation": {"type": "user_question", "payload": {"QId": "q",
                                                                          "content": "a b c"}},
}  # fmt: skip


@pytest.mark.parametrize("port", [80, 18600])
async def test_lines_of_an_operation_come_through_one_by_one(
    ours: dict[int, str], http: aiohttp.ClientSession, port: int
) -> None:
    async with http.post(f"{ours[port]}/send_operation", json=QUESTION) as answer:
        assert answer.status == 200
        assert "Content-Encoding" not in answer.headers
        chunks = [chunk async for chunk, _ in answer.content.iter_chunks() if chunk]
    events = [json.loads(line) for line in b"".join(chunks).splitlines() if line.strip()]
    assert events[0]["type"] == "initStreamingAnswer"
    assert events[-1]["type"] == "ok"
    assert len(chunks) > 2


async def test_an_event_stream_a_socket_and_an_upload_come_through(
    ours: dict[int, str], http: aiohttp.ClientSession
) -> None:
    url = ours[80]
    body = {"stream": True, "messages": [{"role": "user", "content": "a b c"}]}
    async with http.post(f"{url}/v1/chat/completions", json=body) as answer:
        assert answer.content_type == "text/event-stream"
        assert (await answer.read()).rstrip().split(b"\n\n")[-1].endswith(b"[DONE]")
    async with http.ws_connect(f"{url}/tts") as socket:
        start = {"type": "start", "session_id": "s", "audio_format": "pcm16_wav"}
        await socket.send_json(start | {"sample_rate": 16000, "channels": 1})
        text = {"type": "text_delta", "session_id": "s", "seq": 1, "text": "Hello there."}
        await socket.send_json(text)
        await socket.send_json({"type": "text_end", "session_id": "s", "seq": 2})
        said = [json.loads(m.data)["type"] async for m in socket]
    assert said[0] == "start_ack" and "audio_chunk" in said and said[-1] == "tts_end"
    sound = b"RIFF" + (36 + 3_200_000).to_bytes(4, "little") + b"WAVEfmt " + bytes.fromhex(
        "10000000010001007d3e0000fa7c000002001000"
    ) + b"data" + (3_200_000).to_bytes(4, "little") + bytes(3_200_000)  # fmt: skip
    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(sound), filename="a.wav", content_type="audio/wav")
    form.add_field("model", "whisper-1")
    async with http.post(f"{url}/v1/audio/transcriptions", data=form) as answer:
        assert answer.status == 200, await answer.text()


async def test_pages_of_other_origins_may_use_the_notebook_port_and_only_that(
    ours: dict[int, str], http: aiohttp.ClientSession
) -> None:
    origin = {"Origin": "http://pages.example"}
    asked = origin | {"Access-Control-Request-Method": "POST"}
    async with http.options(f"{ours[18600]}/send_operation", headers=asked) as answer:
        assert answer.status == 204
        assert answer.headers.getall("Access-Control-Allow-Origin") == ["*"]
    ping = {"notebook_id": "n", "operation": {"type": "ping"}}
    async with http.post(f"{ours[18600]}/send_operation", json=ping, headers=origin) as answer:
        assert answer.status == 200
        assert answer.headers.getall("Access-Control-Allow-Origin") == ["*"]
    async with http.post(f"{ours[80]}/send_operation", json=ping, headers=origin) as answer:
        assert answer.status == 403


async def looked(http: aiohttp.ClientSession, url: str, idle_s: float = 0) -> dict[str, Finding]:
    return {f.name: f async for f in way.way(http, url, idle_s)}


async def test_our_file_is_found_clean(ours: dict[int, str], http: aiohttp.ClientSession) -> None:
    found = await looked(http, ours[80], idle_s=0.3)
    assert {f.name: f.detail for f in found.values() if f.state != "ok"} == {}
    assert set(found) == {
        "streams", "event streams", "buffering", "round trip", "content-type", "cache-control",
        "x-accel-buffering", "connection", "upgrade", "silent stream", "silent socket",
    }  # fmt: skip
    assert "received: no-cache" in found["cache-control"].detail
    assert "stripped" in found["x-accel-buffering"].detail


async def test_a_proxy_that_buffers_is_named(
    server: Server, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    block = CHAIN.format(
        port=server.port,
        outer="proxy_read_timeout 1s;",
        inner="proxy_hide_header Cache-Control;",
    )
    with nginx(block, tmp_path / "a") as urls:
        found = await looked(http, urls[80], idle_s=2)
        again = await way.first_chunk(http, urls[80])
    assert found["streams"].state == found["event streams"].state == "fail"
    assert "a proxy is buffering" in found["streams"].detail
    assert "proxy_buffering off" in found["streams"].next
    assert found["cache-control"].state == "warn"
    assert "stripped" in found["cache-control"].detail
    assert way.clumped(again)
    assert "proxy_read_timeout" in found["silent stream"].next
    assert re.search(r"cut after [12] s", found["silent stream"].detail)
    assert found["silent stream"].state == "fail"  # heartbeats come after 15 s
    assert found["silent socket"].state == "fail"


async def test_a_proxy_that_would_buffer_but_for_our_header_is_named_too(
    server: Server, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    inner = "proxy_pass_header X-Accel-Buffering;"
    with nginx(CHAIN.format(port=server.port, outer="", inner=inner), tmp_path / "b") as urls:
        found = await looked(http, urls[80])
    assert found["streams"].state == "ok"
    assert found["buffering"].state == "warn"
    assert "a proxy is buffering" in found["buffering"].detail


async def test_a_proxy_that_neither_upgrades_nor_speaks_http_1_1_is_named(
    server: Server, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    block = (
        "server { listen 80; location / {"
        f" proxy_pass http://127.0.0.1:{server.port}; proxy_http_version 1.0; }} }}"
    )
    with nginx(block, tmp_path / "c") as urls:
        found = await looked(http, urls[80])
    assert found["connection"].state == "fail"
    assert found["upgrade"].state == "fail"
    assert "Upgrade" in found["upgrade"].next


async def test_distance_is_told_from_a_slow_server(
    server: Server, http: aiohttp.ClientSession
) -> None:
    far = await FaultProxy().start("127.0.0.1", server.port, latency_s=0.06)
    try:
        url = f"http://127.0.0.1:{far.port}"
        found = await way.round_trip(http, url)
        streams = way.judge_burst("streams", await way.ask(http, url, n=8, every_ms=100))
    finally:
        await far.close()
    assert found.state == "warn"
    network = float(re.findall(r"network ([\d.]+) ms", found.detail)[0])
    assert 110 < network < 400
    assert streams.state == "ok", streams.detail


async def test_a_server_without_the_probe_is_not_judged(http: aiohttp.ClientSession) -> None:
    found = await looked(http, f"http://127.0.0.1:{free_port()}")
    (only,) = found.values()
    assert (only.state, only.name) == ("warn", "the way")


def test_the_command_says_it_and_keeps_printing(ours: dict[int, str]) -> None:
    words = [sys.executable, "-m", "forebay", "doctor", "--url", ours[80], "--idle-s", "0"]
    run = subprocess.run([*words, "--json"], capture_output=True, text=True, timeout=240)
    found: list[dict[str, Any]] = json.loads(run.stdout)
    assert run.returncode == 0, found
    assert {"streams", "round trip", "upgrade"} <= {f["name"] for f in found}
    watching = subprocess.Popen([*words, "--watch"], stdout=subprocess.PIPE, text=True)
    try:
        assert watching.stdout is not None
        lines = []
        while len(lines) < 2 and (line := watching.stdout.readline()):
            lines += [line] if line.startswith("First chunk latency: ") else []
        assert all(re.fullmatch(r"First chunk latency: [\d.]+ ms\n", line) for line in lines)
        assert len(lines) == 2
    finally:
        watching.kill()
        watching.wait()
        watching.stdout.close()

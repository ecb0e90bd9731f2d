"""`forebay serve` in front of a model server: processes, sockets and a killed worker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import aiohttp
import psutil
import pytest
from benchmarks.harness import Server, serving
from tests.fakes.sglang import FakeSGLang

MODEL = "fake-model"


class Upstream:
    """A fake model server in a thread of its own, so that tests can turn its knobs."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.fake = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)

    async def _open(self) -> FakeSGLang:
        return await FakeSGLang(interval_s=0.01).__aenter__()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.fake.__aexit__(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(upstream: Upstream) -> Iterator[Server]:
    text = f"text=openai:base_url={upstream.fake.url},model={MODEL},prefix=yes,connect_retries=0"
    with serving("--engine", text, "--engine", "speech=synthetic:rtf=0") as running:
        yield running


@pytest.fixture(autouse=True)
def normal(upstream: Upstream) -> Iterator[None]:
    yield
    upstream.fake.mode, upstream.fake.tokens = "normal", 20


async def ask(server: Server, **more: Any) -> tuple[int, Any, list[Any]]:
    body = {"messages": [{"role": "user", "content": "count"}], **more}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.http}/v1/chat/completions", json=body) as response,
    ):
        text = await response.text()
    if response.content_type == "application/json":
        return response.status, response.headers, [json.loads(text)]
    data = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    return response.status, response.headers, [d if d == "[DONE]" else json.loads(d) for d in data]


def text_of(events: list[Any]) -> str:
    choices = [e["choices"][0] for e in events if e != "[DONE]" and e.get("choices")]
    return "".join(c["delta"].get("content", "") for c in choices)


async def test_an_answer_comes_through_all_processes(server: Server, upstream: Upstream) -> None:
    status, headers, got = await ask(server, stream=True, model=MODEL)
    assert status == 200
    assert text_of(got) == "".join(upstream.fake.words())
    assert got[-1] == "[DONE]"
    assert headers["X-Forebay-Job"]
    status, _, (whole,) = await ask(server, max_tokens=5)
    assert whole["choices"][0]["message"]["content"] == "".join(upstream.fake.words(5))
    assert whole["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("mode", "status", "code"),
    [
        ("rate_limited", 503, "upstream_failed"),
        ("out_of_memory", 502, "upstream_failed"),
        ("empty_reply", 502, "upstream_failed"),
        ("refused", 400, "bad_request"),
    ],
)
async def test_a_refusal_reaches_the_client_by_name(
    server: Server, upstream: Upstream, mode: str, status: int, code: str
) -> None:
    upstream.fake.mode = mode
    for stream in (False, True):
        got_status, headers, (body,) = await ask(server, stream=stream)
        assert (got_status, body["error"]["code"]) == (status, code), body
        assert ("Retry-After" in headers) == (mode == "rate_limited")


async def test_too_long_a_prompt_gives_its_figures_through_all_processes(server: Server) -> None:
    long = [{"role": "user", "content": "w " * 5000}]
    status, _, (body,) = await ask(server, messages=long, stream=True)
    assert status == 400
    assert body["error"]["code"] == "context_length_exceeded"
    assert body["error"]["details"]["tokens"] == 5001
    assert body["error"]["details"]["limit"] == 4096


async def test_a_cut_upstream_never_looks_finished(server: Server, upstream: Upstream) -> None:
    upstream.fake.mode = "cut"
    _, _, got = await ask(server, stream=True)
    assert text_of(got[:-1]) == "t1 t2 t3 "
    assert got[-1]["error"]["code"] == "upstream_cut"
    assert "[DONE]" not in got


async def test_a_killed_worker_costs_no_word(server: Server, upstream: Upstream) -> None:
    upstream.fake.tokens = 100
    asking = asyncio.create_task(ask(server, stream=True))
    await asyncio.sleep(0.4)
    os.kill(server.regular_worker("text").pid, signal.SIGKILL)
    status, _, got = await asking
    assert status == 200
    assert text_of(got) == "".join(upstream.fake.words(100))
    assert got[-1] == "[DONE]"


def test_the_fake_runs_as_a_process() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.sglang", "--port", "0"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline().startswith(b"http://127.0.0.1:")
    psutil.Process(process.pid).kill()
    process.wait()

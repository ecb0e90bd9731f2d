"""Processes are killed under a running notebook: what is lost is said, what can live on does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from benchmarks.harness import Server, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(
        "--engine", "kernel=python",
        "--workers", "text=0", "--workers", "speech=0", "--workers", "image=0",
    ) as running:  # fmt: skip
        yield running


@pytest.fixture
async def http(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.http) as session:
        yield session


async def run(http: aiohttp.ClientSession, code: str, notebook: str) -> Any:
    """Run a cell; asked again while the server is on its way back."""
    for _ in range(100):
        try:
            body = {"code": code, "notebook_id": notebook}
            async with http.post("/execute", json=body) as answer:
                if answer.status != 503:
                    return await answer.json()
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)
    raise AssertionError("the server did not come back")


async def test_a_killed_worker_loses_its_cell_by_name_and_the_next_one_is_told(
    server: Server, http: aiohttp.ClientSession
) -> None:
    await run(http, "v = 1; open('kept', 'w').write('x')", "one")
    lost = asyncio.create_task(run(http, "import time; time.sleep(60)", "one"))
    await asyncio.sleep(0.5)
    for worker in server.workers("kernel"):
        worker.kill()
    answer = await asyncio.wait_for(lost, 60)
    assert answer["status"] == "error"
    assert "lost" in answer["error"]
    again = await run(http, "import os; print('v' in globals(), os.path.exists('kept'))", "one")
    assert [o["content"] for o in again["outputs"]] == [
        "[the kernel was lost: variables and imports are gone, files are not]\n",
        "False True\n",
    ]


async def test_a_kernel_outlives_the_gateway(server: Server, http: aiohttp.ClientSession) -> None:
    await run(http, "v = 42", "two")
    server.gateway().kill()
    again = await run(http, "print(v)", "two")
    assert [o["content"] for o in again["outputs"]] == ["42\n"], again

"""Rooms behind `forebay serve`: the gateway is killed under a sender that retries."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

import aiohttp
import psutil
from benchmarks.harness import Server, serving

WHO = {"room": "talk", "passphrase": "open sesame", "user_name": "Ada", "client_id": "c"}
LOOSE = {
    **os.environ,
    "FOREBAY_CAPTIONS_RATE_PER_S": "10000",
    "FOREBAY_CAPTIONS_BURST": "10000",
}
COUNT = 300
BATCH = 5


def gateway_of(server: Server) -> psutil.Process:
    return next(p for p in server.tree() if "_gateway" in p.cmdline())


async def put(http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send until it is answered."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with http.post(url, json=body, timeout=aiohttp.ClientTimeout(2)) as answer:
                    if answer.status == 200:
                        said: dict[str, Any] = await answer.json()
                        return said
            await asyncio.sleep(0.05)


async def test_nothing_is_lost_doubled_or_turned_around_when_the_server_is_killed() -> None:
    with serving("--engine", "speech=synthetic:rtf=0.1", env=LOOSE) as server:
        url = server.http + "/api/send"
        async with aiohttp.ClientSession() as http:
            going = asyncio.Semaphore(3)

            async def send(first: int) -> None:
                async with going:
                    messages = [{"seq": n, "text": str(n)} for n in range(first, first + BATCH)]
                    await put(http, url, {**WHO, "messages": messages})

            sending = [asyncio.ensure_future(send(n)) for n in range(1, COUNT + 1, BATCH)]
            for share in (0.2, 0.6):
                while sum(task.done() for task in sending) < share * len(sending):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                gateway_of(server).kill()
                await asyncio.sleep(0.5)
            await asyncio.gather(*sending)
            async with http.get(server.http + "/api/list?room=talk") as answer:
                found = (await answer.json())["transcriptions"]
    assert [int(one["text"]) for one in found] == list(range(1, COUNT + 1))

"""Claim: displays that take nothing cost their neighbours nothing and the gateway at most
256 KB each.

A room is full of long captions; stalled displays ask for all of them over a small receive
window and never read. Seven interleaved pairs, each second one the other way round: A, healthy
displays alone, B beside the stalled ones, which all hold unsent bytes before it begins and are
all still there when it ends; compared is the p99 of publish to the last healthy display, of
200 captions each time (of 50 it is the worst one, which is the machine's noise), the server on
one core and the load on the other. It passes at p99(B) <= 1.2 x p99(A) or + 2 ms, whichever is larger; a
difference inside the A/A spread is "not distinguishable". Memory: what the gateway's resident
set grows by while they stall, and what the kernel holds for them unsent, for each.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import psutil

from benchmarks.captions_fanout import NO_WORKERS, Peer, measure
from benchmarks.harness import Server, options, report, run, serving
from forebay.lab.line import text_frame
from forebay.process import settle_heap

ROOM = "bench"
ACCESS = {"room": ROOM, "passphrase": "bench", "user_name": "Ann"}
HEALTHY = (
    '{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"bench","data":{"previews":false}}}'
)
STALLED = '{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"bench","data":{"history":true}}}'
WINDOW_BYTES = 4096
SETTLE_S = 2.0
STALLED_S = 15.0
LIMIT_KB = 256.0


async def fill(server: Server) -> None:
    """The room keeps 1000 captions of 1.5 KB."""
    async with aiohttp.ClientSession() as http:
        for _ in range(16):
            body = {**ACCESS, "messages": [{"text": "x" * 1500}] * 64}
            async with http.post(f"{server.http}/api/send", json=body) as answer:
                assert answer.status == 200, await answer.text()


def _stall(port: int) -> socket.socket:
    """A display that says what it wants and then reads nothing."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW_BYTES)
    line.connect(("127.0.0.1", port))
    key = base64.b64encode(os.urandom(16)).decode()
    line.sendall(
        f"GET /connection/websocket HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        .encode()
    )  # fmt: skip
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += line.recv(1)  # no more: what follows is never taken
    line.sendall(text_frame(STALLED.encode()))
    return line


@contextlib.asynccontextmanager
async def stalled(server: Server, count: int) -> AsyncIterator[None]:
    lines: list[socket.socket] = []
    try:
        for _ in range(count):
            lines.append(await asyncio.to_thread(_stall, server.port))
        end = time.monotonic() + STALLED_S
        while stuck(server.port) < count and time.monotonic() < end:  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.1)
        await asyncio.sleep(SETTLE_S)
        _all_stuck(server.port, count)
        yield
        _all_stuck(server.port, count)
    finally:
        for line in lines:
            line.close()
        await asyncio.sleep(SETTLE_S)


def _unsent(port: int) -> list[int]:
    """Bytes that the kernel holds unsent, for each connection to ``port`` (Linux)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [
        int(row[4].partition(":")[0], 16)
        for row in rows
        if int(row[1].rpartition(":")[2], 16) == port
    ]


def unsent_bytes(port: int) -> int:
    return sum(_unsent(port))


def stuck(port: int) -> int:
    """How many connections to ``port`` do not take what they are sent."""
    return sum(unsent > WINDOW_BYTES for unsent in _unsent(port))


def _all_stuck(port: int, count: int) -> None:
    found = stuck(port)
    if found < count:
        raise RuntimeError(f"{found} of {count} displays are stalled")


async def memory(server: Server, count: int) -> dict[str, float]:
    """Each stalled display's share, in KB, of the gateway's memory and of the kernel's."""
    gateway = server.gateway()
    async with stalled(server, 5):  # what any first reader of a full room costs, once
        pass
    before = gateway.memory_info().rss
    async with stalled(server, count):
        grown = gateway.memory_info().rss - before
        kernel = unsent_bytes(server.port)
        room = await asyncio.to_thread(server.get, f"/api/rooms/{ROOM}")
    if room["present"] != count:
        raise RuntimeError(f"{room['present']} of {count} displays are there")
    return {"rss_kb": grown / count / 1000, "kernel_kb": kernel / count / 1000}


async def main() -> int:
    wanted = options(__doc__ or "", healthy=50, stalled=200, rate=40.0, pairs=7, pair_s=5.0)
    with serving(*NO_WORKERS, ready_s=30, wait="/healthz") as server:
        if (os.cpu_count() or 1) > 1:
            for process in server.tree():
                process.cpu_affinity([0])
            psutil.Process().cpu_affinity([1])
        peer = Peer(
            "forebay", server.port, "/connection/websocket", [HEALTHY], [(b'"subscribe"', "")],
            "/api/send", lambda text: {**ACCESS, "text": text}, server.tree,
        )  # fmt: skip
        runs: list[dict[str, Any]] = []

        async def healthy() -> float:
            found = await measure(peer, wanted.healthy, wanted.rate, wanted.pair_s, 100)
            runs.append(found)
            return float(found["p99_ms"])

        await fill(server)
        await healthy()  # code and connections are warm
        kept = await memory(server, wanted.stalled)
        settle_heap()
        alone, beside = [], []
        for number in range(wanted.pairs):
            if number % 2 == 0:
                alone.append(await healthy())
            async with stalled(server, wanted.stalled):
                beside.append(await healthy())
            if number % 2:
                alone.append(await healthy())
    a, b, spread = median(alone), median(beside), max(alone) - min(alone)
    limit = max(a * 1.2, a + 2)
    said = "not distinguishable" if abs(b - a) <= spread else f"{b - a:+.1f} ms"
    missing = sum(each["wanted"] - each["delivered"] for each in runs)
    each_kb = kept["rss_kb"] + kept["kernel_kb"]
    rows: list[tuple[str, str, str, bool | None]] = [
        ("captions missed by healthy displays", f"{missing}", "0", missing == 0),
        ("p99 alone (median, A/A spread)", f"{a:.1f} ms, {spread:.1f} ms", "", None),
        (f"p99 beside {wanted.stalled} stalled", f"{b:.1f} ms ({said})", f"<= {limit:.1f} ms",
         b <= limit),
        ("a stalled display: gateway memory, kernel",
         f"{kept['rss_kb']:.0f} KB, {kept['kernel_kb']:.0f} KB",
         f"<= {LIMIT_KB:.0f} KB together", each_kb <= LIMIT_KB),
    ]  # fmt: skip
    return report("captions: stalled displays", rows, wanted.output_json,
                  kept=kept, alone=alone, beside=beside)  # fmt: skip


if __name__ == "__main__":
    run(main)

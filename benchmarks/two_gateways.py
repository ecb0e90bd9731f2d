"""Claim: each of two gateways around one Redis costs as much CPU per stream as one alone, within
15 %; and two gateways hold 5,000 idle connections.

The same number of speaking sessions per gateway runs over one gateway and over two; CPU seconds
are read from the operating system, so that a busy machine does not count as cost. The store's
share is printed beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import aiohttp
import msgspec
import psutil

from benchmarks.harness import options, report, run
from forebay.client.s1 import SpeechState
from forebay.lab.chaos_cluster import Cluster, Server
from forebay.lab.chaos_people import Crowd


def cpu_s(processes: list[psutil.Process]) -> list[float]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            used = process.cpu_times()
            found.append(used.user + used.system)
    return found


def store_of(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if "valkey" in child.name() or "redis" in child.name()]


async def per_stream(gateways: int, sessions: int, seconds: float) -> tuple[list[float], float]:
    """CPU milliseconds per stream and second: of each gateway, and of the store."""
    async with Cluster() as cluster:
        server = await cluster.serve(
            *("--broker", "redis", "--gateways", str(gateways), "--workers", "speech=2"),
            env={"FOREBAY_SERVER_SPARE_GATEWAY": "false"},
        )
        await cluster.ready(server, 2)
        crowd = Crowd(cluster.http, [server.tts], sessions * gateways, seconds + 4, spread_s=2)
        await crowd.begin()
        watched = server.gateways()
        streams = []
        for gateway in watched:
            held = [c for c in gateway.net_connections("tcp") if c.status == "ESTABLISHED"]
            streams.append(sum(c.laddr.port == int(server.http.rpartition(":")[2]) for c in held))
        store = store_of(server)
        before, store_before = cpu_s(watched), sum(cpu_s(store))
        began = time.monotonic()
        await asyncio.sleep(seconds)
        took_s = time.monotonic() - began
        used = [b - a for a, b in zip(before, cpu_s(watched), strict=True)]
        store_used = sum(cpu_s(store)) - store_before
        await crowd.stop()
        total = sum(streams)
        per = [1000 * u / max(1, n) / took_s for u, n in zip(used, streams, strict=True)]
        return per, 1000 * store_used / max(1, total) / took_s


async def held(count: int) -> tuple[int, float, float]:
    """Connections held over two gateways, their memory, and that of one connection, in MB."""
    async with Cluster() as cluster:
        server = await cluster.serve("--broker", "redis", "--gateways", "2")
        empty = sum(p.memory_info().rss for p in server.gateways())
        sockets: list[aiohttp.ClientWebSocketResponse] = []

        async def hold(n: int) -> None:
            socket = await cluster.http.ws_connect(server.tts, compress=0)
            await socket.send_str(msgspec.json.encode(SpeechState(f"s{n:08x}").start()).decode())
            if msgspec.json.decode((await socket.receive()).data)["type"] == "start_ack":
                sockets.append(socket)

        for first in range(0, count, 50):
            await asyncio.gather(*(hold(n) for n in range(first, min(first + 50, count))))
        await asyncio.sleep(1)
        full = sum(p.memory_info().rss for p in server.gateways())
        still = sum(not socket.closed for socket in sockets)
        for socket in sockets:
            await socket.close()
        return still, full / 1e6, (full - empty) / 1e6 / max(1, still)


async def main() -> int:
    wanted = options(__doc__ or "", sessions=50, seconds=10.0, connections=5000)
    alone, alone_store = await per_stream(1, wanted.sessions, wanted.seconds)
    both, both_store = await per_stream(2, wanted.sessions, wanted.seconds)
    worst = max(both) / alone[0] - 1
    still, memory_mb, each_mb = await held(wanted.connections)
    rows: list[tuple[str, str, str, bool | None]] = [
        ("one gateway, CPU per stream", f"{alone[0]:.2f} ms/s", "", None),
        ("each of two", ", ".join(f"{value:.2f} ms/s" for value in both), "", None),
        ("dearer than one alone", f"{worst:+.0%}", "<= +15 %", worst <= 0.15),
        ("the store, beside one", f"{alone_store:.2f} ms/s", "", None),
        ("the store, beside two", f"{both_store:.2f} ms/s", "", None),
        ("connections held", str(still), str(wanted.connections), still == wanted.connections),
        ("memory of both gateways", f"{memory_mb:.0f} MB", "", None),
        ("memory of a connection", f"{each_mb * 1000:.0f} kB", "", None),
    ]
    return report("two gateways", rows, wanted.output_json, alone=alone, both=both)


if __name__ == "__main__":
    run(main)

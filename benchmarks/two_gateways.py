"""Claim: each of two gateways around one Redis costs as much CPU per stream as one alone, within
15 %; and two gateways hold 5,000 idle connections.

The same number of speaking sessions runs on each gateway, alone and beside another; CPU seconds
are read from the operating system. Every gateway is a server of its own with one worker, as on a
machine of its own: gateways that accept on one port share the sessions by chance, 40 and 60 were
seen, and the one with the fewer bears what a gateway costs at rest on fewer streams. But two
gateways with twice the people also make the machine twice as busy, and a busy processor takes
longer for the same work (shared caches and cores, switches between processes). So there is a third
arrangement: two gateways that share nothing, each with its own store, under the same load as the
two around one store. What two cost over that is what sharing a store costs; what those strangers
cost over one alone is the machine's, and is printed too. The three take turns, and the middle of
the turns counts. The store's share is printed beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from typing import NamedTuple

import aiohttp
import msgspec
import psutil

from benchmarks.harness import options, report, run
from forebay.client.s1 import SpeechState
from forebay.lab.chaos_cluster import Cluster, around
from forebay.lab.chaos_people import Crowd

SETTLE_S = 2.0


def cpu_s(processes: list[psutil.Process]) -> list[float]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            used = process.cpu_times()
            found.append(used.user + used.system)
    return found


class Turn(NamedTuple):
    """CPU milliseconds per stream and second of each gateway and of the store, and how many
    pieces of speech a stream brought in a second: the same, or another thing was measured."""

    gateways: list[float]
    store: float
    pieces: float


async def turn(how: str, sessions: int, seconds: float) -> Turn:
    """One measurement, with processes of its own. ``how``: ``alone``, ``shared`` (two gateways
    around one store) or ``apart`` (two gateways that share nothing)."""
    gateways = 1 if how == "alone" else 2
    async with Cluster() as cluster:
        stores = [await cluster.store() for _ in range(2 if how == "apart" else 1)]
        servers = []
        for n in range(gateways):
            env = around(stores[n % len(stores)].url) | {"FOREBAY_SERVER_SPARE_GATEWAY": "false"}
            servers.append(await cluster.serve("--workers", "speech=1", env=env))
        for server in servers:
            await cluster.ready(server, gateways // len(stores))
        crowd = Crowd(
            cluster.http,
            [server.tts for server in servers],
            sessions * gateways,
            seconds + SETTLE_S + 4,
            spread_s=2,
        )
        await crowd.begin()
        await asyncio.sleep(SETTLE_S)  # whoever began late catches up at first
        watched = [gateway for server in servers for gateway in server.gateways()]
        store = [psutil.Process(one.process.pid) for one in stores if one.process is not None]
        before, store_before = cpu_s(watched), sum(cpu_s(store))
        heard = sum(outcome.chunks for outcome in crowd.outcomes)
        began = time.monotonic()
        await asyncio.sleep(seconds)
        took_s = time.monotonic() - began
        used = [b - a for a, b in zip(before, cpu_s(watched), strict=True)]
        store_used = sum(cpu_s(store)) - store_before
        heard = sum(outcome.chunks for outcome in crowd.outcomes) - heard
        if crowd.active < crowd.count:
            raise RuntimeError(
                f"{crowd.count - crowd.active} of {crowd.count} sessions ended early"
            )
        await crowd.stop()
        each = crowd.count * took_s
        per = [1000 * one / sessions / took_s for one in used]
        return Turn(per, 1000 * store_used / each, heard / each)


async def turns(rounds: int, sessions: int, seconds: float) -> dict[str, Turn]:
    """The three arrangements, in turns; the middle of each figure."""
    found: dict[str, list[Turn]] = {"alone": [], "apart": [], "shared": []}
    for _ in range(rounds):
        for how, seen in found.items():
            seen.append(await turn(how, sessions, seconds))
    return {
        how: Turn(
            [statistics.median(column) for column in zip(*(t.gateways for t in seen), strict=True)],
            statistics.median(t.store for t in seen),
            statistics.median(t.pieces for t in seen),
        )
        for how, seen in found.items()
    }


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
    wanted = options(__doc__ or "", sessions=50, seconds=8.0, rounds=3, connections=5000)
    seen = await turns(wanted.rounds, wanted.sessions, wanted.seconds)
    alone, apart, both = seen["alone"], seen["apart"], seen["shared"]
    one, strangers = alone.gateways[0], statistics.mean(apart.gateways)
    worst = max(both.gateways) / max(apart.gateways) - 1
    in_all = max(both.gateways) / one - 1
    still, memory_mb, each_mb = await held(wanted.connections)
    rows: list[tuple[str, str, str, bool | None]] = [
        ("one gateway, CPU per stream", f"{one:.2f} ms/s", "", None),
        ("each of two strangers", _each(apart), "", None),
        ("each of two around one store", _each(both), "", None),
        (
            "pieces per stream",
            ", ".join(f"{t.pieces:.2f}/s" for t in (alone, apart, both)),
            "",
            None,
        ),
        ("dearer for the busy machine", f"{strangers / one - 1:+.0%}", "", None),
        ("dearer for the shared store", f"{worst:+.0%}", "<= +15 %", worst <= 0.15),
        ("dearer in all", f"{in_all:+.0%}", "<= +15 %", in_all <= 0.15),
        ("the store, beside one", f"{alone.store:.2f} ms/s", "", None),
        ("the store, beside two", f"{both.store:.2f} ms/s", "", None),
        ("connections held", str(still), str(wanted.connections), still == wanted.connections),
        ("memory of both gateways", f"{memory_mb:.0f} MB", "", None),
        ("memory of a connection", f"{each_mb * 1000:.0f} kB", "", None),
    ]
    return report(
        "two gateways",
        rows,
        wanted.output_json,
        **{how: found._asdict() for how, found in seen.items()},
    )


def _each(found: Turn) -> str:
    return ", ".join(f"{value:.2f} ms/s" for value in found.gateways)


if __name__ == "__main__":
    run(main)

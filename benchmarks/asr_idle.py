"""Claims: sessions that say nothing take no worker from those who speak and next to no
memory; and thousands that come back at once are back, or told when, within seconds.

silent  ``--silent`` sessions are started and say nothing; beside them one person speaks on the
        only worker. Seven interleaved pairs: alone, and beside the silent ones
storm   ``--storm`` clients connect and start at once; how many are in, and how many were
        refused with Retry-After
"""

from __future__ import annotations

import asyncio
import secrets
import time
from statistics import median

import aiohttp
import msgspec

from benchmarks.asr_overload import engine, url
from benchmarks.harness import Server, options, report, run, serving
from forebay.lab.asr import Options
from forebay.lab.asr import run as bench

Row = tuple[str, str, str, bool | None]


async def started(http: aiohttp.ClientSession, address: str) -> aiohttp.ClientWebSocketResponse:
    """A session that was started and says nothing more. Raises where it was refused."""
    socket = await http.ws_connect(address, compress=0)
    start = {"action": "start", "session_id": secrets.token_hex(16)}
    await socket.send_str(msgspec.json.encode(start).decode())
    answer = await socket.receive()
    if answer.type is not aiohttp.WSMsgType.TEXT or '"ack"' not in answer.data:
        raise RuntimeError(f"start was answered with {answer.data!r}")
    return socket


async def speak_p99(server: Server, seconds: float) -> float:
    result = await bench(
        Options(url=url(server), scenario="flat", audio_s=seconds, concurrency=1, ramp_s=0)
    )
    if result.verdict.kind == "fault":
        raise RuntimeError(result.verdict.said)
    found: float = result.figures["lag"]["p99_ms"]
    return found


async def silent(server: Server, count: int, pairs: int, seconds: float) -> list[Row]:
    alone, beside, kib = [], [], 0.0
    for turn in range(pairs):
        alone.append(await speak_p99(server, seconds))
        before = server.gateway().memory_info().rss
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            sockets = [await started(http, url(server)) for _ in range(count)]
            if turn == 0:  # later ones reuse what the first has freed
                kib = (server.gateway().memory_info().rss - before) / count / 1024
            beside.append(await speak_p99(server, seconds))
            await asyncio.gather(*(socket.close() for socket in sockets))
    a, b, spread = median(alone), median(beside), max(alone) - min(alone)
    limit = max(1.2 * a, a + 2)
    same = abs(b - a) <= spread
    return [
        ("silent: memory per session", f"{kib:.1f} KiB", "<= 40 KiB", kib <= 40),
        ("silent: speaker's lag p99 alone (A/A spread)", f"{a:.1f} ms ({spread:.1f})", "", None),
        (
            f"silent: the same beside {count}",
            f"{b:.1f} ms{' (not distinguishable)' if same else ''}",
            f"<= {limit:.1f} ms",
            b <= limit or same,
        ),
    ]


async def storm(server: Server, count: int) -> list[Row]:
    """Everybody at once; those refused count as answered when they were given a time."""
    ended = {"in": 0, "refused": 0, "failed": 0}
    begin = time.monotonic()

    async def one(http: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse | None:
        try:
            socket = await started(http, url(server))
        except aiohttp.WSServerHandshakeError as error:
            told = error.status == 503 and error.headers and "Retry-After" in error.headers
            ended["refused" if told else "failed"] += 1
            return None
        except (aiohttp.ClientError, OSError, RuntimeError):
            ended["failed"] += 1
            return None
        ended["in"] += 1
        return socket

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:
        sockets = await asyncio.gather(*(one(http) for _ in range(count)))
        took_s = time.monotonic() - begin
        await asyncio.gather(*(s.close() for s in sockets if s is not None))
    return [
        ("storm: in / refused with Retry-After", f"{ended['in']} / {ended['refused']}", "", None),
        ("storm: neither", str(ended["failed"]), "0", ended["failed"] == 0),
        ("storm: all answered after", f"{took_s:.1f} s", "<= 10 s", took_s <= 10),
    ]


async def main() -> int:
    wanted = options(__doc__ or "", silent=1000, pairs=7, seconds=5.0, storm=2000)
    with serving(*engine(1)) as server:
        rows = await silent(server, wanted.silent, wanted.pairs, wanted.seconds)
    with serving(*engine(1)) as server:
        rows += await storm(server, wanted.storm)
    return report("recognition, silence and storms", rows, wanted.output_json)


if __name__ == "__main__":
    run(main)

"""Claim: sessions that say nothing take no worker from those who speak and next to no memory.

``--silent`` sessions are started and say nothing; beside them one person speaks on the only
worker. Seven interleaved pairs: alone, and beside the silent ones.
"""

from __future__ import annotations

import asyncio
import secrets
from statistics import median

from benchmarks.asr_overload import engine, url
from benchmarks.harness import Server, options, report, run, serving
from forebay.lab.asr import Options
from forebay.lab.asr import run as bench
from forebay.lab.line import Line, text_frame

Row = tuple[str, str, str, bool | None]


async def started(address: str) -> Line:
    """A session that was started and says nothing more. Raises `TurnedAway` or OSError where
    it was refused."""
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def hear(data: bytes) -> None:
        if not answer.done():
            answer.set_result(data)

    def gone() -> None:
        hear(b"")

    line = await Line.open(address, hear, gone)
    line.send(text_frame(b'{"action":"start","session_id":"%s"}' % secrets.token_hex(16).encode()))
    if b'"ack"' not in await answer:
        line.close()
        raise ConnectionResetError(f"start was answered with {answer.result()!r}")
    return line


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
        lines = [await started(url(server)) for _ in range(count)]
        if turn == 0:  # later ones reuse what the first has freed
            kib = (server.gateway().memory_info().rss - before) / count / 1024
        beside.append(await speak_p99(server, seconds))
        for line in lines:
            line.close()
        await asyncio.sleep(1)
    a, b, spread = median(alone), median(beside), max(alone) - min(alone)
    limit = max(1.2 * a, a + 2)
    same = abs(b - a) <= spread
    return [
        ("silent: memory per session", f"{kib * 1.024:.1f} KB", "<= 40 KB", kib * 1.024 <= 40),
        ("silent: speaker's lag p99 alone (A/A spread)", f"{a:.1f} ms ({spread:.1f})", "", None),
        (
            f"silent: the same beside {count}",
            f"{b:.1f} ms{' (not distinguishable)' if same else ''}",
            f"<= {limit:.1f} ms",
            b <= limit or same,
        ),
    ]


async def main() -> int:
    wanted = options(__doc__ or "", silent=1000, pairs=7, seconds=5.0)
    with serving(*engine(1)) as server:
        rows = await silent(server, wanted.silent, wanted.pairs, wanted.seconds)
    return report("recognition, silence", rows, wanted.output_json)


if __name__ == "__main__":
    run(main)

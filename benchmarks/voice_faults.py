"""Claim: people who drop, stop or do not listen cost nobody else anything.

First the mixed and the heavy scenario of `forebay bench tts`, with every unit checked.
Then neighbours: seven interleaved pairs of runs, A alone and B beside clients that never
read, the server on one core and the load on the other; compared is the p99 of unit latency
of the healthy sessions. It passes at p99(B) <= 1.2 x p99(A) or + 2 ms, whichever is larger;
the A/A spread is printed, and a difference inside it is "not distinguishable".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from statistics import median

import aiohttp
import msgspec
import psutil

from benchmarks.harness import options, report, run, serving
from forebay.client.s1 import SpeechState
from forebay.lab.tts import Options
from forebay.lab.tts import run as bench

ENGINE = "speech=synthetic:rtf=0.1,latency_ms=10,slots=16"
STALL_S = 6.0  # by then their engine time is spent: what is left is that they do not read
LONG = "Nobody listens to this sentence, and still it is spoken to the end. " * 60


@contextlib.asynccontextmanager
async def deaf(url: str, count: int):  # type: ignore[no-untyped-def]
    """``count`` clients that ask for a lot of audio and never read any of it."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        sockets = []
        for _ in range(count):
            socket = await http.ws_connect(url, compress=0, autoping=False)
            state = SpeechState(secrets.token_hex(16))
            for message in (state.start(), state.delta(LONG), state.end()):
                await socket.send_str(msgspec.json.encode(message).decode())
            sockets.append(socket)
        await asyncio.sleep(STALL_S)
        yield
        await asyncio.gather(*(leave(socket) for socket in sockets))


async def leave(socket: aiohttp.ClientWebSocketResponse) -> None:
    with contextlib.suppress(OSError, aiohttp.ClientError, TimeoutError):
        await asyncio.wait_for(socket.close(), 1)


async def healthy_p99(url: str, sessions: int, seconds: float) -> float:
    result = await bench(Options(url=url, concurrency=sessions, duration_s=seconds, ramp_s=0.5))
    if result.failed:
        raise RuntimeError(f"healthy sessions were harmed: {result.failed}")
    found: float = result.figures["cut_to_audio"]["p99_ms"]
    return found


async def main() -> int:
    wanted = options(__doc__ or "", duration=60.0, sessions=50, pairs=7, deaf=40, pair_s=12.0)
    rows: list[tuple[str, str, str, bool | None]] = []
    raw = {}
    with serving("--engine", ENGINE, "--engine", "text=synthetic") as server:
        for scenario in ("mixed", "heavy"):
            result = await bench(
                Options(
                    url=server.tts,
                    scenario=scenario,
                    concurrency=wanted.sessions,
                    duration_s=wanted.duration,
                )
            )
            found = raw[scenario] = result.figures
            rows += [
                (f"{scenario}: injected", str(found["injected"]), "", None),
                (
                    f"{scenario}: errors",
                    str(found["errors"] or 0),
                    "only injected",
                    not result.failed,
                ),
                (
                    f"{scenario}: resumed / restarted",
                    f"{found['resumed']} / {found['restarted']}",
                    "",
                    None,
                ),
                (
                    f"{scenario}: missing/duplicate/mismatched",
                    f"{found['missing']}/{found['duplicates']}/{found['mismatched']}",
                    "0/0/0",
                    not (found["missing"] or found["duplicates"] or found["mismatched"]),
                ),
                (
                    f"{scenario}: checklist",
                    "; ".join(result.failed) or "held",
                    "held",
                    not result.failed,
                ),
            ]
        if len(os.sched_getaffinity(0)) >= 2:
            for process in server.tree():
                process.cpu_affinity([0])
            psutil.Process().cpu_affinity([1])
        alone, beside = [], []
        for _ in range(wanted.pairs):
            alone.append(await healthy_p99(server.tts, 20, wanted.pair_s))
            async with deaf(server.tts, wanted.deaf):
                beside.append(await healthy_p99(server.tts, 20, wanted.pair_s))
        memory = server.gateway().memory_info().rss / 1e6
    a, b = median(alone), median(beside)
    spread = max(alone) - min(alone)
    limit = max(a * 1.2, a + 2)
    said = "not distinguishable" if abs(b - a) <= spread else f"{b - a:+.1f} ms"
    rows += [
        ("neighbours: p99 alone (median, A/A spread)", f"{a:.1f} ms, {spread:.1f} ms", "", None),
        (
            f"neighbours: p99 beside {wanted.deaf} that never read",
            f"{b:.1f} ms ({said})",
            f"<= {limit:.1f} ms",
            b <= limit,
        ),
        ("gateway memory", f"{memory:.0f} MB", "", None),
    ]
    return report("voice faults", rows, wanted.output_json, figures=raw, alone=alone, beside=beside)


if __name__ == "__main__":
    run(main)

"""Claim: recognition workers killed at random, every two seconds, cost not one word.

Many speakers on many workers; while they speak a worker is killed with SIGKILL every
``--every`` seconds. Counted at the client: chunks without a result, words missing or too
many against what was said, sessions without exactly one end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

import psutil

from benchmarks.asr_overload import RTF, engine, url
from benchmarks.harness import Server, options, report, run, serving
from forebay.lab.asr import Options
from forebay.lab.asr import run as bench


async def kill_workers(server: Server, every_s: float, killed: list[int]) -> None:
    """Until cancelled. Only workers of this benchmark's own server."""
    rng = random.Random(7)
    while True:
        await asyncio.sleep(every_s)
        alive = await asyncio.to_thread(server.workers, "recognition")
        if alive:
            victim = rng.choice(alive)
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
                killed.append(victim.pid)


async def main() -> int:
    wanted = options(
        __doc__ or "", clients=500, workers=60, audio=10.0, every=2.0, chunk_ms=100, ready=240.0
    )
    killed: list[int] = []
    with serving(*engine(wanted.workers), ready_s=wanted.ready) as server:
        killer = asyncio.ensure_future(kill_workers(server, wanted.every, killed))
        try:
            result = await bench(
                Options(
                    url=url(server),
                    scenario="flat",
                    audio_s=wanted.audio,
                    concurrency=wanted.clients,
                    chunk_ms=wanted.chunk_ms,
                    patience_s=120,
                ),
                workers=(wanted.workers, 1, RTF),
            )
        finally:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)
    found = result.figures
    done = found["ended"].get("completed", 0)
    rows: list[tuple[str, str, str, bool | None]] = [
        ("workers killed", str(len(killed)), ">= 1", len(killed) >= 1),
        ("sessions completed", f"{done} of {wanted.clients}", "all", done == wanted.clients),
        ("chunks lost", str(found["chunks_lost"]), "0", not found["chunks_lost"]),
        ("results twice", str(found["results_repeated"]), "0", not found["results_repeated"]),
        ("words missing", str(found["words_missing"]), "0", not found["words_missing"]),
        ("words too many", str(found["words_extra"]), "0", not found["words_extra"]),
        (
            "terminal events",
            str(found["terminal_events"]),
            str(wanted.clients),
            found["terminal_events"] == wanted.clients,
        ),
        ("errors", str(found["errors"] or 0), "0", not found["errors"]),
        ("lag p50 / p95 / p99", _times(found["lag"]), "", None),
        ("client-side RTF p95", str(found["client_rtf_p95"]), "", None),
    ]
    return report("recognition, killed workers", rows, wanted.output_json, figures=found)


def _times(times: dict[str, float]) -> str:
    return " / ".join(f"{times[key]:.0f}" for key in ("p50_ms", "p95_ms", "p99_ms")) + " ms"


if __name__ == "__main__":
    run(main)

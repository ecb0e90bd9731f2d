"""Claim: what one chunk of sound costs, in CPU time of every process that touches it.

``--clients`` people speak at once to ``--workers`` recognisers of RTF 0.1; the figures are the
processor seconds that each group of processes used while they spoke, for each chunk: the
gateway (with the broker inside), the workers, and the load tool itself. CPU time, not wall
time: the figures hold on a machine that does other things too. Taken away is what the idle
workers use beside (beats), measured before.

``--silent`` sessions that were started and say nothing: memory of the gateway for each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import psutil

from benchmarks.asr_idle import started
from benchmarks.asr_overload import engine, url
from benchmarks.harness import Server, options, report, run, serving
from forebay.lab.asr import Options
from forebay.lab.asr import run as bench

IDLE_S = 5.0
Row = tuple[str, str, str, bool | None]


def used(processes: Sequence[psutil.Process]) -> float:
    return sum(t.user + t.system for t in (p.cpu_times() for p in processes))


def groups(server: Server) -> dict[str, list[psutil.Process]]:
    return {
        "gateway": [server.gateway()],
        "workers": server.workers("recognition"),
        "load tool": [psutil.Process()],
    }


async def chunks(clients: int, workers: int, seconds: float) -> tuple[list[Row], dict[str, float]]:
    with serving(*engine(workers), ready_s=240) as server:
        await asyncio.sleep(2)
        found = groups(server)
        began, before = time.monotonic(), {name: used(group) for name, group in found.items()}
        await asyncio.sleep(IDLE_S)
        idle = {
            name: (used(group) - before[name]) / (time.monotonic() - began)
            for name, group in found.items()
        }
        began, before = time.monotonic(), {name: used(group) for name, group in found.items()}
        result = await bench(
            Options(
                url=url(server),
                scenario="flat",
                audio_s=seconds,
                concurrency=clients,
                patience_s=90,
            ),
            workers=(workers, 1, 0.1),
        )
        took = time.monotonic() - began
        cost = {name: used(group) - before[name] for name, group in found.items()}
    sent = result.figures["chunks"]
    each = {name: (cost[name] - idle[name] * took) / sent * 1000 for name in cost}
    rows: list[Row] = [(f"{name}, ms a chunk", f"{ms:.3f}", "", None) for name, ms in each.items()]
    rows += [
        ("all, ms a chunk", f"{sum(each.values()):.3f}", "", None),
        (f"{workers} idle workers", f"{idle['workers'] * 100:.1f} % of a core", "", None),
        ("gateway beside them", f"{idle['gateway'] * 100:.1f} % of a core", "", None),
        ("verdict", result.verdict.said, "", None),
        ("client-side RTF p95", str(result.figures["client_rtf_p95"]), "", None),
    ]
    return rows, each


async def silence(count: int) -> list[Row]:
    with serving(*engine(1)) as server:
        before = server.gateway().memory_info().rss
        lines = [await started(url(server)) for _ in range(count)]
        await asyncio.sleep(3)
        kb = (server.gateway().memory_info().rss - before) / count / 1000
        for line in lines:
            line.close()
    return [("silent session", f"{kb:.1f} KB", "<= 40 KB", kb <= 40)]


async def main() -> int:
    wanted = options(__doc__ or "", clients=100, workers=12, seconds=10.0, silent=1000)
    rows: list[Row] = []
    each: dict[str, float] = {}
    if wanted.clients:
        rows, each = await chunks(wanted.clients, wanted.workers, wanted.seconds)
    if wanted.silent:
        rows += await silence(wanted.silent)
    return report("recognition, costs", rows, wanted.output_json, each=each)


if __name__ == "__main__":
    run(main)

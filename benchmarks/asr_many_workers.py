"""Claim: one command starts fifty recognition workers, and each costs little while it waits.

``--workers`` synthetic processes below one `forebay serve`. Told: how long until all of them
serve, the memory of each (unshared, and its proportional share), and what all of them use of
a processor while nobody speaks, the gateway's share of their beats included.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psutil

from benchmarks.asr_overload import engine, until_ready
from benchmarks.harness import options, report, run, serving
from forebay.lab.stats import summary

IDLE_S = 10.0


def used(processes: list[psutil.Process]) -> float:
    return sum(t.user + t.system for t in (p.cpu_times() for p in processes))


def megabytes(processes: list[psutil.Process], field: str) -> dict[str, Any]:
    found = sorted(getattr(p.memory_full_info(), field) / 1e6 for p in processes)
    return {"min": found[0], "median": found[len(found) // 2], "max": found[-1]}


async def main() -> int:
    wanted = options(__doc__ or "", workers=50, limit=240.0)
    begin = time.monotonic()
    with serving(*engine(wanted.workers), ready_s=wanted.limit) as server:
        first_s = time.monotonic() - begin
        await until_ready(server, wanted.workers, wanted.limit)
        all_s = time.monotonic() - begin
        await asyncio.sleep(3)
        workers, gateway = server.workers("recognition"), [server.gateway()]
        boot_s = summary([used([worker]) for worker in workers])
        before, began = (used(workers), used(gateway)), time.monotonic()
        await asyncio.sleep(IDLE_S)
        took = time.monotonic() - began
        idle = [
            (used(group) - b) / took for group, b in zip((workers, gateway), before, strict=True)
        ]
        own, share = megabytes(workers, "uss"), megabytes(workers, "pss")
    rows: list[tuple[str, str, str, bool | None]] = [
        (
            "workers started",
            str(len(workers)),
            f">= {wanted.workers}",
            len(workers) >= wanted.workers,
        ),
        ("first / all serving after", f"{first_s:.1f} / {all_s:.1f} s", "", None),
        ("CPU to start one, p50", f"{boot_s['p50_ms']:.0f} ms", "", None),
        ("memory of one, unshared", _spread(own), "", None),
        ("memory of one, its share", _spread(share), "", None),
        ("all of them idle", f"{idle[0] * 100:.1f} % of a core", "", None),
        ("the gateway meanwhile", f"{idle[1] * 100:.1f} % of a core", "", None),
    ]
    return report(
        "recognition, many workers", rows, wanted.output_json, unshared_mb=own, share_mb=share
    )


def _spread(found: dict[str, Any]) -> str:
    return f"{found['median']:.1f} MB ({found['min']:.1f} to {found['max']:.1f})"


if __name__ == "__main__":
    run(main)

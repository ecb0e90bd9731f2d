"""`forebay bench asr --kill-every S`: recognition workers die while people speak.

The workers are those of a server that this tool starts and stops: nothing else on the machine
can be hit. They are synthetic, so every word is checked against what was said.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil

from forebay.core.capacity import Pool, needed_workers
from forebay.errors import ConfigError
from forebay.lab import asr
from forebay.lab.asr_user import Outcome
from forebay.lab.chaos_cluster import Cluster, Server
from forebay.lab.command import run_and_tell

__all__ = ["Killing", "main", "run"]

MOST_WORKERS = 64
READY_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Killing:
    """``every_s``: one worker is killed (SIGKILL) so often. ``workers``: of one slot each;
    None: as many as the speakers need, and one more. ``rtf``: of the synthetic recogniser."""

    every_s: float
    workers: int | None = None
    rtf: float = 0.1

    def count(self, speakers: int) -> int:
        if self.workers is not None:
            return self.workers
        return min(MOST_WORKERS, needed_workers(speakers, Pool(rtf=self.rtf)) + 1)

    def check(self) -> None:
        if self.every_s < 0.2:
            raise ConfigError(f"a worker is killed every {self.every_s:g} s, expected >= 0.2")
        if self.workers is not None and not 1 <= self.workers <= MOST_WORKERS:
            raise ConfigError(f"{self.workers} workers, expected 1..{MOST_WORKERS}")
        if not 0.001 <= self.rtf <= 1:
            raise ConfigError(f"rtf is {self.rtf:g}, expected 0.001..1")


async def run(
    options: asr.Options,
    killing: Killing,
    progress: Callable[[Sequence[Outcome], float], None] | None = None,
) -> asr.Result:
    """Start a server, run the scenario against it while its workers are killed, judge."""
    options.check()
    killing.check()
    count = killing.count(options.concurrency)
    killed: list[int] = []
    async with Cluster() as cluster:
        server = await cluster.serve(
            *("--engine", f"recognition=synthetic:rtf={killing.rtf:g},slots=1"),
            *("--workers", f"recognition={count}"),
        )
        await cluster.ready(server, count, READY_S, kind="recognition")
        own = replace(options, url=server.http.replace("http", "ws", 1) + "/ws/asr")
        killer = asyncio.create_task(_kill(server, killing.every_s, options.seed, killed))
        try:
            result = await asr.run(own, progress, workers=(count, 1, killing.rtf))
        finally:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)
    result.figures["workers_killed"] = len(killed)
    result.options |= {"kill_every_s": killing.every_s, "workers": count, "rtf": killing.rtf}
    if not killed and result.verdict.kind != "fault":
        said = "fault: no worker was killed, so nothing was shown: let people speak for longer"
        result.verdict = asr.Verdict(kind="fault", said=said, faults=["no worker was killed"])
    return result


async def _kill(server: Server, every_s: float, seed: int, killed: list[int]) -> None:
    """Until cancelled."""
    rng = random.Random(seed)
    while True:
        await asyncio.sleep(every_s)
        alive = await asyncio.to_thread(server.workers, "recognition")
        if alive:
            victim = rng.choice(alive)
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
                killed.append(victim.pid)


def main(
    options: asr.Options,
    killing: Killing,
    *,
    output_json: Path | None = None,
    report: Path | None = None,
) -> int:
    """Run, show, write what was asked for. Returns 0 unless there was a fault."""
    return run_and_tell(
        partial(run, options, killing),
        asr.live_line,
        asr.conclude,
        title=f"asr {options.scenario}: {options.concurrency} speakers, "
        f"a worker killed every {killing.every_s:g} s",
        output_json=output_json,
        report=report,
    )

"""Plays a pool of workers out, event by event, to check what `core.capacity` predicts.

Streams speak in steps of equal length, each beginning at a random phase and varying a little
as real ones do; each belongs to one worker, whose slots serve steps in order of arrival.
Virtual time only: a simulated minute of 500 streams takes a few seconds of processor.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

from forebay.lab.stats import percentile

__all__ = ["Played", "play"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """Seconds a step waited for its slot, and the share of all slots that were busy."""

    steps: int
    mean_s: float
    p95_s: float
    max_s: float
    busy: float


def play(
    streams: int,
    rtf: float,
    *,
    workers: int,
    slots: int = 1,
    step_s: float = 0.1,
    for_s: float = 60.0,
    random_arrivals: bool = False,
    seed: int = 1,
) -> Played:
    """``random_arrivals``: steps come at exponential intervals (what the formulas assume)
    instead of one every ``step_s`` with 10 % of jitter."""
    rng = random.Random(seed)
    free = [[0.0] * slots for _ in range(workers)]
    service_s = step_s * rtf
    coming = [(rng.uniform(0, step_s), index) for index in range(streams)]
    heapq.heapify(coming)
    waits: list[float] = []
    while coming and coming[0][0] < for_s:
        at, index = heapq.heappop(coming)
        own = free[index % workers]
        begin = max(at, own[0])
        heapq.heapreplace(own, begin + service_s)
        waits.append(begin - at)
        gap = rng.expovariate(1 / step_s) if random_arrivals else step_s * rng.uniform(0.9, 1.1)
        heapq.heappush(coming, (at + gap, index))
    return Played(
        steps=len(waits),
        mean_s=sum(waits) / len(waits) if waits else 0.0,
        p95_s=percentile(waits, 95),
        max_s=max(waits, default=0.0),
        busy=len(waits) * service_s / (for_s * workers * slots),
    )

"""What all synthetic engines share: their options, their waits, their faults.

Chance (jitter, faults) comes from ``seed`` only; without one each process differs.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Mapping
from typing import Any

from forebay.core.spec import LoadStage
from forebay.engines import Report
from forebay.engines.options import Option
from forebay.errors import EngineFailed

__all__ = ["COMMON", "Chance", "Clock", "ready", "strike"]

COMMON = (
    Option("latency_ms", float, 0.0, "wait before the first piece of a step", 0, 600_000),
    Option("jitter", float, 0.0, "every wait varies by up to this fraction", 0, 1),
    Option("slots", int, 16, "steps at once", 1, 10_000),
    Option("fail", float, 0.0, "probability that a step raises EngineFailed", 0, 1),
    Option("crash", float, 0.0, "probability that a step kills its own process", 0, 1),
    Option("seed", int, None, "makes jitter and faults repeatable; absent: every run differs"),
)


class Chance:
    """Waits and faults of one engine, drawn from one seeded source."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._random = random.Random(options["seed"])
        self._jitter: float = options["jitter"]
        self._fail: float = options["fail"]
        self._crash: float = options["crash"]

    def vary(self, seconds: float) -> float:
        if self._jitter:
            seconds *= 1 + self._jitter * self._random.uniform(-1, 1)
        return seconds

    def plan(self, pieces: int) -> tuple[int | None, int | None]:
        """Before which piece of this step it fails, and before which it crashes."""
        if not self._fail and not self._crash:
            return None, None
        return self._pick(self._fail, pieces), self._pick(self._crash, pieces)

    def _pick(self, probability: float, pieces: int) -> int | None:
        if not probability or self._random.random() >= probability:
            return None
        return self._random.randrange(max(1, pieces))


class Clock:
    """Waits until points on one step's own time line, so that small errors do not add up."""

    def __init__(self) -> None:
        self._due: float | None = None

    async def wait(self, seconds: float) -> None:
        if seconds <= 0:
            return
        now = asyncio.get_running_loop().time()
        self._due = (now if self._due is None else self._due) + seconds
        if self._due > now:
            await asyncio.sleep(self._due - now)


def strike(piece: int, plan: tuple[int | None, int | None]) -> None:
    fail, crash = plan
    if crash == piece:
        os.kill(os.getpid(), signal.SIGKILL)
    if fail == piece:
        raise EngineFailed(f"synthetic failure before piece {piece + 1}", piece=piece + 1)


def ready(report: Report) -> None:
    report(LoadStage(stage="ready", detail="synthetic"))

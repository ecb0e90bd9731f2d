"""Reporting how far an engine has come in loading, with memory and time."""

from __future__ import annotations

import time
from typing import Any

import psutil

from forebay.core.spec import LoadStage
from forebay.engines import Report
from forebay.errors import CannotBoot

__all__ = ["Stages", "memory_mb"]


def memory_mb() -> float:
    """Resident memory of this process in megabytes."""
    return float(round(psutil.Process().memory_info().rss / 1e6, 1))


class Stages:
    """Reports the stages of one load; remembers the newest, for the error that ends it.

    Call it from the event loop only: the report goes straight to the runner.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._start = time.monotonic()
        self.stage = "locate"

    @property
    def elapsed_s(self) -> float:
        return round(time.monotonic() - self._start, 3)

    def at(self, stage: Any, detail: str = "", done: int = 0, total: int = 0) -> None:
        self.stage = stage
        self._report(
            LoadStage(
                stage=stage,
                detail=detail,
                done=done,
                total=total,
                memory_mb=memory_mb(),
                elapsed_s=self.elapsed_s,
            )
        )

    def failed(self, reason: str, **details: Any) -> CannotBoot:
        """The error to raise: it names the stage, here and in ``details``."""
        return CannotBoot(f"{self.stage}: {reason}", stage=self.stage, **details)

"""Processes that only a supervisor starts: what they tell it, and how."""

from __future__ import annotations

from pathlib import Path

from forebay.gateway import main as process
from forebay.worker.steps import StepsTable

__all__ = ["gateway"]


def gateway(spec: Path, steps_file: Path | None, standby: bool) -> int:
    """Run a gateway; its supervisor reads from ``steps_file`` that it is ready, or why not."""
    if steps_file is None:
        return process.main(spec, standby=standby)
    steps = StepsTable.open(steps_file)
    try:
        return process.main(
            spec, on_ready=steps.mark_ready, on_failed=steps.mark_failed, standby=standby
        )
    finally:
        steps.close()

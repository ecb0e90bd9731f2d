"""What stands between a job's streams and its engine, where a kind needs more than a cutter.

A row of the kind table names a module of this package in ``handler``; that module has a
function ``make(lease, info, blobs)`` that returns a `Handler`, one for each leased job. The
runner knows nothing else of it, so a kind that decodes, draws or keeps files needs no
branch there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

from forebay.blobs import Blobs
from forebay.core.kinds import Row
from forebay.core.spec import Lease
from forebay.engines import EngineInfo, Resume

if TYPE_CHECKING:
    from forebay.worker.cut import Work
    from forebay.worker.runner import Runner
    from forebay.worker.session import Session

__all__ = ["Handler", "load_handler", "make_handler"]


class Handler(Protocol):
    """One job on one attempt."""

    async def step(self, runner: Runner, session: Session, work: Work) -> None:
        """Call the engine for ``work`` and write what comes of it with `Runner.write`; return
        early once the session's fate is decided. Raises what ends this job as failed."""

    def resume(self, resume: Resume) -> Resume:
        """What an earlier attempt left, as far as it is still there; for the engine's `open`."""

    def details(self) -> dict[str, Any]:
        """What the terminal event of a completed job tells."""

    def close(self) -> None:
        """Let go of what is held. Called once, when the session is over."""


def load_handler(row: Row) -> Any:
    """The module that ``row`` names, imported; None where it names none."""
    return importlib.import_module(f"forebay.worker.{row.handler}") if row.handler else None


def make_handler(row: Row, lease: Lease, info: EngineInfo, blobs: Blobs | None) -> Handler | None:
    module = load_handler(row)
    if module is None:
        return None
    if blobs is not None:  # as long as the job's output may be asked for, and its model time
        life_s = row.after_end_s + (row.run_s or 0.0)
        blobs = blobs.of(lease.spec.tenant, life_s)
    handler: Handler = module.make(lease, info, blobs)
    return handler

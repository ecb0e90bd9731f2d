"""A rolling restart: every process of a supervisor replaced, one after another.

Gateways first. Where a successor may run beside the one it follows, it is ready before the
other is told to drain; they share the listening sockets, so that somebody accepts at every
moment. Where it may not (the local broker lives in one process) the old one leaves first,
and connections wait in the kernel meanwhile.

Workers follow: a successor first where memory allows, else the old one hands its sessions to
the others of its group before the new one loads. Spares come last, and only leave: the
supervisor starts them again by itself.

A successor that does not become ready ends the roll: what runs goes on as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

if TYPE_CHECKING:
    from forebay.supervisor import Child, ProcessSpec

__all__ = ["Crew", "Told", "roll"]

READY_S = {"gateway": 30.0, "worker": 600.0}
"""How long a successor may load, by role."""

log = structlog.get_logger(__name__)


class Crew(Protocol):
    """What a roll may do to a supervisor's processes."""

    @property
    def children(self) -> Sequence[Child]: ...

    def add(self, spec: ProcessSpec) -> Child: ...

    def has_room_beside(self, child: Child) -> bool: ...

    async def retire(self, child: Child) -> None: ...

    async def change(self) -> None: ...


@dataclass(slots=True)
class Told:
    """How a roll went: processes replaced, processes still the old ones."""

    replaced: int = 0
    kept: int = 0
    failed: str = ""

    @property
    def words(self) -> str:
        if self.failed:
            return f"{self.failed} did not become ready, {self.kept} processes are still the old"
        return f"{self.replaced} processes replaced"


async def roll(crew: Crew) -> Told:
    """Replace everything that ran when this was called. Cancelling it leaves a whole crew:
    at most one process more than there should be, which is retired or replaced as any."""
    told = Told()
    regular = [c for c in crew.children if not c.spec.spare]
    turns = [c for role in ("gateway", "worker") for c in regular if c.spec.role == role]
    for at, child in enumerate(turns):
        if not await _follow(crew, child):
            told.failed, told.kept = child.spec.name, len(turns) - at
            log.error("roll.stopped", name=child.spec.name, kept=told.kept)
            return told
        told.replaced += 1
    for spare in [c for c in crew.children if c.spec.spare and c.alive]:
        await crew.retire(spare)
        crew.add(spare.spec)
        told.replaced += 1
    return told


async def _follow(crew: Crew, child: Child) -> bool:
    """Put a new process in the place of ``child``; false when that one was kept."""
    first = child.spec.overlaps and child.alive
    if first and child.spec.role == "worker":
        first = crew.has_room_beside(child)
    if not first:
        await crew.retire(child)
    successor = crew.add(child.spec)
    if not await _ready(crew, successor):
        if first:
            await crew.retire(successor)
        return False
    if first:
        await crew.retire(child)
    return True


async def _ready(crew: Crew, child: Child) -> bool:
    """Whether it became ready in time, without dying once on the way."""
    try:
        async with asyncio.timeout(READY_S[child.spec.role]):
            while not child.ready:
                if not child.alive:
                    return False
                await crew.change()
    except TimeoutError:
        return False
    return True

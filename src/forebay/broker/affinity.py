"""Jobs that belong to something a worker keeps, such as a notebook's kernel: who owns it.

The owner of an affinity is set once, when its first job is leased, and is where all its
later jobs go. *Cells* (plain jobs) run one at a time, in the order they were submitted.
What runs *beside* them (`JobSpec.beside`: work on files) runs at most `BESIDE` at once, and
takes no credit. The affinity itself holds one credit of its owner from its first cell on,
until the worker says that it keeps it no more (`WorkerBroker.keeps`): an idle kernel is
memory in use. An owner with nothing kept and nothing running is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

__all__ = ["BESIDE", "Affinities", "Affinity", "Control", "What"]

BESIDE = 4
"""Jobs of one affinity that may run beside its cell."""

What = Literal["interrupt", "restart", "shutdown"]


class Control(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="control"):
    """For the worker that owns ``affinity``: do this to what is kept for it, now.

    ``interrupt`` what runs; ``restart``: end it and begin anew, empty; ``shutdown``: end it.
    Ordered with leases: a cell leased after it meets what it left."""

    pool: str
    affinity: str
    what: What
    args: dict[str, Any] = {}


@dataclass(slots=True)
class Affinity:
    """``kept``: it holds a credit of its owner. ``cell``: a cell runs, or its worker has not
    let go of one yet. ``beside``: jobs that run beside it."""

    owner: str
    kept: bool = False
    cell: bool = False
    beside: int = 0

    @property
    def idle(self) -> bool:
        return not (self.kept or self.cell or self.beside)


@dataclass(slots=True)
class Affinities:
    """Those of one pool that have an owner."""

    by_name: dict[str, Affinity] = field(default_factory=dict)

    def owner(self, name: str) -> str | None:
        known = self.by_name.get(name)
        return None if known is None else known.owner

    def may_run(self, name: str, *, beside: bool, free: set[str], there: set[str]) -> bool:
        """Whether a job of this affinity could be leased now. ``free``: workers with a
        credit to give; ``there``: all that may be given work."""
        known = self.by_name.get(name)
        if known is None:
            return bool(there) if beside else bool(free)
        if known.owner not in there:
            return False
        if beside:
            return known.beside < BESIDE
        return not known.cell and (known.kept or known.owner in free)

    def leased(self, name: str, worker: str, *, beside: bool) -> None:
        known = self.by_name.setdefault(name, Affinity(worker))
        if beside:
            known.beside += 1
        else:
            known.cell = known.kept = True

    def let_go(self, name: str, worker: str, *, beside: bool) -> None:
        """The worker has closed a job of this affinity."""
        known = self.by_name.get(name)
        if known is None or known.owner != worker:
            return
        if beside:
            known.beside -= 1
        else:
            known.cell = False
        self._forget(name, known)

    def keeps(self, name: str, worker: str, *, held: bool) -> bool:
        """What the owner says of it; False where somebody else owns it by now. While a cell
        is leased it is kept whatever is said: that cell begins it anew."""
        known = self.by_name.get(name)
        if known is None:
            if held:
                self.by_name[name] = Affinity(worker, kept=True)
            return True
        if known.owner != worker:
            return False
        known.kept = held or known.cell
        self._forget(name, known)
        return True

    def _forget(self, name: str, known: Affinity) -> None:
        if known.idle:
            del self.by_name[name]

    def gone(self, worker: str) -> None:
        """A worker is no more: nobody owns what it owned."""
        for name in [n for n, known in self.by_name.items() if known.owner == worker]:
            del self.by_name[name]

    def kept_by(self, worker: str) -> int:
        """Credits that its affinities hold."""
        return sum(1 for known in self.by_name.values() if known.kept and known.owner == worker)

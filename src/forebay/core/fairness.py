"""One fair queue per pool: start-time fair queueing over tenants.

A job that begins to wait gets the tag ``max(V, last[tenant])``, and its tenant's ``last``
becomes ``tag + cost / weight``. The lowest tag is served and the virtual time V moves up to
it. So each tenant advances by what it asks for, a tenant that was idle starts at V and can
save nothing up, and nobody waits behind more than one turn of each other tenant.

Priority is a head start: it lowers the place in the queue by a bounded number of model
seconds (`HEAD_START_S`), so a job of low priority is overtaken for a while, never for ever.
A job that comes back (parked, or its worker died) keeps its `Ticket` and with it its place.

The queue is one sorted list: insertion and rank cost a binary search (and one memmove).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

__all__ = ["HEAD_START_S", "PRIORITY_STEP_S", "FairQueue", "Ticket", "head_start_s"]

HEAD_START_S = 30.0
"""The most that priority can be worth, in model seconds, either way."""

PRIORITY_STEP_S = 10.0
"""What one step of priority is worth."""

_PRUNE_OVER = 1024  # tenants remembered before those that no longer matter are dropped


def head_start_s(priority: int) -> float:
    """Model seconds that ``priority`` is worth, at most `HEAD_START_S` either way."""
    if not priority:
        return 0.0
    return max(-HEAD_START_S, min(HEAD_START_S, priority * PRIORITY_STEP_S))


class Ticket(NamedTuple):
    """A job's place: ordered by score, then by arrival. ``job`` never decides."""

    score: float
    seq: int
    job: str


class FairQueue:
    """Waiting jobs in the order in which they will be served.

    ``weights``: share per tenant, 1 for those not named. ``len()`` is the depth.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})
        self._order: list[Ticket] = []
        self._tickets: dict[str, Ticket] = {}
        self._last: dict[str, float] = {}
        self._seq = 0
        self._prune_at = _PRUNE_OVER
        self.virtual_s = 0.0

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, job: str) -> bool:
        return job in self._tickets

    def __iter__(self) -> Iterator[str]:
        """Waiting jobs, next first. The queue must not change meanwhile."""
        return (ticket.job for ticket in self._order)

    def _tag(self, tenant: str) -> float:
        return max(self.virtual_s, self._last.get(tenant, 0.0))

    def push(self, job: str, *, tenant: str, cost_s: float, priority: int = 0) -> Ticket:
        """Queue a job for the first time. Keep the ticket: `restore` takes it back."""
        tag = self._charge(tenant, cost_s)
        self._seq += 1
        ticket = Ticket(tag - head_start_s(priority), self._seq, job)
        self._insert(ticket)
        return ticket

    def pass_by(self, *, tenant: str, cost_s: float, priority: int = 0) -> None:
        """`push` and `take` of a job that nobody waits before: the accounts are the same."""
        served = self._charge(tenant, cost_s) - head_start_s(priority)
        self._seq += 1
        self.virtual_s = max(self.virtual_s, served)

    def restore(self, ticket: Ticket) -> None:
        """Queue a job again at its old place; costs its tenant nothing."""
        self._insert(ticket)

    def _insert(self, ticket: Ticket) -> None:
        if ticket.job in self._tickets:
            raise ValueError(f"job {ticket.job} waits already")
        insort(self._order, ticket)
        self._tickets[ticket.job] = ticket

    def charge(self, tenant: str, cost_s: float) -> None:
        """Count work to a tenant: on arrival, and what it took beyond the estimate."""
        self._charge(tenant, cost_s)

    def _charge(self, tenant: str, cost_s: float) -> float:
        """`charge`; what the tenant's tag was."""
        tag = self._tag(tenant)
        cost = cost_s / self._weights.get(tenant, 1.0)
        self._last[tenant] = tag + cost if cost > 0.0 else tag
        if len(self._last) > self._prune_at:
            self._last = {t: tag for t, tag in self._last.items() if tag > self.virtual_s}
            self._prune_at = max(_PRUNE_OVER, 2 * len(self._last))
        return tag

    def remove(self, job: str) -> bool:
        """Take a job out without serving it (cancelled, expired); False if it is not in."""
        ticket = self._tickets.pop(job, None)
        if ticket is None:
            return False
        del self._order[bisect_left(self._order, ticket)]
        return True

    def rank(self, job: str) -> int:
        """How many are served before this one. Raises KeyError for a job not waiting."""
        return bisect_left(self._order, self._tickets[job])

    def rank_of_new(self, *, tenant: str, priority: int = 0) -> int:
        """Where a job that came now would stand."""
        score = self._tag(tenant) - head_start_s(priority)
        return bisect_left(self._order, Ticket(score, self._seq + 1, ""))

    def take(self, ready: Callable[[str], bool] | None = None) -> str | None:
        """Serve the first job (for which ``ready`` holds): it leaves the queue.

        Jobs that are not ready, such as those whose affinity is busy, are passed over and
        keep their place. None when there is nothing to serve.
        """
        for index, ticket in enumerate(self._order):
            if ready is None or ready(ticket.job):
                del self._order[index]
                del self._tickets[ticket.job]
                # The place served, not the tag: with a head start the tag may be ahead of
                # jobs that still wait, and newcomers must not be put behind those.
                self.virtual_s = max(self.virtual_s, ticket.score)
                return ticket.job
        return None

"""Seconds of audio: how much one session may bring, and one tenant within an hour.

Counted is what was there: headerless samples as they come in, files by what was decoded.
Both ways lead to the one number that is kept of a job, its seconds so far, which only rises,
so that whoever sees more of it may say so and nothing counts twice.

The ledger is one gateway's. Gateways that share a store each count what came in through
them: what `used_s` answers is where they would have to ask the store together.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from forebay.errors import QuotaExceeded

__all__ = ["SMALLEST_S", "AudioLedger", "AudioLimits"]

WINDOW_S = 3600.0
SLOT_S = 60.0
SMALLEST_S = 1e-3
"""What is asked for where it is not known how much comes."""
MAX_TENANTS = 10_000
MAX_JOBS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioLimits:
    """``session_s``: of one session or file. ``tenant_s``: of one tenant in any hour. None:
    as much as comes."""

    session_s: float | None = None
    tenant_s: float | None = None


@dataclass(slots=True)
class _Window:
    """What came within the last hour, by the minute. ``slots``: (minute, seconds)."""

    slots: deque[tuple[int, float]] = field(default_factory=deque)
    total_s: float = 0.0

    def add(self, seconds: float, now: float) -> None:
        minute = int(now // SLOT_S)
        if self.slots and self.slots[-1][0] == minute:
            seconds += self.slots.pop()[1]
        self.slots.append((minute, seconds))
        self.drop(now)

    def drop(self, now: float) -> None:
        while self.slots and self.slots[0][0] * SLOT_S + WINDOW_S + SLOT_S <= now:
            self.slots.popleft()
        self.total_s = sum(seconds for _, seconds in self.slots)

    def frees_at(self, over_s: float) -> float:
        """When ``over_s`` of it will have passed out of the window."""
        when = 0.0
        for minute, seconds in self.slots:
            if over_s <= 0:
                break
            over_s -= seconds
            when = minute * SLOT_S + WINDOW_S + SLOT_S
        return when


@dataclass(slots=True)
class _Job:
    tenant: str
    total_s: float


class AudioLedger:
    """What was counted. ``now``: monotonic seconds, everywhere the same clock."""

    def __init__(self, limits: AudioLimits) -> None:
        self.limits = limits
        self._tenants: OrderedDict[str, _Window] = OrderedDict()
        self._jobs: OrderedDict[str, _Job] = OrderedDict()

    def used_s(self, tenant: str, now: float) -> float:
        """Seconds that count against ``tenant`` now."""
        window = self._tenants.get(tenant)
        if window is None:
            return 0.0
        window.drop(now)
        return window.total_s

    def room_s(self, tenant: str, now: float) -> float | None:
        """How long a file may be at most; None: as long as it likes."""
        room = self.limits.session_s
        if self.limits.tenant_s is not None:
            left = max(0.0, self.limits.tenant_s - self.used_s(tenant, now))
            room = left if room is None else min(room, left)
        return room

    # -------------------------------------------------------------------------- jobs

    def open(self, job: str, tenant: str, already_s: float = 0.0) -> None:
        """Count ``job`` from here on. ``already_s``: of it, what was counted elsewhere.
        Idempotent."""
        if job in self._jobs:
            return
        self._jobs[job] = _Job(tenant, already_s)
        if len(self._jobs) > MAX_JOBS:
            self._jobs.popitem(last=False)

    def count(self, job: str, total_s: float, now: float) -> None:
        """``job`` has brought ``total_s`` in all. Less than is known is no news."""
        known = self._jobs.get(job)
        if known is None or total_s <= known.total_s:
            return
        more_s, known.total_s = total_s - known.total_s, total_s
        if self.limits.tenant_s is None:
            return
        window = self._tenants.setdefault(known.tenant, _Window())
        self._tenants.move_to_end(known.tenant)
        window.add(more_s, now)
        if len(self._tenants) > MAX_TENANTS:
            self._tenants.popitem(last=False)

    def total_s(self, job: str) -> float:
        known = self._jobs.get(job)
        return 0.0 if known is None else known.total_s

    def close(self, job: str) -> None:
        """The job is over: nothing more will be said of it."""
        self._jobs.pop(job, None)

    # ---------------------------------------------------------------------- refusals

    def refuse_tenant(self, tenant: str, now: float, more_s: float = 0.0) -> QuotaExceeded | None:
        """What a tenant is refused with to whose hour ``more_s`` would be too much."""
        limit = self.limits.tenant_s
        if limit is None:
            return None
        used = self.used_s(tenant, now)
        over_s = used + more_s - limit
        if over_s < SMALLEST_S / 2:
            return None
        frees_at = self._tenants[tenant].frees_at(over_s) if used else now + WINDOW_S
        return QuotaExceeded(
            f"{used + more_s:.1f} s of audio within an hour, expected no more than {limit:g} s",
            retry_after_s=max(1.0, round(frees_at - now, 1)),
            limit_s=limit,
        )

    def refuse_more(self, job: str, tenant: str, more_s: float, now: float) -> QuotaExceeded | None:
        """What a session is ended with that would bring ``more_s`` beyond what is counted."""
        limit = self.limits.session_s
        total_s = self.total_s(job) + more_s
        if limit is not None and total_s > limit:
            return QuotaExceeded(
                f"{total_s:.1f} s of audio in one session, expected no more than {limit:g} s",
                limit_s=limit,
            )
        return self.refuse_tenant(tenant, now, more_s)

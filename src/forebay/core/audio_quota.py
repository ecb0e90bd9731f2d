"""Seconds of audio: how much one session may bring, and one tenant within an hour.

Counted is what was there: headerless samples as they come in, files by what was decoded.
Both ways lead to the one number that is kept of a job, its seconds so far, which only rises,
so that whoever sees more of it may say so and nothing counts twice.

The broker keeps the book, which all its gateways write into (`AudioBook` is the one of a broker
in this process). A gateway decides by its own `AudioLedger`: what the book said last, and what
it has not said to the book yet.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from forebay.errors import QuotaExceeded

__all__ = ["SMALLEST_S", "AudioBook", "AudioLedger", "AudioLimits", "Slots"]

WINDOW_S = 3600.0
SLOT_S = 60.0
SMALLEST_S = 1e-3
"""What is asked for where it is not known how much comes."""
Slots = Sequence[tuple[float, float]]
"""What came within the hour: how long ago a minute began, and the seconds of audio in it."""

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
    """What came within the last hour, by the minute. ``slots``: (its beginning, seconds).
    ``unsaid``: jobs' seconds the book has not been told; ``fresh_s``: what came since it was
    asked last."""

    slots: deque[tuple[float, float]] = field(default_factory=deque)
    total_s: float = 0.0
    fresh_s: float = 0.0
    unsaid: dict[str, float] = field(default_factory=dict)

    def add(self, seconds: float, now: float) -> None:
        start = now // SLOT_S * SLOT_S
        if self.slots and now < self.slots[-1][0] + SLOT_S:
            start, before = self.slots.pop()
            seconds += before
        self.slots.append((start, seconds))
        self.drop(now)

    def drop(self, now: float) -> None:
        while self.slots and self.slots[0][0] + WINDOW_S + SLOT_S <= now:
            self.slots.popleft()
        self.total_s = sum(seconds for _, seconds in self.slots)

    def frees_at(self, over_s: float) -> float:
        """When ``over_s`` of it will have passed out of the window."""
        when = 0.0
        for start, seconds in self.slots:
            if over_s <= 0:
                break
            over_s -= seconds
            when = start + WINDOW_S + SLOT_S
        return when


class AudioBook:
    """What all gateways of one broker have counted. ``now``: the broker's clock."""

    def __init__(self) -> None:
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._totals: OrderedDict[str, float] = OrderedDict()

    def count(
        self, tenant: str, totals: Mapping[str, float], now: float
    ) -> list[tuple[float, float]]:
        """Each job of ``totals`` has brought so much in all; less than is known is no news.
        Returns `Slots`."""
        window = self._windows.setdefault(tenant, _Window())
        self._windows.move_to_end(tenant)
        for job, total_s in totals.items():
            more_s = total_s - self._totals.get(job, 0.0)
            if more_s > 0:
                self._totals[job] = total_s
                window.add(more_s, now)
        while len(self._totals) > MAX_JOBS:
            self._totals.popitem(last=False)
        while len(self._windows) > MAX_TENANTS:
            self._windows.popitem(last=False)
        window.drop(now)
        return [(now - start, seconds) for start, seconds in window.slots]


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
        """Count ``job`` from here on. ``already_s``: of it, what came in elsewhere. Whoever
        took it may not have come to tell the book. Idempotent."""
        if job in self._jobs:
            return
        self._jobs[job] = _Job(tenant, already_s)
        if already_s and self.limits.tenant_s is not None:
            self._window(tenant).unsaid[job] = already_s
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
        window = self._window(known.tenant)
        window.add(more_s, now)
        window.fresh_s += more_s
        window.unsaid[job] = total_s

    def _window(self, tenant: str) -> _Window:
        window = self._tenants.setdefault(tenant, _Window())
        self._tenants.move_to_end(tenant)
        if len(self._tenants) > MAX_TENANTS:
            self._tenants.popitem(last=False)
        return window

    def tenant_of(self, job: str) -> str | None:
        """Whose job it is; None for one that is not counted here."""
        known = self._jobs.get(job)
        return None if known is None else known.tenant

    def total_s(self, job: str) -> float:
        known = self._jobs.get(job)
        return 0.0 if known is None else known.total_s

    def close(self, job: str) -> None:
        """The job is over: nothing more will be said of it."""
        self._jobs.pop(job, None)

    # ---------------------------------------------------------------------- the book

    def unsaid(self, tenant: str) -> bool:
        """Whether the book has something to be told."""
        window = self._tenants.get(tenant)
        return window is not None and bool(window.unsaid)

    def take(self, tenant: str) -> dict[str, float]:
        """What the book is to be told now: `AudioBook.count`'s totals."""
        window = self._window(tenant)
        totals, window.unsaid, window.fresh_s = window.unsaid, {}, 0.0
        return totals

    def back(self, tenant: str, totals: Mapping[str, float]) -> None:
        """The book did not answer: these are to be told again."""
        unsaid = self._window(tenant).unsaid
        for job, total_s in totals.items():
            unsaid[job] = max(total_s, unsaid.get(job, 0.0))

    def seen(self, tenant: str, slots: Slots, now: float) -> None:
        """The book's answer to what `take` gave. What came since then is added to it."""
        window = self._window(tenant)
        window.slots = deque(sorted((now - age_s, seconds) for age_s, seconds in slots))
        if window.fresh_s:
            window.add(window.fresh_s, now)
        window.drop(now)

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

"""Who is let in, told to wait, or refused before any work begins, and with what forecast.

Two gates. The *connection gate* (`Gate`) decides before an upgrade or a body is read, where a
refusal is a plain HTTP 503. The *job gate* (`refuse_job`) decides when the job is known. A
handshake that passed holds a queue place for `RESERVE_S`, so that the second gate does not
refuse at a prompt ``start`` what the first let in. Between `BUSY_BAND` and the limit new
handshakes are still let in, and queue: a refused handshake is fatal to most client libraries.

Forecasts come from what was measured: how long a credit is held (`Service`), how many there
are, and how fast they come back. One that did not come true is `corrected`. Nothing here knows
a clock or draws random numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from forebay.core.spec import QueuePlace
from forebay.errors import (
    Draining,
    NoWorkers,
    QueueFull,
    QuotaExceeded,
    Refused,
    StoreDown,
    StoreFull,
    TooManyConnections,
    WaitTooLong,
)

__all__ = [
    "BUSY_BAND",
    "GRACE",
    "RESERVE_S",
    "Connections",
    "Drain",
    "Gate",
    "JobFacts",
    "JobLimits",
    "Load",
    "Service",
    "at_once",
    "busy_rate",
    "corrected",
    "forecast",
    "refuse_job",
    "retry_after_s",
]

RESERVE_S = 5.0
"""How long an accepted handshake keeps its queue place."""

GRACE = 1.25
"""So many times its queue deadline a job may wait whose connection was promised a place: a forecast
that was made before anybody of a crowd had begun may be that far off, and nobody is to be sent
away just before his turn."""

BUSY_BAND = 0.8
"""Share of the queue limit from which a pool says that it is busy."""

Z_90 = 1.645
"""Half width of a 90 % interval, in standard deviations."""

MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0


# -------------------------------------------------------------- what was measured


@dataclass(slots=True)
class Service:
    """Mean and variance of a duration, newest samples weighing most.

    ``weight``: of one new sample, once there are enough; the first few count equally.
    """

    weight: float = 0.1
    count: int = 0
    mean_s: float = 0.0
    var_s2: float = 0.0

    def add(self, value_s: float) -> None:
        self.count += 1
        share = max(self.weight, 1 / self.count)
        delta = value_s - self.mean_s
        self.mean_s += share * delta
        self.var_s2 = (1 - share) * (self.var_s2 + share * delta * delta)

    @property
    def known(self) -> bool:
        return self.count > 0


@dataclass(slots=True)
class Drain:
    """Credits given back per second, lately. ``span_s``: how far back "lately" reaches."""

    span_s: float = 30.0
    _rate: float = 0.0
    _at_s: float | None = None

    def add(self, now: float) -> None:
        """One more came back."""
        self._decay(now)
        self._rate += 1 / self.span_s

    def _decay(self, now: float) -> None:
        if self._at_s is not None and now > self._at_s:
            self._rate *= math.exp((self._at_s - now) / self.span_s)
        self._at_s = now

    def rate(self, now: float) -> float | None:
        """Per second; None while nothing has been seen, or not for very long."""
        if self._at_s is None:
            return None
        self._decay(now)
        return self._rate if self._rate > 1e-4 else None


def forecast(
    position: int,
    service: Service,
    credits: int,
    work: Service | None = None,
    slots: int = 0,
    *,
    running: int = 0,
    busy_s: float = math.inf,
) -> QueuePlace:
    """When the job at ``position`` (1 = next) will begin, with a 90 % interval.

    ``service``: how long a credit is held. ``credits``: how many there are in all. Places come
    free no faster than credits do, and no faster than the ``slots`` can do the ``work`` (model
    seconds) of one job after another: where many sessions share a slot and those that wait
    have sound to catch up with, it is the second that counts. Nor, where every place is taken,
    does any come free before the ``running`` jobs can be through that began when the pool was
    last idle, ``busy_s`` ago: who begins together shares the slots, and ends together, the less
    so the more jobs differ. ETA is None while nobody serves, and until something has been
    measured or is declared by the engine (the ``work`` that its real-time factor makes likely).
    """
    if credits < 1:
        return QueuePlace(position=position)
    pace, of = service, credits
    if work is not None and work.known and slots > 0:
        slower = not service.known or work.mean_s / slots > service.mean_s / credits
        pace, of = (work, slots) if slower else (service, credits)
    if not pace.known:
        return QueuePlace(position=position)
    each = pace.mean_s / of
    first = 0.0
    if running >= of:
        alike = max(0.0, 1 - math.sqrt(pace.var_s2) / pace.mean_s) if pace.mean_s > 0 else 0.0
        first = alike * max(0.0, pace.mean_s * running / of - busy_s)
    eta = max(position * each, first + max(0, position - of) * each)
    spread = Z_90 * math.sqrt(position * pace.var_s2) / of
    return QueuePlace(
        position=position,
        eta_s=eta,
        low_s=max(0.0, eta - spread),
        high_s=eta + spread,
        each_s=each,
    )


def at_once(place: QueuePlace) -> QueuePlace:
    """``place`` where a credit is free and nobody waits. How fast places come free stays
    known: the connection gate may have to refuse although nobody has begun to wait."""
    return msgspec.structs.replace(place, eta_s=0.0, low_s=0.0, high_s=0.0)


def corrected(place: QueuePlace, *, age_s: float, late_s: float, advanced: int) -> QueuePlace:
    """``place`` as it is to be told ``age_s`` after it was forecast, in a wait that should have
    ended ``late_s`` ago and has come forward by ``advanced`` places since that was said.

    A forecast counts down, but not below what one place after the other takes: that those who
    run have run for long does not mean that they end soon. A wait that is late says more: the
    pool is slower than its mean, or one job has it for very long. How long is not known from
    any mean, and what has lasted so long lasts about as long again; so each place is expected
    to take as long as the wait is late for each place it has come forward. It may as well end
    at any moment, or after twice that time.
    """
    if place.eta_s is None:
        return place
    late = late_s * place.position / (1 + advanced)
    soonest = place.position * (place.each_s or 0.0)
    eta = max(0.0, place.eta_s - age_s, soonest, late)
    if eta == place.eta_s:
        return place
    spread = 0.0 if place.high_s is None else place.high_s - place.eta_s
    if eta == late:
        spread = max(spread, eta)
    return msgspec.structs.replace(
        place, eta_s=eta, low_s=max(0.0, eta - spread), high_s=eta + spread
    )


def busy_rate(measured: float | None, place: QueuePlace) -> float | None:
    """How many places a second come free while all have work; None while nothing is known.

    ``measured``: how many did lately (`Drain`), which says too little after an idle time.
    ``place``: any forecast of the pool; it says what the slots can do.
    """
    can = 1 / place.each_s if place.each_s else 0.0
    return max(measured or 0.0, can) or None


def retry_after_s(excess: int, drain_rate: float | None, jitter: float) -> float:
    """When to come back: after ``excess`` jobs have left, spread out by ``jitter`` (0..1).
    ``drain_rate``: of a pool that has work, `busy_rate`.

    Between 1 and 60 s. Without a known rate, 5 s. Jitter adds up to half, so that those who
    were refused together do not come back together.
    """
    wait = 5.0 if not drain_rate else max(1, excess) / drain_rate
    # The bound comes first: many who are all told the longest wait must be spread out too.
    return max(MIN_RETRY_S, min(MAX_RETRY_S / 1.5, wait) * (1 + 0.5 * jitter))


# ----------------------------------------------------------------------- job gate


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLimits:
    """``queue``: jobs that may wait per pool. ``tenant_jobs``: live jobs one tenant may have
    (None: no quota). ``jobs``: live jobs in all."""

    queue: int = 5000
    tenant_jobs: int | None = None
    jobs: int = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """What the job gate looks at. ``workers``: serving now or loading. ``will_wait``: the
    job has input, so it competes at once. ``free``: credits nobody holds. ``place``: where it
    would stand. ``queue_s``: its queue deadline. ``store_used``: share of the store's cap.
    ``drain_rate``: as measured; ``place`` says what the pool can do. ``promised``: the connection
    gate kept it a place, so the queue refuses it no more."""

    draining: bool = False
    workers: int = 0
    live_jobs: int = 0
    tenant_jobs: int = 0
    queued: int = 0
    will_wait: bool = True
    free: int = 0
    place: QueuePlace = QueuePlace(position=1)
    queue_s: float | None = None
    store_used: float = 0.0
    drain_rate: float | None = None
    promised: bool = False

    @property
    def busy_rate(self) -> float | None:
        return busy_rate(self.drain_rate, self.place)


def refuse_job(facts: JobFacts, limits: JobLimits, *, jitter: float) -> Refused | None:
    """The job gate: the error to answer with, or None to let the job in."""
    if facts.draining:
        return Draining("this gateway is shutting down", retry_after_s=MIN_RETRY_S + jitter)
    if facts.store_used >= 1:
        return StoreFull(
            f"the store is at {facts.store_used:.0%} of its limit",
            retry_after_s=retry_after_s(1, facts.busy_rate, jitter),
        )
    if facts.workers < 1:
        return NoWorkers("no worker serves this pool", retry_after_s=5 + 5 * jitter)
    return _refuse_crowd(facts, limits, jitter) or _refuse_wait(facts, limits, jitter)


def _refuse_crowd(facts: JobFacts, limits: JobLimits, jitter: float) -> Refused | None:
    if limits.tenant_jobs is not None and facts.tenant_jobs >= limits.tenant_jobs:
        return QuotaExceeded(
            f"this tenant has {facts.tenant_jobs} jobs, the limit is {limits.tenant_jobs}",
            retry_after_s=retry_after_s(1, facts.busy_rate, jitter),
        )
    if facts.live_jobs >= limits.jobs:
        return StoreFull(
            f"there are {facts.live_jobs} jobs, the limit is {limits.jobs}",
            retry_after_s=retry_after_s(1, facts.busy_rate, jitter),
        )
    return None


def _refuse_wait(facts: JobFacts, limits: JobLimits, jitter: float) -> Refused | None:
    if facts.promised or (facts.free > 0 and facts.queued == 0):
        return None  # let in already, or begins at once
    if facts.queued >= limits.queue:
        return QueueFull(
            f"{facts.queued} jobs wait, the limit is {limits.queue}",
            retry_after_s=retry_after_s(facts.queued - limits.queue + 1, facts.busy_rate, jitter),
        )
    eta = facts.place.eta_s
    if facts.will_wait and eta is not None and facts.queue_s is not None and eta > facts.queue_s:
        return WaitTooLong(
            f"the wait would be about {eta:.0f} s, the limit is {facts.queue_s:g} s",
            retry_after_s=min(MAX_RETRY_S, max(MIN_RETRY_S, (eta - facts.queue_s) * (1 + jitter))),
            eta_s=eta,
            limit_s=facts.queue_s,
        )
    return None


# ---------------------------------------------------------------- connection gate


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """Limits of the process; None means no limit. ``min_workers``: a path answers 503 while
    fewer serve it."""

    total: int | None = None
    per_address: int | None = None
    min_workers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the connection gate looks at, for the pool that a path leads to.

    ``named``: the handshake names a live session. ``detached``: sessions of that path whose
    clients are away and may come back under no name. ``drain_rate``: `busy_rate`.
    """

    draining: bool = False
    store_down: bool = False
    open_total: int = 0
    open_address: int = 0
    workers: int = 1
    queued: int = 0
    queue_limit: int = 5000
    named: bool = False
    detached: int = 0
    drain_rate: float | None = None


class Gate:
    """The connection gate of one pool, with the places it has promised.

    Call `decide`; when it lets a handshake in, call `begun` at that connection's ``start``
    (or when it closes without one). What is not called back lapses after `RESERVE_S`.
    """

    def __init__(self, limits: Connections | None = None) -> None:
        self.limits = limits if limits is not None else Connections()
        self._reserved: dict[str, float] = {}
        self._returning: dict[str, float] = {}
        self._outside = 0.0  # about how many were sent away and will come again
        self._outside_at = 0.0

    def reserved(self, now: float) -> int:
        """Places promised to handshakes that have not started yet."""
        self._lapse(now)
        return len(self._reserved)

    def promised(self, connection: str, now: float) -> bool:
        """Whether ``connection`` holds a place in the queue."""
        self._lapse(now)
        return connection in self._reserved

    def decide(self, connection: str, load: Load, now: float, *, jitter: float) -> Refused | None:
        """The error to answer the handshake with, or None to let it in."""
        self._lapse(now)
        refusal = self._refuse_process(load, jitter)
        if refusal is not None or load.named:
            return refusal
        if len(self._returning) < load.detached:
            # One of these may be a client coming back. It takes no place: if it turns out
            # to be new, the job gate decides at its start.
            self._returning[connection] = now + RESERVE_S
            return None
        return self._reserve(connection, load, now, jitter)

    def _refuse_process(self, load: Load, jitter: float) -> Refused | None:
        limits = self.limits
        if load.draining:
            return Draining("this gateway is shutting down", retry_after_s=MIN_RETRY_S + jitter)
        if load.store_down:
            return StoreDown("the store does not answer", retry_after_s=MIN_RETRY_S + jitter)
        for count, limit, of in (
            (load.open_total, limits.total, "this process"),
            (load.open_address, limits.per_address, "this address"),
        ):
            if limit is not None and count >= limit:
                return TooManyConnections(
                    f"{of} has {count} connections open, the limit is {limit}",
                    retry_after_s=5 + 5 * jitter,
                )
        if load.workers < limits.min_workers:
            return NoWorkers(
                f"{load.workers} workers serve, expected at least {limits.min_workers}",
                retry_after_s=5 + 5 * jitter,
            )
        return None

    def _reserve(self, connection: str, load: Load, now: float, jitter: float) -> Refused | None:
        taken = load.queued + len(self._reserved)
        if taken >= load.queue_limit:
            return QueueFull(
                f"{taken} places of the queue are taken, the limit is {load.queue_limit}",
                retry_after_s=retry_after_s(self._sent_away(load, now), load.drain_rate, jitter),
            )
        self._reserved[connection] = now + RESERVE_S
        return None

    def _sent_away(self, load: Load, now: float) -> int:
        """How many stand before the door, the one that is being sent away included: each
        must be given a later time, or all would come back for the one place that is free."""
        rate = load.drain_rate or 0.0
        gone = rate * (now - self._outside_at)
        # More than the longest wait can tell apart need not be counted.
        self._outside = min(MAX_RETRY_S * rate, max(0.0, self._outside - gone)) + 1
        self._outside_at = now
        return math.ceil(self._outside)

    def begun(self, connection: str) -> None:
        """The connection's job was submitted, or it closed: its place is free again."""
        self._reserved.pop(connection, None)
        self._returning.pop(connection, None)

    def busy(self, load: Load, now: float) -> bool:
        """In the band below the limit: still letting in, worth showing."""
        return load.queued + self.reserved(now) >= BUSY_BAND * load.queue_limit

    def _lapse(self, now: float) -> None:
        for places in (self._reserved, self._returning):
            # Insertion order is lapse order, so this stops at the first that still holds.
            while places and next(iter(places.values())) <= now:
                del places[next(iter(places))]

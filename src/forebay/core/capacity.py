"""How many workers a load needs, what is still free, and how long a wait would be.

Two figures are kept apart. *Held*: a worker takes at most ``share x slots / RTF`` live streams
at once, so that it always keeps up; who comes later waits for one to leave. *Lag*: a stream
that is held still waits for a slot each time it has sound, behind its neighbours on the same
worker. Both grow without bound near full load, which is why the simple rule
``workers = streams x RTF / utilisation`` knows half of it: with utilisation 1 it gives
50 workers for 500 streams of RTF 0.1, each of them 100 % busy, and then one pause of any kind
is never caught up.

Waits are Erlang C (M/M/c) scaled by Allen and Cunneen's factor for other than exponential
service times. Arrivals are taken as random, which for paced streams is on the safe side;
`lab.simulate` plays the same system out and the tests compare the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

__all__ = [
    "Lag",
    "Plan",
    "Pool",
    "Wait",
    "WorkRate",
    "counted",
    "erlang_c",
    "held_streams",
    "lag",
    "needed_workers",
    "plan",
    "queue_wait",
    "simple_workers",
    "spare_streams",
    "work_rate",
]

HELD_SHARE = 0.9
"""Share of a worker's slots that live streams may fill (the kind table's credits)."""

STEP_S = 0.1
"""Sound per step of a live stream where nothing else is said: one client chunk."""

MAX_WORKERS = 100_000
TAIL = 0.05  # p95


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """``waits``: probability of having to wait at all. Seconds before service begins."""

    waits: float
    mean_s: float
    p95_s: float


def erlang_c(servers: int, offered: float) -> float:
    """Probability that an arrival finds all ``servers`` busy. ``offered``: arrivals per second
    times mean service time. 1.0 at or above full load."""
    if offered <= 0:
        return 0.0
    if offered >= servers:
        return 1.0
    blocked = 1.0  # Erlang B, by its recursion: stable for thousands of servers
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


def queue_wait(
    servers: int, arrivals_per_s: float, service_s: float, *, scv: float = 0.0
) -> Wait | None:
    """Wait in an M/G/c queue; None at or above full load, where it grows without end.

    ``scv``: squared coefficient of variation of the service time (0: all alike, 1:
    exponential)."""
    offered = arrivals_per_s * service_s
    if servers < 1 or offered >= servers:
        return None
    waits = erlang_c(servers, offered)
    if waits == 0 or service_s <= 0:
        return Wait(waits=0.0, mean_s=0.0, p95_s=0.0)
    of_those = service_s * (1 + scv) / 2 / (servers - offered)
    tail = 0.0 if waits <= TAIL else of_those * math.log(waits / TAIL)
    return Wait(waits=waits, mean_s=waits * of_those, p95_s=tail)


# --------------------------------------------------------------------- live streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What serves: ``workers`` of ``slots`` each, with the real-time factor they measure.
    ``each``: streams that one of them admits, where that is known (the mean of several);
    otherwise it follows from the RTF."""

    rtf: float
    workers: int = 1
    slots: int = 1
    share: float = HELD_SHARE
    each: float | None = None

    @property
    def held(self) -> int:
        if self.each is not None:
            return math.floor(self.workers * self.each + 1e-9)
        return self.workers * held_streams(self.slots, self.rtf, self.share)


def held_streams(slots: int, rtf: float, share: float = HELD_SHARE) -> int:
    """Live streams that one worker takes at once; at least 1."""
    return max(1, math.floor(share * slots / rtf + 1e-9)) if rtf > 0 else 1_000_000


def simple_workers(streams: int, rtf: float, utilisation: float, slots: int = 1) -> int:
    """The rule of thumb: ``streams x RTF / utilisation``, a lower bound without any wait."""
    return max(1, math.ceil(streams * rtf / utilisation / slots - 1e-9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """``load``: share of all slots that the streams fill. ``wait``: of one step for a slot on
    its own worker, None where it would grow without end. ``p95_s``: that and the step."""

    load: float
    wait: Wait | None
    p95_s: float | None


def lag(streams: int, pool: Pool, step_s: float = STEP_S) -> Lag:
    """What the fullest worker's streams see when ``streams`` are spread evenly."""
    load = streams * pool.rtf / (pool.workers * pool.slots)
    each = math.ceil(streams / pool.workers)
    service_s = step_s * pool.rtf
    wait = queue_wait(pool.slots, each / step_s, service_s)
    return Lag(load=load, wait=wait, p95_s=None if wait is None else wait.p95_s + service_s)


def _fits(streams: int, pool: Pool, max_wait_s: float, step_s: float) -> bool:
    if streams > pool.held:
        return False
    p95_s = lag(streams, pool, step_s).p95_s
    return p95_s is not None and p95_s <= max_wait_s + step_s * pool.rtf


def needed_workers(
    streams: int, pool: Pool, *, max_wait_s: float = 1.0, step_s: float = STEP_S
) -> int:
    """Fewest workers like ``pool``'s that hold all ``streams`` with a p95 wait of at most
    ``max_wait_s`` for each piece of sound.

    Never more than one for each stream: where one alone waits too long, on a worker that is
    slower than speech, no number of workers helps."""
    low, high = 1, 1
    while not _fits(streams, _with(pool, high), max_wait_s, step_s):
        if high >= streams:
            return high
        low, high = high + 1, min(streams, high * 2)
    while low < high:
        middle = (low + high) // 2
        if _fits(streams, _with(pool, middle), max_wait_s, step_s):
            high = middle
        else:
            low = middle + 1
    return low


def spare_streams(
    streams: int, pool: Pool, *, max_wait_s: float = 1.0, step_s: float = STEP_S
) -> int:
    """How many more live streams fit beside ``streams`` at a p95 wait below ``max_wait_s``."""
    low, high = 0, max(0, pool.held - streams)
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(streams + middle, pool, max_wait_s, step_s):
            low = middle
        else:
            high = middle - 1
    return low


def _with(pool: Pool, workers: int) -> Pool:
    return replace(pool, workers=workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The whole answer for one load. ``simple``: the rule of thumb at ``utilisation``;
    ``full_load``: the same at 1, where nothing is left over. ``waiting``: streams that the
    workers cannot hold at once. ``spare``: streams that still fit."""

    streams: int
    rtf: float
    workers: int
    slots: int
    max_wait_s: float
    utilisation: float
    needed: int
    simple: int
    full_load: int
    held: int
    waiting: int
    spare: int
    load: float
    lag_p95_s: float | None
    why: str


def plan(
    streams: int,
    rtf: float,
    *,
    workers: int | None = None,
    slots: int = 1,
    max_wait_s: float = 1.0,
    utilisation: float = 0.8,
    step_s: float = STEP_S,
    each: float | None = None,
) -> Plan:
    """What ``streams`` live streams at this RTF need; with ``workers``, how those would fare.
    ``each``: as in `Pool`.

    All of them speak at once. Raises ValueError for numbers that make no sense."""
    if streams < 1 or rtf <= 0 or slots < 1 or not 0 < utilisation <= 1 or max_wait_s < 0:
        raise ValueError(
            f"streams {streams}, rtf {rtf:g}, slots {slots}, utilisation {utilisation:g}, "
            f"max wait {max_wait_s:g} s: expected at least 1, over 0, at least 1, up to 1, >= 0"
        )
    needed = needed_workers(
        streams, Pool(rtf=rtf, slots=slots, each=each), max_wait_s=max_wait_s, step_s=step_s
    )
    pool = Pool(rtf=rtf, workers=workers or needed, slots=slots, each=each)
    held = min(streams, pool.held)
    seen = lag(held, pool, step_s)
    full = simple_workers(streams, rtf, 1.0, slots)
    return Plan(
        streams=streams,
        rtf=rtf,
        workers=pool.workers,
        slots=slots,
        max_wait_s=max_wait_s,
        utilisation=utilisation,
        needed=needed,
        simple=simple_workers(streams, rtf, utilisation, slots),
        full_load=full,
        held=pool.held,
        waiting=max(0, streams - pool.held),
        spare=spare_streams(held, pool, max_wait_s=max_wait_s, step_s=step_s),
        load=streams * rtf / (pool.workers * slots),
        lag_p95_s=seen.p95_s,
        why=_why(streams, rtf, slots, full, needed),
    )


def _why(streams: int, rtf: float, slots: int, full: int, needed: int) -> str:
    if rtf >= 1:
        return (
            f"RTF {rtf:g} is not faster than speech: every stream falls behind, however many "
            f"workers there are. What helps is a faster model or a faster machine."
        )
    at_full = streams * rtf / (full * slots)
    verb = "is" if streams == 1 else "are"
    leave = "leaves" if needed == 1 else "leave"
    return (
        f"{counted(streams, 'stream')} x RTF {rtf:g} {verb} {counted(streams * rtf, 'slot')} of work: "
        f"{counted(full, 'worker')} would be {at_full:.0%} busy. At full load a queue has no end: "
        f"each pause is kept for ever. {needed} {leave} room, each taking at most "
        f"{counted(held_streams(slots, rtf), 'stream')}."
    )


def counted(number: float, thing: str) -> str:
    """A number of things, as English has it: 1 slot, 2 slots."""
    shown = str(number) if isinstance(number, int) else f"{number:g}"
    return f"{shown} {thing}" if number == 1 else f"{shown} {thing}s"


# ------------------------------------------------------------------------ whole jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRate:
    """For kinds whose jobs are answered whole: ``load`` of the slots now, and the p95 wait."""

    load: float
    wait: Wait | None
    needed: int


def work_rate(
    jobs_per_s: float, service_s: float, slots: int, *, workers: int = 1, max_wait_s: float = 1.0
) -> WorkRate:
    """Jobs that arrive at random and take ``service_s`` of one of ``slots`` in all.

    Any free slot takes the next job. ``needed``: workers of ``slots / workers`` each for a
    p95 wait of at most ``max_wait_s``."""
    each = max(1, slots // max(1, workers))
    offered = jobs_per_s * service_s
    needed = max(1, math.ceil(offered / each))
    while needed < MAX_WORKERS:
        wait = queue_wait(needed * each, jobs_per_s, service_s, scv=1.0)
        if wait is not None and wait.p95_s <= max_wait_s:
            break
        needed += 1
    return WorkRate(
        load=offered / slots if slots else math.inf,
        wait=queue_wait(slots, jobs_per_s, service_s, scv=1.0),
        needed=needed,
    )

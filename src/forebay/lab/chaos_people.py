"""People who speak while things break, and the history check of what they saw.

Text is the shortest sentences there are, typed at the pace of the originals' load tool, and the
voice is always ahead of its typist: something is to be heard every 0.4 s, so that the silence a
listener hears is what the damage cost, and neither the model nor the typing.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import aiohttp

from forebay.lab.chaos import Check
from forebay.lab.stats import percentile, summary
from forebay.lab.tts_user import Outcome, Plan, User

__all__ = ["Crowd", "Span", "delays", "gaps", "history", "said", "unharmed", "within"]

SENTENCE = "雨。河。门。灯。轮。钟。风。雪。"
CPS = 5.0
END_WAIT_S = 40.0
HARM = 1.2
TELLING = 1000
"""Of fewer delays than this, the slowest hundredth is a few accidents: nothing is concluded."""
Span = tuple[float, float]
"""From when to when, in seconds of the monotonic clock."""


@dataclass(slots=True)
class Crowd:
    """``count`` sessions that speak for ``seconds`` over ``urls``, one after another."""

    http: aiohttp.ClientSession
    urls: Sequence[str]
    count: int
    seconds: float
    spread_s: float = 1.0
    plan: Plan = field(default_factory=lambda: Plan(url="", text="", cps=CPS, patient=True))
    outcomes: list[Outcome] = field(default_factory=list)
    _tasks: list[asyncio.Task[Outcome]] = field(default_factory=list)

    async def begin(self) -> None:
        """Start everybody; returns when all of them have been heard once."""
        wanted = round(self.seconds * CPS)
        text = (SENTENCE * (wanted // len(SENTENCE) + 1))[:wanted]
        for n in range(self.count):
            plan = replace(
                self.plan,
                url=self.urls[n % len(self.urls)],
                text=text,
                start_after_s=self.spread_s * n / self.count,
                end_wait_s=END_WAIT_S,
            )
            user = User(plan, self.http)
            self.outcomes.append(user.outcome)
            self._tasks.append(asyncio.create_task(user.run(), name=f"user-{n}"))
        end = time.monotonic() + 30
        while not all(o.chunks or o.ended for o in self.outcomes):
            if time.monotonic() > end:
                silent = sum(not (o.chunks or o.ended) for o in self.outcomes)
                raise RuntimeError(f"{silent} of {self.count} sessions heard nothing in 30 s")
            await asyncio.sleep(0.05)

    @property
    def active(self) -> int:
        return sum(not outcome.ended for outcome in self.outcomes)

    async def finish(self) -> list[Outcome]:
        """Wait for all of them; they give up by themselves, so this ends."""
        await asyncio.gather(*self._tasks)
        return self.outcomes

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def history(outcomes: Sequence[Outcome], *, whole: bool = True) -> list[Check]:
    """What every session's history must show. ``whole``: every session also ends completed,
    with all that it said spoken, and was never told to begin anew."""
    count = len(outcomes)
    found = [
        _zero("missing units", sum(o.missing for o in outcomes)),
        _zero("duplicate units", sum(o.duplicates for o in outcomes)),
        _zero("different units", sum(o.mismatched for o in outcomes)),
        _zero("chunks out of order", sum(o.out_of_order for o in outcomes)),
        Check(
            "sessions with one terminal event",
            f"{sum(o.terminals == 1 for o in outcomes)} of {count}",
            f"{count}",
            all(o.terminals == 1 for o in outcomes),
        ),
    ]
    if whole:
        ended = Counter(o.ended or "nothing" for o in outcomes)
        found += [
            Check("ended", said(ended), "all completed", set(ended) <= {"completed"}),
            _zero("sessions begun anew", sum(o.restarted for o in outcomes)),
        ]
    found += [
        Check("units spoken", str(sum(o.units_received for o in outcomes))),
        Check("connections come back", str(sum(o.resumed for o in outcomes))),
    ]
    return found


def said(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.most_common()) or "none"


def _zero(what: str, seen: int) -> Check:
    return Check(what, str(seen), "0", seen == 0)


def within(what: str, values_s: Sequence[float], limit_s: float, q: float = 100) -> Check:
    """The ``q``-th percentile of these seconds against a limit."""
    seen = percentile(values_s, q)
    name = f"{what} p{q:g}" if q < 100 else f"{what}, worst"
    return Check(
        name, f"{seen * 1000:.0f} ms of {len(values_s)}", f"<= {limit_s:g} s", seen <= limit_s
    )


def delays(outcomes: Sequence[Outcome], spans: Sequence[Span]) -> list[float]:
    """Seconds from a clause mark to its audio, of the marks that were sent in these spans."""
    return [
        seconds
        for outcome in outcomes
        for at, seconds in zip(outcome.cut_at_s, outcome.cut_s, strict=True)
        if any(begin <= at < end for begin, end in spans)
    ]


def unharmed(
    what: str, outcomes: Sequence[Outcome], during: Sequence[Span], otherwise: Sequence[Span]
) -> list[Check]:
    """Whether people were heard as soon ``during`` the damage as ``otherwise``: the slowest
    hundredth within a fifth.

    Both come from the same run and by turns. The spans without damage are judged in two halves,
    every other one each, and the slower is the measure: what differs by itself is no harm.
    """
    beside = delays(outcomes, during)
    halves = [delays(outcomes, otherwise[n::2]) for n in range(2)]
    alone = [percentile(half, 99) for half in halves]
    seen, limit_s = percentile(beside, 99), HARM * max(alone)
    enough = min(len(beside), sum(map(len, halves))) >= TELLING
    return [
        Check(f"{what} without, p99 of two halves", ", ".join(f"{s * 1000:.1f} ms" for s in alone)),
        Check(
            f"{what} meanwhile, p99",
            f"{seen * 1000:.1f} ms of {len(beside)}",
            f"<= {limit_s * 1000:.1f} ms" if enough else f"told from {TELLING} on",
            seen <= limit_s if enough else None,
        ),
    ]


def gaps(outcomes: Sequence[Outcome]) -> list[Check]:
    """How long a dropped connection was silent, and each session's longest silence."""
    dropped = summary([s for o in outcomes for s in o.gaps_s])
    worst = summary([o.worst_gap_s for o in outcomes])
    return [
        Check(
            "each session's worst gap",
            f"p50 {worst['p50_ms']:.0f} ms, p95 {worst['p95_ms']:.0f} ms, "
            f"max {worst['max_ms']:.0f} ms",
        ),
        Check("drop to next chunk p50", f"{dropped['p50_ms']:.0f} ms of {dropped['count']:g}"),
    ]

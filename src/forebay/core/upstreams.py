"""Which of several model servers is asked next: weights, circuit breakers, who takes over.

Policy only; times are arguments, on one monotonic clock in seconds. Shares are exact over
time (smooth weighted round robin), so a server of weight 0.1 beside one of 0.9 gets every
tenth request, and one of weight 0 only what the others cannot take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Balancer", "Breaker", "Upstream", "parse_upstreams"]

FAILURES = 5
FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 8.0


class Breaker:
    """Decides whether to try a server that was not there.

    After ``failures`` in a row it refuses for 0.5 s, then 1, 2, 4 and at most 8 s, and after
    each pause lets one request try."""

    __slots__ = ("_closed_until", "_failures", "_limit", "_pause_s")

    def __init__(self, failures: int = FAILURES) -> None:
        self._limit = failures
        self._failures = 0
        self._closed_until = 0.0
        self._pause_s = FIRST_PAUSE_S

    @property
    def open(self) -> bool:
        """Whether it has seen too many failures since the last success."""
        return self._failures >= self._limit

    def wait_s(self, now: float) -> float:
        """Seconds until somebody may try; asking changes nothing."""
        return max(0.0, self._closed_until - now) if self.open else 0.0

    def refuse_s(self, now: float) -> float:
        """Seconds to wait before trying; 0 means try now, and tell `good` or `bad`."""
        wait_s = self.wait_s(now)
        if self.open and wait_s == 0:
            self._closed_until = now + self._pause_s  # this caller tries; others wait for it
        return wait_s

    def good(self) -> None:
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S

    def bad(self, now: float) -> None:
        self._failures += 1
        if self.open:
            self._closed_until = now + self._pause_s
            self._pause_s = min(MAX_PAUSE_S, self._pause_s * 2)


class Balancer:
    """Orders servers for each request. ``weights``: at least one, none below 0.

    For each request: `order`; then, for each server tried, `began` before and `good` or
    `bad` after, until one is good or the order is used up."""

    def __init__(self, weights: Sequence[float], *, failures: int = 3) -> None:
        total = sum(weights)
        self._weights = [w / total if total else 1 / len(weights) for w in weights]
        self._due = [0.0] * len(weights)
        self.breakers = [Breaker(failures) for _ in weights]

    def order(self, now: float) -> list[int]:
        """Every server once: whose turn it is, then the others that are well by weight, then
        those that were not there lately, soonest allowed first. The last are a last hope: a
        request is not failed unasked."""
        waits = [breaker.wait_s(now) for breaker in self.breakers]
        well = [at for at, wait_s in enumerate(waits) if wait_s == 0]
        ill = sorted((at for at in range(len(waits)) if waits[at]), key=lambda at: waits[at])
        if not well:
            return ill
        turn = self._turn(well)
        rest = sorted((at for at in well if at != turn), key=lambda at: -self._weights[at])
        return [turn, *rest, *ill]

    def _turn(self, well: Sequence[int]) -> int:
        total = sum(self._weights[at] for at in well)
        if not total:
            return well[0]
        for at in well:
            self._due[at] += self._weights[at] / total
        turn = max(well, key=lambda at: (self._due[at], self._weights[at]))
        self._due[turn] -= 1.0
        return turn

    def began(self, at: int, now: float) -> None:
        """Server ``at`` is tried now; while it was ill, others keep away until it is known."""
        self.breakers[at].refuse_s(now)

    def good(self, at: int) -> None:
        """It gave a first token."""
        self.breakers[at].good()

    def bad(self, at: int, now: float) -> None:
        """It failed before one."""
        self.breakers[at].bad(now)


@dataclass(frozen=True, slots=True)
class Upstream:
    """One server: its address, its share, and its own model name ("" for the common one)."""

    url: str
    weight: float = 1.0
    model: str = ""


def parse_upstreams(text: str) -> list[Upstream]:
    """``[MODEL@]URL[*WEIGHT]``, several divided by commas or blanks.

    Raises ValueError that says what is wrong."""
    found = []
    for word in text.replace(",", " ").split():
        rest, star, weight = word.rpartition("*")
        model, at, url = (rest if star else word).rpartition("@")
        if at and "://" in model:  # user@host inside the address
            model, url = "", rest if star else word
        found.append(Upstream(url, _weight(weight, word) if star else 1.0, model))
    if not found:
        raise ValueError("no address is given")
    if not any(one.weight for one in found):
        raise ValueError(f"{text!r} gives no server a weight above 0")
    return found


def _weight(text: str, word: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= 1e6:
        raise ValueError(f"weight of {word!r} is no number from 0 to 1000000")
    return weight

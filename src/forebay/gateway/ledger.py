"""Where the time of one streamed answer went: the first-byte ledger, for every kind.

Stages, as ``Server-Timing`` and trailing lines name them: ``accept`` (reading and checking
the request), ``dispatch`` (handing the job to the broker), ``queue`` (until a worker has it),
``first_output`` (until its first output is here), ``flush`` (until that is worded),
``write`` (until the transport has it). A stage
that is not over yet is left out. The gaps between later pieces go into a histogram, and a
stream that was slow is one event in the log.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from forebay.core.events import Audio, Ended, OutputEvent, TextDelta
from forebay.core.spec import JobView
from forebay.gateway.metrics import GatewayMetrics

__all__ = ["Ledger"]

log = structlog.get_logger(__name__)


class Ledger:
    """Times of one answer, by ``clock``. ``begun``: when the request came; ``asked``: when the
    broker was asked; the ledger is opened when it has answered."""

    __slots__ = (
        "_arrived",
        "_asked",
        "_begun",
        "_clock",
        "_encoded",
        "_first",
        "_last",
        "_leased",
        "_metrics",
        "_opened",
        "_slow_s",
        "_view",
        "_worst_s",
        "pieces",
    )

    def __init__(
        self,
        view: JobView,
        metrics: GatewayMetrics,
        clock: Callable[[], float],
        *,
        begun: float,
        asked: float | None = None,
        slow_s: float = 0.0,
    ) -> None:
        self._view = view
        self._metrics = metrics
        self._clock = clock
        self._slow_s = slow_s
        self._begun = begun
        self._opened = clock()
        self._asked = self._opened if asked is None else asked
        self._leased = self._opened if view.state != "queued" else None
        self._arrived: float | None = None
        self._encoded: float | None = None
        self._first: float | None = None
        self._last = self._opened
        self._worst_s = 0.0
        self.pieces = 0

    def leased(self) -> None:
        """A worker has the job."""
        if self._leased is None:
            self._leased = self._clock()

    def arrived(self, event: OutputEvent) -> None:
        """``event`` is about to be worded."""
        if self._arrived is None and not isinstance(event, Ended):
            self._arrived = self._clock()

    def encoded(self) -> None:
        """And has been."""
        if self._encoded is None and self._arrived is not None:
            self._encoded = self._clock()

    def sent(self, event: OutputEvent) -> float | None:
        """``event`` has been given to the wire. Returns seconds since the request for the
        first text or audio, None for anything else."""
        if isinstance(event, Ended):
            return None
        now = self._clock()
        if self._first is None:
            self._first = now
        if not isinstance(event, TextDelta | Audio):
            return None
        self.pieces += 1
        last, self._last = self._last, now
        if self.pieces == 1:
            return now - self._begun
        gap_s = now - last
        self._worst_s = max(self._worst_s, gap_s)
        self._metrics.gap(self._view.spec.kind, gap_s)
        return None

    def stages_ms(self) -> dict[str, float]:
        """Milliseconds of each stage that is over, in the order of the day."""
        found = {"accept": self._asked - self._begun, "dispatch": self._opened - self._asked}
        leased = self._leased
        if leased is None:
            leased = self._arrived
        if leased is None:
            found["queue"] = self._clock() - self._opened
        else:
            found["queue"] = leased - self._opened
            if self._arrived is not None:
                found["first_output"] = self._arrived - leased
        if self._arrived is not None and self._encoded is not None:
            found["flush"] = self._encoded - self._arrived
            if self._first is not None:
                found["write"] = self._first - self._encoded
        return {name: round(max(0.0, s) * 1000, 2) for name, s in found.items()}

    def header(self) -> bytes:
        """The stages so far, as ``Server-Timing`` has them."""
        return ", ".join(f"{name};dur={ms:.2f}" for name, ms in self.stages_ms().items()).encode()

    def close(self) -> None:
        """The answer is over. Says so in the log where it was slow."""
        limit_s = self._slow_s
        first_s = (self._clock() if self._first is None else self._first) - self._begun
        if not limit_s or max(first_s, self._worst_s) <= limit_s:
            return
        spec = self._view.spec
        log.warning(
            "stream.slow",
            job=spec.id,
            pool=spec.pool,
            dialect=spec.dialect,
            first_ms=round(first_s * 1000),
            longest_gap_ms=round(self._worst_s * 1000),
            pieces=self.pieces,
            stages_ms=self.stages_ms(),
            limit_s=limit_s,
        )

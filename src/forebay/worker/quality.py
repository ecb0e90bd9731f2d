"""Counts answers that run in circles or are no text, while they pass through a worker.

Only counts leave: nothing of what was said is kept beyond its answer's end.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from forebay.core.events import Ended, OutputEvent, TextDelta
from forebay.core.garble import MAX_CHARS, measure
from forebay.core.spec import COUNT

__all__ = ["Quality", "counts_in"]


class Quality:
    """One worker's answers of kind text. ``counts``: answers, repeating, garbled."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._said: dict[str, str] = {}

    def hear(self, key: str, event: OutputEvent) -> None:
        """Take one event of the session ``key``."""
        if isinstance(event, TextDelta):
            self._said[key] = (self._said.get(key, "") + event.text)[-MAX_CHARS:]
        elif isinstance(event, Ended):
            self._judge(key, event)

    def forget(self, key: str) -> None:
        """The session is gone, however it ended."""
        self._said.pop(key, None)

    def _judge(self, key: str, ended: Ended) -> None:
        said = self._said.pop(key, "")
        if ended.state != "completed":
            return
        self.counts["answers"] += 1
        verdict = measure(said).verdict
        if verdict != "fine":
            self.counts[verdict] += 1


def counts_in(*counted: Any) -> dict[str, float]:
    """Counts by name, as beats carry them."""
    return {COUNT + name: float(n) for counts in counted for name, n in dict(counts).items()}

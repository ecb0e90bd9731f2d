"""What a worker says of its jobs, on its way to Redis: several commits in one call.

Commits of one job that follow each other in one turn of the loop become one: their events go
in together and are one step, as each would have been.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from forebay.broker.redis_wire import encode, words_of
from forebay.core.events import (
    Audio,
    Consumed,
    Ended,
    Final,
    OutputEvent,
    TextDelta,
    ToolCalls,
    Usage,
    blobs_of,
    faded,
    marks,
    rewrites,
    size_of,
)
from forebay.core.kinds import Row
from forebay.core.lease import ByteCredit
from forebay.core.stream import tag_of

__all__ = ["Batch", "Held"]

MOST_EVENTS = 256
TOOLS, USAGE = 1, 2


@dataclass(slots=True)
class Held:
    """One lease as its worker knows it."""

    attempt: int
    row: Row
    counts: dict[str, int]
    marks: dict[str, int]
    input_head: int
    delivered: int
    attached: bool
    stored: int = 0  # the last output offset that the store has answered for
    credit: ByteCredit = field(default_factory=ByteCredit)
    fetching: bool = False


class Batch:
    """Commits of one lease that are said together."""

    def __init__(self, worker: str, job: str, held: Held) -> None:
        self.worker, self.job, self.held = worker, job, held
        self._consumed = Consumed()
        self._model_s = 0.0
        self._counts: dict[str, int] = {}
        self._samples = 0
        self._first = 0
        self._next = 0
        self._sizes: list[int] = []
        self._faded_sizes: list[int] = []
        self._lines: list[str] = []
        self._flags = 0
        self._said: list[str] = []
        self._blobs: list[bytes] = []
        self._files: list[str] = []
        self._ended: dict[str, Any] | bool = False

    def goes_on(self, job: str, attempt: int, events: Sequence[OutputEvent]) -> bool:
        """Whether this commit may be said together with what is here."""
        if job != self.job or attempt != self.held.attempt or self._ended:
            return False
        if not events or not self._sizes:
            return True
        return events[0].offset == self._next and len(self._sizes) < MOST_EVENTS

    def __len__(self) -> int:
        return max(1, len(self._sizes))

    @property
    def last(self) -> int:
        """The last offset in here; 0 without events."""
        return self._next - 1 if self._sizes else 0

    def add(
        self,
        events: Sequence[OutputEvent],
        sizes: Sequence[int],
        consumed: Consumed,
        model_s: float,
    ) -> None:
        self._consumed = consumed
        self._model_s += max(0.0, model_s)
        if events and not self._sizes:
            self._first = events[0].offset
        for event, size in zip(events, sizes, strict=True):
            self._event(event, size)
            self._next = event.offset + 1
        # As of this commit: a later one of this lease may go into another batch.
        self._counts = dict(self.held.counts)
        self._samples = self.held.marks.get("samples", 0)

    def _event(self, event: OutputEvent, size: int) -> None:
        held, old, old_size, line = self.held, b"", size, ""
        tag, so_far = tag_of(event), held.marks
        held.counts[tag] = max(event.n, held.counts.get(tag, 0))
        for name, value in marks(event).items():
            if value > so_far.get(name, -1):
                so_far[name] = value
        if tag == held.row.replaceable:
            line, gives_way = _line_of(event)
            if gives_way:
                ghost = faded(event)
                old, old_size = encode(ghost), size_of(ghost)
            self._files += blobs_of(event)
        elif type(event) is not Audio:  # of which there are the most, and nothing more to note
            self._noted(event)
        self._sizes.append(size)
        self._faded_sizes.append(old_size)
        self._lines.append(line)
        self._blobs += (encode(event), encode(so_far), old)

    def _noted(self, event: OutputEvent) -> None:
        """What the store has to know of ``event`` besides its bytes and counters."""
        self._files += blobs_of(event)
        if isinstance(event, ToolCalls):
            self._flags |= TOOLS
        elif isinstance(event, Usage):
            self._flags |= USAGE
        elif isinstance(event, TextDelta | Final):
            self._said.append(event.text)
        elif isinstance(event, Ended):
            self._ended = words_of(event)

    def request(self) -> list[Any]:
        """As `API.commit` reads it."""
        held = self.held
        return [
            self.worker,
            self.job,
            held.attempt,
            self._first,
            self._consumed,
            self._model_s,
            self._sizes,
            self._samples,
            self._flags,
            self._faded_sizes if held.row.replaceable else [],
            self._ended,
            self._files,
            self._lines if any(self._lines) else [],
        ]

    def blobs(self) -> list[bytes | str]:
        return [encode(self._counts), "".join(self._said), *self._blobs]


def _line_of(event: OutputEvent) -> tuple[str, bool]:
    """What the store is told of a replaceable event's line (`F.line`; empty where all events
    of the type replace each other), and whether it may have to give way."""
    found = rewrites(event)
    if found is None:
        return "", False
    line, replaces, gives_way = found
    return (f"{replaces:d}{gives_way:d}{line}" if line else ""), gives_way

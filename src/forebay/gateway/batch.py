"""Text that waits a moment for more of itself before it leaves, where an operator wants that.

The older rule of notebook front ends (so many milliseconds, so many pieces) as
`core.flush.Flush` has it, with a real timer: a pause of the model strands nothing. What waits
together leaves as one event. By default nothing waits, and none of this is in the way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from forebay.core.events import OutputEvent, TextDelta
from forebay.core.flush import Flush

__all__ = ["Batch", "FlushRule"]

Encode = Callable[[OutputEvent], Sequence[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushRule:
    """``interval_s`` 0: everything leaves at once. Otherwise when so much time has passed
    since the last departure, or ``items`` pieces wait; never more than ``cap`` wait."""

    interval_s: float = 0.0
    items: int = 15
    cap: int = 20

    @property
    def waits(self) -> bool:
        return self.interval_s > 0


class Batch:
    """An encoder that merges. ``send`` takes what a deadline sets free; ``whole_until``: events
    up to this offset are never merged, because a reader begins inside them."""

    def __init__(
        self,
        encode: Encode,
        rule: FlushRule,
        send: Callable[[bytes], None],
        *,
        whole_until: int = 0,
    ) -> None:
        self._encode = encode
        self._send = send
        self._whole_until = whole_until
        self._flush = Flush(
            interval_s=rule.interval_s, threshold_items=rule.items, cap_items=rule.cap
        )
        self._held: list[TextDelta] = []
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def encode(self, event: OutputEvent) -> Sequence[bytes]:
        """The frames that may leave now."""
        if not isinstance(event, TextDelta) or event.offset <= self._whole_until:
            return [*self._release(), *self._encode(event)]
        now = self._loop.time()
        self._held.append(event)
        self._flush.add(1, now)
        if self._flush.due(now):
            return self._release()
        deadline = self._flush.deadline
        if self._timer is None and deadline is not None:
            self._timer = self._loop.call_at(deadline, self._on_time)
        return ()

    def close(self) -> None:
        """Nothing leaves any more."""
        self._disarm()
        self._held.clear()

    def _on_time(self) -> None:
        self._timer = None
        for frame in self._release():
            self._send(frame)

    def _release(self) -> Sequence[bytes]:
        self._disarm()
        if not self._held:
            return ()
        held, self._held = self._held, []
        self._flush.sent(self._loop.time())
        return self._encode(_merged(held))

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _merged(events: list[TextDelta]) -> TextDelta:
    """One event for several: numbered as the last, first of its kind if the first was."""
    last = events[-1]
    if len(events) == 1:
        return last
    return msgspec.structs.replace(
        last,
        text="".join(event.text for event in events),
        count=sum(event.count for event in events),
        n=1 if events[0].n == 1 else last.n,
    )

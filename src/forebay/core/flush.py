"""Flow control as pure policies: when to send, how far ahead, and who is too slow.

Four policies that know nothing of each other; an outbox asks all of them.

========  =====================================================================
`Flush`   may what is pending leave now, or is more worth waiting for?
`Pace`    is this piece of audio too far ahead of the listener?
`Lead`    may the engine go on, or is it too far ahead of its reader?
`Cursor`  where does this reader stand, and when has it been too slow?
========  =====================================================================

Each has a deadline where time alone changes its answer: the caller must set a timer for it,
so that nothing waits for the next event to notice that time has passed. All times are
seconds on one monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import isinf

from forebay.core.kinds import Row

__all__ = ["Arrivals", "Cursor", "Flush", "Lead", "Pace"]

# Timers fire a little early on some loops and sums of floats are not exact: an answer that
# is this close is yes, or a caller would be woken at its deadline only to wait again.
EPSILON_S = 1e-6


class Flush:
    """When pending items leave. By default as soon as there are any.

    With ``interval_s`` above 0: at once if nothing left in the last ``interval_s``, else
    when ``interval_s`` has passed since the last departure or ``threshold_items`` wait,
    whichever is first. ``cap_items``: take no more than this many while the transport cannot
    send; what does not fit stays in the stream.
    """

    __slots__ = ("_interval_s", "_last_s", "_since_s", "_threshold", "cap_items", "pending")

    def __init__(
        self,
        *,
        interval_s: float = 0.0,
        threshold_items: int | None = None,
        cap_items: int | None = None,
    ) -> None:
        self._interval_s = interval_s
        self._threshold = threshold_items
        self._last_s: float | None = None
        self._since_s = 0.0
        self.cap_items = cap_items
        self.pending = 0

    @property
    def room(self) -> int | None:
        """How many more items may be added; None means any number."""
        return None if self.cap_items is None else max(0, self.cap_items - self.pending)

    def add(self, items: int, now: float) -> None:
        """``items`` more wait. Then ask `due`."""
        if items > 0 and self.pending == 0:
            self._since_s = now
        self.pending += items

    def due(self, now: float) -> bool:
        """Whether to send all that is pending now, if the transport can take it. After
        sending call `sent`."""
        deadline = self.deadline
        if deadline is None:
            return False
        full = self.room == 0 or (self._threshold is not None and self.pending >= self._threshold)
        return full or now >= deadline - EPSILON_S

    @property
    def deadline(self) -> float | None:
        """When what is pending must leave whatever happens; None if nothing is pending."""
        if self.pending == 0:
            return None
        if self._last_s is None:
            return self._since_s
        return max(self._since_s, self._last_s + self._interval_s)

    def sent(self, now: float) -> None:
        """All that was pending has been handed to the transport."""
        self.pending = 0
        self._last_s = now


class Pace:
    """Keeps audio at most ``ahead_s`` before a playback clock; None means no pace.

    The clock starts with the first audio sent on this connection, runs in real time, and
    never runs ahead of what was sent: when everything sent has been played it stands still
    until more is.
    """

    __slots__ = ("_ahead_s", "_at_s", "_played_s", "_sent_s", "deadline")

    def __init__(self, ahead_s: float | None) -> None:
        self._ahead_s = ahead_s
        self._at_s = 0.0
        self._played_s = 0.0
        self._sent_s = 0.0
        self.deadline: float | None = None

    def ahead(self, now: float) -> float:
        """Seconds of audio sent that have not been played by ``now``."""
        self._played_s = min(self._sent_s, self._played_s + max(0.0, now - self._at_s))
        self._at_s = max(self._at_s, now)
        return self._sent_s - self._played_s

    def allow(self, audio_s: float, now: float) -> bool:
        """Whether a piece of ``audio_s`` seconds may be sent now.

        If not, ``deadline`` is when it may: hold it, and everything after it, until then
        (`Cursor.hold`). A piece longer than the pace itself waits until all before it has
        been played. After sending call `sent`.
        """
        self.deadline = None
        if self._ahead_s is None:
            return True
        over_s = self.ahead(now) - max(0.0, self._ahead_s - audio_s)
        if over_s <= EPSILON_S:
            return True
        self.deadline = now + over_s
        return False

    def sent(self, audio_s: float, now: float) -> None:
        """A piece of ``audio_s`` seconds has been handed to the transport."""
        self.ahead(now)
        self._sent_s += audio_s


class Lead:
    """How far an engine may run ahead of the furthest reader, in samples of media.

    None means as far as it likes (text: the whole answer).
    """

    __slots__ = ("attached", "detached")

    def __init__(self, attached: int | None, detached: int | None) -> None:
        self.attached = attached
        self.detached = detached

    @classmethod
    def of(cls, row: Row, *, rate: int) -> Lead:
        """The lead of a kind. ``rate``: sample frames per second of its media."""
        return cls(_samples(row.lead_s, rate), _samples(row.lead_detached_s, rate))

    def room(self, produced: int, delivered: int, *, attached: bool) -> int | None:
        """Samples the engine may still produce; 0 or less: wait for `Delivered`. None: any.

        ``produced``, ``delivered``: cumulative samples in the stream and sent to a reader.
        """
        limit = self.attached if attached else self.detached
        return None if limit is None else limit - (produced - delivered)

    def may_run(self, produced: int, delivered: int, *, attached: bool) -> bool:
        """Whether the next step may begin; if not, give the slot to another session."""
        room = self.room(produced, delivered, attached=attached)
        return room is None or room > 0


def _samples(seconds: float | None, rate: int) -> int | None:
    return None if seconds is None else int(seconds * rate)


class Arrivals:
    """When the events of a stream came, for whoever has not sent them yet: (last offset, when).

    Times are kept `GRAIN_S` apart and at most `MAX_ARRIVALS` of them, so a reader costs a few
    KiB however far behind it is. An age is at most GRAIN_S too high; past MAX_ARRIVALS it is
    too low, as nobody may be cut for somebody else's delay: of the newest, or, with ``last``,
    of the oldest events.
    """

    GRAIN_S = 0.25
    MAX_ARRIVALS = 256

    __slots__ = ("_kept", "_last")

    def __init__(self, *, last: bool = False) -> None:
        self._kept: deque[tuple[int, float]] = deque()
        self._last = last

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return iter(self._kept)

    def note(self, last: int, now: float) -> None:
        """The stream now ends at ``last``, further than ever before."""
        kept = self._kept
        if kept and now - kept[-1][1] < self.GRAIN_S:
            kept[-1] = (last, kept[-1][1])
        elif len(kept) < self.MAX_ARRIVALS:
            kept.append((last, now))
        elif self._last:
            kept.popleft()
            kept.append((last, now))
        else:
            kept[-1] = (last, now)

    def sent(self, offset: int) -> None:
        """Forget what is older than that."""
        while self._kept and self._kept[0][0] <= offset:
            self._kept.popleft()

    @property
    def oldest_s(self) -> float | None:
        """When the oldest event came; None where nothing waits."""
        return self._kept[0][1] if self._kept else None


class Cursor:
    """Where one reader of one stream stands.

    ``offset``: last event handed to its transport. ``head``: last event known to exist.
    Live readers (`live`) are at the head and may be written to directly; others are catching
    up and pull what follows ``offset``.

    The slow clock is the age of the oldest unsent event, counted from when this reader could
    first have had it: its arrival, the reader's attachment, or the end of its `hold`.
    ``slow_s``: the age at which the kind's slow rule acts; None or infinity means never.
    """

    __slots__ = ("_arrivals", "_held_until_s", "_slow_s", "head", "offset")

    def __init__(self, offset: int, head: int, *, now: float, slow_s: float | None) -> None:
        self.offset = offset
        self.head = offset
        self._slow_s = None if slow_s is None or isinf(slow_s) else slow_s
        self._held_until_s = float("-inf")
        self._arrivals = Arrivals()
        self.arrived(offset + 1, head, now)

    @property
    def live(self) -> bool:
        """At the head: the next push may be written directly, if the transport takes it."""
        return self.offset == self.head

    def arrived(self, first: int, last: int, now: float) -> bool:
        """The stream now ends at ``last``; a push holds the events ``first`` to ``last``.

        True: this reader needs exactly these events next, so they may be written to it from
        the push; then call `sent`. False: it has them already (`live`), or it is catching up
        and must pull after ``offset``.
        """
        if last <= self.head:
            return False
        fits = first == self.offset + 1
        self.head = last
        self._arrivals.note(last, now)
        return fits

    def sent(self, offset: int) -> None:
        """Everything through ``offset`` has been handed to the transport. A pull may run
        ahead of the pushes: the head moves with it."""
        self.offset = max(self.offset, offset)
        self.head = max(self.head, self.offset)
        self._arrivals.sent(self.offset)

    def hold(self, until_s: float) -> None:
        """The next event is held back by the pace until then: paced, not slow."""
        self._held_until_s = max(self._held_until_s, until_s)

    @property
    def slow_at(self) -> float | None:
        """When this reader will be too slow if nothing more is sent; None at the head."""
        oldest_s = self._arrivals.oldest_s
        if self._slow_s is None or oldest_s is None:
            return None
        return max(oldest_s, self._held_until_s) + self._slow_s

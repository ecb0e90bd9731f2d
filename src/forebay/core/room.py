"""A room: a numbered stream that many write to, each fenced by who it is.

A writer that names itself (client, seq) is put in order and never doubled, however often it
retries and however many requests it has in flight:

=====================================  ======================================================
``seq`` is                             outcome
=====================================  ======================================================
the next                               appended; what is held behind it follows
above the next                         held, at most 64; past the hole after 500 ms
below the next, or held                repeat
below the next, in a hole given up     late: appended once (the last 1024 are remembered)
=====================================  ======================================================

``settled`` says that nothing at or below it will be sent again: holes there are not waited
for. A pipe settles everything below what it sends, so its sequence need only rise. A writer
without a number is taken in order of arrival; a client word without a number is a message's
own name, and a second message of that name, while the first is kept, is a repeat.

`Room.plan` decides and changes nothing; `Room.take` makes the plan true. Between the two the
home of the room writes down what the plan says, so that a write that fails leaves no trace.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from forebay.core.events import Caption, OutputEvent
from forebay.core.kinds import Kind, row
from forebay.core.stream import StreamLog

__all__ = [
    "HELD",
    "HISTORY_ITEMS",
    "HISTORY_S",
    "HOLD_S",
    "LATE",
    "WRITERS",
    "Member",
    "Plan",
    "Room",
    "RoomAnswer",
    "RoomItem",
    "RoomSpec",
    "RoomView",
    "Writer",
    "is_room",
    "room_id",
    "valid_room",
]

HISTORY_ITEMS = 1000
HISTORY_S = row(Kind.ROOM).after_end_s
HELD = 64
"""Messages of one client that wait behind a hole; one more and the oldest hole is given up."""
HOLD_S = 0.5
LATE = 1024
"""Sequence numbers of given-up holes that are remembered per client."""
WRITERS = 1024
"""Clients a room remembers; past it the one unheard for longest is forgotten."""

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
Result = Literal["appended", "held", "repeat", "late", "skipped"]


def valid_room(name: str) -> bool:
    return NAME.fullmatch(name) is not None


def room_id(tenant: str, name: str) -> str:
    """What a tenant's room is called inside; no job is called so."""
    return f"room:{tenant}/{name}"


def is_room(stream: str) -> bool:
    """Whether a stream of this id is a room's."""
    return stream.startswith("room:")


class RoomSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a room is made with. ``secret``: its passphrase, hashed; empty while the room waits
    for its maker, "!" where only a pipe writes. ``title``: its name as people wrote it. ``persist``: it outlives the
    process that keeps it."""

    id: str
    tenant: str
    name: str
    secret: str = ""
    title: str = ""
    persist: bool = False
    created_ms: int = 0


class RoomView(msgspec.Struct, frozen=True, kw_only=True):
    """A room as it stands. ``first``: oldest offset kept, ``head`` + 1 if none. ``held``:
    messages that wait behind a hole, of all clients. ``active_ms``: the last message."""

    spec: RoomSpec
    epoch: str
    head: int = 0
    first: int = 1
    writers: int = 0
    held: int = 0
    members: int = 0
    bytes: int = 0
    active_ms: int = 0


class RoomItem(msgspec.Struct, frozen=True, kw_only=True):
    """One message on its way in. ``caption`` None: ``seq`` is skipped. ``seq`` 0: no number;
    ``client`` is then empty, or the message's own name. ``settled``: see the module."""

    client: str = ""
    seq: int = 0
    settled: int = 0
    caption: Caption | None = None


class RoomAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one item. ``offset``: where it stands, 0 unless appended or late.
    ``next_seq``: what its writer should send next, 0 where it has no number."""

    result: Result
    offset: int = 0
    next_seq: int = 0


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody present in a room. ``id``: of the connection."""

    id: str
    gateway: str = ""
    user: str = ""
    role: str = "display"  # display, console, speaker
    since_ms: int = 0


class Writer(msgspec.Struct):
    """What is remembered of one client: its next number, what it has in waiting (None: a
    skip), when each came, and which numbers were given up (oldest first)."""

    next: int = 1
    held: dict[int, Caption | None] = {}
    since: dict[int, float] = {}
    missed: dict[int, None] = {}

    def copy(self) -> Writer:
        return Writer(self.next, dict(self.held), dict(self.since), dict(self.missed))

    @property
    def deadline(self) -> float | None:
        """When the oldest of what is held must go on; None with nothing held."""
        return min(self.since.values()) + HOLD_S if self.since else None

    def settle(self, through: int) -> list[Caption | None]:
        """Nothing at or below ``through`` will come any more. Returns what that releases."""
        for seq in [seq for seq in self.missed if seq <= through]:
            del self.missed[seq]
        return self._through(through, remember=False) if through >= self.next else []

    def offer(
        self, seq: int, caption: Caption | None, now: float
    ) -> tuple[Result, list[Caption | None]]:
        """Take one numbered message. Returns its outcome and what is to be appended now."""
        if seq < self.next:
            if seq not in self.missed:
                return "repeat", []
            del self.missed[seq]
            return ("skipped", []) if caption is None else ("late", [caption])
        if seq in self.held:
            return "repeat", []
        if seq == self.next:
            self.next += 1
            result: Result = "skipped" if caption is None else "appended"
            return result, [caption, *self._chain()]
        self.held[seq] = caption
        self.since[seq] = now
        if len(self.held) <= HELD:
            return ("skipped" if caption is None else "held"), []
        released = self._through(min(self.held), remember=True)
        return ("skipped" if caption is None else "held"), released

    def due(self, now: float) -> list[Caption | None]:
        """Give up every hole that something has waited behind for long enough."""
        late = [seq for seq, since in self.since.items() if since + HOLD_S <= now]
        return self._through(max(late), remember=True) if late else []

    def _through(self, last: int, *, remember: bool) -> list[Caption | None]:
        """Go past every hole up to ``last``."""
        ready = sorted(seq for seq in self.held if seq <= last)
        if remember:
            begin = max(self.next, last - LATE - len(ready))
            for seq in range(begin, last + 1):
                if seq not in self.held:
                    self.missed[seq] = None
            while len(self.missed) > LATE:
                del self.missed[next(iter(self.missed))]
        self.next = last + 1
        released = [self._pop(seq) for seq in ready]
        return [*released, *self._chain()]

    def _chain(self) -> list[Caption | None]:
        released = []
        while self.next in self.held:
            released.append(self._pop(self.next))
            self.next += 1
        return released

    def _pop(self, seq: int) -> Caption | None:
        del self.since[seq]
        return self.held.pop(seq)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a batch would change: ``events`` to append, numbered, and whole new states of the
    writers it touched. ``answers``: one for each item."""

    events: list[OutputEvent] = field(default_factory=list)
    writers: dict[str, Writer] = field(default_factory=dict)
    answers: list[RoomAnswer] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not self.events and not self.writers


class Room:
    """One room in memory: its stream, its writers, who is there, and the newest previews.

    ``now`` is monotonic seconds (holds), ``now_ms`` Unix milliseconds (age)."""

    def __init__(
        self,
        spec: RoomSpec,
        epoch: str,
        *,
        last_offset: int = 0,
        events: Sequence[OutputEvent] = (),
        writers: Mapping[str, Writer] | None = None,
        active_ms: int = 0,
        names: Mapping[str, int] | None = None,
    ) -> None:
        self.spec = spec
        before = events[0].offset - 1 if events else last_offset
        self.log: StreamLog[OutputEvent] = StreamLog(epoch, last_offset=before)
        self.log.append(events)
        self.writers: dict[str, Writer] = dict(writers or {})
        self.members: dict[str, Member] = {}
        self.active_ms = active_ms or spec.created_ms
        self._names: dict[str, int] = dict(names or {})
        self._name(events)

    def view(self) -> RoomView:
        return RoomView(
            spec=self.spec,
            epoch=self.log.epoch,
            head=self.log.head,
            first=self.log.first,
            writers=len(self.writers),
            held=sum(len(writer.held) for writer in self.writers.values()),
            members=len(self.members),
            bytes=self.log.bytes,
            active_ms=self.active_ms,
        )

    @property
    def deadline(self) -> float | None:
        """When `overdue` has something to release; ask again after every `take`."""
        return min(
            (at for writer in self.writers.values() if (at := writer.deadline) is not None),
            default=None,
        )

    # --------------------------------------------------------------------- writing

    def plan(self, items: Iterable[RoomItem], now: float) -> Plan:
        """What these items would do, in order. Write it down, then `take` it."""
        plan, offset = Plan(), self.log.head
        names: dict[str, int] = {}
        for item in items:
            released, index, result = self._one(item, plan.writers, names, now)
            mine = 0
            for number, caption in enumerate(released):
                if caption is not None:
                    offset += 1
                    plan.events.append(msgspec.structs.replace(caption, offset=offset))
                    if number == index:
                        mine = offset
            if item.seq == 0 and item.client and mine:
                names[item.client] = mine
            state = plan.writers.get(item.client) if item.seq else None
            plan.answers.append(
                RoomAnswer(result=result, offset=mine, next_seq=state.next if state else 0)
            )
        return plan

    def _one(
        self, item: RoomItem, writers: dict[str, Writer], names: dict[str, int], now: float
    ) -> tuple[list[Caption | None], int, Result]:
        """What one item releases, which of it is its own, and its outcome."""
        caption = item.caption
        if caption is not None:
            caption = msgspec.structs.replace(caption, client=item.client, seq=item.seq)
        if item.seq == 0:
            if caption is None:
                return [], -1, "skipped"
            if item.client and (item.client in names or item.client in self._names):
                return [], -1, "repeat"
            return [caption], 0, "appended"
        writer = writers.get(item.client)
        if writer is None:
            known = self.writers.get(item.client)
            writer = writers[item.client] = known.copy() if known else Writer()
        settled = writer.settle(min(item.settled, item.seq - 1))
        result, released = writer.offer(item.seq, caption, now)
        own = len(settled) if result in ("appended", "late") else -1
        return [*settled, *released], own, result

    def overdue(self, now: float) -> Plan:
        """What has waited too long behind a hole. Write it down, then `take` it."""
        plan, offset = Plan(), self.log.head
        for client, writer in self.writers.items():
            at = writer.deadline
            if at is None or at > now:
                continue
            state = plan.writers[client] = writer.copy()
            for caption in state.due(now):
                if caption is not None:
                    offset += 1
                    plan.events.append(msgspec.structs.replace(caption, offset=offset))
        return plan

    def take(self, plan: Plan, now_ms: int) -> None:
        """Make ``plan`` true. Nothing else may have been taken since it was made. Then `trim`."""
        for client, writer in plan.writers.items():
            self.writers.pop(client, None)
            self.writers[client] = writer  # the newest stands last
        self._forget_writers()
        self.log.append(plan.events)
        self._name(plan.events)
        self.active_ms = max(self.active_ms, now_ms)

    def _name(self, events: Iterable[OutputEvent]) -> None:
        for event in events:
            if isinstance(event, Caption) and event.seq == 0 and event.client:
                self._names[event.client] = event.offset

    def _forget_writers(self) -> None:
        spare = len(self.writers) - WRITERS
        for client in [c for c, w in self.writers.items() if not w.held][: max(0, spare)]:
            del self.writers[client]

    def trim(self, now_ms: int) -> int:
        """Drop what is over the window. Returns the last offset dropped, 0 for none."""
        last = max(0, self.log.head - HISTORY_ITEMS)
        old_ms = now_ms - int(HISTORY_S * 1000)
        for event in self.log.after(self.log.first - 1):
            if event.offset > last and (
                not isinstance(event, Caption) or event.created_ms > old_ms
            ):
                break
            last = max(last, event.offset)
        if last < self.log.first:
            return 0
        self.log.drop_through(last)
        while self._names and next(iter(self._names.values())) <= last:
            del self._names[next(iter(self._names))]  # they stand in order of offset
        return last

    def idle(self, now_ms: int) -> bool:
        """Nobody is there, nothing is kept, and nothing was said for the window's length."""
        quiet = self.active_ms <= now_ms - int(HISTORY_S * 1000)
        return quiet and not self.members and len(self.log) == 0 and self.deadline is None

"""Pushes from Redis on their way to a gateway's sink, and how a lost one is found.

A push is a copy. For every job that is watched here `Follower` remembers how far pushes came;
once a second it asks for the heads of all of them, a slice at a time, and after a new
connection for all at once. A head that is further than the pushes is read and pushed here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from forebay.broker import (
    FreedPush,
    GatewayPush,
    GatewaySink,
    GonePush,
    LeasePush,
    OutputPush,
    PlacePush,
    PreviewPush,
    StatePush,
    SupersededPush,
)
from forebay.broker.redis_wire import (
    FreedFrame,
    GatewayFrame,
    GoneFrame,
    LeaseFrame,
    OutFrame,
    PlaceFrame,
    PreviewFrame,
    RoomFrame,
    StateFrame,
    SupersededFrame,
    decoder,
)
from forebay.core.events import Ended, OutputEvent
from forebay.errors import ForebayError, ResumeNotAvailable

__all__ = ["LOST_EPOCH", "Cursor", "Follower"]

LOST_EPOCH = ""
"""The epoch of a push that says: this stream is not the one you were reading."""

SLICES = 10
PAGE = 256

_decode = decoder(GatewayFrame)


_PUSHES: dict[type, Callable[[Any], GatewayPush]] = {
    PlaceFrame: lambda f: PlacePush(job=f.job, place=f.stats.place(f.position)),
    LeaseFrame: lambda f: LeasePush(job=f.job, running=f.running),
    SupersededFrame: lambda f: SupersededPush(job=f.job, number=f.number),
    StateFrame: lambda f: StatePush(pool=f.pool),
    FreedFrame: lambda f: FreedPush(job=f.job, pool=f.pool, after_s=f.after_s),
    PreviewFrame: lambda f: PreviewPush(job=f.job, caption=f.caption),
    GoneFrame: lambda f: GonePush(job=f.job, epoch=f.epoch),
}


@dataclass(slots=True)
class Cursor:
    """How far the pushes of one job came: what was seen last, and by which attempt."""

    epoch: str
    offset: int
    attempt: int = 0


@dataclass(slots=True)
class _Gateway:
    name: str
    sink: GatewaySink
    jobs: dict[str, Cursor] = field(default_factory=dict)
    turn: list[str] = field(default_factory=list)  # still to be asked for in this round


class Follower:
    """``read(job, after, limit)`` and ``heads(gateway, jobs)`` ask Redis; ``on_room(job)`` and
    ``on_state()`` hear what is not for the sink alone."""

    def __init__(
        self,
        read: Callable[[str, int, int], Awaitable[list[OutputEvent]]],
        heads: Callable[[str, list[str]], Awaitable[list[Any]]],
        *,
        on_room: Callable[[str], None],
        on_state: Callable[[], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._read = read
        self._heads = heads
        self._on_room = on_room
        self._on_state = on_state
        self._on_lost = on_lost
        self._gateways: dict[bytes, _Gateway] = {}

    def add(self, channel: str, gateway: str, sink: GatewaySink) -> None:
        self._gateways[channel.encode()] = _Gateway(gateway, sink)

    @property
    def names(self) -> list[str]:
        return [one.name for one in self._gateways.values()]

    @property
    def channels(self) -> list[str]:
        return [channel.decode() for channel in self._gateways]

    def cursors(self) -> dict[str, Cursor]:
        """Every stream that is followed here, at the furthest cursor."""
        found: dict[str, Cursor] = {}
        for one in self._gateways.values():
            for job, cursor in one.jobs.items():
                if job not in found or found[job].offset < cursor.offset:
                    found[job] = cursor
        return found

    # ------------------------------------------------------------------------ who watches

    def begin(self, gateway: str, job: str, epoch: str, head: int) -> None:
        """``gateway`` watches ``job`` from ``head`` on (unless it did before)."""
        for one in self._gateways.values():
            if one.name == gateway:
                known = one.jobs.get(job)
                if known is None or known.epoch != epoch:
                    one.jobs[job] = Cursor(epoch, head)

    def known(self, job: str) -> bool:
        return any(job in one.jobs for one in self._gateways.values())

    def end(self, job: str, gateway: str | None = None) -> None:
        for one in self._gateways.values():
            if gateway is None or one.name == gateway:
                one.jobs.pop(job, None)

    # ----------------------------------------------------------------------------- pushes

    def take(self, channel: bytes, message: bytes) -> None:
        one = self._gateways.get(channel)
        if one is None:
            return
        frame = _decode(message)
        match frame:
            case OutFrame():
                self._output(one, frame)
            case RoomFrame():
                self._on_room(frame.job)
            case _:
                if isinstance(frame, StateFrame):
                    self._on_state()
                elif isinstance(frame, GoneFrame):
                    one.jobs.pop(frame.job, None)
                one.sink(_PUSHES[type(frame)](frame))

    def _output(self, one: _Gateway, frame: OutFrame) -> None:
        last = frame.events[-1]
        cursor = one.jobs.get(frame.job)
        if cursor is None:
            cursor = one.jobs[frame.job] = Cursor(frame.epoch, 0)
        cursor.epoch, cursor.offset, cursor.attempt = frame.epoch, last.offset, frame.attempt
        if isinstance(last, Ended):
            del one.jobs[frame.job]
        # A gap before it makes its readers pull: the stream is the truth.
        one.sink(OutputPush(job=frame.job, epoch=frame.epoch, events=frame.events))

    # ------------------------------------------------------------------------ lost pushes

    async def look(self, *, everything: bool = False) -> None:
        """Ask for the heads of a slice of what is followed; of all with ``everything``."""
        for one in tuple(self._gateways.values()):
            if not one.turn or everything:
                one.turn = list(one.jobs)
            size = len(one.turn) if everything else -(-len(one.jobs) // SLICES)
            asked, one.turn = one.turn[:size], one.turn[size:]
            for start in range(0, max(1, len(asked)), PAGE):
                await self._ask(one, asked[start : start + PAGE])

    async def _ask(self, one: _Gateway, jobs: list[str]) -> None:
        before = {job: one.jobs[job].offset for job in jobs if job in one.jobs}
        for job, head in zip(jobs, await self._heads(one.name, jobs), strict=True):
            cursor = one.jobs.get(job)
            if cursor is None or job not in before:
                continue
            if head is False or head[0] != cursor.epoch or head[1] < before[job]:
                self._on_lost(job)
                self.lost(job)
            elif head[1] > cursor.offset:
                await self._refill(one, job, cursor, head[1])

    def lost(self, job: str) -> None:
        """The stream that was followed is no more: everybody who reads it is told."""
        for one in self._gateways.values():
            if one.jobs.pop(job, None) is not None:
                one.sink(OutputPush(job=job, epoch=LOST_EPOCH, events=[]))

    async def _refill(self, one: _Gateway, job: str, cursor: Cursor, head: int) -> None:
        try:
            events = await self._read(job, cursor.offset, PAGE)
        except ResumeNotAvailable:
            events = await self._newest(job, head)
        fresh = [event for event in events if event.offset > cursor.offset]
        if not fresh or job not in one.jobs:
            return
        cursor.offset = fresh[-1].offset
        if isinstance(fresh[-1], Ended):
            del one.jobs[job]
        one.sink(OutputPush(job=job, epoch=cursor.epoch, events=fresh))

    async def _newest(self, job: str, head: int) -> list[OutputEvent]:
        """The newest event alone: it makes readers pull what they still can."""
        try:
            return await self._read(job, head - 1, 1)
        except ForebayError:
            return []

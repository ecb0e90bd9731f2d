"""Carries pipes: what one job says, into the input of another, once and in order.

A `Carrier` reads the source through the hub as any client would. Its wire is the target: a
full target is a full wire, so the reader waits and the source's own flow control does the
rest. Where it stands is in the broker, with every append; a gateway that takes an orphan
over goes on from there (`adopt`). A store that does not answer is waited for: nothing that a
carrier has to say is given up because of it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

import structlog

from forebay.broker.rooms import RoomBroker
from forebay.core.events import Ended, OutputEvent, size_of
from forebay.core.kinds import row
from forebay.core.pipe import Copy, PipeState, RoomMap
from forebay.core.room import is_room
from forebay.core.spec import JobView, PipeSpec
from forebay.errors import ForebayError, StoreDown
from forebay.gateway.hub import Hub, Reader
from forebay.gateway.wire import LOW_WATER_BYTES

__all__ = ["Carrier", "RoomCarrier", "adopt", "adopting", "carry", "carry_into_room"]

ROOM_BATCH = 64
"""Events that go into a room with one call."""

STORE_DOWN_S = 0.3
ADOPT_EVERY_S = 0.5
"""How often a gateway asks a shared broker for pipes whose gateway has died."""

log = structlog.get_logger(__name__)

_Answer = TypeVar("_Answer")


async def _insist(call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """The answer of ``call``, which may be said twice, once the store gives one."""
    while True:
        try:
            return await call()
        except StoreDown:
            await asyncio.sleep(STORE_DOWN_S)


class _Target:
    """The wire of a carrier's reader: its backlog is what the target has not taken."""

    __slots__ = ("_callback", "_closed", "bytes", "over")

    def __init__(self) -> None:
        self.bytes = 0
        self.over = False
        self._closed = False
        self._callback: Callable[[], None] | None = None

    @property
    def closed(self) -> bool:
        return self._closed

    def send(self, data: str | bytes) -> None:
        """Nothing is encoded on the way into a pipe."""

    def backlog(self) -> int:
        return self.bytes + (LOW_WATER_BYTES + 1 if self.over else 0)

    def on_drain(self, callback: Callable[[], None]) -> None:
        self._callback = callback

    def drained(self) -> None:
        if self.backlog() <= LOW_WATER_BYTES and self._callback is not None:
            callback, self._callback = self._callback, None
            callback()

    def close(self, code: int = 1000, reason: str = "") -> None:
        self._closed = True


class Carrier:
    """One pipe, carried by this gateway until its source has ended or its target is over.

    Opened by `carry`. `close` stops carrying; the pipe itself stays in the broker.
    """

    def __init__(self, hub: Hub, spec: PipeSpec, source: JobView, target: JobView) -> None:
        self._hub = hub
        self._spec = spec
        self._state = PipeState.rebuilt(spec, target)
        self._wire = _Target()
        self._queue: deque[Copy] = deque()
        self._ended: Ended | None = None
        self._busy = False
        self._closed = False
        self._reader: Reader = hub.open(
            source.spec.id,
            epoch=source.epoch,
            after=spec.copied,
            encode=lambda event: (),
            wire=self._wire,
            # A target that waits for its own client may be full for long: that is no fault.
            row=replace(row(source.spec.kind), slow_reader_s=math.inf),
            on_sent=self._take,
            on_end=self._end,
            on_slow=lambda reader: None,
            on_reset=self._lost,
        )

    def close(self) -> None:
        self._closed = True
        self._reader.close()
        self._queue.clear()

    # ------------------------------------------------------------- from the reader

    def _take(self, event: OutputEvent) -> None:
        for copy in self._state.receive([event]):
            self._queue.append(copy)
            self._wire.bytes += sum(size_of(item) for item in copy.items)
        if self._queue:
            self._wake()

    def _end(self, event: Ended) -> None:
        self._ended = event
        self._wake()

    def _lost(self, error: ForebayError) -> None:
        self._end(Ended(state="failed", code=error.code, message=error.message))

    def _wake(self) -> None:
        if not self._busy and not self._closed:
            self._busy = True
            self._hub.spawn(self._run())

    # --------------------------------------------------------------- to the target

    async def _run(self) -> None:
        try:
            while self._queue and not self._closed:
                await self._append(self._queue.popleft())
            if self._ended is not None and not self._closed:
                await self._finish(self._ended)
        except ForebayError as error:
            # The target is over, or another gateway carries this pipe: nothing left to do.
            log.debug("pipe.stopped", pipe=self._spec.id, code=error.code)
            self.close()
        finally:
            self._busy = False

    async def _append(self, copy: Copy) -> None:
        broker = self._hub.broker
        items, last = list(copy.items), copy.source_offset
        while self._queue and len(items) < 64:  # what came meanwhile goes along
            more = self._queue.popleft()
            items += more.items
            last = more.source_offset
        size = sum(size_of(item) for item in items)
        ended = self._ended is not None and not self._queue
        ack = await _insist(  # a copy that landed all the same is known by its number
            lambda: broker.append_from_pipe(self._spec.id, items, source_offset=last, ended=ended)
        )
        self._wire.bytes -= size
        if ack.over:
            self._wire.over = True
            await _insist(lambda: broker.input_room(self._spec.target))
            self._wire.over = False
        self._wire.drained()

    async def _finish(self, ended: Ended) -> None:
        """The source's end follows the pipe; a completed one went along as its last item."""
        self._closed = True
        broker = self._hub.broker
        target = self._spec.target
        if ended.state == "cancelled":
            reason = "what it reads from was cancelled"
            await _insist(lambda: broker.cancel(target, reason=reason))
        elif ended.state != "completed":
            await _insist(lambda: broker.expire(target, replace_offset(ended)))


def replace_offset(ended: Ended) -> Ended:
    """The same end for another stream: that stream numbers it."""
    return Ended(
        state=ended.state,
        code=ended.code,
        message=ended.message,
        retryable=ended.retryable,
        details=ended.details,
    )


class RoomCarrier:
    """One pipe into a room, carried until its source has ended.

    Where it stands is the room's to know: what it brings is numbered by the source, and the
    room drops what it has. So whoever takes it over reads the source from its beginning."""

    def __init__(self, hub: Hub, rooms: RoomBroker, spec: PipeSpec, source: JobView) -> None:
        self._hub = hub
        self._rooms = rooms
        self._spec = spec
        self._map = RoomMap(spec.map)
        self._wire = _Target()
        self._queue: deque[OutputEvent] = deque()
        self._busy = False
        self._closed = False
        self._reader: Reader = hub.open(
            source.spec.id,
            epoch=source.epoch,
            after=source.first - 1,
            encode=lambda event: (),
            wire=self._wire,
            row=replace(row(source.spec.kind), slow_reader_s=math.inf),
            on_sent=self._take,
            on_end=lambda ended: None,  # it went along as the last event
            on_slow=lambda reader: None,
            on_reset=self._lost,
        )

    def close(self) -> None:
        self._closed = True
        self._reader.close()
        self._queue.clear()

    def _take(self, event: OutputEvent) -> None:
        self._queue.append(event)
        self._wire.bytes += size_of(event)
        if not self._busy and not self._closed:
            self._busy = True
            self._hub.spawn(self._run())

    def _lost(self, error: ForebayError) -> None:
        log.warning("pipe.source_lost", pipe=self._spec.id, code=error.code)
        self.close()

    async def _run(self) -> None:
        try:
            while self._queue and not self._closed:
                await self._bring()
        except ForebayError as error:
            log.warning("pipe.stopped", pipe=self._spec.id, code=error.code)
            self.close()
        finally:
            self._busy = False

    async def _bring(self) -> None:
        events = [self._queue.popleft() for _ in range(min(len(self._queue), ROOM_BATCH))]
        now_ms = int(time.time() * 1000)
        stamp = time.strftime("%H:%M:%S")
        preview, items = self._map.items(events, self._spec.id, now_ms=now_ms, stamp=stamp)
        room, last, shown = self._spec.target, events[-1], preview
        if items:
            await _insist(lambda: self._rooms.publish(room, items))
        if shown is not None:
            await _insist(lambda: self._rooms.preview(room, shown))
        self._wire.bytes -= sum(size_of(event) for event in events)
        self._wire.drained()
        if isinstance(last, Ended):
            self._closed = True
            pipe, offset, broker = self._spec.id, last.offset, self._hub.broker
            await _insist(
                lambda: broker.append_from_pipe(pipe, (), source_offset=offset, ended=True)
            )


async def carry_into_room(hub: Hub, rooms: RoomBroker, spec: PipeSpec) -> RoomCarrier:
    """Record a pipe from a job into a room and carry it from here."""
    pipe = await hub.broker.pipe(spec, gateway=hub.gateway_id)
    return RoomCarrier(hub, rooms, pipe, await hub.broker.status(pipe.source))


async def carry(hub: Hub, spec: PipeSpec) -> Carrier:
    """Record a pipe between two jobs and carry it from here, whoever else is attached: a
    client that leaves and may come back finds all that was said meanwhile spoken."""
    pipe = await hub.broker.pipe(spec, gateway=hub.gateway_id)
    source = await hub.broker.status(pipe.source)
    target = await hub.broker.status(pipe.target)
    return Carrier(hub, pipe, source, target)


async def adopt(hub: Hub, left: dict[str, PipeSpec] | None = None) -> list[Carrier | RoomCarrier]:
    """Carry every pipe that nobody carries any more. Called at start and after a reap.

    ``left``: pipes that were taken but could not be carried yet, because the store did not
    answer in the middle of it; they come first, and those of this time stay in it. Whatever
    else is wrong with a pipe, its source or its target is no more: it is let go of."""
    left = {} if left is None else left
    carriers: list[Carrier | RoomCarrier] = []
    left |= {pipe.id: pipe for pipe in await hub.broker.pipes(hub.gateway_id)}
    for pipe in tuple(left.values()):
        try:
            carriers.append(await _adopt_one(hub, pipe))
        except StoreDown as error:
            log.info("pipe.adopted_later", pipe=pipe.id, reason=error.message)
            break
        except ForebayError as error:
            log.warning("pipe.not_adopted", pipe=pipe.id, code=error.code)
        del left[pipe.id]
    return carriers


async def _adopt_one(hub: Hub, pipe: PipeSpec) -> Carrier | RoomCarrier:
    rooms: RoomBroker | None = getattr(hub.broker, "rooms", None)
    if rooms is not None and is_room(pipe.target):
        return await carry_into_room(hub, rooms, pipe)
    return await carry(hub, pipe)


@asynccontextmanager
async def adopting(hub: Hub, left: dict[str, PipeSpec] | None = None) -> AsyncIterator[None]:
    """Look for orphans every `ADOPT_EVERY_S` while the block runs: their gateway has died.
    ``left``: of an earlier `adopt`."""
    waiting: dict[str, PipeSpec] = {} if left is None else left

    async def look() -> None:
        while True:
            await asyncio.sleep(ADOPT_EVERY_S)
            try:
                found = await adopt(hub, waiting)
            except ForebayError as error:
                log.debug("pipes.not_asked", code=error.code)
            else:
                if found:
                    log.info("pipes.adopted", pipes=len(found))

    task = asyncio.create_task(look(), name="adopt")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

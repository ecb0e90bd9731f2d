"""Everybody at the head of a room shares one cursor, one read and one frame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from forebay.broker import OutputPush
from forebay.broker.local import LocalBroker
from forebay.broker.rooms import GonePush, PreviewPush
from forebay.core.events import Caption
from forebay.core.kinds import Kind, row
from forebay.core.room import RoomItem, RoomSpec, room_id
from forebay.errors import ForebayError, StateLost, StoreDown
from forebay.gateway.crowd import PREVIEW_BYTES, Counts, Crowd, Seat
from forebay.gateway.hub import Hub
from forebay.gateway.wire import LOW_WATER_BYTES

ROOM = room_id("local", "talk")


class Wire:
    """Takes everything; says that it holds ``unsent`` bytes."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.unsent = 0
        self.closed = False
        self._drained: Callable[[], None] | None = None

    def send(self, data: str | bytes) -> None:
        self.got.append(data if isinstance(data, str) else data.decode())

    def backlog(self) -> int:
        return self.unsent

    def on_drain(self, callback: Callable[[], None]) -> None:
        self._drained = callback

    def drain(self) -> None:
        self.unsent = 0
        callback, self._drained = self._drained, None
        if callback is not None:
            callback()

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.closed = True


@dataclass(frozen=True)
class Plain:
    written: list[str] = field(default_factory=list, compare=False, hash=False)

    def write(self, caption: Caption) -> str:
        self.written.append(caption.text)
        return caption.text


class Rooms:
    """The broker's rooms, counting reads."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.reads = 0
        self.away = 0  # readings that the store will not answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    async def read_room(self, *args: Any, **kwargs: Any) -> Any:
        self.reads += 1
        if self.away:
            self.away -= 1
            raise StoreDown("no answer within 0.9 s")
        return await self.real.read_room(*args, **kwargs)


class World:
    def __init__(self, broker: LocalBroker, hub: Hub) -> None:
        self.broker, self.hub = broker, hub
        self.rooms = Rooms(broker.rooms)
        self.counts = Counts()
        self.face = Plain()
        self.epoch = ""
        self.lost: list[ForebayError] = []
        self.slow: list[int] = []
        self.crowd = Crowd(hub, self.rooms, ROOM, row(Kind.ROOM), self.counts)  # type: ignore[arg-type]
        self.stop = hub.listen(ROOM, self.crowd.hear)

    async def say(self, *texts: str) -> None:
        items = [RoomItem(caption=Caption(user="u", text=t, created_ms=now_ms())) for t in texts]
        await self.broker.rooms.publish(ROOM, items)

    def sit(self, after: int) -> tuple[Wire, Seat]:
        wire = Wire()
        seat = Seat(wire, self.face, on_slow=self.slow.append, on_lost=self.lost.append)
        self.crowd.sit(seat, after)
        return wire, seat

    def push(self, offset: int, text: str) -> None:
        """A push out of turn."""
        event = Caption(user="u", text=text, offset=offset)
        self.crowd.hear(OutputPush(job=ROOM, epoch=self.epoch, events=[event]))


def now_ms() -> int:
    return int(time.time() * 1000)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - nothing tells when a reader has read
            await asyncio.sleep(0)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    broker = LocalBroker()
    async with Hub(broker, "g1", asyncio.get_running_loop().time) as hub:
        made = World(broker, hub)
        await broker.rooms.open_room(
            RoomSpec(id=ROOM, tenant="local", name="talk", secret="!", created_ms=now_ms())
        )
        view = await broker.rooms.watch_room(ROOM, "g1")
        made.epoch = view.epoch
        made.crowd.begin(view.epoch, view.head)
        yield made
        made.stop()
    await broker.close()


async def test_a_caption_is_written_once_for_all_and_read_by_nobody(world: World) -> None:
    wires = [world.sit(0)[0] for _ in range(5)]
    await world.say("a", "b")
    assert [wire.got for wire in wires] == [["a", "b"]] * 5
    assert world.face.written == ["a", "b"] and world.rooms.reads == 0
    assert world.counts.delivered == 10


async def test_a_push_that_got_lost_costs_one_read_for_everybody(world: World) -> None:
    wires = [world.sit(0)[0] for _ in range(5)]
    await world.broker.rooms.unwatch_room(ROOM, "g1")
    await world.say("a", "b", "c")
    world.push(3, "c")
    world.push(4, "d")  # while it reads
    await until(lambda: world.crowd.head == 3 and not world.crowd._pulling)
    assert [wire.got for wire in wires] == [["a", "b", "c"]] * 5
    assert world.rooms.reads <= 2
    world.push(2, "b")
    assert wires[0].got == ["a", "b", "c"]


async def test_who_begins_further_back_comes_to_the_crowd(world: World) -> None:
    await world.say(*(str(n) for n in range(200)))
    wire, _ = world.sit(50)
    await until(lambda: len(wire.got) == 150)
    await until(lambda: not world.crowd._behind)
    await world.say("live")
    assert wire.got[-1] == "live" and wire.got[0] == "50" and len(wire.got) == 151


async def test_a_full_wire_falls_behind_alone_and_comes_back(world: World) -> None:
    slow, _ = world.sit(0)
    good, _ = world.sit(0)
    slow.unsent = LOW_WATER_BYTES + 1
    await world.say("a")
    await world.say("b")
    assert good.got == ["a", "b"] and slow.got == [] and world.counts.behind == 1
    slow.drain()
    await until(lambda: slow.got == ["a", "b"])
    await until(lambda: not world.crowd._behind)
    await world.say("c")
    assert slow.got == ["a", "b", "c"] and world.slow == []


async def test_previews_are_dropped_first_and_only_where_the_wire_is_full(world: World) -> None:
    full, _ = world.sit(0)
    good, _ = world.sit(0)
    full.unsent = PREVIEW_BYTES + 1
    preview = Caption(user="u", text="so f", preview=True)
    world.crowd.hear(PreviewPush(job=ROOM, caption=preview))
    await world.say("final")
    assert good.got == ["so f", "final"] and full.got == ["final"]
    assert (world.counts.previews, world.counts.previews_dropped) == (1, 1)
    assert world.counts.behind == 0


async def test_a_room_under_another_epoch_ends_every_seat(world: World) -> None:
    world.sit(0)
    await world.say("a")
    world.sit(0)
    world.crowd.hear(GonePush(job=ROOM, epoch="another"))
    assert world.lost == []
    world.epoch = "another"
    world.push(2, "x")
    assert len(world.lost) == 2 and all(isinstance(error, StateLost) for error in world.lost)
    assert len(world.crowd) == 0 and world.crowd.lost


async def test_what_is_pushed_before_the_head_is_known_is_read(world: World) -> None:
    late = Crowd(world.hub, world.rooms, ROOM, row(Kind.ROOM), world.counts)  # type: ignore[arg-type]
    stop = world.hub.listen(ROOM, late.hear)
    await world.say("a")
    late.begin(world.epoch, 0)
    late.begin(world.epoch, 7)
    await until(lambda: late.head == 1)
    stop()


async def test_a_seat_that_is_left_hears_nothing(world: World) -> None:
    wire, seat = world.sit(0)
    await world.say("a")
    world.crowd.leave(seat)
    world.crowd.leave(seat)
    await world.say("b")
    assert wire.got == ["a"]
    behind, seat = world.sit(0)
    world.crowd.leave(seat)
    await asyncio.sleep(0.01)
    assert behind.got == [] and len(world.crowd) == 0


async def test_a_store_that_does_not_answer_ends_no_seat(world: World) -> None:
    wire, _ = world.sit(0)
    await until(lambda: world.crowd._known)
    await world.broker.rooms.unwatch_room(ROOM, "g1")
    await world.say("a", "b")
    world.rooms.away = 2
    world.push(2, "b")
    await until(lambda: wire.got == ["a", "b"])
    assert world.lost == [] and not world.crowd.lost


async def test_a_room_that_cannot_be_read_ends_every_seat(world: World) -> None:
    world.sit(0)
    await world.broker.rooms.unwatch_room(ROOM, "g1")
    await world.broker.rooms.drop_room(ROOM)
    world.push(5, "x")
    await until(lambda: len(world.lost) == 1)
    assert world.crowd.lost

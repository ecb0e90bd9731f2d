"""What a recognition job hears is said in a room: once, in order, whoever carries it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "contract"))
from homes import Hand, Home

from forebay.broker import PreviewPush
from forebay.core.events import Caption, Final, Partial, Sound
from forebay.core.kinds import Kind
from forebay.core.room import RoomSpec, room_id
from forebay.core.spec import JobSpec, PipeSpec
from forebay.errors import NotFound
from forebay.gateway.hub import Hub
from forebay.gateway.pipes import RoomCarrier, adopt, carry_into_room

POOL = "recognition/words"
ROOM = room_id("local", "talk")
PIPE = PipeSpec(id="p", source="a", target=ROOM, map="captions:Ada")


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    made = Home()
    await made.broker.rooms.open_room(RoomSpec(id=ROOM, tenant="local", name="talk", secret="!"))
    yield made
    await made.close()


async def listening(home: Home) -> Hand:
    """A job that a scripted worker holds."""
    hand = await home.worker("w1", pools=[POOL])
    spec = JobSpec(id="a", kind=Kind.RECOGNITION, pool=POOL, params={}, detach_s=100.0)
    await home.broker.submit(spec, [Sound(data=b"12", seq=1)], gateway="g1")
    return hand


async def texts(home: Home) -> list[str]:
    events = await home.broker.rooms.read_room(ROOM, 0)
    return [event.text for event in events if isinstance(event, Caption)]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - the broker is watched from outside
            await asyncio.sleep(0.005)


async def head_at(home: Home, offset: int) -> None:
    async with asyncio.timeout(60):
        while (await home.broker.rooms.room(ROOM)).head < offset:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.005)


async def test_finals_become_captions_and_partials_previews(home: Home) -> None:
    hand = await listening(home)
    async with Hub(home.broker, "g2", time.monotonic) as hub:
        await home.broker.rooms.watch_room(ROOM, "g1")
        home.broker.open("g1", home.pushes.append)
        hand.commit("a", Final(text="before", start=0, end=5))
        await carry_into_room(hub, home.broker.rooms, PIPE)
        hand.commit("a", Partial(text="hel", start=5))
        await until(lambda: any(isinstance(push, PreviewPush) for push in home.pushes))
        hand.commit("a", Final(text=" hello", start=5, end=9))
        await head_at(home, 2)
        hand.end("a")
        await until(lambda: home.broker._core.pipes["p"].done)
    assert await texts(home) == ["before", "hello"]
    previews = [push.caption for push in home.pushes if isinstance(push, PreviewPush)]
    assert [(p.user, p.text) for p in previews] == [("Ada", "hel")]
    events = await home.broker.rooms.read_room(ROOM, 0)
    assert [e.seq for e in events if isinstance(e, Caption)] == [1, 3]
    assert await home.broker.pipes("g3") == []


async def test_whoever_takes_it_over_says_nothing_twice(home: Home) -> None:
    hand = await listening(home)
    async with Hub(home.broker, "g2", time.monotonic) as hub:
        first = await carry_into_room(hub, home.broker.rooms, PIPE)
        hand.commit("a", Final(text="one", start=0, end=5))
        await head_at(home, 1)
        first.close()
    hand.commit("a", Final(text="two", start=5, end=9))
    home.broker._core.pipes["p"].carried = False
    async with Hub(home.broker, "g3", time.monotonic) as hub:
        (second,) = await adopt(hub)
        assert isinstance(second, RoomCarrier)
        hand.commit("a", Final(text="three", start=9, end=12))
        hand.end("a")
        await head_at(home, 3)
        await until(lambda: home.broker._core.pipes["p"].done)
    assert await texts(home) == ["one", "two", "three"]
    await home.advance(3600)
    assert "p" not in home.broker._core.pipes


async def test_a_room_that_is_dropped_ends_its_pipe_and_not_the_job(home: Home) -> None:
    hand = await listening(home)
    async with Hub(home.broker, "g2", time.monotonic) as hub:
        carrier = await carry_into_room(hub, home.broker.rooms, PIPE)
        await home.broker.rooms.drop_room(ROOM)
        hand.commit("a", Final(text="one", start=0, end=5))
        await until(lambda: carrier._closed)
        assert (await home.broker.status("a")).state == "running"
        with pytest.raises(NotFound):
            await carry_into_room(
                hub, home.broker.rooms, PipeSpec(id="q", source="x", target=ROOM, map="captions")
            )

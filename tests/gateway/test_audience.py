"""Who takes nothing costs nothing: readers that sleep, and what they know when they wake."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "dialects"))
sys.path.insert(0, str(Path(__file__).parent))
from test_hub import Scene, scene
from voice_world import MemoryWire, run

from forebay.broker import OutputPush
from forebay.broker.rooms import GonePush
from forebay.core.flush import Arrivals
from forebay.errors import StateLost
from forebay.gateway.reader import Reader
from forebay.gateway.wire import LOW_WATER_BYTES


class Offers:
    """Counts pushes that were offered to readers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = Reader.offer

        def offer(reader: Reader, *push: Any) -> None:
            self.count += 1
            real(reader, *push)

        monkeypatch.setattr(Reader, "offer", offer)


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> Offers:
    return Offers(monkeypatch)


class Sipping(MemoryWire):
    """A socket whose peer takes one message at a time."""

    def sip(self) -> None:
        if self._queue:
            self.taken.append(self._queue.popleft())
        if self.backlog() <= LOW_WATER_BYTES:
            self._drained()


async def stalled(s: Scene, wire: MemoryWire, **how: Any) -> Reader:
    """A reader that has taken three seconds of sound and then no more, asleep."""
    reader = s.open(wire=wire, **how)
    await asyncio.sleep(0.01)
    wire.stalled = True
    for n in range(30):
        s.write(chr(65 + n % 26), seconds=1.0)
    return reader


def test_a_reader_that_takes_nothing_is_offered_nothing_and_misses_nothing(offers: Offers) -> None:
    async def body() -> None:
        async with scene() as s:
            wires = [MemoryWire(lambda code, reason: None) for _ in range(20)]
            for wire in wires:
                s.open(wire=wire, share="same")
            await asyncio.sleep(0.01)
            for wire in wires:
                wire.stalled = True
            healthy = MemoryWire(lambda code, reason: None)
            s.open(wire=healthy)
            await asyncio.sleep(0.01)
            text = "".join(chr(65 + n % 26) for n in range(30))
            for unit in text:
                s.write(unit, seconds=1.0)
            offers.count, before = 0, len(s.encoded)
            for unit in text:
                s.write(unit, seconds=0.1)
            assert offers.count == 30  # the healthy one's
            assert len(s.encoded) == before + 30
            assert s.hub.readers("j1") == 21
            assert s.heard(healthy) == 2 * text
            for wire in wires:
                wire.flow()
            await asyncio.sleep(1)
            s.write("!", end=True)
            assert {s.heard(wire) for wire in wires} == {2 * text + "!end"}
            assert len(s.ended) == 21 and s.hub.readers("j1") == 0

    run(body())


def test_who_wakes_and_stalls_again_is_slow_by_when_things_came_while_it_slept() -> None:
    async def body() -> None:
        async with scene() as s:
            wire = Sipping(lambda code, reason: None)
            reader = await stalled(s, wire)
            began = s.hub.clock()
            for n in range(20):
                await asyncio.sleep(1)
                s.write(str(n % 10), seconds=1.0)
            while reader.cursor < 40:  # of 50: the oldest unsent came ten seconds ago
                wire.sip()
                await asyncio.sleep(0)
            assert s.hub.clock() - began == pytest.approx(20, abs=0.1)
            await asyncio.sleep(29 - 9)
            assert s.slow == []
            await asyncio.sleep(2 * Arrivals.GRAIN_S + 1)
            assert s.slow == [reader]

    run(body())


def test_the_slow_rule_wakes_a_sleeper_to_end_it() -> None:
    async def body() -> None:
        async with scene() as s:
            reader = await stalled(s, s.wire)
            for n in range(29 * 2):
                s.write(str(n % 10), seconds=0.1)
                await asyncio.sleep(0.5)
            assert s.slow == []
            await asyncio.sleep(1.1)
            assert s.slow == [reader] and s.hub.readers("j1") == 0
            s.write("z")
            s.wire.flow()
            await asyncio.sleep(60)
            assert len(s.slow) == 1

    run(body())


def test_ages_of_what_a_sleeper_missed_are_told_to_it() -> None:
    async def body() -> None:
        async with scene() as s:
            reader = await stalled(s, s.wire)
            noted, head = reader._at.head, 30
            assert noted < head
            began = s.hub.clock()
            for n in range(8):
                await asyncio.sleep(1)
                s.write(str(n), seconds=1.0)
            assert reader._at.head == noted
            s.hub.wake(reader)
            assert reader._at.head == head + 8
            reader._at.sent(head + 3)
            slow_at = reader._at.slow_at
            assert slow_at is not None
            assert slow_at == pytest.approx(began + 4 + 30, abs=2 * Arrivals.GRAIN_S)

    run(body())


def test_sleepers_learn_at_once_that_the_stream_was_lost(offers: Offers) -> None:
    async def body() -> None:
        async with scene() as s:
            await stalled(s, s.wire)
            other = MemoryWire(lambda code, reason: None)
            await stalled(s, other)
            offers.count = 0
            s.hub.sink(OutputPush(job="j1", epoch="another", events=[]))
            assert [type(error) for error in s.reset] == [StateLost, StateLost]
            assert offers.count == 2 and s.hub.readers("j1") == 0

    run(body())


def test_sleepers_hear_what_is_not_output() -> None:
    async def body() -> None:
        async with scene() as s:
            heard: list[Any] = []
            await stalled(s, s.wire, on_push=heard.append)
            heard.clear()
            push = GonePush(job="j1", epoch=s.epoch)
            s.hub.sink(push)
            assert heard == [push]

    run(body())


def test_a_sleeper_that_leaves_is_forgotten() -> None:
    async def body() -> None:
        async with scene() as s:
            reader = await stalled(s, s.wire)
            reader.close()
            assert s.hub.readers("j1") == 0
            s.wire.flow()
            s.write("z", end=True)
            assert (s.ended, s.slow, s.reset) == ([], [], [])

    run(body())

"""Small answers leave at once on an idle gateway, and with the next on a busy one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from gateway_harness import read_frame, serving

from forebay.gateway.late import BUSY, LATE_S, LateAnswers


class Loop:
    """A loop whose time the test passes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        self.timers.append((self.now + delay, call))


class Answer:
    def __init__(self) -> None:
        self.told = 0

    def on_time(self) -> None:
        self.told += 1


def late(share: float) -> tuple[LateAnswers, Loop]:
    loop: Any = Loop()
    load: Any = Share(share)
    return LateAnswers(loop, load), loop


class Share:
    """Stands for `ThreadLoad`."""

    def __init__(self, share: float) -> None:
        self.now = share

    def share(self, now: float) -> float:
        return self.now


def test_an_answer_waits_where_more_than_half_of_a_core_is_used() -> None:
    assert late(BUSY)[0].busy(100.0)
    assert not late(BUSY - 0.01)[0].busy(100.0)


def test_all_that_wait_are_told_in_time_by_one_timer() -> None:
    answers, loop = late(0.0)
    first, second, third = Answer(), Answer(), Answer()
    answers.add(first)
    loop.now += LATE_S / 2
    answers.add(second)
    ((due, tell),) = loop.timers
    assert due == pytest.approx(100.0 + LATE_S)
    tell()
    assert (first.told, second.told) == (1, 1)
    answers.add(third)
    assert len(loop.timers) == 2
    loop.timers[1][1]()
    assert (first.told, third.told) == (1, 1)


class Busy:
    """Stands for `LateAnswers` of a busy process, and keeps what is given to it."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def busy(self, now: float) -> bool:
        return True

    def add(self, answer: Any) -> None:
        self.given.append(answer)


async def test_a_late_answer_leaves_with_the_next_message_or_when_its_time_is_over() -> None:
    async with serving() as served:
        reader, _ = await served.websocket("/quiet")
        protocol: Any = next(iter(served.server.state.connections))
        await served.until(lambda: protocol.inbox.waited_for)
        wire, busy = protocol.wire, Busy()
        wire.send_late("idle")
        protocol.listener.late = busy
        async with asyncio.timeout(10):
            assert (await read_frame(reader))[1] == b"idle"
        wire.send_late("one")
        wire.send_late("two")  # somebody waits already: no reason to wait longer
        assert busy.given == [wire] and wire.backlog() == 0
        wire.send_late("three")
        assert wire.backlog() > 0
        wire.on_time()
        assert wire.backlog() == 0
        wire.on_time()  # nothing waits any more
        wire.send_late("four")
        wire.cork()  # somebody else collects now
        wire.on_time()
        wire.send("five")
        assert wire.backlog() > 0
        wire.uncork()
        wire.send_late("six")
        wire.close()
        async with asyncio.timeout(10):
            heard = [(await read_frame(reader))[1] for _ in range(6)]
            opcode, _ = await read_frame(reader)
        assert heard == [b"one", b"two", b"three", b"four", b"five", b"six"]
        assert opcode & 0x0F == 8

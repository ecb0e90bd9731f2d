"""A gateway that has too much to do reads those later who do not wait for answers."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import pytest
from gateway_harness import frame, serving

from forebay.gateway.gather import (
    ENOUGH,
    FULL,
    GRAIN_S,
    LASTING_S,
    PATIENCE_S,
    REST_S,
    SAID_S,
    Gather,
    Patience,
)
from forebay.gateway.load import LOOK_S, ThreadLoad, wanted_s

# ------------------------------------------------------------------------------ load


def test_the_share_is_that_of_the_last_moment() -> None:
    used = [5.0]
    load = ThreadLoad(100.0, lambda: used[0])
    assert load.share(100.05) == 0.0
    used[0] += 0.1
    assert load.share(100.125) == pytest.approx(0.8)
    assert load.share(100.125 + LOOK_S / 2) == pytest.approx(0.8)  # not looked at again so soon
    used[0] += 0.05
    assert load.share(100.25) == pytest.approx(0.4)


def test_much_work_long_ago_says_nothing_about_now() -> None:
    used = [0.0]
    load = ThreadLoad(100.0, lambda: used[0])
    used[0] = 60.0
    assert load.share(160.0) == 0.0


def test_a_moment_full_of_work_is_little_of_a_longer_time() -> None:
    used = [0.0]
    load = ThreadLoad(100.0, lambda: used[0], look_s=LASTING_S)
    used[0] = 0.2
    assert load.share(100.2) == 0.0
    used[0] = 0.4
    assert load.share(100.0 + LASTING_S) == pytest.approx(0.4)


# ---------------------------------------------------------------------------- gather


class Loop:
    """A loop whose time the test passes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        self.timers.append((when, call))

    def run(self, until: float) -> None:
        while self.timers and self.timers[0][0] <= until:
            self.now, call = self.timers.pop(0)
            call()
        self.now = until


class Share:
    """Stands for `ThreadLoad`."""

    now = 1.0

    def share(self, now: float) -> float:
        return self.now


class Speaker:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.read_at: list[float] = []

    def rested(self) -> None:
        self.read_at.append(self._loop.now)


def made() -> tuple[Loop, Any, Gather]:
    loop, share = Loop(), Share()
    anything: Any = loop
    load: Any = share
    return loop, share, Gather(anything, load)


def test_a_thread_wants_a_processor_for_as_long_as_it_has_or_waits_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    had, wanted = time.thread_time(), wanted_s()
    while time.thread_time() - had < 0.05:
        pass
    assert wanted_s() - wanted >= 0.04  # the rest was not booked yet
    monkeypatch.setattr("builtins.open", lambda *_: io.BytesIO(b"1500000000 250000000 7\n"))
    assert wanted_s() == 1.75
    monkeypatch.setattr("builtins.open", lambda *_: io.BytesIO(b""))
    assert wanted_s() == pytest.approx(time.thread_time(), abs=0.1)  # where the system tells less


def test_each_rests_as_long_by_one_timer_at_a_time() -> None:
    loop, _, gather = made()
    speakers = [Speaker(loop) for _ in range(4)]
    for speaker in speakers:
        assert gather.rest(speaker)
        loop.run(loop.now + REST_S / 8)
    assert len(loop.timers) == 1
    loop.run(110.0)
    for n, speaker in enumerate(speakers):
        (read_at,) = speaker.read_at
        assert read_at == pytest.approx(100.0 + n * REST_S / 8 + REST_S, abs=GRAIN_S)
    assert not loop.timers
    assert gather.rest(speakers[0])
    assert len(loop.timers) == 1


def test_it_begins_when_full_and_goes_on_until_there_is_room() -> None:
    loop, share, gather = made()
    speaker = Speaker(loop)
    share.now = FULL - 0.01
    assert not gather.rest(speaker)
    share.now = FULL
    assert gather.rest(speaker)
    share.now = ENOUGH
    assert gather.rest(speaker)
    share.now = ENOUGH - 0.01
    assert not gather.rest(speaker)
    share.now = ENOUGH + 0.01
    assert not gather.rest(speaker)


def test_one_that_fails_does_not_keep_the_others_resting() -> None:
    class Broken(Speaker):
        def rested(self) -> None:
            raise RuntimeError("told so")

    loop, _, gather = made()
    broken, speaker = Broken(loop), Speaker(loop)
    gather.rest(broken)
    gather.rest(speaker)
    with pytest.raises(RuntimeError):
        loop.run(110.0)
    loop.run(110.0)
    assert len(speaker.read_at) == 1


def test_whoever_speaks_on_may_rest_again_and_whoever_waits_is_read_at_once() -> None:
    patience = Patience()
    assert patience.after(0.1, 100.0)
    patience.rested()
    assert patience.after(SAID_S + 0.1, 100.3)
    assert patience.after(0.1, 100.4)
    patience.rested()
    assert not patience.after(SAID_S, 100.7)
    assert not patience.after(SAID_S + 0.1, 100.7 + PATIENCE_S - 0.1)
    assert patience.after(0.1, 100.7 + PATIENCE_S)


def test_what_is_no_live_sound_is_read_at_once() -> None:
    patience = Patience()
    assert not patience.after(0.0, 100.0)
    assert not patience.after(0.3, 101.0)


# ---------------------------------------------------------------------- a connection


class Full:
    """Stands for the `Gather` of a process that has too much to do."""

    def __init__(self, full: bool = True) -> None:
        self.full = full
        self.asked: list[Any] = []

    def rest(self, who: Any) -> bool:
        self.asked.append(who)
        return self.full


async def test_who_rests_is_not_read_until_it_is_over_and_nothing_is_lost() -> None:
    async with serving() as served:
        _, writer = await served.websocket("/quiet")
        protocol: Any = next(iter(served.server.state.connections))
        await served.until(lambda: protocol.inbox.waited_for)
        protocol.listener.gather = free = Full(False)
        protocol.wire.rest(0.1)
        assert free.asked == [protocol] and not protocol.read_paused
        protocol.listener.gather = full = Full()
        protocol.wire.rest(0.1)
        protocol.wire.rest(0.1)
        assert full.asked == [protocol] and protocol.read_paused
        for word in (b"a", b"b"):
            writer.write(frame(1, word))
        await writer.drain()
        await served.until(lambda: protocol.inbox.waited_for)
        protocol._resume_reading()  # as by whoever has emptied the inbox
        assert protocol.read_paused
        protocol.rested()
        await served.until(lambda: served.probe.heard == ["a", "b"])
        assert not protocol.read_paused
        protocol.wire.rest(0.1)  # so little: it waits for answers
        protocol.wire.rest(0.3)
        assert len(full.asked) == 1


async def test_a_connection_that_is_paused_for_want_of_room_stays_so_after_its_rest() -> None:
    async with serving() as served:
        _, writer = await served.websocket("/deaf")
        protocol: Any = next(iter(served.server.state.connections))
        protocol.listener.gather = Full()
        protocol.wire.rest(0.1)
        writer.write(frame(1, b"a") * 8)
        await writer.drain()
        protocol.data_received(frame(1, b"b") * 8)  # as one that was on its way
        assert protocol.read_paused
        protocol.rested()
        assert protocol.read_paused


async def test_whoever_leaves_while_it_rests_is_noticed() -> None:
    async with serving() as served:
        _, writer = await served.websocket("/quiet")
        protocol: Any = next(iter(served.server.state.connections))
        await served.until(lambda: protocol.inbox.waited_for)
        protocol.listener.gather = Full()
        protocol.wire.rest(0.1)
        writer.close()
        protocol.rested()
        await served.until(lambda: not served.server.state.connections)
        protocol.rested()

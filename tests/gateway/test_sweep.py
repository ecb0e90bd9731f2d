"""The sweep calls each entry when it asked, from one timer, and rests when nobody asks."""

from __future__ import annotations

import asyncio

from forebay.gateway.sweep import Sweep

GRAIN_S = 0.01


class Entry:
    def __init__(self, answers: list[float | None]) -> None:
        self.slot: int | None = None
        self.answers = answers
        self.calls: list[float] = []

    def check(self, now: float) -> float | None:
        self.calls.append(now)
        again = self.answers.pop(0) if self.answers else None
        return None if again is None else now + again


async def test_an_entry_is_checked_not_early_and_at_most_a_grain_late() -> None:
    loop = asyncio.get_running_loop()
    sweep = Sweep(loop, GRAIN_S)
    entry = Entry([0.05, 0.05])
    due = loop.time() + 0.05
    sweep.at(entry, due)
    await asyncio.sleep(0.3)
    assert len(entry.calls) == 3
    assert due - 0.002 <= entry.calls[0] <= due + GRAIN_S + 0.05
    assert entry.slot is None
    sweep.close()


async def test_an_earlier_wish_wins_and_a_later_one_changes_nothing() -> None:
    loop = asyncio.get_running_loop()
    sweep = Sweep(loop, GRAIN_S)
    entry = Entry([])
    sweep.at(entry, loop.time() + 10)
    sweep.at(entry, loop.time() + 0.02)
    sweep.at(entry, loop.time() + 5)
    await asyncio.sleep(0.1)
    assert len(entry.calls) == 1
    sweep.close()


async def test_a_forgotten_entry_is_not_called() -> None:
    loop = asyncio.get_running_loop()
    sweep = Sweep(loop, GRAIN_S)
    entry = Entry([])
    sweep.at(entry, loop.time() + 0.02)
    sweep.forget(entry)
    await asyncio.sleep(0.08)
    assert entry.calls == []


async def test_nothing_runs_while_nobody_waits() -> None:
    loop = asyncio.get_running_loop()
    sweep = Sweep(loop, GRAIN_S)
    assert sweep._timer is None
    sweep.at(Entry([]), loop.time() + 0.01)
    assert sweep._timer is not None
    await asyncio.sleep(0.06)
    assert sweep._timer is None
    assert sweep._slots == {}


async def test_entries_that_ask_again_do_not_add_timers() -> None:
    loop = asyncio.get_running_loop()
    armed: list[float] = []

    class Counting:
        time = staticmethod(loop.time)
        call_soon = staticmethod(loop.call_soon)

        def call_at(self, when: float, call: object, *facts: object) -> asyncio.TimerHandle:
            armed.append(when)
            return loop.call_at(when, call, *facts)  # type: ignore[arg-type]

    sweep = Sweep(Counting(), GRAIN_S)  # type: ignore[arg-type]
    entries = [Entry([GRAIN_S] * 5) for _ in range(20)]
    for entry in entries:
        sweep.at(entry, loop.time() + GRAIN_S)
    while sweep._timer is not None:  # noqa: ASYNC110 - until nobody waits
        await asyncio.sleep(GRAIN_S)
    assert all(len(entry.calls) == 6 for entry in entries)
    assert len(armed) == len(set(armed)), "two timers for one moment"

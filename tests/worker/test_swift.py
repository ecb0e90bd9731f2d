"""Steps of live sound: one commit each and no task, stopped at once, and what a busy worker
is told may wait a little."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from listen_world import World
from worker_bench import MemoryBroker

from forebay.core.events import Ended, Final, Heard, InputItem, OutputEvent, Partial, Sound
from forebay.core.kinds import KINDS, Kind
from forebay.core.spec import WorkerInfo
from forebay.core.tones import speak
from forebay.engines.synthetic_asr import SyntheticRecognition
from forebay.errors import EngineFailed
from forebay.worker import runner as runner_module
from forebay.worker.runner import Runner
from forebay.worker.steps import StepsTable
from virtual import virtual


class Commits(MemoryBroker):
    """Counts whole commits and knows who was told to hold."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Any]] = []
        self.holds: list[bool] = []

    def commit(self, job: str, attempt: int, events: Sequence[Any], *args: Any, **how: Any) -> None:
        self.batches.append(list(events))
        super().commit(job, attempt, events, *args, **how)

    def hold(self, held: bool) -> None:
        self.holds.append(held)


class Bench:
    """A runner of the synthetic recogniser on a broker in memory."""

    def __init__(
        self, engine: SyntheticRecognition, *, slots: int = 1, steps: StepsTable | None = None
    ) -> None:
        self.broker = Commits()
        self.engine = engine
        self._slots = slots
        self._steps = steps
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Bench:
        info = await self.engine.load(lambda stage: None)
        worker = WorkerInfo(id="w", pools=["recognition/test"], slots=self._slots, sessions=9)
        row = KINDS[Kind.RECOGNITION]
        self.runner = Runner(self.broker, self.engine, info, worker, row, steps=self._steps)
        await self.broker.connect(self.runner.sink)
        self._task = asyncio.create_task(self.runner.run())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def say(self, job: str, number: int) -> None:
        self.broker.feed(job, Sound(data=speak([number]), offset=number, seq=number))

    async def opened(self, *jobs: str) -> None:
        """The first step of a session opens it, which is what a task is for."""
        for job in jobs:
            self.broker.assign(job, kind=Kind.RECOGNITION, params={})
            self.say(job, 1)
            await asyncio.sleep(0.2)
        self.broker.batches.clear()


@virtual
async def test_a_live_step_has_no_task_and_is_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Bench(SyntheticRecognition(rtf=0.1)) as bench:
        await bench.opened("j")

        async def refuse(runner: Runner, session: Any) -> None:
            raise AssertionError("a task was made for a step")

        monkeypatch.setattr(runner_module, "run_step", refuse)
        for number in range(2, 12):
            bench.say("j", number)
            await asyncio.sleep(0.1)
        kinds = [[type(event) for event in batch] for batch in bench.broker.batches]
        assert kinds[:8] == [[Partial, Heard]] * 8
        assert kinds[8] == [Final, Final, Heard] or kinds[8] == [Final, Heard]
        assert len(kinds) == 10


@virtual
async def test_nothing_is_held_back_when_one_chunk_is_alone() -> None:
    """Its result is committed in the moment in which its engine ends."""
    async with Bench(SyntheticRecognition(rtf=0.1)) as bench:
        await bench.opened("j")
        begun = asyncio.get_running_loop().time()
        bench.say("j", 2)
        await asyncio.sleep(0.05)
        assert bench.broker.written[-1].at_s == pytest.approx(begun + 0.01, abs=1e-6)

    async with Bench(SyntheticRecognition(rtf=0)) as bench:
        await bench.opened("j")
        bench.say("j", 2)
        await asyncio.sleep(0)
        assert [type(event) for event in bench.broker.batches[-1]] == [Partial, Heard]


@virtual
async def test_a_worker_without_a_free_slot_says_so_and_takes_it_back() -> None:
    async with Bench(SyntheticRecognition(rtf=0.1)) as bench:
        await bench.opened("j", "k")
        bench.broker.holds.clear()
        bench.say("j", 2)
        await asyncio.sleep(0)
        assert bench.broker.holds[-1:] == [True]
        bench.say("k", 2)  # it waits for the slot
        await asyncio.sleep(0.015)
        assert False not in bench.broker.holds
        await asyncio.sleep(0.01)
        assert bench.broker.holds[-1:] == [False]
        count = len(bench.broker.holds)
        await asyncio.sleep(0.5)
        assert len(bench.broker.holds) == count


@virtual
async def test_one_free_slot_is_enough_to_be_told_at_once() -> None:
    async with Bench(SyntheticRecognition(rtf=0.1, slots=2), slots=2) as bench:
        await bench.opened("j")
        bench.broker.holds.clear()
        bench.say("j", 2)
        await asyncio.sleep(0)
        assert bench.broker.holds == []


@virtual
async def test_a_cancel_stops_a_step_at_once(tmp_path: Path) -> None:
    with StepsTable.create(tmp_path / "steps") as steps:
        async with Bench(SyntheticRecognition(rtf=100), steps=steps) as bench:
            bench.engine._rtf = 0.0
            await bench.opened("j", "k")
            bench.engine._rtf = 100.0
            bench.say("j", 2)
            await asyncio.sleep(0)
            assert steps.stepping() == [("j", 1)]
            bench.say("k", 2)
            bench.engine._rtf = 0.0
            bench.broker.cancel("j")
            assert steps.stepping() == []  # the slot was free, and the next step ran
            assert isinstance(bench.broker.events("k")[-1], Heard)
            await asyncio.sleep(0.1)
            assert bench.broker.parked == [("j", 1)]
            await asyncio.sleep(60)
            assert [
                event.seq
                for event in bench.broker.events("j")
                if event.n and isinstance(event, Heard)
            ] == [1]


@virtual
async def test_a_step_without_byte_credit_goes_on_when_it_comes() -> None:
    async with Bench(SyntheticRecognition(rtf=0, words=1)) as bench:
        bench.broker.refill = False
        bench.broker.assign("j", kind=Kind.RECOGNITION, params={}, credit_bytes=700)
        for number in range(1, 9):
            bench.say("j", number)
            await asyncio.sleep(0.01)
        before = len(bench.broker.events("j"))
        assert before < 16
        assert bench.runner.load()["busy"] == 1  # it waits inside its step
        while bench.runner.load()["busy"]:
            bench.broker.grant("j", 1, 300)
            await asyncio.sleep(0.01)
        heard = [event.seq for event in bench.broker.events("j") if isinstance(event, Heard)]
        assert heard == list(range(1, 9))


@virtual
async def test_a_session_that_waits_for_byte_credit_can_be_cancelled() -> None:
    async with Bench(SyntheticRecognition(rtf=0, words=1)) as bench:
        bench.broker.refill = False
        bench.broker.assign("j", kind=Kind.RECOGNITION, params={}, credit_bytes=400)
        for number in range(1, 9):
            bench.say("j", number)
            await asyncio.sleep(0.01)
        assert bench.runner.load()["busy"] == 1
        bench.broker.cancel("j")
        await asyncio.sleep(0.01)
        assert bench.runner.load()["busy"] == 0
        assert bench.broker.parked == [("j", 1)]


class Breaks(SyntheticRecognition):
    broken = ""

    def begin(
        self, session: Any, items: Sequence[InputItem], done: Callable[[Any], None]
    ) -> Callable[[], None]:
        if self.broken == "at once":
            raise ValueError("of no use")
        if self.broken == "later":
            asyncio.get_running_loop().call_later(0.01, done, EngineFailed("tired"))
            return lambda: None
        if self.broken == "nonsense":
            done([Ended(state="completed")])
            return lambda: None
        return super().begin(session, items, done)


@pytest.mark.parametrize("how", ["at once", "later", "nonsense"])
@virtual
async def test_a_step_that_fails_ends_its_own_job_only(how: str) -> None:
    engine = Breaks(rtf=0)
    async with Bench(engine) as bench:
        await bench.opened("j", "k")
        engine.broken = how
        bench.say("j", 2)
        await asyncio.sleep(0.1)
        engine.broken = ""
        ended = bench.broker.ended("j")
        assert ended is not None and (ended.state, ended.code) == ("failed", "engine_failed")
        bench.say("k", 2)
        await asyncio.sleep(0.1)
        assert isinstance(bench.broker.events("k")[-1], Heard)
        assert bench.runner.load() == bench.runner.load() | {"busy": 0, "sessions": 1}


@virtual
async def test_a_runner_that_is_stopped_writes_nothing_more() -> None:
    async with Bench(SyntheticRecognition(rtf=1)) as bench:
        await bench.opened("j")
        bench.say("j", 2)
        await bench.stop()
        written: list[OutputEvent] = bench.broker.events("j")
        await asyncio.sleep(10)
        assert bench.broker.events("j") == written


@virtual
async def test_a_long_backlog_of_steps_that_end_at_once_needs_no_deep_stack() -> None:
    async with Bench(SyntheticRecognition(rtf=0)) as bench:
        await bench.opened("j")
        items = [Sound(data=speak([n]) * 10, offset=n, seq=n) for n in range(2, 3000)]
        bench.broker.feed("j", *items)
        await asyncio.sleep(1)
        assert bench.broker.events("j")[-1].seq == 2999


@virtual
async def test_many_sessions_on_one_slot_lose_and_double_no_word() -> None:
    world = World()
    await world.worker(SyntheticRecognition(rtf=0.05))
    seats = [await world.job(f"j{n}") for n in range(6)]
    for number in range(1, 40):
        for seat in seats:
            await world.say(seat, Sound(data=speak([number]), seq=number))
        await asyncio.sleep(0.1)
    await asyncio.sleep(3)
    for seat in seats:
        assert [event.seq for event in await world.heard(seat.job)] == list(range(1, 40))
        text = "".join(event.text for event in await world.finals(seat.job))
        assert text.split() == [f"w{number}" for number in range(1, 40)]
    await world.close()


@virtual
async def test_what_is_read_at_once_is_few_steps() -> None:
    async with Bench(SyntheticRecognition(rtf=0)) as bench:
        await bench.opened("j")
        for number in range(2, 8):
            bench.say("j", number)
        await asyncio.sleep(0.01)
        assert len(bench.broker.batches) == 2
        heard = [event.seq for event in bench.broker.events("j") if isinstance(event, Heard)]
        assert heard == list(range(1, 8))


@virtual
async def test_a_session_cancelled_before_its_step_began_gives_its_slot_back() -> None:
    async with Bench(SyntheticRecognition(rtf=0)) as bench:
        await bench.opened("j", "k")
        bench.say("j", 2)
        bench.broker.cancel("j")
        await asyncio.sleep(0.01)
        assert bench.broker.parked == [("j", 1)]
        bench.say("k", 2)
        await asyncio.sleep(0.01)
        assert isinstance(bench.broker.events("k")[-1], Heard)
        assert bench.runner.load()["busy"] == 0

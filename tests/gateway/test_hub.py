"""Readers of the hub: live, catching up, slow, paced; with a real broker and a scripted worker."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "dialects"))
from voice_world import MemoryWire, run

from forebay.broker import OutputPush
from forebay.broker.local import LocalBroker, Settings
from forebay.core.events import Audio, Consumed, Ended, OutputEvent, Text
from forebay.core.kinds import KINDS, Kind
from forebay.core.spec import JobSpec, WorkerInfo
from forebay.core.stream import Stamper
from forebay.errors import ForebayError, ResumeNotAvailable, StateLost, StoreDown
from forebay.gateway.hub import AudioPace, Hub
from forebay.gateway.reader import HOLD_BYTES, HOLD_EVENTS, Reader

ROW = KINDS[Kind.SPEECH]
RATE = 16000


class Scene:
    """One speech job that a scripted worker writes to."""

    def __init__(self, broker: LocalBroker, hub: Hub, epoch: str) -> None:
        self.broker = broker
        self.hub = hub
        self.epoch = epoch
        self.job = "j1"
        self.stamper = Stamper(0, {}, {})
        self.wire = MemoryWire(lambda code, reason: None)
        self.ended: list[Ended] = []
        self.slow: list[Reader] = []
        self.reset: list[ForebayError] = []
        self.encoded: list[int] = []

    def write(self, *units: str, seconds: float = 0.1, end: bool = False) -> None:
        frames = int(seconds * RATE)
        first = self.stamper.marks.get("units", 0)
        events: list[OutputEvent] = []
        for text in units:
            audio = Audio(data=bytes(2 * frames), text=text, unit=first, frames=frames)
            events.append(self.stamper.stamp(audio))
            first += len(text)
        if end:
            events.append(self.stamper.stamp(Ended(state="completed")))
        self.broker.worker_commit("w1", self.job, 1, events, Consumed())

    def encode(self, event: OutputEvent) -> list[str]:
        self.encoded.append(event.offset)
        match event:
            case Audio():
                return [event.text + "." * event.frames]
            case _:
                return ["end"]

    def open(self, **how: Any) -> Reader:
        how.setdefault("wire", self.wire)
        how.setdefault("row", ROW)
        return self.hub.open(
            self.job,
            epoch=how.pop("epoch", self.epoch),
            encode=how.pop("encode", self.encode),
            on_end=self.ended.append,
            on_slow=self.slow.append,
            on_reset=self.reset.append,
            **how,
        )

    def heard(self, wire: MemoryWire | None = None) -> str:
        return "".join(str(t).rstrip(".") for t in (wire or self.wire).taken)


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    loop = asyncio.get_running_loop()
    broker = LocalBroker(Settings(), clock=loop.time)
    async with Hub(broker, "g1", loop.time) as hub:
        broker.worker_connect("w1", lambda push: None)
        broker.worker_register(WorkerInfo(id="w1", pools=["speech/x"], slots=1, sessions=1))
        spec = JobSpec(
            id="j1", kind=Kind.SPEECH, pool="speech/x", params={"sample_rate": RATE, "channels": 1}
        )
        view = await broker.submit(spec, [Text(text="x", unit=0)], gateway="g1")
        beating = asyncio.ensure_future(_beat(broker))
        try:
            yield Scene(broker, hub, view.epoch)
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
    await broker.close()


async def _beat(broker: LocalBroker) -> None:
    while True:
        broker.worker_beat("w1", {})
        await asyncio.sleep(0.25)


def test_a_live_reader_is_written_to_inside_the_push() -> None:
    async def body() -> None:
        async with scene() as s:
            s.open()
            await asyncio.sleep(0.01)
            s.write("a")
            assert s.heard() == "a"  # no turn of the loop in between
            s.write("b", "c", end=True)
            assert s.heard() == "abcend"
            assert [e.state for e in s.ended] == ["completed"]
            assert s.hub.readers("j1") == 0

    run(body())


def test_a_reader_that_comes_late_reads_all_then_follows() -> None:
    async def body() -> None:
        async with scene() as s:
            s.write("a", "b", "c")
            s.open(after=1)
            s.write("d")
            await asyncio.sleep(0.01)
            s.write("e")
            assert s.heard() == "bcde"

    run(body())


@pytest.mark.parametrize(("mark", "expected"), [(0, "abc"), (1, "bc"), (2, "c"), (3, "")])
def test_reading_from_a_mark_begins_at_the_first_event_that_passes_it(
    mark: int, expected: str
) -> None:
    async def body() -> None:
        async with scene() as s:
            s.write("a", "b", "c")
            s.open(mark=("units", mark))
            await asyncio.sleep(0.01)
            assert s.heard() == expected
            s.write("d", end=True)
            assert s.heard() == expected + "dend"

    run(body())


def test_an_event_that_comes_while_a_mark_is_looked_up_is_not_lost() -> None:
    async def body() -> None:
        async with scene() as s:
            s.write("a")
            s.open(mark=("units", 1))
            s.write("b")
            await asyncio.sleep(0.01)
            s.write("c")
            assert s.heard() == "bc"

    run(body())


@pytest.mark.parametrize("mark", [0, 1])
def test_an_event_pushed_before_the_answer_about_a_mark_is_looked_at_is_not_lost(
    mark: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared store's push is heard at once, its answer one turn later; it was the last push."""

    async def body() -> None:
        async with scene() as s:
            s.write("a")
            real, asked = s.broker.read_after_mark, 0

            async def then_pushed(*args: Any, **kwargs: Any) -> Any:
                nonlocal asked
                asked += 1
                found = await real(*args, **kwargs)
                if asked == 1:
                    s.write("b", end=True)
                return found

            monkeypatch.setattr(s.broker, "read_after_mark", then_pushed)
            s.open(mark=("units", mark))
            await asyncio.sleep(1)
            assert s.heard() == "abend"[mark:]
            assert len(s.ended) == 1

    run(body())


@pytest.mark.parametrize("events", [HOLD_EVENTS - 1, HOLD_EVENTS, 3 * HOLD_EVENTS])
def test_a_finished_stream_of_any_length_is_read_to_its_end(events: int) -> None:
    async def body() -> None:
        async with scene() as s:
            s.write(*("abcdef"[n % 6] for n in range(events)), seconds=0.01, end=True)
            s.open()
            await asyncio.sleep(1)
            assert len(s.encoded) == events + 1
            assert [e.state for e in s.ended] == ["completed"]

    run(body())


@pytest.mark.parametrize("mark", [None, ("units", 1)])
def test_a_store_that_does_not_answer_a_readers_first_question_is_asked_again(
    mark: tuple[str, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything was pushed before the reader was there: nobody pushes it again."""

    async def body() -> None:
        async with scene() as s:
            s.write("a", "b", end=True)
            name = "read_after" if mark is None else "read_after_mark"
            real, asked = getattr(s.broker, name), 0

            async def away(*args: Any, **kwargs: Any) -> Any:
                nonlocal asked
                asked += 1
                if asked <= 2:
                    raise StoreDown("no answer within 0.9 s")
                return await real(*args, **kwargs)

            monkeypatch.setattr(s.broker, name, away)
            s.open(**({} if mark is None else {"mark": mark}))
            await asyncio.sleep(2)
            assert s.heard() == ("abend" if mark is None else "bend")
            assert (asked, len(s.ended), s.reset) == (3, 1, [])

    run(body())


def test_a_lost_push_is_refilled_from_the_stream() -> None:
    async def body() -> None:
        async with scene() as s:
            s.open()
            await asyncio.sleep(0.01)
            lose = True

            def sink(push: Any) -> None:
                if not (lose and isinstance(push, OutputPush)):
                    s.hub.sink(push)

            s.broker.open("g1", sink)
            s.broker._core.watch(s.broker._entry("j1"))
            s.write("a")
            lose = False
            s.write("b")
            assert s.heard() == ""
            await asyncio.sleep(0.01)
            assert s.heard() == "ab"
            s.write("c")
            assert s.heard() == "abc"

    run(body())


def test_a_blocked_reader_holds_little_and_catches_up_when_the_wire_drains() -> None:
    async def body() -> None:
        async with scene() as s:
            reader = s.open()
            await asyncio.sleep(0.01)
            s.wire.stalled = True
            text = "".join(chr(65 + n % 26) for n in range(60))
            for unit in text:
                s.write(unit, seconds=1.0)
            assert reader._held_bytes <= HOLD_BYTES + 32_100
            assert len(reader._held) < 30
            await asyncio.sleep(10)
            s.wire.flow()
            for _ in range(60):
                await asyncio.sleep(0.01)
            s.write("!", end=True)
            assert s.heard() == text + "!end"
            assert s.slow == []

    run(body())


def test_the_slow_rule_acts_once_the_oldest_unsent_event_is_too_old() -> None:
    async def body() -> None:
        async with scene() as s:
            s.open()
            await asyncio.sleep(0.01)
            s.wire.stalled = True
            s.write("a", seconds=3.0)
            s.write("b", seconds=3.0)
            await asyncio.sleep(29.9)
            assert s.slow == []
            await asyncio.sleep(0.2)
            assert len(s.slow) == 1
            assert s.hub.readers("j1") == 0
            s.write("c")
            s.wire.flow()
            await asyncio.sleep(60)
            assert len(s.slow) == 1

    run(body())


def test_a_client_that_reads_slowly_but_steadily_is_not_slow() -> None:
    async def body() -> None:
        async with scene() as s:
            s.open()
            await asyncio.sleep(0.01)
            for n in range(100):
                s.wire.stalled = True
                s.write("x", seconds=3.0)
                s.write("y", seconds=3.0)
                await asyncio.sleep(5)
                s.wire.flow()
                await asyncio.sleep(0.01)
                assert s.slow == [], n

    run(body())


def test_held_back_audio_is_paced_and_never_slow() -> None:
    async def body() -> None:
        async with scene() as s:
            s.open(pace=AudioPace(4.0, RATE))
            await asyncio.sleep(0.01)
            for _ in range(100):
                s.write("x", seconds=1.0)
            assert s.heard() == "xxxx"
            await asyncio.sleep(50)
            assert len(s.heard()) == pytest.approx(54, abs=1)
            assert s.slow == []
            s.write(end=True)
            await asyncio.sleep(60)
            assert s.heard() == "x" * 100 + "end"

    run(body())


def test_delivered_positions_are_batched_four_times_a_second_and_only_when_they_moved() -> None:
    async def body() -> None:
        async with scene() as s:
            calls: list[dict[str, int]] = []
            real = s.broker.delivered

            async def counted(gateway: str, positions: Any) -> None:
                calls.append(dict(positions))
                await real(gateway, positions)

            s.broker.delivered = counted  # type: ignore[method-assign]
            s.open()
            await asyncio.sleep(0.01)
            for _ in range(100):
                s.write("x", seconds=0.01)
                await asyncio.sleep(0.01)
            assert 3 <= len(calls) <= 6
            await asyncio.sleep(1)
            done = len(calls)
            assert calls[-1] == {"j1": 100}
            await asyncio.sleep(10)
            assert len(calls) == done

    run(body())


def test_readers_with_the_same_encoder_share_each_frame() -> None:
    async def body() -> None:
        async with scene() as s:
            wires = [MemoryWire(lambda code, reason: None) for _ in range(5)]
            for wire in wires:
                s.open(wire=wire, share="same")
            await asyncio.sleep(0.01)
            s.write("a")
            s.write("b")
            assert s.encoded == [1, 2]
            assert {s.heard(wire) for wire in wires} == {"ab"}

    run(body())


def test_another_epoch_is_a_named_reset() -> None:
    async def body() -> None:
        async with scene() as s:
            s.open(epoch="another")
            await asyncio.sleep(0.01)
            s.open(epoch="another", mark=("units", 0))
            await asyncio.sleep(0.01)
            assert [type(e) for e in s.reset] == [ResumeNotAvailable, StateLost]
            assert s.wire.taken == []

    run(body())


def test_an_unknown_position_is_a_named_reset() -> None:
    async def body() -> None:
        async with scene() as s:
            s.write("a")
            s.open(after=5)
            s.open(mark=("units", 7))
            await asyncio.sleep(0.01)
            assert [e.details["reason"] for e in s.reset] == ["ahead_of_head"] * 2

    run(body())


def test_an_encoder_that_breaks_ends_its_reader_and_nobody_elses() -> None:
    async def body() -> None:
        async with scene() as s:

            def broken(event: OutputEvent) -> list[str]:
                raise ValueError("no")

            s.open(encode=broken)
            other = MemoryWire(lambda code, reason: None)
            s.open(wire=other)
            await asyncio.sleep(0.01)
            s.write("a", end=True)
            assert s.heard(other) == "aend"
            assert len(s.reset) == 1
            assert "failed" in s.reset[0].message

    run(body())


def test_two_readers_on_one_wire_both_wake_when_it_drains() -> None:
    async def body() -> None:
        async with scene() as s:
            s.open()
            s.open(encode=lambda event: [str(event.offset)])
            await asyncio.sleep(0.01)
            s.wire.stalled = True
            s.write("a", seconds=3.0)
            s.write("b", seconds=0.01)
            s.wire.flow()
            await asyncio.sleep(0.01)
            assert sorted(s.heard()) == sorted("ab12")

    run(body())


def test_a_closed_reader_hears_nothing_more() -> None:
    async def body() -> None:
        async with scene() as s:
            reader = s.open()
            await asyncio.sleep(0.01)
            s.write("a")
            reader.close()
            reader.close()
            s.write("b", end=True)
            assert s.heard() == "a"
            assert (reader.cursor, s.ended) == (1, [])

    run(body())


def test_idle_readers_cost_no_task_and_no_timer() -> None:
    async def body() -> None:
        async with scene() as s:
            await asyncio.sleep(0.3)
            before = len(asyncio.all_tasks())
            for _ in range(50):
                s.open(wire=MemoryWire(lambda code, reason: None))
            await asyncio.sleep(0.5)
            assert len(asyncio.all_tasks()) == before
            assert s.hub._report_timer is None

    run(body())


def test_a_row_without_a_slow_bound_waits_for_ever() -> None:
    async def body() -> None:
        async with scene() as s:
            s.open(row=replace(ROW, slow_reader_s=float("inf")))
            await asyncio.sleep(0.01)
            s.wire.stalled = True
            s.write("a", seconds=3.0)
            s.write("b")
            await asyncio.sleep(500)
            s.wire.flow()
            assert s.heard() == "ab"

    run(body())

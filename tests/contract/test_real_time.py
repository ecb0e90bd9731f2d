"""The broker on the event loop's own clock and timers, as the gateway runs it."""

from __future__ import annotations

import asyncio

from homes import SPEECH, speech_spec

from forebay.broker.local import LocalBroker, default_store_bytes
from forebay.broker.timers import Timers
from forebay.core.events import Text
from forebay.core.spec import Deadlines, WorkerInfo
from virtual import virtual


async def test_deadlines_are_met_without_anybody_calling() -> None:
    broker = LocalBroker()
    pushes: list[object] = []
    broker.open("g1", pushes.append)
    broker.expect([SPEECH])
    spec = speech_spec("a", deadlines=Deadlines(queue_s=0.05))
    await broker.submit(spec, [Text(text="x", unit=0)], gateway="g1")
    async with asyncio.timeout(60):
        while (await broker.status("a")).state != "expired":  # noqa: ASYNC110 - it calls nobody
            await asyncio.sleep(0.01)
    await broker.close()
    await broker.close()


@virtual
async def test_a_worker_that_stops_beating_is_noticed_within_a_second() -> None:
    broker = LocalBroker(clock=asyncio.get_running_loop().time)
    broker.worker_connect("w1", lambda push: None)
    broker.worker_register(WorkerInfo(id="w1", pools=[SPEECH], slots=1, sessions=1))
    await broker.submit(speech_spec("a"), [Text(text="x", unit=0)])
    for _ in range(4):
        await asyncio.sleep(0.2)
        broker.worker_beat("w1", {})
    assert (await broker.status("a")).state == "running"
    await asyncio.sleep(0.95)
    assert (await broker.status("a")).state == "queued"
    await broker.close()
    view = await broker.status("a")
    assert (view.state, view.code) == ("failed", "worker_lost")


async def test_one_failing_timer_does_not_lose_the_others() -> None:
    loop = asyncio.get_running_loop()
    errors: list[object] = []
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    timers = Timers(loop.time, loop.call_later, pause_s=9, on_pause=lambda now: None)
    done: list[str] = []
    timers.at(loop.time(), lambda: 1 / 0)
    timers.at(loop.time(), lambda: done.append("second"))
    timers.at(loop.time() + 0.01, lambda: done.append("third"))
    await asyncio.sleep(0.1)
    assert done == ["second", "third"]
    assert [type(error) for error in errors] == [ZeroDivisionError]
    timers.close()


async def test_cancelled_deadlines_do_not_pile_up() -> None:
    loop = asyncio.get_running_loop()
    timers = Timers(loop.time, loop.call_later, pause_s=9, on_pause=lambda now: None)
    for _ in range(10_000):
        timer = timers.at(loop.time() + 1000, lambda: None)
        timer.cancel()
        timer.cancel()
    assert len(timers._heap) < 1000
    assert timers.next_s is None
    timers.close()


def test_the_store_is_a_quarter_of_memory_and_at_least_256_mib() -> None:
    assert default_store_bytes() >= 256 * 1024 * 1024

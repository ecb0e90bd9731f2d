"""Leaving, coming back, cancelling, closing; and what idleness costs."""

from __future__ import annotations

import pytest
from homes import Home, speech_spec

from forebay.broker import FreedPush
from forebay.core.events import Ended, Text
from forebay.errors import BadRequest, NotFound, ResumeNotAvailable


async def test_cancel_while_queued_ends_at_once(home: Home) -> None:
    await home.worker("w1", sessions=1)
    await home.speech("a", "x")
    await home.speech("b", "x")
    await home.speech("c", "x")
    view = await home.broker.cancel("b", reason="changed my mind")
    assert view.state == "cancelled"
    (last,) = home.output("b")
    assert isinstance(last, Ended)
    assert (last.state, last.message, last.seq) == ("cancelled", "changed my mind", 1)
    place = (await home.broker.status("c")).place
    assert place is not None and place.position == 1


async def test_cancel_while_running_fences_at_once_and_frees_the_slot_when_it_is_free(
    home: Home,
) -> None:
    worker = await home.worker("w1", sessions=1)
    await home.speech("a", "hello")
    await home.speech("b", "x")
    await home.settle()
    worker.speak("a", "he")
    await home.settle()
    assert (await home.broker.cancel("a")).state == "cancelled"
    await home.settle()
    assert [(c.job, c.attempt, c.ended.state) for c in worker.cancels] == [("a", 1, "cancelled")]
    worker.speak("a", "llo")
    stored = await home.stored("a")
    assert [type(event).__name__ for event in stored] == ["Audio", "Ended"]
    assert "b" not in worker.leases  # the engine session is still open
    await home.advance(0.2)
    worker.park("a")
    worker.park("a")
    await home.settle()
    assert "b" in worker.leases
    (freed,) = [push for push in home.pushes if isinstance(push, FreedPush)]
    assert freed.job == "a" and freed.after_s >= 0.2
    (pool,) = home.broker.pools()
    assert pool.free_credits == 0


async def test_a_worker_may_answer_a_cancel_with_the_terminal_event(home: Home) -> None:
    worker = await home.worker("w1", sessions=1)
    await home.speech("a", "x")
    await home.speech("b", "x")
    await home.broker.cancel("a")
    await home.settle()
    worker.end("a", state="cancelled")
    await home.settle()
    assert "b" in worker.leases
    assert len(await home.stored("a")) == 1


async def test_cancel_is_idempotent_and_never_changes_an_end(home: Home) -> None:
    worker = await home.worker("w1")
    await home.speech("a", "x", end=True)
    await home.settle()
    worker.end("a")
    await home.settle()
    assert (await home.broker.cancel("a")).state == "completed"
    assert len(await home.stored("a")) == 1
    with pytest.raises(NotFound):
        await home.broker.cancel("nope")


async def test_a_job_that_is_over_can_be_forgotten_and_its_name_is_free(home: Home) -> None:
    worker = await home.worker("w1", sessions=1)
    await home.speech("a", "hello")
    await home.settle()
    with pytest.raises(BadRequest, match="expected one that is over"):
        await home.broker.forget("a")
    await home.broker.cancel("a")
    await home.broker.forget("a")
    await home.broker.forget("a")  # twice is once
    with pytest.raises(NotFound):
        await home.broker.status("a")
    assert await home.broker.jobs() == []
    worker.end("a")  # the worker was in the middle of it: its slot comes back all the same
    await home.settle()
    await home.speech("b", "x")
    await home.settle()
    assert (await home.broker.status("b")).state == "running"


async def test_what_one_gateway_forgets_no_other_one_knows(home: Home) -> None:
    await home.worker("w1")
    await home.speech("a", "hello")
    elsewhere = getattr(home, "elsewhere", None)  # a home in one process has one gateway only
    other = home.broker if elsewhere is None else await elsewhere()
    assert (await other.status("a")).state == "running"
    await home.broker.cancel("a")
    assert (await other.status("a")).state == "cancelled"
    await home.broker.forget("a")
    with pytest.raises(NotFound):
        await other.status("a")
    with pytest.raises(ResumeNotAvailable):
        await other.read_after("a", 0)
    assert await other.find("local", "tts", "a") is None


async def test_a_gateway_may_end_a_job_with_its_own_word(home: Home) -> None:
    worker = await home.worker("w1")
    await home.speech("a", "x")
    slow = Ended(state="failed", code="backpressure", message="too slow", retryable=True)
    await home.broker.expire("a", slow)
    await home.broker.expire("a", slow)
    await home.settle()
    view = await home.broker.status("a")
    assert (view.state, view.code) == ("failed", "backpressure")
    assert len(worker.cancels) == 1


async def test_a_job_outlives_its_connection_for_its_detach_time(home: Home) -> None:
    worker = await home.worker("w1")
    await home.speech("a", "hello", detach_s=5)
    attachment = await home.broker.attach("a", gateway="g1", write=True)
    await home.broker.detach(attachment)
    (pool,) = home.broker.pools()
    assert pool.detached == 1
    await home.advance(3)
    worker.speak("a", "he")
    await home.settle()
    back = await home.broker.attach("a", gateway="g1", write=True)
    assert back.view.head == len(await home.broker.read_after("a", 0)) == 1
    await home.advance(10)
    assert (await home.broker.status("a")).state == "running"
    await home.broker.detach(back)
    await home.advance(5.1)
    view = await home.broker.status("a")
    assert view.state == "cancelled"
    assert [c.job for c in worker.cancels] == ["a"]
    (pool,) = home.broker.pools()
    assert pool.detached == 0


async def test_without_a_handle_leaving_is_cancelling(home: Home) -> None:
    await home.worker("w1")
    await home.speech("a", "x", detach_s=0)
    attachment = await home.broker.attach("a", gateway="g1", write=True)
    await home.broker.detach(attachment)
    assert (await home.broker.status("a")).state == "cancelled"


async def test_a_job_stays_while_anybody_is_attached(home: Home) -> None:
    await home.worker("w1")
    await home.speech("a", "x", detach_s=1)
    one = await home.broker.attach("a", gateway="g1", write=False)
    two = await home.broker.attach("a", gateway="g1", write=False)
    await home.broker.detach(one)
    await home.advance(5)
    assert (await home.broker.status("a")).state == "running"
    await home.broker.detach(two)
    await home.advance(1.1)
    assert (await home.broker.status("a")).state == "cancelled"


async def test_a_job_that_nobody_ever_attaches_to_does_not_live_for_ever(home: Home) -> None:
    await home.worker("w1")
    await home.broker.submit(speech_spec("a", detach_s=0), [Text(text="x", unit=0)])
    await home.advance(100)
    assert (await home.broker.status("a")).state == "running"
    await home.advance(30)
    assert (await home.broker.status("a")).state == "cancelled"


async def test_closing_ends_what_is_left_by_name(home: Home) -> None:
    if home.name in ("redis", "valkey"):
        pytest.skip("another gateway goes on with it there")
    await home.worker("w1")
    await home.speech("a", "x")
    await home.broker.close()
    (last,) = home.output("a")
    assert isinstance(last, Ended)
    assert (last.state, last.code) == ("failed", "worker_lost")


async def test_a_thousand_idle_sessions_cost_nothing(home: Home) -> None:
    if home.name != "local":
        pytest.skip("counts the timers of the local broker")
    worker = await home.worker("w1", sessions=1600)
    for index in range(1000):
        await home.speech(f"s{index}", "x")
        await home.broker.attach(f"s{index}", gateway="g1", write=True)
    for index in range(1000):
        worker.speak(f"s{index}", "x", through=1)
        worker.park(f"s{index}")
    (pool,) = home.broker.pools()
    assert (pool.parked, pool.free_credits) == (1000, 1600)
    before = home.time.fired
    await home.advance(60)
    # What is left is one look per time-to-live at the one worker's beats.
    assert home.time.fired - before <= 60 / 0.5
    await worker.unplug()
    await home.advance(1)
    before = home.time.fired
    await home.advance(60)
    assert home.time.fired == before


async def test_a_view_says_when_its_job_began_and_ended_on_the_readers_clock(home: Home) -> None:
    worker = await home.worker("w1", sessions=1)
    await home.speech("a", "x", end=True)
    await home.settle()
    await home.advance(3)
    view = await home.broker.status("a")
    assert home.clock() - view.created_s == pytest.approx(3, abs=0.2)
    worker.speak("a", "x")
    worker.end("a")
    await home.settle()
    await home.advance(4)
    view = await home.broker.status("a")
    assert view.started_s is not None
    assert view.ended_s is not None
    assert view.started_s - view.created_s == pytest.approx(0, abs=0.2)
    assert view.ended_s - view.created_s == pytest.approx(3, abs=0.2)
    assert home.clock() - view.ended_s == pytest.approx(4, abs=0.2)

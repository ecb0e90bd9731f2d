"""Waiting: positions, fairness, priority, refusals, deadlines, parking."""

from __future__ import annotations

import pytest
from homes import SPEECH, Home, MakeHome, speech_spec

from forebay.broker import LeasePush, PlacePush
from forebay.broker.local import Settings
from forebay.core.admission import JobLimits
from forebay.core.events import End, Ended, Text
from forebay.core.spec import Deadlines, JobView
from forebay.errors import (
    Draining,
    ModelNotFound,
    NoWorkers,
    QueueFull,
    QuotaExceeded,
    StoreFull,
    WaitTooLong,
)

HELLO = [Text(text="hello", unit=0)]


async def submit(home: Home, name: str, **more: object) -> JobView:
    return await home.broker.submit(speech_spec(name, **more), HELLO, gateway="g1")


async def position(home: Home, name: str) -> int | None:
    place = (await home.broker.status(name)).place
    return None if place is None else place.position


async def test_a_free_credit_means_no_wait(home: Home) -> None:
    worker = await home.worker("w1")
    view = await submit(home, "a")
    assert view.state == "running"
    assert view.place is None
    await home.settle()
    assert worker.leases["a"].attempt == 1
    assert LeasePush(job="a", running=True) in home.pushes


async def test_waiting_jobs_know_their_positions(home: Home) -> None:
    worker = await home.worker("w1", sessions=1)
    names = ["a", "b", "c", "d"]
    for name in names:
        await submit(home, name)
    assert [await position(home, name) for name in names] == [None, 1, 2, 3]
    await home.settle()
    worker.end("a")
    await home.settle()
    assert [await position(home, name) for name in names[1:]] == [None, 1, 2]


async def test_a_tenant_that_floods_the_queue_waits_for_the_others(make_home: MakeHome) -> None:
    home = await make_home(Settings(limits=JobLimits(queue=5000)))
    await home.worker("w1", sessions=1)
    await submit(home, "running", tenant="c")
    for index in range(1000):
        await submit(home, f"a{index}", tenant="a")
    for index in range(3):
        await submit(home, f"b{index}", tenant="b")
    assert [await position(home, f"b{i}") for i in range(3)] == [2, 4, 6]  # ranks 1, 3, 5
    await submit(home, "urgent", tenant="d", priority=3)
    assert await position(home, "urgent") == 1


async def test_the_queue_limit_refuses_with_the_time_to_wait(make_home: MakeHome) -> None:
    home = await make_home(Settings(limits=JobLimits(queue=2)))
    await home.worker("w1", sessions=1)
    for name in "abc":
        await submit(home, name)
    with pytest.raises(QueueFull) as refused:
        await submit(home, "d")
    assert refused.value.retry_after_s is not None
    assert await home.broker.find("local", "tts", "d") is None
    assert [view.spec.id for view in await home.broker.jobs()] == ["c", "b", "a"]


async def test_time_without_work_makes_nobody_come_back_later(make_home: MakeHome) -> None:
    home = await make_home(Settings(limits=JobLimits(queue=2)))
    worker = await home.worker("w1", sessions=1)
    await submit(home, "a")
    await home.advance(5)
    worker.end("a")
    await home.advance(100)
    idle = home.broker.place_for(SPEECH, "local", 1.0)
    assert (idle.eta_s, idle.each_s) == (0.0, pytest.approx(5, abs=0.1))
    for name in "bcd":
        await submit(home, name)
    with pytest.raises(QueueFull) as refused:
        await submit(home, "e")
    assert refused.value.retry_after_s == pytest.approx(5, abs=0.1)


async def test_a_tenants_quota_stops_that_tenant_only(make_home: MakeHome) -> None:
    home = await make_home(Settings(limits=JobLimits(tenant_jobs=2)))
    worker = await home.worker("w1", sessions=9)
    await submit(home, "a", tenant="x")
    await submit(home, "b", tenant="x")
    with pytest.raises(QuotaExceeded):
        await submit(home, "c", tenant="x")
    await submit(home, "d", tenant="y")
    await home.settle()
    worker.end("a")
    await home.settle()
    assert (await submit(home, "c", tenant="x")).state == "running"


async def test_a_wait_past_the_deadline_is_refused_at_once(home: Home) -> None:
    worker = await home.worker("w1", sessions=1)
    await submit(home, "a")
    await home.advance(20)
    worker.end("a")
    await home.settle()
    await submit(home, "b")
    await submit(home, "c")
    with pytest.raises(WaitTooLong) as refused:
        await submit(home, "d", deadlines=Deadlines(queue_s=30))
    assert refused.value.details["eta_s"] == pytest.approx(40)
    assert (await submit(home, "e", deadlines=Deadlines(queue_s=50))).state == "queued"
    assert home.broker.place_for(SPEECH, "local", 1.0).eta_s == pytest.approx(60)
    assert home.broker.place_for(SPEECH, "newcomer", 1.0).position == 1


async def test_an_unknown_pool_and_a_pool_nobody_serves_are_told_apart(home: Home) -> None:
    with pytest.raises(ModelNotFound):
        await submit(home, "a")
    worker = await home.worker("w1")
    await worker.unplug()
    assert (await submit(home, "a")).state == "queued"  # it may be replaced any moment
    await home.advance(11)
    with pytest.raises(NoWorkers):
        await submit(home, "b")
    assert (await home.broker.status("a")).state == "queued"


async def test_a_full_store_refuses_new_jobs(make_home: MakeHome) -> None:
    home = await make_home(Settings(store_bytes=20_000))
    worker = await home.worker("w1")
    await submit(home, "a")
    await home.settle()
    worker.speak("a", "he", frames=10_000)
    await home.settle()
    with pytest.raises(StoreFull):
        await submit(home, "b")
    worker.speak("a", "l")  # what runs goes on
    assert len(await home.stored("a")) == 2


async def test_a_draining_broker_refuses_new_jobs_and_finishes_old_ones(home: Home) -> None:
    worker = await home.worker("w1", sessions=1)
    await submit(home, "a")
    await submit(home, "b")
    await home.broker.drain()
    with pytest.raises(Draining):
        await submit(home, "c")
    await home.settle()
    worker.end("a")
    await home.settle()
    assert (await home.broker.status("b")).state == "running"


async def test_submitting_twice_is_submitting_once(home: Home) -> None:
    worker = await home.worker("w1")
    first = await submit(home, "a")
    again = await submit(home, "a")
    by_name = await home.broker.submit(speech_spec("other-id", name="a"), HELLO)
    assert first.epoch == again.epoch == by_name.epoch
    assert by_name.spec.id == "a"
    assert by_name.input_head == 1
    await home.settle()
    worker.end("a")
    await home.settle()
    fresh = await home.broker.submit(speech_spec("other-id", name="a"), HELLO)
    assert fresh.spec.id == "other-id"
    found = await home.broker.find("local", "tts", "a")
    assert found is not None and found.spec.id == "other-id"
    other_tenant = await home.broker.submit(speech_spec("x", name="a", tenant="t2"), HELLO)
    assert other_tenant.spec.id == "x"


async def test_a_job_that_waits_too_long_expires_by_name(home: Home) -> None:
    await home.worker("w1", sessions=1)
    await submit(home, "a")
    await submit(home, "b", deadlines=Deadlines(queue_s=5))
    await home.advance(4.9)
    assert (await home.broker.status("b")).state == "queued"
    await home.advance(0.2)
    view = await home.broker.status("b")
    assert (view.state, view.code) == ("expired", "deadline_exceeded")
    (last,) = home.output("b")
    assert isinstance(last, Ended)
    assert last.details["deadline"] == "queue"


async def test_the_total_deadline_ends_a_running_job(home: Home) -> None:
    worker = await home.worker("w1", sessions=1)
    await submit(home, "a", deadlines=Deadlines(total_s=5))
    await home.advance(5.1)
    assert (await home.broker.status("a")).state == "expired"
    assert [c.ended.details["deadline"] for c in worker.cancels] == ["total"]
    worker.park("a")
    await home.settle()
    assert (await submit(home, "b")).state == "running"


async def test_a_job_that_overruns_its_model_time_is_ended(home: Home) -> None:
    worker = await home.worker("w1")
    await submit(home, "a", deadlines=Deadlines(run_s=10))
    await home.settle()
    assert worker.leases["a"].run_left_s == 10
    worker.commit("a", model_s=16)
    await home.settle()
    view = await home.broker.status("a")
    assert (view.state, view.code) == ("expired", "deadline_exceeded")


async def test_a_job_without_input_waits_in_no_queue(home: Home) -> None:
    worker = await home.worker("w1", sessions=1)
    spec = await home.speech("silent")
    await submit(home, "a")
    await submit(home, "b")
    assert await position(home, "silent") is None
    assert await position(home, "b") == 1
    attachment = await home.broker.attach(spec.id, gateway="g1", write=True)
    assert attachment.number is not None
    await home.broker.append(spec.id, HELLO, attachment=attachment.number)
    assert await position(home, "silent") == 2
    await home.settle()
    worker.end("a")
    await home.settle()
    worker.end("b")
    await home.settle()
    assert worker.leases["silent"].attempt == 1


async def test_a_parked_session_gives_its_credit_away_and_comes_back_in_front(home: Home) -> None:
    worker = await home.worker("w1", sessions=1)
    spec = await home.speech("a", "hello")
    attachment = await home.broker.attach("a", gateway="g1", write=True)
    number = attachment.number or 0
    await submit(home, "b")
    await submit(home, "c")
    worker.speak("a", "hello", through=1)
    worker.park("a")
    await home.settle()
    assert worker.leases["b"].attempt == 1
    (pool,) = home.broker.pools()
    assert (pool.parked, pool.running, pool.queued) == (1, 1, 1)
    assert (await home.broker.status("a")).state == "running"
    await home.broker.append(spec.id, [Text(text="more", unit=5)], attachment=number)
    assert [await position(home, name) for name in "ac"] == [1, 2]
    worker.end("b")
    await home.settle()
    lease = worker.leases["a"]
    assert lease.attempt == 2
    assert [item.offset for item in lease.input] == [2]
    assert (lease.consumed.offset, lease.consumed.fine) == (1, 5)
    assert lease.marks["units"] == 5
    worker.speak("a", "more", through=2)
    assert [event.offset for event in await home.stored("a")] == [1, 2]


async def test_parking_with_unread_input_queues_the_job_again(home: Home) -> None:
    worker = await home.worker("w1", sessions=1)
    await home.speech("a", "hello")
    await home.settle()
    worker.park("a")  # crossed with input that the worker had not seen
    await home.settle()
    assert worker.leases["a"].attempt == 2


async def test_a_session_prefers_the_worker_it_had(home: Home) -> None:
    one = await home.worker("w1")
    await home.speech("a", "hello")
    attachment = await home.broker.attach("a", gateway="g1", write=True)
    two = await home.worker("w2", sessions=9)
    await home.settle()
    one.speak("a", "hello", through=1)
    one.park("a")
    await home.settle()
    await home.broker.append("a", [End()], attachment=attachment.number or 0)
    await home.settle()
    assert one.leases["a"].attempt == 2
    assert "a" not in two.leases


async def test_places_are_pushed_when_they_change_at_most_once_a_second(home: Home) -> None:
    worker = await home.worker("w1", sessions=1)
    for name in "abcd":
        await submit(home, name)
    await home.advance(0.01)
    assert [p.place.position for p in places(home, "d")] == [3]
    await home.settle()
    worker.end("a")
    await home.settle()
    worker.end("b")
    await home.advance(0.5)
    assert [p.place.position for p in places(home, "d")] == [3]
    await home.advance(0.6)
    assert [p.place.position for p in places(home, "d")] == [3, 1]
    await home.advance(5)
    assert [p.place.position for p in places(home, "d")] == [3, 1]


async def test_jobs_of_one_affinity_run_one_at_a_time_on_their_owner(home: Home) -> None:
    one = await home.worker("w1", sessions=2)
    await submit(home, "a1", affinity="book")
    two = await home.worker("w2", sessions=9)
    await submit(home, "a2", affinity="book")
    await submit(home, "other")
    await home.settle()
    assert set(one.leases) == {"a1"}
    assert set(two.leases) == {"other"}  # the blocked one is passed over, not head of line
    assert await position(home, "a2") == 1
    one.end("a1")
    await home.settle()
    assert "a2" in one.leases
    await one.die(abnormal=False)
    assert two.leases["a2"].attempt == 2


async def test_a_long_queue_is_told_in_slices(make_home: MakeHome) -> None:
    home = await make_home(Settings(limits=JobLimits(queue=5000)))
    await home.worker("w1", sessions=1)
    for index in range(700):
        await submit(home, f"j{index}")
    await home.advance(0.1)
    assert [p.place.position for p in places(home, "j699")] == [699]
    assert sum(isinstance(p, PlacePush) for p in home.pushes) == 699


async def test_the_eta_is_told_when_it_becomes_known(home: Home) -> None:
    worker = await home.worker("w1", sessions=2)
    for name in "abcde":
        await submit(home, name)
    await home.advance(4)
    assert places(home, "e")[-1].place.eta_s is None
    worker.end("a")
    await home.advance(2)
    last = places(home, "e")[-1].place
    assert (last.position, last.eta_s) == (2, pytest.approx(4))


def places(home: Home, job: str) -> list[PlacePush]:
    return [p for p in home.pushes if isinstance(p, PlacePush) and p.job == job]


async def test_jobs_that_began_together_are_not_expected_to_end_one_by_one(home: Home) -> None:
    worker = await home.worker("w1", sessions=2)
    await submit(home, "a")
    await home.advance(20)
    worker.end("a")
    await home.settle()
    for name in "bcde":
        await submit(home, name)
    await home.advance(1)
    told = [places(home, name)[-1].place.eta_s for name in "de"]
    assert told == pytest.approx([20, 20], abs=0.5)  # and not 10 and 20
    for name in "fg":
        await submit(home, name)
    await home.advance(25)
    worker.end("b")
    await home.settle()  # nobody is spoken of as if he had only just begun any more
    place = home.broker.place_for(SPEECH, "local", 1.0)
    assert place.eta_s == pytest.approx(place.position * place.each_s)

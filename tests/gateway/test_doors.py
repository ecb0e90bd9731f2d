"""Handshakes at a full queue: refused with words, or let in with a place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from asgi_calls import READY, Pools, application, call, context
from test_access import stubs

from forebay.core.admission import GRACE
from forebay.core.kinds import KINDS, Kind
from forebay.core.spec import QueuePlace
from forebay.errors import QueueFull
from forebay.gateway.doors import Doors
from forebay.gateway.job_gate import ask_gate


@dataclass
class Queue(Pools):
    """A broker whose queue is as long as it is told."""

    live: tuple[str, ...] = ()
    eta_s: float | None = None  # of one place

    def place_for(self, pool: str, tenant: str, cost_s: float) -> QueuePlace:
        place = self.views[0].queued + 1
        if self.eta_s is None:
            return QueuePlace(position=place)
        if place == 1 and self.views[0].free_credits:
            return QueuePlace(position=1, eta_s=0.0, each_s=self.eta_s)
        return QueuePlace(position=place, eta_s=place * self.eta_s, each_s=self.eta_s)

    async def find(self, tenant: str, dialect: str, name: str) -> Any:
        @dataclass
        class View:
            state: str = "running"

        return View() if (tenant, dialect) == ("local", "tts") and name in self.live else None


def queue(queued: int, **facts: Any) -> list[Any]:
    return [msgspec.structs.replace(READY, queued=queued, **facts)]


def scope(number: int, **facts: Any) -> dict[str, Any]:
    base = {"headers": [], "forebay.request_id": str(number), "forebay.tenant": "local"}
    return {**base, **facts}


async def test_a_full_queue_refuses_handshakes_with_503_and_retry_after() -> None:
    broker = Queue(queue(10))
    app = application(context(pools=broker, queue_limit=10), stubs())
    answer = await call(app, "/tts", method="WEBSOCKET")
    assert (answer.status, answer.json["error"]["code"]) == (503, "queue_full")
    assert "retry-after" in answer.headers
    broker.views = queue(9)
    assert (await call(app, "/tts", method="WEBSOCKET")).status == 101
    assert (await call(app, "/tts", method="WEBSOCKET")).status == 101, "the first has left"


async def test_a_store_that_does_not_answer_refuses_new_work_at_once_and_lets_reading_pass() -> (
    None
):
    broker = Queue(queue(0), live=("mine",))
    up = False
    app = application(context(pools=broker, store_up=lambda: up), stubs())
    named = {"x-forebay-session": "mine"}
    for facts in ({}, {"headers": named}):
        answer = await call(app, "/tts", method="WEBSOCKET", **facts)
        assert (answer.status, answer.json["error"]["code"]) == (503, "store_down")
        assert "retry-after" in answer.headers
    posted = await call(app, "/v1/chat/completions", method="POST", body=b"{}")
    assert (posted.status, posted.json["error"]["code"]) == (503, "store_down")
    assert (await call(app, "/healthz")).status == 200
    up = True
    assert (await call(app, "/tts", method="WEBSOCKET")).status == 101


async def test_nobody_is_let_in_to_wait_past_the_queue_deadline() -> None:
    broker = Queue(queue(0))
    broker.eta_s = 2.0
    fits = int(0.8 * KINDS[Kind.SPEECH].queue_s / 2.0)
    app = application(context(pools=broker), stubs())
    broker.views = queue(fits - 1)
    assert (await call(app, "/tts", method="WEBSOCKET")).status == 101
    broker.views = queue(fits)
    assert (await call(app, "/tts", method="WEBSOCKET")).status == 503


async def test_who_is_refused_after_an_idle_time_is_told_what_the_pool_can_do() -> None:
    broker = Queue(queue(10, drain_rate=0.05, free_credits=0))
    broker.eta_s = 1.5
    doors = Doors(context(pools=broker, queue_limit=10), jitter=lambda: 0.0)
    assert await retry_after(doors, 1) == 1.5
    assert await retry_after(doors, 2) == 3.0, "later for each"
    broker.views = queue(0)  # nobody waits yet, all the places are promised
    for number in range(10, 20):
        await doors.enter(scope(number), Kind.SPEECH, "tts")
    assert await retry_after(doors, 3) == 4.5


async def test_a_post_is_refused_with_the_time_that_the_pool_can_do() -> None:
    broker = Queue(queue(12, drain_rate=0.05, free_credits=0))
    broker.eta_s = 1.5
    with pytest.raises(QueueFull) as refused:
        ask_gate(context(pools=broker, queue_limit=10), Kind.SPEECH)
    assert refused.value.retry_after_s is not None
    assert 4.5 <= refused.value.retry_after_s <= 6.75


async def retry_after(doors: Doors, number: int) -> float | None:
    with pytest.raises(QueueFull) as refused:
        await doors.enter(scope(number), Kind.SPEECH, "tts")
    return refused.value.retry_after_s


async def test_a_session_that_comes_back_by_name_passes() -> None:
    app = application(context(pools=Queue(queue(10), live=("mine",)), queue_limit=10), stubs())
    for path, headers in (
        ("/tts?session_id=mine", {}),
        ("/tts", {"x-forebay-session": "mine"}),
    ):
        assert (await call(app, path, method="WEBSOCKET", headers=headers)).status == 101
    assert (await call(app, "/tts?session_id=other", method="WEBSOCKET")).status == 503
    assert (
        await call(app, "/chat?session_id=mine", method="WEBSOCKET")
    ).status == 101  # no text queue


async def test_an_accepted_handshake_holds_a_place_until_its_job_has_input() -> None:
    now = [0.0]
    ctx = context(pools=Queue(queue(8)), queue_limit=10, clock=lambda: now[0])
    doors = Doors(ctx, jitter=lambda: 0.5)
    first, second, third = scope(1), scope(2), scope(3)
    await doors.enter(first, Kind.SPEECH, "tts")
    await doors.enter(second, Kind.SPEECH, "tts")
    with pytest.raises(QueueFull):
        await doors.enter(third, Kind.SPEECH, "tts")

    async def receive() -> Any:
        return {"type": "websocket.receive", "text": "start"}

    watched = doors.watch(first, Kind.SPEECH, receive)
    await watched()
    with pytest.raises(QueueFull):  # `start` alone makes no job wait
        await doors.enter(third, Kind.SPEECH, "tts")
    await watched()
    await doors.enter(third, Kind.SPEECH, "tts")
    with pytest.raises(QueueFull):
        await doors.enter(scope(4), Kind.SPEECH, "tts")
    now[0] = 5.1  # a promise is kept for five seconds
    await doors.enter(scope(5), Kind.SPEECH, "tts")


async def test_as_many_strangers_pass_as_sessions_wait_for_theirs() -> None:
    ctx = context(pools=Queue(queue(10, detached=2)), queue_limit=10)
    doors = Doors(ctx)
    for number in range(2):
        await doors.enter(scope(number), Kind.SPEECH, "tts")
    with pytest.raises(QueueFull):
        await doors.enter(scope(3), Kind.SPEECH, "tts")


def test_who_was_promised_a_place_may_wait_a_little_longer() -> None:
    spec = context(pools=Queue(queue(0))).spec
    for kind in Kind:
        queue_s = KINDS[kind].queue_s
        some = {"tenant": "local", "dialect": "any", "pool": f"{kind}/m"}
        assert spec(kind, {}, **some).deadlines.queue_s == queue_s
        assert spec(kind, {}, promised=True, **some).deadlines.queue_s == GRACE * queue_s

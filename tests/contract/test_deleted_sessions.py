"""A recognition session that its owner deletes is gone at once, whichever broker holds it, and
whoever reads it at another gateway still hears how it ended."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from homes import Home

from forebay.core.events import Ended, Heard, Sound
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec
from forebay.errors import NotFound
from forebay.gateway import asr_sessions

POOL = "recognition/test"
SCOPE = {"path_params": {"id": "talk"}, "forebay.tenant": "local"}


class Gateway:
    """The session REST over ``broker``, without a socket."""

    def __init__(self, broker: Any, tasks: list[asyncio.Task[None]]) -> None:
        self.ctx: Any = SimpleNamespace(
            broker=broker,
            hub=SimpleNamespace(
                readers=lambda job: 0, spawn=lambda work: tasks.append(asyncio.create_task(work))
            ),
            clock=time.monotonic,
            scribe=None,
            started_s=0.0,
            started_at=asr_sessions.timedelta(0),
        )

    async def ask(self, handler: Any) -> Any:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await handler(SCOPE, None, send, self.ctx)
        return json.loads(sent[1]["body"])


async def begin(home: Home) -> None:
    hand = await home.worker("w1", pools=[POOL])
    spec = JobSpec(
        id="a", kind=Kind.RECOGNITION, pool=POOL, dialect="asr", name="talk", params={}
    )  # fmt: skip
    await home.broker.submit(spec, [Sound(data=b"\0\0", seq=0)], gateway="g1")
    await home.settle()
    hand.commit("a", Heard(seq=0, text="a secret", samples=1))
    await home.settle()


async def test_nothing_of_a_deleted_session_is_found_and_its_reader_hears_its_end(
    home: Home,
) -> None:
    tasks: list[asyncio.Task[None]] = []
    gateway = Gateway(home.broker, tasks)
    await begin(home)
    reader = await home.broker.attach("a", gateway="g1", write=False)
    await gateway.ask(asr_sessions.delete_session)
    for _ in range(2):
        with pytest.raises(NotFound):
            await gateway.ask(asr_sessions.session)
        with pytest.raises(NotFound):
            await gateway.ask(asr_sessions.delete_session)
    if tasks:  # a store that others share: they are given time to hear it
        events = await home.broker.read_after("a", 0)
        assert isinstance(events[-1], Ended) and events[-1].state == "cancelled"
        await home.broker.delivered("g1", {"a": events[-1].offset})
        await asyncio.gather(*tasks)
    told = [e for push in home.pushes for e in getattr(push, "events", ()) or ()]
    assert any(isinstance(event, Ended) for event in told)
    assert await home.broker.find("local", "asr", "talk") is None
    with pytest.raises(NotFound):
        await home.broker.status("a")
    await home.broker.detach(reader)


async def test_a_deleted_session_is_forgotten_where_nobody_hears_it(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asr_sessions, "ELSEWHERE_S", 0.1)
    tasks: list[asyncio.Task[None]] = []
    await begin(home)
    await Gateway(home.broker, tasks).ask(asr_sessions.delete_session)
    await asyncio.gather(*tasks)
    assert await home.broker.find("local", "asr", "talk") is None

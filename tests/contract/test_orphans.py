"""Pipes whose gateway has died, on a store that several gateways share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from homes import TEXT, text_spec
from redis_homes import RedisHome, ValkeyHome

from forebay.core.events import Prompt
from forebay.core.spec import PipeSpec

PIPE = PipeSpec(id="p", source="t", target="s", map="speak")


@pytest.fixture(params=[RedisHome, ValkeyHome])
async def home(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A gateway `gone` carried a pipe, and is not any more."""
    made = request.param()
    await made.start()
    await made.worker("w1", pools=[TEXT, "speech/tone"], sessions=9)
    await made.broker.submit(text_spec("t", detach_s=60.0), [Prompt(messages=[])], gateway="g1")
    await made.speech("s", detach_s=60.0)
    await made.broker.pipe(PIPE, gateway="gone")
    await made.real._store.call("leave", {"gateway": "gone"})
    await made.advance(0.2)
    yield made
    await made.close()


async def names(home: Any, gateway: str) -> list[str]:
    return [pipe.id for pipe in await home.broker.pipes(gateway)]


async def test_an_orphan_is_offered_to_one_gateway_until_it_is_taken(home: Any) -> None:
    assert await names(home, "g1") == ["p"]
    assert await names(home, "g2") == []
    assert await names(home, "g1") == ["p"]  # as if the first answer had been lost
    await home.broker.pipe(PIPE, gateway="g1")
    assert await names(home, "g1") == []
    await home.advance(3)
    assert await names(home, "g2") == []


async def test_an_orphan_that_was_not_taken_is_offered_to_another(home: Any) -> None:
    assert await names(home, "g1") == ["p"]
    await home.advance(3)
    assert await names(home, "g2") == ["p"]
    assert await names(home, "g1") == []


async def test_an_orphan_whose_source_is_gone_is_nobodys(home: Any) -> None:
    await home.broker.cancel("t")
    await home.settle()
    await home.broker.forget("t")
    assert await names(home, "g1") == []

"""Several model servers behind one engine, and answers that were given before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from engine_helpers import ask, run, said, usage
from tests.fakes.sglang import FakeSGLang

from forebay.core import upstreams
from forebay.core.events import OutputEvent
from forebay.engines import Resume, create
from forebay.engines.openai import OpenAIText
from forebay.errors import CannotBoot, ConfigError, ForebayError, UpstreamFailed

FAST = {
    "connect_timeout_s": 20, "connect_retries": 0, "first_token_timeout_s": 2.0,
    "stall_timeout_s": 1.5,
}  # fmt: skip


@asynccontextmanager
async def engine(base_url: str, **options: Any) -> AsyncIterator[OpenAIText]:
    made = create("text", "openai", {"base_url": base_url, **FAST, **options})
    assert isinstance(made, OpenAIText)
    await made.load(lambda stage: None)
    try:
        yield made
    finally:
        await made.unload()


@pytest.fixture
async def pair() -> AsyncIterator[tuple[FakeSGLang, FakeSGLang]]:
    async with FakeSGLang() as one, FakeSGLang(model="small") as two:
        yield one, two


async def failed(made: OpenAIText) -> tuple[ForebayError, list[OutputEvent]]:
    session = await made.open({}, Resume())
    events: list[OutputEvent] = []
    with pytest.raises(ForebayError) as caught:
        async for event in made.step(session, ask("hello")):
            events.append(event)
    return caught.value, events


async def test_traffic_is_shared_by_weight_and_each_server_has_its_own_model(
    pair: tuple[FakeSGLang, FakeSGLang],
) -> None:
    one, two = pair
    async with engine(f"{one.url}*3,small@{two.url}*1") as made:
        for _ in range(8):
            await run(made, ask("hello"))
        assert (len(one.bodies), len(two.bodies)) == (6, 2)
        assert two.bodies[0]["model"] == "small"
        assert made.counts == {"upstream_1": 6, "upstream_2": 2}


@pytest.mark.parametrize(
    "mode", ["empty_reply", "rate_limited", "unavailable", "html", "stall_first", "cut_first", "hang"]
)  # fmt: skip
async def test_what_fails_before_the_first_token_is_asked_of_the_next_server(
    pair: tuple[FakeSGLang, FakeSGLang], mode: str
) -> None:
    one, two = pair
    async with engine(f"{one.url},small@{two.url}*0") as made:
        one.mode = mode
        assert said(await run(made, ask("hello"))) == "".join(two.words())
        assert made.counts["failovers"] == 1
        assert one.calls == 1


@pytest.mark.parametrize("mode", ["cut", "stall_mid", "reset", "out_of_memory_mid"])
async def test_after_the_first_token_nothing_is_asked_again(
    pair: tuple[FakeSGLang, FakeSGLang], mode: str
) -> None:
    one, two = pair
    async with engine(f"{one.url},small@{two.url}*0") as made:
        one.mode = mode
        error, events = await failed(made)
    assert isinstance(error, UpstreamFailed)
    assert said(events)
    assert two.calls == 0


async def test_a_server_that_is_gone_is_passed_over_until_it_is_back(
    pair: tuple[FakeSGLang, FakeSGLang], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstreams, "FIRST_PAUSE_S", 3600.0)  # it passes when we say so
    one, two = pair
    async with engine(f"{one.url},small@{two.url}*0") as made:
        one.mode = "unavailable"
        for _ in range(5):
            await run(made, ask("hello"))
        assert (one.calls, two.calls) == (3, 5)
        one.mode = "normal"
        made._pool._balancer.breakers[0]._closed_until = 0.0
        await run(made, ask("hello"))
        assert (one.calls, two.calls) == (4, 5)


async def test_with_every_server_failing_the_last_ones_error_is_told(
    pair: tuple[FakeSGLang, FakeSGLang],
) -> None:
    one, two = pair
    async with engine(f"{one.url},small@{two.url}") as made:
        one.mode = two.mode = "unavailable"
        error, events = await failed(made)
        assert isinstance(error, UpstreamFailed)
        assert not events


async def test_one_ready_server_is_enough_to_start() -> None:
    async with FakeSGLang() as one:
        made = create("text", "openai", {"base_url": f"http://127.0.0.1:9,{one.url}", **FAST})
        info = await made.load(lambda stage: None)
        assert "refused the connection" in info.facts["warning"]
        assert [u["weight"] for u in info.facts["upstreams"]] == [1.0, 1.0]
        assert said(await run(made, ask("hello")))
        await made.unload()
    none = create("text", "openai", {"base_url": "http://127.0.0.1:9,http://127.0.0.1:9", **FAST})
    with pytest.raises(CannotBoot):
        await none.load(lambda stage: None)
    with pytest.raises(ConfigError, match="weight"):
        create("text", "openai", {"base_url": "http://127.0.0.1:9*x"})


async def test_the_same_request_is_answered_from_memory_where_that_is_wanted() -> None:
    async with FakeSGLang() as fake:
        async with engine(fake.url, cache_s=30) as made:
            first = await run(made, ask("hello"), {"operation": {"type": "x"}})
            again = await run(made, ask("hello"), {"operation": {"type": "y"}})
            assert said(first) == said(again)
            assert usage(first) == usage(again)
            assert fake.calls == 1
            await run(made, ask("hello"), {"temperature": 0.5})
            await run(made, ask("other"))
            assert fake.calls == 3
            fake.mode = "cut"
            session = await made.open({}, Resume())
            with pytest.raises(ForebayError):
                async for _ in made.step(session, ask("broken")):
                    pass
            fake.mode = "normal"
            await run(made, ask("broken"))
            assert fake.calls == 5
            assert made.counts["cache_hits"] == 1
        async with engine(fake.url) as made:
            await run(made, ask("hello"))
            await run(made, ask("hello"))
            assert fake.calls == 7
            assert "cache_hits" not in made.counts

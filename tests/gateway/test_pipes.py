"""Pipes: what a text job says reaches the speech job once, in order, whoever carries it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "dialects"))
from voice_world import World, run, world

from forebay.core.events import Audio, Prompt, TextDelta
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec, PipeSpec
from forebay.errors import StoreDown
from forebay.gateway.pipes import Carrier, adopt, carry

FAST = {"rtf": 0.0, "unit_ms": 40}


def spec(kind: Kind, name: str, params: dict[str, Any] | None = None) -> JobSpec:
    return JobSpec(
        id=name, kind=kind, pool=f"{kind}/synthetic", params=params or {}, detach_s=100.0
    )


async def pair(w: World) -> PipeSpec:
    """A text job and a speech job, both watched by this gateway."""
    voice = {"sample_rate": 16000, "channels": 1}
    await w.broker.submit(
        spec(Kind.TEXT, "a"),
        [Prompt(messages=[{"role": "user", "content": "Hello"}])],
        gateway="g1",
    )
    await w.broker.submit(spec(Kind.SPEECH, "b", voice), gateway="g1")
    return PipeSpec(id="p", source="a", target="b", map="speak")


async def said(w: World) -> str:
    events = await w.broker.read_after("a", 0)
    return "".join(e.text for e in events if isinstance(e, TextDelta))


async def spoken(w: World) -> str:
    events = await w.broker.read_after("b", 0)
    text = ""
    for event in events:
        if isinstance(event, Audio):
            assert event.unit == len(text)
            text += event.text
    return text


async def deliver_all(w: World) -> None:
    """Stand in for a listener of the speech job, so that its lead never holds it."""
    for _ in range(200):
        await asyncio.sleep(0.1)
        head = (await w.broker.status("b")).head
        await w.broker.delivered("g1", {"b": head})


def test_all_that_is_written_is_spoken() -> None:
    async def body() -> None:
        async with world(speech=FAST, text={"tokens": 30, "token_ms": 20.0}) as w:
            await carry(w.hub, await pair(w))
            await deliver_all(w)
            assert (await w.broker.status("b")).state == "completed"
            assert await spoken(w) == await said(w) != ""

    run(body())


def test_another_carrier_goes_on_without_loss_or_repeat() -> None:
    async def body() -> None:
        async with world(speech=FAST, text={"tokens": 60, "token_ms": 20.0}) as w:
            pipe = await pair(w)
            carrier: Carrier = await carry(w.hub, pipe)
            for _ in range(5):
                await asyncio.sleep(0.2)
                carrier.close()
                carrier = await carry(w.hub, pipe)
            await deliver_all(w)
            assert (await w.broker.status("b")).state == "completed"
            assert await spoken(w) == await said(w)

    run(body())


def test_an_orphan_is_adopted_once() -> None:
    async def body() -> None:
        async with world(speech=FAST, text={"tokens": 20, "token_ms": 20.0}) as w:
            pipe = await pair(w)
            await w.broker.pipe(pipe)
            w.broker._core.pipes["p"].carried = False
            assert len(await adopt(w.hub)) == 1
            assert await adopt(w.hub) == []
            await deliver_all(w)
            assert await spoken(w) == await said(w)

    run(body())


def away(real: Any, times: int) -> Any:
    """``real``, a call of the broker, while the store does not answer the first ``times``."""
    left = times

    async def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if left:
            left -= 1
            raise StoreDown("no answer within 0.9 s")
        return await real(*args, **kwargs)

    return call


@pytest.mark.parametrize("broken", ["pipe", "status"])
def test_an_orphan_that_could_not_be_carried_while_the_store_was_away_is_carried_later(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with world(speech=FAST, text={"tokens": 20, "token_ms": 20.0}) as w:
            pipe = await pair(w)
            await w.broker.pipe(pipe)
            w.broker._core.pipes["p"].carried = False
            left: dict[str, PipeSpec] = {}
            with monkeypatch.context() as patch:
                patch.setattr(w.broker, broken, away(getattr(w.broker, broken), 1))
                assert await adopt(w.hub, left) == []
                assert list(left) == ["p"]
                assert len(await adopt(w.hub, left)) == 1
            assert left == {}
            await deliver_all(w)
            assert await spoken(w) == await said(w) != ""

    run(body())


def test_a_pipe_whose_target_is_gone_is_let_go_of() -> None:
    async def body() -> None:
        async with world(speech=FAST, text={"tokens": 20, "token_ms": 20.0}) as w:
            pipe = await pair(w)
            await w.broker.pipe(pipe)
            w.broker._core.pipes["p"].carried = False
            w.broker._core.forget(w.broker._core.entries["b"])
            w.broker._core.pipes["p"] = w.broker._core.entries["a"].feeds[0]
            left: dict[str, PipeSpec] = {}
            assert await adopt(w.hub, left) == []
            assert left == {}

    run(body())


def test_a_store_that_is_away_in_the_middle_of_a_pipe_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body() -> None:
        async with world(speech=FAST, text={"tokens": 60, "token_ms": 20.0}) as w:
            for name in ("append_from_pipe", "input_room"):
                monkeypatch.setattr(w.broker, name, away(getattr(w.broker, name), 2))
            await carry(w.hub, await pair(w))
            await deliver_all(w)
            assert (await w.broker.status("b")).state == "completed"
            assert await spoken(w) == await said(w) != ""

    run(body())


def test_the_end_of_a_source_is_told_though_the_store_was_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body() -> None:
        async with world(speech=FAST, text={"tokens": 60, "token_ms": 20.0}) as w:
            await carry(w.hub, await pair(w))
            cancel = w.broker.cancel
            await asyncio.sleep(0.3)
            monkeypatch.setattr(w.broker, "cancel", away(cancel, 2))
            await cancel("a")
            await asyncio.sleep(2.0)
            assert (await w.broker.status("b")).state == "cancelled"

    run(body())


@pytest.mark.parametrize(("end", "state"), [("cancel", "cancelled"), ("fail", "failed")])
def test_how_the_source_ends_follows_the_pipe(end: str, state: str) -> None:
    async def body() -> None:
        text = {"tokens": 60, "token_ms": 20.0, "fail": 1.0 if end == "fail" else 0.0, "seed": 7}
        async with world(speech=FAST, text=text) as w:
            await carry(w.hub, await pair(w))
            await asyncio.sleep(0.3)
            if end == "cancel":
                await w.broker.cancel("a")
            await deliver_all(w)
            assert (await w.broker.status("a")).state == state
            assert (await w.broker.status("b")).state == state

    run(body())


def test_cancel_of_the_target_cancels_the_source_and_its_failure_does_not() -> None:
    async def body() -> None:
        async with world(speech=FAST, text={"tokens": 60, "token_ms": 20.0}) as w:
            await carry(w.hub, await pair(w))
            await asyncio.sleep(0.2)
            await w.broker.cancel("b")
            assert (await w.broker.status("a")).state == "cancelled"
        async with world(speech={**FAST, "fail": 1.0}, text={"tokens": 60, "token_ms": 20.0}) as w:
            await carry(w.hub, await pair(w))
            await asyncio.sleep(3)
            assert (await w.broker.status("b")).state == "failed"
            assert (await w.broker.status("a")).state == "completed"

    run(body())


def test_a_full_target_holds_the_source_back_and_loses_nothing() -> None:
    async def body() -> None:
        speech = {"rtf": 1.0, "unit_ms": 1, "slots": 1}
        async with world(speech=speech, text={"tokens": 10_000, "rtf": 0.0}) as w:
            await carry(w.hub, await pair(w))
            await asyncio.sleep(2)
            row = w.ctx.rows[Kind.SPEECH]
            view = await w.broker.status("b")
            assert view.units < row.input_bytes
            for _ in range(2000):
                await asyncio.sleep(0.5)
                view = await w.broker.status("b")
                await w.broker.delivered("g1", {"b": view.head})
                if view.state not in ("queued", "running"):
                    break
            assert (view.state, view.message) == ("completed", "")
            assert view.units == (await w.broker.status("a")).marks["chars"]

    run(body())

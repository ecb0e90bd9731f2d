"""Engines that fail, jobs that must run alone, and workers that are told to go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs
from worker_bench import ScriptEngine, passes, running, speech, text

from forebay.broker import Drain
from forebay.core.events import Audio, End, Prompt, TextDelta
from forebay.core.kinds import Kind
from forebay.errors import PromptTooLong
from virtual import virtual

SECRET = "my secret words."


async def raises_value(session: Any, items: Sequence[Any]) -> AsyncIterator[Any]:
    yield speech(items[0], 0, 3)
    raise ValueError(items[0].text)


@virtual
async def test_an_engine_exception_fails_that_job_only_and_logs_no_content() -> None:
    async def script(session: Any, items: Sequence[Any]) -> AsyncIterator[Any]:
        source = raises_value(session, items) if session == "bad" else good(session, items)
        async for event in source:
            yield event

    async def good(session: Any, items: Sequence[Any]) -> AsyncIterator[Any]:
        await asyncio.sleep(1)
        yield speech(items[0])

    with capture_logs() as logs:
        async with running(ScriptEngine(script=script), slots=2) as (broker, _):
            broker.assign("good", input=[text("Hello."), End(offset=2)])
            broker.assign("bad", params={"who": "bad"}, input=[text(SECRET)])
            await passes(3)
    ended = broker.ended("bad")
    assert (ended.state, ended.code, ended.retryable) == ("failed", "engine_failed", False)
    assert "ValueError" in ended.message and "secret" not in ended.message
    assert broker.ended("good").state == "completed"
    assert any(entry["event"] == "job.failed" for entry in logs)
    assert "secret" not in repr(logs)


@virtual
async def test_an_error_of_our_own_tree_keeps_its_code_and_details() -> None:
    async def script(session: Any, items: Sequence[Any]) -> AsyncIterator[Any]:
        raise PromptTooLong("prompt of 9 tokens, expected at most 4", tokens=9, limit=4)
        yield

    async with running(ScriptEngine(Kind.TEXT, script=script)) as (broker, _):
        prompt = Prompt(messages=[], offset=1)
        broker.assign("j", kind=Kind.TEXT, params={}, input=[prompt])
        await passes(1)
    ended = broker.ended("j")
    assert (ended.code, ended.details) == ("prompt_too_long", {"tokens": 9, "limit": 4})


def wrong_type(segment: Any) -> list[Any]:
    return [TextDelta(text=segment.text)]


def units_left_out(segment: Any) -> list[Any]:
    return [speech(segment, 0, 3)]


def other_text(segment: Any) -> list[Any]:
    return [msgspec.structs.replace(speech(segment), text="x" * len(segment.text))]


def too_many_units(segment: Any) -> list[Any]:
    return [speech(segment), speech(segment)]


def half_a_frame(segment: Any) -> list[Any]:
    return [msgspec.structs.replace(speech(segment), data=b"\0")]


def cancels_itself(segment: Any) -> list[Any]:
    raise asyncio.CancelledError


def no_units(segment: Any) -> list[Any]:
    return [Audio(data=b"\0\0", text="", unit=segment.unit, frames=1)]


def one_unit_for_a_minute(segment: Any) -> list[Any]:
    data = bytes(2 * 16_000 * 60)
    return [Audio(data=data, text=segment.text[:1], unit=segment.unit, frames=16_000 * 60)]


@pytest.mark.parametrize(
    "poison",
    [
        wrong_type,
        units_left_out,
        other_text,
        too_many_units,
        half_a_frame,
        cancels_itself,
        no_units,
        one_unit_for_a_minute,
    ],
)
@virtual
async def test_output_that_is_wrong_fails_the_job_by_name(poison: Any) -> None:
    async def script(session: Any, items: Sequence[Any]) -> AsyncIterator[Any]:
        for event in poison(items[0]):
            yield event

    async with running(ScriptEngine(script=script)) as (broker, _):
        broker.assign("j", input=[text("Hello."), End(offset=2)])
        await passes(1)
    assert broker.ended("j").code == "engine_failed"
    assert "Hello.".startswith(broker.spoken("j"))


@virtual
async def test_parameters_that_make_no_session_fail_the_job_and_hang_nobody() -> None:
    async with running(ScriptEngine()) as (broker, _):
        broker.assign("j", params={"sample_rate": "loud"}, input=[text("Hello.")])
        broker.assign("k", params={"format": "midi"}, input=[text("Hello.")])
        await passes(1)
    assert broker.ended("j").state == "failed"
    assert broker.ended("k").code == "unsupported"


@virtual
async def test_input_with_a_hole_fails_the_job() -> None:
    async with running(ScriptEngine()) as (broker, _):
        broker.assign("j", input=[text("Hello ")])
        broker.feed("j", text("there.", offset=3, unit=9))
        await passes(1)
    assert broker.ended("j").code == "protocol_error"


@virtual
async def test_input_that_comes_twice_is_heard_once() -> None:
    async with running(ScriptEngine()) as (broker, _):
        broker.assign("j", input=[text("Hello ")])
        broker.feed("j", text("Hello "), text("there.", offset=2, unit=6), End(offset=3))
        await passes(1)
    assert broker.spoken("j") == "Hello there."


@virtual
async def test_an_exclusive_lease_steps_alone_and_the_others_wait() -> None:
    together: list[int] = []

    async def script(session: Any, items: Sequence[Any]) -> AsyncIterator[Any]:
        if session == "alone":
            together.append(engine.inside)
        await asyncio.sleep(1)
        if session == "alone":
            together.append(engine.inside)
        yield speech(items[0])

    engine = ScriptEngine(script=script)
    async with running(engine, slots=3) as (broker, _):
        items = [text("Hello."), End(offset=2)]
        broker.assign("a", input=items)
        await passes(0.5)
        broker.assign("x", exclusive=True, params={"who": "alone"}, input=items)
        broker.assign("b", tenant="b", input=items)
        broker.assign("c", tenant="c", input=items)
        await passes(10)
    assert together == [1, 1]
    assert all(broker.ended(j).state == "completed" for j in "axbc")


@virtual
async def test_drain_hands_idle_sessions_back_at_once_and_busy_ones_after_their_step() -> None:
    engine = ScriptEngine(step_s=2.0)
    async with running(engine) as (broker, runner):
        broker.assign("idle", input=[text("Hi. ")])
        await passes(3)
        broker.assign("busy", input=[text("One. Two. "), End(offset=2)])
        await passes(0.5)
        runner.drain(10.0)
        assert broker.registered[-1].sessions == 0
        await passes(0.1)
        assert broker.parked == [("idle", 1)]
        await passes(3)
    assert broker.parked == [("idle", 1), ("busy", 1)]
    assert broker.spoken("busy") == "One. "
    assert broker.ended("busy") is None


@virtual
async def test_drain_lets_a_text_job_finish_and_stops_it_at_the_limit() -> None:
    prompt = Prompt(messages=[], offset=1)
    for limit_s, finished in ((10.0, True), (1.5, False)):
        engine = ScriptEngine(Kind.TEXT, step_s=1.0)
        async with running(engine) as (broker, runner):
            broker.assign("j", kind=Kind.TEXT, params={}, input=[prompt])
            await passes(0.5)
            broker.push(Drain(limit_s=limit_s))
            await passes(5)
        assert (broker.ended("j") is not None) is finished
        assert (broker.parked == [("j", 1)]) is not finished


@virtual
async def test_a_draining_worker_gives_a_new_lease_straight_back() -> None:
    async with running(ScriptEngine(step_s=5.0)) as (broker, runner):
        broker.assign("j", input=[text("Hi. ")])
        await passes(0.1)
        runner.drain(10.0)
        broker.assign("k", input=[text("Hi. ")])
        assert broker.parked == [("k", 1)]


@virtual
async def test_a_failing_close_of_a_session_harms_nobody() -> None:
    class Bad(ScriptEngine):
        async def close(self, session: Any) -> None:
            raise RuntimeError("no")

    async with running(Bad()) as (broker, _):
        broker.assign("j", input=[text("Hello."), End(offset=2)])
        await passes(1)
        broker.assign("k", input=[text("Hello."), End(offset=2)])
        await passes(1)
    assert broker.ended("k").state == "completed"

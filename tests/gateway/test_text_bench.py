"""The load tool for streamed text against a real gateway, and two models side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from http_helpers import Stand, stand
from tests.fakes.sglang import FakeSGLang

from forebay.core.events import OutputEvent, TextDelta, Usage
from forebay.core.spec import Lease
from forebay.errors import ConfigError, EngineFailed
from forebay.lab import compare, text
from forebay.lab.text_user import Answer


@pytest.fixture
async def gateway() -> AsyncIterator[Stand]:
    async def words(lease: Lease) -> AsyncIterator[OutputEvent]:
        for number in range(12):
            yield TextDelta(text=f"w{number} ")
            await asyncio.sleep(0.005)
        yield Usage(prompt_tokens=1, completion_tokens=12)

    async with stand() as made:
        made.text.script = words
        yield made


async def test_a_mixed_run_finds_nothing_lost_and_tells_who_left(gateway: Stand) -> None:
    for duration_s in (1.0, 5.0, 25.0):  # as long as it takes this machine to ask enough
        options = text.Options(
            url=gateway.url, scenario="mixed", concurrency=10, duration_s=duration_s
        )
        found = await text.run(options, lambda outcomes, at: None)
        assert found.failed == []
        figures = found.figures
        if figures["answers"] > 10 and figures["resumed"] and figures["left"]:
            break
    assert figures["resumed"] > 0
    assert figures["left"] > 0
    assert figures["answers"] > 10
    assert figures["mismatched"] == 0
    assert figures["first_line"]["count"] >= figures["answers"]
    assert "reading" in text.live_line([], 1.0)


async def test_chat_is_measured_likewise(gateway: Stand) -> None:
    options = text.Options(url=gateway.url, surface="chat", concurrency=2, duration_s=0.3)
    found = await text.run(options)
    assert (found.failed, found.figures["left"]) == ([], 0)
    for duration_s in (0.3, 3.0, 15.0):
        leaving = text.Options(
            url=gateway.url, surface="chat", scenario="mixed", concurrency=10, duration_s=duration_s
        )
        if left := (await text.run(leaving)).figures["left"]:
            break
    assert left > 0


async def test_failures_fail_the_run(gateway: Stand) -> None:
    async def broken(lease: Lease) -> AsyncIterator[OutputEvent]:
        yield TextDelta(text="so")
        raise EngineFailed("broken")

    gateway.text.script = broken
    for surface in text.SURFACES:
        options = text.Options(url=gateway.url, surface=surface, concurrency=1, duration_s=0.1)
        found = await text.run(options)
        assert any("expected 0" in line for line in found.failed)


def test_odd_options_are_refused() -> None:
    for facts in ({"scenario": "x"}, {"surface": "x"}, {"concurrency": 0}):
        with pytest.raises(ConfigError):
            text.Options(**facts).check()  # type: ignore[arg-type]


async def test_two_models_are_compared_by_what_they_say(
    gateway: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    async with FakeSGLang() as fake:
        options = compare.Options(
            one="tiny", two=f"{fake.model}@{fake.url}", url=gateway.url, prompts=("a", "b")
        )
        one, two = await compare.compare(options)
        assert one.answers[0].text.startswith("w0 w1")
        assert two.answers[1].text.startswith("t1 t2")
        assert (one.figures()["tokens"], two.figures()["tokens"]) == (24, 40)
        assert one.error == two.error == ""
        wrong = compare.Options(one="tiny", two="nobody", url=gateway.url, prompts=("a",))
        assert "404" in (await compare.compare(wrong))[1].error
        status = await asyncio.to_thread(compare.main, options)
        assert status == 0
        assert "tokens per s" in capsys.readouterr().out
        assert await asyncio.to_thread(compare.main, wrong, as_json=True) == 1
    with pytest.raises(ConfigError):
        await compare.compare(compare.Options(one="http://a http://b", two="x"))


def test_a_loop_shows_in_the_figures() -> None:
    loop = Answer(text="on and on it goes and goes " * 30, first_s=0.1, took_s=1.1, tokens=50)
    figures = compare.Side("x", [loop]).figures()
    assert (figures["repeating"], figures["tokens_per_s"]) == (1, 50.0)
    assert compare.Side("x", []).figures()["repeat_rate"] == 0

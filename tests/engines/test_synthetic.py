"""The synthetic engines: deterministic, honest about being synthetic, and able to fail."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from engine_helpers import ask, load, run, said, say, spoken, usage
from tests.virtual import virtual

from forebay.core.events import Audio
from forebay.engines import Resume, create
from forebay.errors import ConfigError, EngineFailed, PromptTooLong

FAST = {"rtf": 0, "latency_ms": 0}


async def speech(**options: object):
    return (await load(create("speech", "synthetic", {**FAST, **options}))).engine


async def text(**options: object):
    return (await load(create("text", "synthetic", {**FAST, **options}))).engine


async def test_every_unit_gets_its_tone_and_all_units_are_covered_once():
    engine = await speech()
    words = "hello there, this is more than one second of audio"
    pcm = np.frombuffer(spoken(await run(engine, say(words, unit=7)), words, unit=7), "<i2")
    assert len(pcm) == len(words) * 640  # 40 ms at 16 kHz
    peak_hz = np.argmax(np.abs(np.fft.rfft(pcm.astype(float)))) * 16_000 / len(pcm)
    assert abs(peak_hz - 440) < 2


async def test_the_sound_does_not_depend_on_where_the_text_was_cut():
    engine = await speech(unit_ms=37.3)
    whole = spoken(await run(engine, say("abcdefghij")), "abcdefghij")
    left = spoken(await run(engine, say("abc")), "abc")
    right = spoken(await run(engine, say("defghij", unit=3)), "defghij", unit=3)
    assert left + right == whole


async def test_a_piece_is_never_longer_than_asked():
    events = await run(await speech(piece_ms=200), say("x" * 23, seq=4))
    assert [len(e.text) for e in events if isinstance(e, Audio)] == [5, 5, 5, 5, 3]
    assert {e.seq for e in events if isinstance(e, Audio)} == {4}


async def test_with_no_latency_and_rtf_zero_nothing_ever_waits():
    for engine, items in (
        (await speech(), say("x" * 200)),
        (await text(), ask("a b c")),
    ):
        stepping = engine.step(await engine.open({}, Resume()), items)
        while True:
            try:
                stepping.__anext__().send(None)  # raises StopIteration unless it awaits
            except StopIteration:
                continue
            except StopAsyncIteration:
                break
            raise AssertionError("the engine awaited something")


@virtual
async def test_a_step_takes_latency_and_rtf_times_the_audio():
    engine = await speech(rtf=0.1, latency_ms=20)
    start = asyncio.get_running_loop().time()
    await run(engine, say("x" * 25))  # one second of audio
    took = asyncio.get_running_loop().time() - start
    assert took == pytest.approx(0.12)


async def test_the_same_seed_fails_at_the_same_steps():
    async def failures() -> list[int]:
        engine, failed = await speech(fail="0.3", seed="5"), []
        for step in range(40):
            try:
                await run(engine, say("abc"))
            except EngineFailed:
                failed.append(step)
        return failed

    first = await failures()
    assert 3 < len(first) < 25
    assert await failures() == first


def test_a_crash_kills_the_process_like_a_broken_driver_would():
    script = """
        import asyncio
        from forebay.core.events import Text
        from forebay.engines import Resume, create
        async def main():
            engine = create("speech", "synthetic", {"crash": 1, "rtf": 0})
            await engine.load(lambda stage: None)
            async for _ in engine.step(None, [Text(text="abc", unit=0)]):
                pass
        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=30)
    assert done.returncode == -9


async def test_both_say_that_they_are_synthetic():
    for kind in ("speech", "text"):
        loaded = await load(create(kind, "synthetic", {}))
        assert loaded.info.synthetic
        assert loaded.info.model == "synthetic"
        assert loaded.stages[-1].stage == "ready"


async def test_an_answer_is_the_prompts_words_with_running_numbers():
    events = await run(await text(tokens=5), ask("say hello", system="be brief"))
    assert said(events) == "say1 hello2 say3 hello4 say5"
    found = usage(events)
    assert (found.prompt_tokens, found.completion_tokens, found.finish) == (4, 5, "stop")


async def test_an_answer_continues_exactly_after_any_prefix():
    engine = await text(tokens=12)
    whole = said(await run(engine, ask("one two three")))
    for cut in range(len(whole) + 1):
        rest = await run(engine, ask("one two three"), resume=Resume(attempt=2, text=whole[:cut]))
        assert whole[:cut] + said(rest) == whole
        assert usage(rest).completion_tokens == 12


async def test_a_foreign_prefix_is_refused_by_name():
    with pytest.raises(EngineFailed, match="prefix differs after character 4"):
        await run(await text(), ask("one two"), resume=Resume(text="one1 2owt"))


async def test_max_tokens_cuts_and_says_length():
    events = await run(await text(tokens=9), ask("a"), {"max_tokens": 3})
    assert said(events) == "a1 a2 a3"
    assert usage(events).finish == "length"


async def test_a_stop_string_ends_the_answer_before_it_even_across_a_seam():
    engine, params = await text(tokens=9), {"stop": ["a3"]}
    assert said(await run(engine, ask("a"), params)) == "a1 a2 "
    rest = await run(engine, ask("a"), params, Resume(text="a1 a"))
    assert said(rest) == "2 "
    assert usage(rest).finish == "stop"


async def test_a_prompt_over_the_context_is_refused_with_its_length():
    with pytest.raises(PromptTooLong) as caught:
        await run(await text(context=3), ask("one two three four"))
    assert caught.value.details == {"tokens": 4, "limit": 3}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rtff": 1}, "no option 'rtff', expected one of crash, fail"),
        ({"rtf": "fast"}, "option 'rtf' of engine 'synthetic' is 'fast', expected a number"),
        ({"slots": "2.5"}, "a whole number from 1 to 10000"),
        ({"slots": 0}, "a whole number from 1 to 10000"),
        ({"fail": "1.5"}, "a number from 0 to 1"),
        ({"rate": "nan"}, "'nan'"),
        ({"rtf": "nan"}, "'nan'"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_allowed(options: dict[str, object], words: str):
    with pytest.raises(ConfigError) as caught:
        create("speech", "synthetic", options)
    assert words in str(caught.value)


def test_options_from_the_command_line_arrive_as_text():
    create("speech", "synthetic", {"rtf": "0.1", "slots": "4", "seed": "", "jitter": ".5"})

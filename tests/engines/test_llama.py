"""The local language model, on the real library and the real SmolLM2 where they are present."""

from __future__ import annotations

import asyncio
import http.client
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from engine_helpers import Loaded, ask, load, need, run, said, usage

from forebay.core.events import Notice, Prompt, TextDelta
from forebay.engines import Resume, create, weights
from forebay.errors import BadRequest, CannotBoot, ConfigError, PromptTooLong, Unsupported

MODELS = weights.default_dir(os.environ)
GREEDY = {"temperature": 0, "max_tokens": 40}
TIDES = ask("Explain in a few sentences how tides work.")


def make(**options: object):
    return create("text", "llama", {"models_dir": str(MODELS), "threads": 1, **options})


@pytest.fixture(scope="module")
def llama():
    need("smollm2", MODELS, "xllamacpp")
    loaded = asyncio.run(load(make(context=512)))
    yield loaded
    asyncio.run(loaded.engine.unload())


async def test_it_answers_token_by_token_with_usage_last(llama: Loaded):
    events = await run(llama.engine, TIDES, GREEDY)
    deltas = [e for e in events if isinstance(e, TextDelta)]
    assert len(deltas) > 10
    assert "tide" in said(events).lower()
    found = usage(events)
    assert found.prompt_tokens > 20
    assert found.completion_tokens == 40 == sum(d.count for d in deltas)
    assert found.finish == "length"


async def test_loading_reports_each_stage_with_memory_and_what_the_model_is(llama: Loaded):
    stages = [s.stage for s in llama.stages]
    assert stages == ["locate", "weights", "weights", "allocate", "warm_up", "ready"]
    assert all(s.memory_mb > 1 for s in llama.stages)
    assert llama.info.model == "smollm2"
    assert llama.info.capabilities == {"abortable", "batch", "prefix"}
    assert llama.info.facts["context"] == 512
    assert llama.info.facts["languages"] == ["en"]
    assert not llama.info.synthetic


async def test_an_answer_is_continued_at_the_very_character_where_it_stopped(llama: Loaded):
    first = await run(llama.engine, TIDES, GREEDY)
    pieces = [e.text for e in first if isinstance(e, TextDelta)]
    whole, same = "".join(pieces), 0
    for cut in (4, 13, 25, 36):
        prefix = "".join(pieces[:cut])
        rest = await run(llama.engine, TIDES, GREEDY, Resume(attempt=2, text=prefix, tokens=cut))
        joined = prefix + said(rest)
        assert not said(rest).startswith(prefix)
        assert "  " not in joined
        assert usage(rest).prompt_tokens == usage(first).prompt_tokens
        assert usage(rest).completion_tokens == 40
        # Reading a prompt in batches rounds otherwise than writing token by token, so a near
        # tie may fall the other way later; the first words after the seam do not.
        assert joined[: len(prefix) + 6] == whole[: len(prefix) + 6]
        same += joined == whole
    assert same >= 2


async def test_a_whole_answer_needs_no_continuation(llama: Loaded):
    rest = await run(llama.engine, TIDES, GREEDY, Resume(attempt=2, text="word " * 40, tokens=40))
    assert said(rest) == ""
    assert usage(rest).finish == "length"


async def test_control_words_in_committed_text_stay_text(llama: Loaded):
    rest = await run(
        llama.engine, TIDES, GREEDY, Resume(attempt=2, text="The mark <|im_end|> is", tokens=9)
    )
    assert said(rest) != ""


async def test_a_prompt_over_the_context_is_refused_before_any_work(llama: Loaded):
    with pytest.raises(PromptTooLong) as caught:
        await run(llama.engine, ask("tide " * 600), GREEDY)
    assert caught.value.details["limit"] == 512
    assert caught.value.details["tokens"] > 600


async def test_a_stop_string_and_seed_are_honoured(llama: Loaded):
    params = {**GREEDY, "stop": ["moon"], "seed": 7, "top_k": -1, "repetition_penalty": 1.1}
    events = await run(llama.engine, ask("Say: the sun, the moon, the stars."), params)
    assert "moon" not in said(events)


async def test_a_bad_parameter_and_an_empty_prompt_are_the_clients_errors(llama: Loaded):
    with pytest.raises(BadRequest):
        await run(llama.engine, TIDES, {"temperature": "warm"})
    with pytest.raises(BadRequest, match="at least one message"):
        await run(llama.engine, [Prompt(messages=[])])


async def test_tools_are_refused_where_the_template_has_none(llama: Loaded):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with pytest.raises(Unsupported):
        await run(llama.engine, TIDES, {"tools": [tool]})
    await run(llama.engine, TIDES, {"tools": [tool], "tool_choice": "none", "max_tokens": 1})


async def test_a_cancelled_answer_stops_soon_and_frees_its_slot(llama: Loaded):
    session = await llama.engine.open({"max_tokens": 400}, Resume())
    stepping = llama.engine.step(session, TIDES)
    await anext(stepping)
    start = time.monotonic()
    await stepping.aclose()
    took_s = time.monotonic() - start
    assert took_s < await as_long_as(2, run(llama.engine, TIDES, {"max_tokens": 40}), took_s)
    assert said(await run(llama.engine, TIDES, {"max_tokens": 3}))


async def test_a_cancel_inside_a_long_prompt_does_not_wait_for_its_end(llama: Loaded):
    session = await llama.engine.open({"max_tokens": 1}, Resume())
    stepping = llama.engine.step(session, ask("all the quick brown foxes " * 80))
    first = asyncio.ensure_future(anext(stepping))
    await asyncio.sleep(0.05)
    start = time.monotonic()
    first.cancel()
    await asyncio.wait([first])
    await stepping.aclose()
    took_s = time.monotonic() - start
    whole = run(llama.engine, ask("some slow brown foxes " * 80), {"max_tokens": 1})
    assert took_s < await as_long_as(3, whole, took_s)


async def as_long_as(limit_s: float, work: Coroutine[Any, Any, Any], took_s: float) -> float:
    """``limit_s``; on a machine too slow for it, how long ``work`` takes there, which is no more
    than was cancelled."""
    if took_s < limit_s:
        work.close()
        return limit_s
    start = time.monotonic()
    await work
    return time.monotonic() - start


def test_the_runtimes_own_listener_is_locked(llama: Loaded):
    server = llama.engine._server  # type: ignore[attr-defined]
    for key in ("", "Bearer guess"):
        connection = http.client.HTTPConnection(server._host, server._port, timeout=5)
        connection.request("GET", "/props", headers={"Authorization": key})
        assert connection.getresponse().status == 401
        connection.close()


async def test_two_answers_run_at_once_and_do_not_mix(llama: Loaded):
    left, right = ask("Name three fruits."), ask("Name three colours.")
    alone = [said(await run(llama.engine, q, GREEDY)) for q in (left, right)]
    both = await asyncio.gather(*(run(llama.engine, q, GREEDY) for q in (left, right)))
    for one, other in zip(alone, both, strict=True):
        assert said(other)[:12] == one[:12]


async def test_too_long_a_conversation_is_cut_where_that_is_allowed_and_says_so():
    need("smollm2", MODELS, "xllamacpp")
    loaded = await load(make(context=512, slots=1, max_total_tokens=200, allow_auto_truncate="yes"))
    turns = [
        {"role": role, "content": f"turn {n} " + "and so on " * 20}
        for n in range(6)
        for role in ("user", "assistant")
    ]
    prompt = [Prompt(messages=[*turns, {"role": "user", "content": "Say hi."}])]
    events = await run(loaded.engine, prompt, {"max_tokens": 8})
    assert isinstance(events[0], Notice)
    assert events[0].code == "prompt_truncated"
    assert usage(events).prompt_tokens + 8 <= 200
    await loaded.engine.unload()


async def test_a_missing_file_a_foreign_file_and_a_broken_one_each_say_so(tmp_path: Path):
    pytest.importorskip("xllamacpp")
    (tmp_path / "other.gguf").write_bytes(b"PK\x03\x04 no model")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(200))
    for name, words in (
        ("absent.gguf", "cannot read"),
        ("other.gguf", "expected a GGUF file"),
        ("broken.gguf", "cannot load broken.gguf"),
    ):
        with pytest.raises(CannotBoot, match=words) as caught:
            await load(make(model=str(tmp_path / name)))
        assert caught.value.details["stage"] in ("weights", "allocate")


async def test_missing_weights_name_the_command(tmp_path: Path):
    pytest.importorskip("xllamacpp")
    with pytest.raises(CannotBoot, match="forebay models fetch smollm2"):
        await load(make(models_dir=str(tmp_path)))
    with pytest.raises(CannotBoot, match="expected a text model"):
        await load(make(model="kokoro-zh"))
    with pytest.raises(ConfigError, match="no option 'n_ctx'"):
        make(n_ctx=5)

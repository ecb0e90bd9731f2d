"""The openai engine against a fake SGLang on a real socket, well behaved and broken."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from engine_helpers import ask, load, run, said, usage
from tests.fakes.sglang import FakeSGLang

from forebay.core import upstreams
from forebay.core.events import Notice, OutputEvent, Prompt, TextDelta, ToolCalls
from forebay.engines import Resume, create
from forebay.engines.openai import OpenAIText
from forebay.errors import (
    BadRequest,
    CannotBoot,
    ConfigError,
    ForebayError,
    PromptTooLong,
    UpstreamCut,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    WorkerLost,
)

FAST = {"connect_timeout_s": 20, "first_token_timeout_s": 2.0, "stall_timeout_s": 1.5}


@asynccontextmanager
async def engine(fake: FakeSGLang, **options: Any) -> AsyncIterator[OpenAIText]:
    made = create("text", "openai", {"base_url": fake.url, **FAST, **options})
    assert isinstance(made, OpenAIText)
    await made.load(lambda stage: None)
    try:
        yield made
    finally:
        await made.unload()


async def failure(made: OpenAIText, **params: Any) -> tuple[ForebayError, list[OutputEvent]]:
    """What a step raises, and what it yielded before."""
    session = await made.open(params, Resume())
    events: list[OutputEvent] = []
    with pytest.raises(ForebayError) as caught:
        async for event in made.step(session, ask("hello")):
            events.append(event)
    return caught.value, events


@pytest.fixture
async def fake() -> AsyncIterator[FakeSGLang]:
    async with FakeSGLang() as server:
        yield server


# ------------------------------------------------------------------------- answers


async def test_an_answer_arrives_word_by_word_with_its_usage(fake: FakeSGLang) -> None:
    async with engine(fake) as made:
        for fake.interval_s in (0.003, 0.03, 0.3):  # words that one turn of the loop finds are one
            events = await run(made, ask("hello there", system="be brief"))
            if sum(isinstance(e, TextDelta) for e in events) > 10:
                break
    assert said(events) == "".join(fake.words())
    assert sum(isinstance(e, TextDelta) for e in events) > 10
    assert (usage(events).prompt_tokens, usage(events).completion_tokens) == (6, 20)
    assert usage(events).finish == "stop"


async def test_only_set_parameters_are_sent_and_the_jobs_own_win(fake: FakeSGLang) -> None:
    async with engine(fake, temperature="0.2", top_k=40, max_tokens=5) as made:
        events = await run(made, ask("hello"), {"temperature": 0.9, "stop": [], "seed": None})
    sent = fake.bodies[-1]
    assert sent["temperature"] == 0.9
    assert sent["top_k"] == 40
    assert sent["max_tokens"] == 5
    assert not sent.keys() & {"stop", "seed", "top_p", "tools"}
    assert usage(events).finish == "length"


async def test_the_key_is_sent_from_a_file_and_never_shown(tmp_path: Any) -> None:
    key = tmp_path / "key"
    key.write_text("secret-1\n")
    async with FakeSGLang(key="secret-1") as fake, engine(fake, api_key_file=str(key)) as made:
        assert said(await run(made, ask("hi")))
        assert "secret" not in repr(vars(made).values())


async def test_without_usage_from_the_server_chunks_are_counted(fake: FakeSGLang) -> None:
    fake.mode = "no_usage"
    async with engine(fake) as made:
        events = await run(made, ask("hello"))
    assert usage(events).completion_tokens == 20
    assert usage(events).prompt_tokens > 0


async def test_an_answer_with_a_finish_reason_is_whole_without_done(fake: FakeSGLang) -> None:
    fake.mode = "no_done"
    async with engine(fake) as made:
        assert said(await run(made, ask("hello"))) == "".join(fake.words())


async def test_tool_calls_are_accumulated(fake: FakeSGLang) -> None:
    fake.mode = "tools"
    async with engine(fake) as made:
        events = await run(made, ask("weather?"), {"tools": [{"type": "function"}]})
    calls = [e for e in events if isinstance(e, ToolCalls)]
    assert calls[-1].calls == [
        {"index": 0, "id": "call_0", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"index": 1, "id": "call_1", "function": {"name": "time", "arguments": '{"city": "Bergen"}'}},
    ]  # fmt: skip
    pieces: dict[int, str] = {}
    for event in calls:
        for part in event.delta:
            at = part["index"]
            pieces[at] = pieces.get(at, "") + part["function"]["arguments"]
    assert pieces == {0: '{"city": "Oslo"}', 1: '{"city": "Bergen"}'}
    assert usage(events).finish == "tool_calls"


async def test_connections_are_kept_and_used_again(fake: FakeSGLang) -> None:
    async with engine(fake) as made:
        for _ in range(3):
            await run(made, ask("hello"))
        assert made._pool.members[0].upstream.peer.idle == 1


async def test_closing_a_step_closes_its_connection(fake: FakeSGLang) -> None:
    fake.tokens, fake.interval_s = 1000, 0.01
    async with engine(fake) as made:
        session = await made.open({}, Resume())
        step = made.step(session, ask("hello"))
        await anext(step)
        assert fake.streams == 1
        await step.aclose()  # type: ignore[attr-defined]
        async with asyncio.timeout(60):
            await fake.idle.wait()
    assert fake.closed_early == 1


async def test_a_slow_consumer_is_no_stall(fake: FakeSGLang) -> None:
    fake.tokens, fake.interval_s = 8, 0.02
    async with engine(fake, stall_timeout_s=0.1) as made:
        session = await made.open({}, Resume())
        text = ""
        async for event in made.step(session, ask("hello")):
            if isinstance(event, TextDelta):
                text += event.text
                if text == "t1 ":
                    await asyncio.sleep(0.25)
    assert text == "".join(fake.words())


# ------------------------------------------------------------------------- refusals


async def test_a_server_that_is_not_there_is_tried_again_and_then_named() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        made = create("text", "openai", {"base_url": url, "wait": "no", "model": "m", **FAST})
        info = await made.load(lambda stage: None)
        assert "refused the connection" in info.facts["warning"]
        error, _ = await failure(made)  # type: ignore[arg-type]
        await made.unload()
    assert type(error) is UpstreamFailed
    assert error.details["reason"] == "connection_refused"
    assert "still loading?" in error.message
    assert error.retryable


async def test_an_empty_reply_is_tried_again_before_the_first_token(fake: FakeSGLang) -> None:
    async with engine(fake, connect_retries=2) as made:
        fake.plan = ["empty_reply", "empty_reply"]
        assert said(await run(made, ask("hello")))
        assert fake.calls == 3
        fake.plan = ["empty_reply"] * 3
        error, _ = await failure(made)
    assert error.details["reason"] == "empty_reply"
    assert "still loading?" in error.message
    assert fake.calls == 6


async def test_after_failures_in_a_row_it_refuses_at_once_and_recovers(
    fake: FakeSGLang, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstreams, "FIRST_PAUSE_S", 3600.0)  # it passes when we say so
    async with engine(fake, connect_retries=0) as made:
        fake.plan = ["empty_reply"] * 5
        for _ in range(5):
            await failure(made)
        error, _ = await failure(made)
        assert error.details["reason"] == "breaker_open"
        assert error.retry_after_s is not None
        assert fake.calls == 5
        made._pool.members[0].upstream.breaker._closed_until = 0.0
        assert said(await run(made, ask("hello")))


@pytest.mark.parametrize(
    ("mode", "kind", "reason"),
    [
        ("rate_limited", UpstreamFailed, "rate_limit"),
        ("unavailable", UpstreamFailed, "unavailable"),
        ("out_of_memory", UpstreamFailed, "out_of_memory"),
        ("refused", BadRequest, "refused"),
        ("redirect", UpstreamRefused, "wrong_address"),
        ("html", UpstreamFailed, "garbage"),
        ("cut_first", UpstreamFailed, "cut"),
        ("garbage_line", UpstreamFailed, "garbage"),
        ("hang", UpstreamTimeout, "no_answer"),
        ("stall_first", UpstreamTimeout, "no_answer"),
    ],
)
async def test_what_fails_before_the_first_token_is_named(
    fake: FakeSGLang, mode: str, kind: type[ForebayError], reason: str
) -> None:
    fake.mode = mode
    async with engine(fake) as made:
        error, events = await failure(made)
    assert type(error) is kind, error.message
    assert error.details["reason"] == reason
    assert events == []
    assert fake.calls == 1
    if mode == "rate_limited":
        assert error.retry_after_s == error.details["retry_after_s"] == 7


@pytest.mark.parametrize(
    ("mode", "kind", "reason"),
    [
        ("cut", UpstreamCut, "cut"),
        ("reset", UpstreamCut, "cut"),
        ("abort", UpstreamCut, "aborted"),
        ("stall_mid", UpstreamTimeout, "stall"),
        ("garbage", UpstreamFailed, "garbage"),
        ("out_of_memory_mid", UpstreamFailed, "out_of_memory"),
    ],
)
async def test_what_breaks_after_the_first_token_is_named_and_never_repeated(
    fake: FakeSGLang, mode: str, kind: type[ForebayError], reason: str
) -> None:
    fake.mode = mode
    async with engine(fake) as made:
        error, events = await failure(made)
    assert type(error) is kind, error.message
    assert error.details["reason"] == reason
    assert said(events) == "t1 t2 t3 "
    assert fake.calls == 1
    assert fake.streams == 0 or mode in ("stall_mid", "garbage")


@pytest.mark.parametrize("style", ["sglang", "vllm", "openai", "llama"])
async def test_too_long_a_prompt_gives_its_tokens_and_the_limit(style: str) -> None:
    async with FakeSGLang(context=100) as fake, engine(fake) as made:
        fake.too_long_style = style
        session = await made.open({}, Resume())
        with pytest.raises(PromptTooLong) as caught:
            _ = [e async for e in made.step(session, ask("w " * 150))]
    assert (caught.value.details["tokens"], caught.value.details["limit"]) == (151, 100)
    assert caught.value.message == "prompt has 151 tokens, expected fewer than 100"


async def test_too_long_an_answer_gives_all_three_figures() -> None:
    async with FakeSGLang(context=100) as fake, engine(fake) as made:
        session = await made.open({"max_tokens": 90}, Resume())
        with pytest.raises(PromptTooLong) as caught:
            _ = [e async for e in made.step(session, ask("w " * 50))]
    assert caught.value.details["requested"] == 90
    assert caught.value.details["tokens"] == 51


# --------------------------------------------------------------- cutting the prompt


def talk(turns: int) -> list[Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": "be brief"}]
    for turn in range(turns):
        messages += [
            {"role": "user", "content": f"q{turn} " * 20},
            {"role": "assistant", "content": f"a{turn} " * 20},
        ]
    return [Prompt(messages=[*messages, {"role": "user", "content": "last one"}])]


async def test_auto_truncate_cuts_the_oldest_turns_by_the_servers_own_figures() -> None:
    async with FakeSGLang(context=150) as fake, engine(fake, allow_auto_truncate="true") as made:
        made._scale = 0.2  # a bad guess, so that the server has to refuse once
        events = await run(made, talk(5))
        sent = fake.bodies[-1]["messages"]
    assert said(events) == "".join(fake.words())
    notice = events[0]
    assert isinstance(notice, Notice)
    assert notice.code == "prompt_truncated"
    assert notice.details["limit"] == 150
    assert sent[0]["role"] == "system"
    assert sent[-1]["content"] == "last one"
    assert len(sent) + notice.details["dropped"] == 12
    assert fake.calls == 2


async def test_auto_truncate_lowers_an_answer_that_does_not_fit() -> None:
    async with FakeSGLang(context=100) as fake, engine(fake, allow_auto_truncate=True) as made:
        events = await run(made, ask("w " * 50), {"max_tokens": 5000})
    assert said(events)
    assert fake.bodies[-1]["max_tokens"] < 50


async def test_max_total_tokens_refuses_here_unless_cutting_is_allowed(fake: FakeSGLang) -> None:
    async with engine(fake, max_total_tokens=60) as made:
        session = await made.open({}, Resume())
        with pytest.raises(PromptTooLong) as caught:
            _ = [e async for e in made.step(session, talk(5))]
        assert caught.value.details["limit"] == 60
        assert fake.calls == 0
        await run(made, ask("hello"), {"max_tokens": 500})
        assert fake.bodies[-1]["max_tokens"] <= 60
    async with engine(fake, max_total_tokens=60, allow_auto_truncate=True) as made:
        events = await run(made, talk(5))
    assert isinstance(events[0], Notice)


# ------------------------------------------------------------------ going on from a text


async def test_a_continued_answer_goes_on_and_counts_the_prompt_once(fake: FakeSGLang) -> None:
    async with engine(fake, prefix="continue_final_message") as made:
        resume = Resume(attempt=2, text="t1 t2 t3 ", tokens=3)
        events = await run(made, ask("hello there"), {"max_tokens": 10}, resume)
    sent = fake.bodies[-1]
    assert sent["messages"][-1] == {"role": "assistant", "content": "t1 t2 t3 "}
    assert sent["continue_final_message"] is True
    assert sent["add_generation_prompt"] is False
    assert sent["max_tokens"] == 7
    assert said(events) == "t4 t5 t6 t7 t8 t9 t10 "
    assert usage(events).completion_tokens == 10
    assert usage(events).prompt_tokens == pytest.approx(3, abs=1)
    assert usage(events).finish == "length"


async def test_a_stop_string_is_found_across_the_seam(fake: FakeSGLang) -> None:
    async with engine(fake, prefix="yes") as made:
        events = await run(made, ask("x"), {"stop": ["3 t4 "]}, Resume(attempt=2, text="t1 t2 t3 "))
        assert said(events) == ""
        assert usage(events).finish == "stop"
        events = await run(made, ask("x"), {"stop": ["3 t5"]}, Resume(attempt=2, text="t1 t2 t3 "))
        assert said(events) == "".join(fake.words()[3:])


async def test_what_cannot_be_continued_is_lost_by_name(fake: FakeSGLang) -> None:
    async with engine(fake) as made:
        with pytest.raises(WorkerLost):
            await made.open({}, Resume(attempt=2, text="t1 "))
    async with engine(fake, prefix="yes") as made:
        assert "prefix" in made._info("").capabilities
        with pytest.raises(WorkerLost):
            await made.open({"tools": [{}]}, Resume(attempt=2, text="t1 "))


# ------------------------------------------------------------------------- loading


async def test_loading_reports_stages_and_what_the_server_says(fake: FakeSGLang) -> None:
    loaded = await load(create("text", "openai", {"base_url": fake.url, "warm_answer": "yes"}))
    await loaded.engine.unload()
    assert [s.stage for s in loaded.stages][0] == "locate"
    assert loaded.stages[-1].stage == "ready"
    assert loaded.info.model == "fake-model"
    assert loaded.info.facts["context"] == 4096
    assert {"abortable", "tools"} <= loaded.info.capabilities
    assert fake.bodies[-1]["max_tokens"] == 1


@pytest.mark.parametrize(
    ("options", "loading", "stage", "words"),
    [
        ({"model": "other"}, False, "warm_up", "does not know model 'other'"),
        ({}, True, "warm_up", "loading"),
        ({"api_key": "wrong"}, False, "warm_up", "refused the api_key"),
        ({"base_url": "http://no.such.host.invalid:1"}, False, "locate", "has no address"),
    ],
)
async def test_a_boot_that_fails_says_where_and_why(
    options: dict[str, Any], loading: bool, stage: str, words: str
) -> None:
    async with FakeSGLang(key="right" if "api_key" in options else "") as fake:
        fake.loading = loading
        made = create("text", "openai", {"base_url": fake.url, **FAST, **options})
        stages: list[Any] = []
        with pytest.raises(CannotBoot) as caught:
            await made.load(stages.append)
    assert caught.value.details["stage"] == stage
    assert words in caught.value.message
    assert stages[-1].stage == "failed"


def test_options_are_refused_by_name() -> None:
    bad: list[dict[str, Any]] = [
        {"base_url": "ftp://x"}, {"slots": 0}, {"nonsense": 1}, {"prefix": "maybe"}, {"wait": "no"},
    ]  # fmt: skip
    for options in bad:
        with pytest.raises(ConfigError):
            create("text", "openai", options)


@pytest.mark.parametrize(
    "url",
    ["http://h:1", "http://h:1/", "h:1", "http://h:1/v1/", "http://h:1/v1/chat/completions"],
)
def test_base_urls_of_every_habit_mean_the_same(url: str) -> None:
    made = OpenAIText(base_url=url)
    assert (
        made._pool.members[0].upstream.url("/chat/completions") == "http://h:1/v1/chat/completions"
    )
    assert made._pool.members[0].upstream.url("/health") == "http://h:1/health"

"""The two chat protocols on `/chat` against a whole gateway, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from voice_world import Client, World, run, spoken, world

from forebay.broker import Assign
from forebay.core.events import Consumed, Ended, Notice, OutputEvent, TextDelta
from forebay.core.kinds import Kind
from forebay.core.spec import Lease, WorkerInfo
from forebay.core.stream import Stamper
from forebay.gateway.chat import serve_chat
from forebay.gateway.context import ChatOptions
from forebay.gateway.retrieval import Passage

FAST = {"rtf": 0.0, "unit_ms": 40}
SLOW_TEXT = {"token_ms": 50.0, "tokens": 40}


def connect(w: World, **how: Any) -> Client:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await serve_chat(scope, receive, send, w.ctx, **how)

    return Client(endpoint)


def prompt(text: str = "Say something nice to the reader, please.", **more: Any) -> dict[str, Any]:
    return {
        "prompt": text,
        "session_id": "s",
        "audio_format": "pcm16_wav",
        "sample_rate": 16000,
        "channels": 1,
        **more,
    }


def scripted(w: World, events: list[OutputEvent]) -> None:
    """A text worker that says just this to everybody."""

    def sink(push: Any) -> None:
        if isinstance(push, Assign):
            asyncio.get_running_loop().call_soon(answer, push.lease)

    def answer(lease: Lease) -> None:
        stamper = Stamper(lease.last_offset, lease.counts, lease.marks)
        said = [stamper.stamp(e) for e in [*events, Ended(state="completed")]]
        w.broker.worker_commit("scripted", lease.spec.id, lease.attempt, said, Consumed(1))

    w.broker.worker_connect("scripted", sink)
    info = WorkerInfo(id="scripted", pools=["text/scripted"], slots=4, sessions=4)
    w.broker.worker_register(info)


def types(messages: list[dict[str, Any]]) -> list[str]:
    return [m["type"] for m in messages]


def written(messages: list[dict[str, Any]]) -> str:
    return "".join(m["delta"] for m in messages if m["type"] == "llm_delta")


def test_a_prompt_is_answered_in_text_and_spoken_while_it_is_written() -> None:
    async def body() -> None:
        async with world(speech=FAST, text=SLOW_TEXT) as w:
            c = connect(w)
            c.say(prompt())
            heard = await c.rest()
            kinds = types(heard)
            assert kinds[:2] == ["orchestrator_start", "start_ack"]
            assert heard[0]["tts_flush_min_chars"] == 12
            assert kinds[-1] == "tts_end"
            assert kinds.index("audio_chunk") < kinds.index("llm_done") < kinds.index("tts_end")
            done = heard[kinds.index("llm_done")]
            assert done["full_text_len"] == len(written(heard))
            assert done["tool_calls"] == []
            assert done["elapsed_ms"] > 0
            assert spoken(heard) == written(heard)
            assert c.code == 1000
            await c.gone()
            assert len(w.metrics.ttft_ms) == len(w.metrics.ttfa_ms) == 1

    run(body())


def test_without_a_speech_pool_the_text_goes_on() -> None:
    async def body() -> None:
        async with world(text={}) as w:
            c = connect(w)
            c.say(prompt())
            heard = await c.rest()
            assert types(heard)[:2] == ["orchestrator_start", "orchestrator_warning"]
            assert heard[1]["code"] == "tts_unavailable"
            assert types(heard)[-1] == "llm_done"
            assert c.code == 1000
            await c.gone()

    run(body())


def test_text_only_makes_no_speech_job() -> None:
    async def body() -> None:
        async with world(speech=FAST, text={}) as w:
            c = connect(w)
            c.say(prompt(text_only=True))
            heard = await c.rest()
            assert set(types(heard)) == {"orchestrator_start", "llm_delta", "llm_done"}
            await c.gone()
            assert [v.spec.kind for v in await w.broker.jobs()] == [Kind.TEXT]

    run(body())


def test_cancel_stops_both_jobs_and_is_answered() -> None:
    async def body() -> None:
        async with world(speech={"rtf": 1.0}, text=SLOW_TEXT) as w:
            c = connect(w)
            c.say(prompt())
            await c.until("audio_chunk")
            c.say({"type": "cancel"})
            heard = await c.rest()
            assert types(heard)[-2:] == ["tts_end", "orchestrator_cancelled"]
            assert heard[-2]["cancelled"] is True
            assert c.code == 1000
            await c.gone()
            assert {v.state for v in await w.broker.jobs()} == {"cancelled"}
            await asyncio.sleep(0.3)
            assert {p.running for p in w.broker.pools()} == {0}

    run(body())


def test_leaving_is_cancel() -> None:
    async def body() -> None:
        async with world(speech=FAST, text=SLOW_TEXT) as w:
            c = connect(w)
            c.say(prompt())
            await c.until("llm_delta")
            await c.leave()
            assert {v.state for v in await w.broker.jobs()} == {"cancelled"}

    run(body())


def test_an_engine_that_fails_is_an_orchestrator_error() -> None:
    async def body() -> None:
        async with world(speech=FAST, text={"fail": 1.0}) as w:
            c = connect(w)
            c.say(prompt())
            heard = await c.rest()
            assert types(heard)[-1] == "orchestrator_error"
            assert heard[-1]["code"] == "internal_error"
            assert heard[-1]["detail_code"] == "engine_failed"
            assert c.code == 1000
            await c.gone()
            assert "completed" not in {v.state for v in await w.broker.jobs()}

    run(body())


def test_a_voice_that_fails_leaves_the_text_going_on() -> None:
    async def body() -> None:
        async with world(speech={**FAST, "fail": 1.0}, text=SLOW_TEXT) as w:
            c = connect(w)
            c.say(prompt())
            heard = await c.rest()
            assert "orchestrator_warning" in types(heard)
            assert types(heard)[-1] == "llm_done"
            assert c.code == 1000
            await c.gone()

    run(body())


def test_no_text_pool_is_an_error_with_a_time_to_wait() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            c = connect(w)
            c.say(prompt())
            heard = await c.rest()
            assert types(heard) == ["orchestrator_error"]
            assert heard[0]["retry_after_s"] > 0
            await c.gone()

    run(body())


def test_bad_first_messages_are_refused() -> None:
    bad = [
        "not json",
        "[1]",
        "{}",
        '{"type":"nonsense"}',
        '{"prompt":"", "session_id":"s"}',
        '{"prompt":"x"}',
        '{"prompt":5,"session_id":"s"}',
        '{"prompt":"x","session_id":"s","sample_rate":7999}',
        '{"prompt":"x","session_id":"s","channels":3}',
        '{"prompt":"x","session_id":"s","audio_format":"mp3"}',
        '{"prompt":"x","session_id":"s","messages":[{"role":"robot","content":"x"}]}',
        '{"type":"cancel"}',
        b"binary",
    ]

    async def body() -> None:
        async with world(speech=FAST, text={}) as w:
            for frame in bad:
                c = connect(w)
                c.say(frame)
                heard = await c.rest(within_s=1)
                assert types(heard) == ["orchestrator_error"], frame
                assert heard[0]["code"] == "bad_request", frame
                assert c.code == 1000
                await c.gone()
            assert await w.broker.jobs() == []

    run(body())


def test_the_text_protocol_greets_remembers_and_stays_open() -> None:
    async def body() -> None:
        async with world(text={}) as w:
            c = connect(w, greet="at_once")
            assert (await c.hear())["type"] == "connected"  # type: ignore[index]
            c.say({"type": "ping"})
            assert (await c.hear())["type"] == "pong"  # type: ignore[index]
            for _ in range(2):
                c.say({"type": "chat", "text": "Hello there.", "use_rag": True})
                heard = await c.until("llm_complete")
                assert set(types(heard)) == {"llm_delta", "llm_complete"}
                assert heard[-1]["response_length"] == len(written(heard))
            c.say({"type": "clear"})
            assert (await c.hear())["type"] == "cleared"  # type: ignore[index]
            c.say({"type": "chat"})
            error = (await c.until("error"))[-1]
            assert "text" in error["message"]
            assert c.code is None
            c.say({"type": "ping"})
            assert (await c.hear())["type"] == "pong"  # type: ignore[index]
            await c.leave()

    run(body())


def test_a_patient_port_greets_only_who_says_nothing_at_first() -> None:
    async def body() -> None:
        async with world(text={}, speech=FAST) as w:
            silent = connect(w, greet="patient")
            await asyncio.sleep(0.25)
            assert silent.wire.taken == []
            await asyncio.sleep(0.1)
            assert "connected" in str(silent.wire.taken[0])
            prompt_one = connect(w, greet="patient")
            prompt_one.say(prompt())
            assert "connected" not in types(await prompt_one.rest())
            silent.say(prompt())
            assert "llm_done" in types(await silent.rest())
            await prompt_one.gone()
            await silent.gone()

    run(body())


def test_questions_asked_too_early_are_answered_in_order() -> None:
    async def body() -> None:
        async with world(text=SLOW_TEXT) as w:
            c = connect(w)
            for _ in range(3):
                c.say({"type": "chat", "text": "One two three."})
            for _ in range(3):
                await c.until("llm_complete")
            assert len(await w.broker.jobs()) == 3
            await c.leave()

    run(body())


def test_system_prompt_history_and_sampling_go_along() -> None:
    async def body() -> None:
        chat = ChatOptions(system_prompt="Be brief.", sampling={"max_tokens": 5})
        async with world(text={}, chat=chat) as w:
            c = connect(w)
            before = [
                {"role": "user", "content": "first"},
                {"role": "assistant", "content": "answer"},
            ]
            c.say(prompt("second", text_only=True, messages=before))
            await c.rest()
            await c.gone()
            (view,) = await w.broker.jobs()
            assert view.spec.params == {"max_tokens": 5}

    run(body())


def test_a_question_is_answered_with_the_passages_a_search_service_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, str]] = []
    found: tuple[list[Passage], str] = ([Passage(content="A forebay is a pool.")], "")

    async def look(url: str, query: str, timeout_s: float) -> tuple[list[Passage], str]:
        asked.append((url, query))
        return found

    monkeypatch.setattr("forebay.gateway.chat.passages_for", look)

    async def body() -> None:
        nonlocal found
        async with world(text={}, chat=ChatOptions(retrieval_url="http://search")) as w:
            c = connect(w)
            c.say({"type": "chat", "text": "What is a forebay?"})
            heard = await c.until("llm_complete")
            assert heard[0]["type"] == "rag_context"
            assert (heard[0]["count"], heard[0]["results"][0]["content"]) == (
                1,
                "A forebay is a pool.",
            )
            assert types(heard)[1] == "llm_delta"
            found = ([], "it is away")
            c.say({"type": "chat", "text": "Again?"})
            heard = await c.until("llm_complete")
            nothing = {"type": "rag_context", "results": [], "count": 0, "message": "it is away"}
            assert heard[0] == nothing
            c.say({"type": "chat", "text": "Without.", "use_rag": False})
            assert "rag_context" not in types(await c.until("llm_complete"))
            assert asked == [("http://search", "What is a forebay?"), ("http://search", "Again?")]
            await c.leave()

    run(body())


def test_a_gateway_that_shuts_down_finishes_the_answer_under_way() -> None:
    async def body() -> None:
        async with world(text=SLOW_TEXT) as w:
            idle, busy = connect(w, greet="at_once"), connect(w, greet="at_once")
            idle.say({"type": "ping"})
            busy.say({"type": "chat", "text": "Hello."})
            await idle.until("pong")
            await busy.until("llm_delta")
            for tell in tuple(w.ctx.drain_watchers):
                tell()
            assert idle.code == 1012
            assert types(await busy.rest())[-1] == "llm_complete"
            assert busy.code == 1000
            await idle.gone()
            await busy.gone()

    run(body())


NOTE = Notice(code="prompt_truncated", message="2 messages were cut", details={"tokens": 9})


@pytest.mark.parametrize(
    ("wish", "kind"), [({"notices": True}, "notice"), ({}, "orchestrator_warning")]
)
def test_a_notice_reaches_who_asked_for_notices_and_is_a_warning_to_others(
    wish: dict[str, Any], kind: str
) -> None:
    async def body() -> None:
        async with world() as w:
            scripted(w, [NOTE, TextDelta(text="Short.")])
            c = connect(w)
            c.say(prompt(text_only=True, **wish))
            heard = await c.rest()
            assert types(heard) == ["orchestrator_start", kind, "llm_delta", "llm_done"]
            assert heard[1]["code"] == "prompt_truncated"
            assert heard[1]["message"] == NOTE.message
            assert heard[1]["details"] == {"tokens": 9}
            await c.gone()

    run(body())


def test_a_conversation_of_two_hundred_kilobytes_is_taken_and_a_larger_one_named() -> None:
    async def body() -> None:
        async with world(text={"context": 1_000_000, "tokens": 3}) as w:
            for size, last in ((200_000, "llm_done"), (400_000, "orchestrator_error")):
                c = connect(w)
                before = [{"role": "user", "content": "word " * (size // 50)}] * 10
                c.say(prompt(text_only=True, messages=before))
                heard = await c.rest()
                assert types(heard)[-1] == last
                await c.gone()
            assert heard[-1]["code"] == "bad_request"
            assert "expected no more than 393216" in heard[-1]["message"]

    run(body())

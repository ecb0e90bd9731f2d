"""A resumable `/chat` answer: connections come and go, the client hears everything once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chat import connect, prompt, scripted, types, written
from voice_world import Client, InProcess, World, run, spoken, world

from forebay.core.events import TextDelta, ToolCalls, Usage
from forebay.core.kinds import Kind

SPEECH = {"rtf": 0.2, "unit_ms": 40, "piece_ms": 200}
TEXT = {"token_ms": 50.0, "tokens": 40}


def resume(chars: int = 0, last_unit: int = -1, **more: Any) -> dict[str, Any]:
    return {
        "type": "resume",
        "session_id": "s",
        "chars_received": chars,
        "last_unit_index_received": last_unit,
        "notices": False,
        **more,
    }


class Reader:
    """What a careful client knows, over all its connections."""

    def __init__(self, w: World, **more: Any) -> None:
        self.w = w
        self.text = ""
        self.heard = ""
        self.last: list[str] = []
        self.errors: list[dict[str, Any]] = []
        self.done: dict[str, Any] = {}
        self.c: Client = connect(w)
        self._read = 0
        self.c.say(prompt(resumable=True, **more))

    def take(self) -> None:
        for frame in self.c.wire.taken[self._read :]:
            message = json.loads(frame)
            self.last.append(message["type"])
            match message["type"]:
                case "llm_delta":
                    self.text += message["delta"]
                case "audio_chunk":
                    assert message["unit_index_start"] == len(self.heard)
                    self.heard += message["units_text"]
                    assert message["unit_index_end"] == len(self.heard) - 1
                case "llm_done":
                    self.done = message
                case "orchestrator_error":
                    self.errors.append(message)
        self._read = len(self.c.wire.taken)

    @property
    def over(self) -> bool:
        return bool(self.last) and self.last[-1] in ("tts_end", "orchestrator_error")

    async def drop(self, away_s: float) -> None:
        self.take()
        await self.c.leave()
        await asyncio.sleep(away_s)
        await self.again()

    async def again(self) -> None:
        self.c = connect(self.w)
        self._read = 0
        self.c.say(resume(len(self.text), len(self.heard) - 1))
        await asyncio.sleep(0.01)

    async def supersede(self) -> None:
        await asyncio.sleep(0.01)
        self.take()
        if self.over:
            return
        old = self.c
        old.wire.stalled = True  # what comes from now on is lost with this connection
        await self.again()
        old.wire.flow()
        assert old.code in (4409, 1000)
        await old.gone()

    async def finish(self) -> None:
        self.c.wire.flow()
        for _ in range(3000):
            self.take()
            if self.over:
                break
            await asyncio.sleep(0.1)
        await self.c.gone()


async def whole(w: World) -> str:
    """What the newest text job wrote."""
    view = await w.broker.find("local", "chat", "s")
    assert view is not None
    events = await w.broker.read_after(view.spec.id, 0, limit=100_000)
    return "".join(getattr(e, "text", "") for e in events)


def test_a_client_that_asks_for_it_is_told_that_it_may_come_back() -> None:
    async def body() -> None:
        async with world(speech=SPEECH, text=TEXT) as w:
            for wish in (True, False):
                c = connect(w)
                c.say(prompt(resumable=wish))
                heard = await c.rest()
                assert heard[0]["resumable"] is wish
                assert types(heard)[-1] == "tts_end"
                await c.gone()
            assert w.hub._listeners == {}

    run(body())


@pytest.mark.parametrize(("away_s", "state"), [(0.5, "running"), (60, "completed")])
def test_a_dropped_answer_goes_on_where_its_client_stopped(away_s: float, state: str) -> None:
    async def body() -> None:
        async with world(speech=SPEECH, text=TEXT) as w:
            c = connect(w)
            c.say(prompt(resumable=True))
            first = await c.until("audio_chunk")
            await c.leave()
            await asyncio.sleep(away_s)
            assert {v.state for v in await w.broker.jobs()} == {state}
            again = connect(w)
            have, units = len(written(first)), len(spoken(first))
            again.say(resume(have, units - 1))
            rest = await again.rest()
            assert types(rest)[:2] == ["orchestrator_start", "start_ack"]
            assert rest[0]["resumed"] is True and rest[1]["resumed"] is True
            assert written(first) + written(rest) == await whole(w)
            assert spoken(first) + spoken(rest, units) == await whole(w)
            kinds = types(rest)
            done = rest[kinds.index("llm_done")]
            assert done["full_text_len"] == len(await whole(w))
            assert 1950 <= done["elapsed_ms"] <= 3000
            assert kinds[-1] == "tts_end" and kinds.index("llm_done") < kinds.index("tts_end")
            assert again.code == 1000
            await again.gone()

    run(body())


def test_deltas_and_chunks_are_trimmed_to_what_is_missing() -> None:
    async def body() -> None:
        async with world(speech=SPEECH, text=TEXT) as w:
            me = Reader(w)
            await asyncio.sleep(1.5)
            await me.finish()
            text = await whole(w)
            for chars, units in ((1, 2), (7, 0), (len(text), len(text)), (0, len(text) - 1)):
                c = connect(w)
                c.say(resume(chars, units - 1))
                rest = await c.rest()
                assert written(rest) == text[chars:]
                assert spoken(rest, units) == text[units:]
                assert types(rest)[-1] == "tts_end"
                assert rest[-1]["cancelled"] is False
                await c.gone()

    run(body())


def test_a_newer_connection_supersedes_the_older() -> None:
    async def body() -> None:
        async with world(speech=SPEECH, text=TEXT) as w:
            old = connect(w)
            old.say(prompt(resumable=True))
            await old.until("audio_chunk")
            new = connect(w)
            new.say(resume())
            await old.rest()
            assert old.code == 4409
            await old.gone()
            rest = await new.rest()
            assert written(rest) == spoken(rest) == await whole(w)
            await new.gone()

    run(body())


def test_what_cannot_be_resumed_is_refused_by_name_and_ends_nothing() -> None:
    async def body() -> None:
        async with world(speech=SPEECH, text=TEXT) as w:
            plain = connect(w)
            plain.say(prompt(session_id="plain"))
            live = connect(w)
            live.say(prompt(resumable=True))
            await live.until("audio_chunk")
            for message, reason in (
                (resume(session_id="other"), "unknown"),
                (resume(session_id="plain"), "unknown"),
                (resume(chars=10**6), "ahead_of_head"),
                (resume(last_unit=10**6), "ahead_of_head"),
            ):
                c = connect(w)
                c.say(message)
                (error,) = await c.rest()
                assert (error["type"], error["code"]) == (
                    "orchestrator_error",
                    "resume_not_available",
                )
                assert error["reason"] == reason
                assert c.code == 1000
                await c.gone()
            assert types(await live.rest())[-1] == "tts_end"
            await live.gone()
            await asyncio.sleep(121)
            c = connect(w)
            c.say(resume(5, 4))
            (error,) = await c.rest()
            assert error["reason"] == "window_expired"
            await asyncio.sleep(300)
            c = connect(w)
            c.say(resume(5, 4))
            (error,) = await c.rest()
            assert error["reason"] == "unknown"

    run(body())


def test_nobody_who_comes_back_within_the_detach_time_is_cancel() -> None:
    async def body() -> None:
        async with world(speech={"rtf": 1.0}, text={"token_ms": 1000.0, "tokens": 250}) as w:
            c = connect(w)
            c.say(prompt(resumable=True))
            await c.until("llm_delta")
            await c.leave()
            await asyncio.sleep(119)
            assert {v.state for v in await w.broker.jobs()} == {"running"}
            await asyncio.sleep(2)
            assert {v.state for v in await w.broker.jobs()} == {"cancelled"}
            c = connect(w)
            c.say(resume())
            assert types(await c.rest())[-2:] == ["tts_end", "orchestrator_cancelled"]
            await c.gone()

    run(body())


def test_cancel_ends_a_resumed_answer() -> None:
    async def body() -> None:
        async with world(speech={"rtf": 1.0}, text=TEXT) as w:
            me = Reader(w)
            await asyncio.sleep(1)
            await me.drop(0.5)
            me.c.say({"type": "cancel"})
            heard = await me.c.rest()
            assert types(heard)[-2:] == ["tts_end", "orchestrator_cancelled"]
            await me.c.gone()
            assert {v.state for v in await w.broker.jobs()} == {"cancelled"}

    run(body())


def test_a_session_that_is_live_takes_no_second_prompt_and_a_finished_one_does() -> None:
    async def body() -> None:
        async with world(speech=SPEECH, text=TEXT) as w:
            me = Reader(w)
            await asyncio.sleep(0.5)
            c = connect(w)
            c.say(prompt(resumable=True))
            (error,) = await c.rest()
            assert (error["code"], error["reason"]) == ("bad_request", "session_live")
            await c.gone()
            await me.finish()
            assert me.last[-1] == "tts_end"
            other = Reader(w)
            await other.finish()
            assert other.text == other.heard == await whole(w)
            assert len(await w.broker.jobs()) == 4

    run(body())


def test_a_slow_client_of_a_resumable_answer_is_cut_and_may_come_back() -> None:
    async def body() -> None:
        text = {"token_ms": 0.0, "tokens": 8_000}
        async with world(speech=SPEECH, text=text) as w:
            me = Reader(w, text_only=True)
            me.c.wire.stalled = True
            await asyncio.sleep(40)
            me.c.wire.flow()
            assert me.c.code == 4408
            me.take()
            await me.c.gone()
            await me.again()
            rest = await me.c.rest()
            assert me.text + written(rest) == await whole(w)
            assert types(rest)[-1] == "llm_done"
            await me.c.gone()

    run(body())


def test_an_answer_without_voice_is_resumed_without() -> None:
    async def body() -> None:
        async with world(text=TEXT) as w:
            me = Reader(w)
            await asyncio.sleep(0.5)
            await me.drop(0.2)
            rest = await me.c.rest()
            assert "start_ack" not in types(rest)
            assert me.text + written(rest) == await whole(w)
            assert types(rest)[-1] == "llm_done"
            await me.c.gone()

    run(body())


def test_what_was_said_before_belongs_to_the_whole_answer() -> None:
    async def body() -> None:
        async with world() as w:
            calls = [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]
            usage = Usage(prompt_tokens=3, completion_tokens=4, finish="tool_calls")
            said = [
                ToolCalls(calls=calls, delta=calls),
                TextDelta(text="So, "),
                TextDelta(text="ok."),
            ]
            scripted(w, [*said, usage])
            c = connect(w)
            c.say(prompt(resumable=True, text_only=True))
            whole_answer = await c.rest()
            await c.gone()
            for have in (4, 7):
                c = connect(w)
                c.say(resume(have))
                rest = await c.rest()
                assert written(rest) == "So, ok."[have:]
                assert "tool_calls_delta" not in types(rest)
                (done,) = [m for m in rest if m["type"] == "llm_done"]
                first = whole_answer[-1]
                for name in ("full_text_len", "tool_calls", "usage", "finish_reason"):
                    assert done[name] == first[name]
                assert done["tool_calls"] == calls
                await c.gone()

    run(body())


def test_malformed_resumes_are_refused() -> None:
    async def body() -> None:
        async with world(speech=SPEECH, text=TEXT) as w:
            for more in (
                {"session_id": ""},
                {"session_id": 5},
                {"chars_received": -1},
                {"chars_received": "x"},
                {"last_unit_index_received": -2},
                {"notices": 1},
            ):
                c = connect(w)
                c.say(resume(**more))
                (error,) = await c.rest()
                assert error["code"] == "bad_request", more
                await c.gone()
            c = connect(w)
            c.say(prompt())
            c.say(resume())
            heard = await c.rest()
            assert heard[-1]["code"] == "bad_request"
            await c.gone()

    run(body())


actions = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.05, 0.3, 1.0, 2.0])),
    st.tuples(st.just("drop"), st.sampled_from([0.0, 0.2, 3.0, 30.0])),
    st.tuples(st.just("supersede"), st.none()),
    st.tuples(st.just("stall"), st.none()),
    st.tuples(st.just("kill"), st.none()),
)


async def play(w: World, steps: list[tuple[str, Any]]) -> None:
    me = Reader(w)
    speaker: InProcess = await w.worker(Kind.SPEECH, **SPEECH)
    await asyncio.sleep(0.1)
    for what, value in steps:
        if what == "wait":
            await asyncio.sleep(value)
        elif what == "stall":
            me.c.wire.stalled = True
        elif what == "kill":
            old, speaker = speaker, await w.worker(Kind.SPEECH, **SPEECH)
            old.die()
        elif what == "supersede":
            await me.supersede()
        else:
            await me.drop(value)
        if me.over:
            break
    await me.finish()
    assert me.errors == []
    assert me.text == me.heard == await whole(w)
    assert me.done["full_text_len"] == len(me.text)
    assert me.last[-1] == "tts_end"


@settings(max_examples=30)
@given(st.lists(actions, max_size=8))
def test_wherever_it_is_dropped_everything_is_heard_once(steps: list[tuple[str, Any]]) -> None:
    async def body() -> None:
        async with world(text={"token_ms": 60.0, "tokens": 30}) as w:
            await w.worker(Kind.SPEECH, **SPEECH)
            await play(w, steps)

    run(body())

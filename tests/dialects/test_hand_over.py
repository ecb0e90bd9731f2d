"""A gateway that leaves sends its sessions elsewhere: what each protocol's client is told, and
that the session goes on exactly where it was. In virtual time."""

from __future__ import annotations

import asyncio
import base64
import re
from types import SimpleNamespace
from typing import Any

import pytest
from voice_world import Client, World, run, world

from forebay.client.s1 import SpeechState
from forebay.core.tones import speak
from forebay.dialects.asr import AsrDialect
from forebay.dialects.listen import ListenDialect
from forebay.dialects.tts import TtsDialect
from forebay.gateway.connection import serve_websocket
from forebay.gateway.under_way import Holder, holder_of


def connect(w: World, dialect: Any) -> Client:
    return held(w, dialect)[0]


def held(w: World, dialect: Any) -> tuple[Client, Any]:
    """A client, and its connection as the server has it."""
    connection = SimpleNamespace(scope=None)

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        connection.scope = scope
        await serve_websocket(scope, receive, send, w.ctx, dialect)

    return Client(endpoint), connection


def holder(connection: Any) -> Holder:
    found = holder_of(connection)
    assert found is not None
    return found


def chunk(session: str, index: int, words: range) -> dict[str, Any]:
    sound = base64.b64encode(speak(words)).decode()
    return {
        "action": "chunk", "session_id": session, "chunk_index": index, "audio_data": sound,
    }  # fmt: skip


def leave(w: World) -> None:
    """What a draining gateway does to its connections."""
    w.ctx.draining = True
    for tell in tuple(w.ctx.drain_watchers):
        tell()


def test_a_speaking_session_is_sent_elsewhere_and_goes_on_without_loss_or_repeat() -> None:
    async def body() -> None:
        async with world(speech={"rtf": 0.5, "unit_ms": 40}) as w:
            w.ctx.hands_over = True
            state = SpeechState("s", extra={"notices": True})
            first = connect(w, TtsDialect())
            first.say(state.start())
            ack = (await first.until("start_ack"))[-1]
            for message in state.resent(ack):
                first.say(message)
            first.say(state.delta("One sentence is here. Another one follows it. "))
            first.say(state.end())
            state.chunk((await first.until("audio_chunk"))[-1])
            leave(w)
            told = (await first.until("going_away"))[-1]
            assert told["units_received"] == len(state.text)
            assert told["position"] >= 1
            assert 0 <= told["retry_after_ms"] <= 2000
            assert await first.hear() is None
            assert first.wire.ended is not None
            code, reason = first.wire.ended
            assert code == 1012
            assert re.search(rf"retry_after_ms={told['retry_after_ms']}$", reason)
            await first.gone()
            assert w.ctx.drain_watchers == []

            second = connect(w, TtsDialect())  # any gateway around the same broker
            for message in state.opening(known=True):
                second.say(message)
            ack = (await second.until("start_ack"))[-1]
            assert ack["resumed"]
            for message in state.resent(ack):
                second.say(message)
            for message in await second.until("tts_end"):
                if message["type"] == "audio_chunk":
                    state.chunk(message)
            assert (state.missing, state.duplicates, state.gaps, state.out_of_order) == (0,) * 4

    run(body())


def test_clients_that_know_no_such_message_get_the_close_alone() -> None:
    async def body() -> None:
        async with world(speech={"rtf": 0.0}, recognition={"rtf": 0.0}) as w:
            w.ctx.hands_over = True
            plain = connect(w, TtsDialect())
            plain.say(SpeechState("s").start())
            await plain.until("start_ack")
            original = connect(w, AsrDialect(new_id=w.ctx.new_id))
            original.say({"action": "start", "session_id": "a", "user_id": "u"})
            assert await original.hear() is not None
            leave(w)
            for client in (plain, original):
                assert await client.hear() is None
                assert client.code == 1012
                await client.gone()

    run(body())


def test_a_listener_is_told_how_far_both_sides_are() -> None:
    async def body() -> None:
        async with world(recognition={"rtf": 0.0, "words": 2}) as w:
            w.ctx.hands_over = True
            sound = speak(range(2))
            client = connect(w, ListenDialect(new_session=w.ctx.new_id()))
            client.say({"type": "start", "session_id": "s"})
            client.say(sound)
            heard = await client.until("final")
            leave(w)
            told = (await client.until("going_away"))[-1]
            assert told["samples"] == len(sound) // 2
            assert told["event"] >= heard[-1]["event"]  # events without a message count too
            assert await client.hear() is None
            assert client.code == 1012
            await client.gone()

    run(body())


def test_without_another_gateway_who_is_served_may_finish() -> None:
    async def body() -> None:
        async with world(speech={"rtf": 0.5}) as w:
            client = connect(w, TtsDialect())
            state = SpeechState("s", extra={"notices": True})
            client.say(state.start())
            client.say(state.delta("One sentence is here. "))
            await client.until("audio_chunk")
            leave(w)
            client.say(state.end())
            heard = await client.until("tts_end")
            assert "going_away" not in {m["type"] for m in heard}
            await client.gone()

    run(body())


def test_who_waits_runs_or_pauses_is_under_way_until_its_end() -> None:
    async def body() -> None:
        async with world(recognition={"rtf": 0.5, "words": 2, "sessions": 1}) as w:
            (running, first), (waiting, second), (silent, third) = (
                held(w, AsrDialect(new_id=w.ctx.new_id)) for _ in range(3)
            )
            for name, client in (("r", running), ("w", waiting), ("s", silent)):
                client.say({"action": "start", "session_id": name, "user_id": name})
                await client.until("ack")
            running.say(chunk("r", 0, range(200)))
            await running.until("chunk_result")
            waiting.say(chunk("w", 0, range(2)))
            await waiting.until("ack")
            leave(w)
            assert silent.code == 1012, "it has said nothing: leaving costs nothing"
            for client in (running, waiting):
                assert client.code is None
            await asyncio.sleep(6)
            assert holder(first).busy and holder(second).busy

            running.say({"action": "finish", "session_id": "r"})
            await running.until("final_result")
            await asyncio.sleep(1)
            assert not holder(first).busy, "its socket stays, with nothing under way"
            await waiting.until("chunk_result")
            await asyncio.sleep(60)
            assert holder(second).busy, "only a pause: nobody else could go on with it"
            await waiting.leave()
            assert holder_of(second) is None and holder_of(third) is None
            await running.gone()

    run(body())


def test_where_another_takes_over_nobody_is_kept_and_the_limit_loses_nothing() -> None:
    async def body() -> None:
        async with world(recognition={"rtf": 0.0, "words": 2}) as w:
            w.ctx.hands_over = True
            client, connection = held(w, ListenDialect(new_session=w.ctx.new_id()))
            client.say({"type": "start", "session_id": "s"})
            client.say(speak(range(2)))
            await client.until("final")
            assert not holder(connection).busy
            holder(connection).cut()
            told = (await client.rest())[-1]
            assert told["type"] == "going_away"
            assert client.code == 1012
            await client.gone()

    run(body())


@pytest.mark.parametrize("kind", ["listen", "asr", "tts"])
def test_whom_the_limit_cuts_hears_by_name_that_the_session_is_lost(kind: str) -> None:
    async def body() -> None:
        async with world(speech={"rtf": 0.5}, recognition={"rtf": 0.0, "words": 2}) as w:
            if kind == "listen":
                client, connection = held(w, ListenDialect(new_session=w.ctx.new_id()))
                client.say({"type": "start", "session_id": "s"})
                client.say(speak(range(2)))
                await client.until("final")
            elif kind == "asr":
                client, connection = held(w, AsrDialect(new_id=w.ctx.new_id))
                client.say({"action": "start", "session_id": "s", "user_id": "u"})
                client.say(chunk("s", 0, range(2)))
                await client.until("chunk_result")
            else:
                client, connection = held(w, TtsDialect())
                state = SpeechState("s")
                client.say(state.start())
                client.say(state.delta("One sentence is here. "))
                await client.until("audio_chunk")
            leave(w)
            assert client.code is None
            holder(connection).cut()
            (*_, told) = await client.rest()
            assert told["type"] == "error"
            assert told.get("session_id", "s") == "s"
            assert told.get("detail_code", told["code"]) == "state_lost"
            assert "30 s" in told["message"] and "server.drain_s" in told["message"]
            assert client.code == 1012
            await client.gone()

    run(body())


def test_the_more_are_sent_away_the_wider_they_are_spread() -> None:
    async def body() -> None:
        async with world() as w:
            assert w.ctx.retry_after_ms() == 0
            w.ctx.drain_watchers += [lambda: None] * 5000
            told = [w.ctx.retry_after_ms() for _ in range(300)]
            assert max(told) > 1500
            assert max(told) <= 2000
            await asyncio.sleep(0)

    run(body())

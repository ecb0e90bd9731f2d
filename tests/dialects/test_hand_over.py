"""A gateway that leaves sends its sessions elsewhere: what each protocol's client is told, and
that the session goes on exactly where it was. In virtual time."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from voice_world import Client, World, run, world

from forebay.client.s1 import SpeechState
from forebay.core.tones import speak
from forebay.dialects.asr import AsrDialect
from forebay.dialects.listen import ListenDialect
from forebay.dialects.tts import TtsDialect
from forebay.gateway.connection import serve_websocket


def connect(w: World, dialect: Any) -> Client:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await serve_websocket(scope, receive, send, w.ctx, dialect)

    return Client(endpoint)


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

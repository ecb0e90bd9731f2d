"""Whatever a client does to its connections, each unit is heard once and in order."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from test_tts import connect, delta, end, resume, start
from voice_world import Client, InProcess, World, run, samples, world

from forebay.core.kinds import Kind

WORDS = ["Hello there. ", "你好，", "a b c ", "x" * 60 + ". ", "One, two; three! ", "no break "]

actions = st.one_of(
    st.tuples(st.just("say"), st.sampled_from(WORDS)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.05, 0.3, 1.5, 2.5])),
    st.tuples(st.just("drop"), st.sampled_from([0.0, 0.2, 3.0])),
    st.tuples(st.just("supersede"), st.none()),
    st.tuples(st.just("stall"), st.none()),
    st.tuples(st.just("flow"), st.none()),
    st.tuples(st.just("kill"), st.none()),
)


class Listener:
    """What a careful client knows: the units it has, over all its connections."""

    def __init__(self, w: World) -> None:
        self.w = w
        self.text = ""  # sent
        self.heard = ""
        self.seq = 0
        self.over = False
        self._last = ""
        self._read = 0
        self._client: Client = connect(w)
        self._worker: InProcess | None = None

    async def begin(self) -> None:
        self._client.say(start())
        await self.kill()

    def take(self) -> None:
        """Read what has arrived on the present connection."""
        taken = self._client.wire.taken
        for frame in taken[self._read :]:
            message = json.loads(frame)
            assert message["type"] != "error", message
            self.over = self.over or message["type"] == "tts_end"
            if message["type"] == "audio_chunk":
                assert message["unit_index_start"] == len(self.heard)
                assert samples(message) > 0
                self.heard += message["units_text"]
        self._read = len(taken)

    async def say(self, text: str) -> None:
        self.seq += 1
        self.text += text
        self._last = text
        self._client.say(delta(text, self.seq))
        await asyncio.sleep(0)

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def drop(self, away_s: float) -> None:
        self.take()
        await self._client.leave()
        await asyncio.sleep(away_s)
        await self._reconnect()

    async def supersede(self) -> None:
        self._client.wire.flow()
        await asyncio.sleep(0.01)
        self.take()
        if self.over:
            return
        old = self._client
        old.wire.stalled = True  # what comes from now on is lost with this connection
        await self._reconnect()
        assert old.code == 4409
        await old.gone()

    async def _reconnect(self) -> None:
        self._client = connect(self.w)
        self._read = 0
        self._client.say(start())
        await asyncio.sleep(0.01)
        self._client.say(resume(len(self.heard) - 1))
        if self.seq:
            self._client.say(delta(self._last, self.seq))  # in doubt sent again: a repeat

    async def stall(self) -> None:
        self._client.wire.stalled = True

    async def flow(self) -> None:
        self._client.wire.flow()

    async def kill(self) -> None:
        """Another worker comes; the one before is killed."""
        spare = await self.w.worker(Kind.SPEECH, rtf=0.3, unit_ms=40, piece_ms=200)
        if self._worker is not None:
            self._worker.die()
        self._worker = spare

    async def finish(self) -> None:
        self._client.wire.flow()
        self._client.say(end(self.seq + 1))
        for _ in range(3000):
            self.take()
            if self.over:
                break
            await asyncio.sleep(0.1)
        assert self.heard == self.text
        assert self.over
        await self._client.gone()


async def play(w: World, steps: list[tuple[str, Any]]) -> None:
    me = Listener(w)
    await me.begin()
    for what, value in steps:
        await getattr(me, what)(*(() if value is None else (value,)))
    await me.finish()


@settings(max_examples=40)
@given(st.lists(actions, max_size=12))
def test_each_unit_is_heard_exactly_once(steps: list[tuple[str, Any]]) -> None:
    async def body() -> None:
        async with world(speech={"rtf": 0.3, "unit_ms": 40, "piece_ms": 200}) as w:
            await play(w, steps)

    run(body())

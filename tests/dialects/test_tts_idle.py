"""The idle life of an open `/tts` session, in virtual time."""

from __future__ import annotations

import asyncio

from test_tts import connect, delta, end, resume, start
from voice_world import run, spoken, world

FAST = {"rtf": 0.0, "unit_ms": 40}


def test_a_session_without_a_word_for_its_ttl_is_ended() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            c = connect(w)
            c.say(start())
            assert (await c.hear())["type"] == "start_ack"  # type: ignore[index]
            assert await c.hear(within_s=119.9) is None
            assert c.code is None
            (last,) = await c.rest(within_s=1)
            assert (last["type"], last["cancelled"]) == ("tts_end", True)
            assert last["reason"] == "idle for 120 s"
            assert c.code == 1000
            await c.gone()
            assert {v.state for v in await w.broker.jobs()} == {"cancelled"}

    run(body())


def test_each_message_and_each_chunk_prolongs_it() -> None:
    async def body() -> None:
        async with world(speech={"rtf": 0.0, "unit_ms": 1000}) as w:
            c = connect(w)
            c.say(start())
            await asyncio.sleep(100)
            c.say(delta("One sentence of many units.", 1))
            heard = await c.rest(within_s=100)
            assert spoken(heard) == "One sentence of many units."
            last_chunk_at = c.wire.times[-1]
            assert c.code is None
            c.say(delta("More.", 2))
            more = await c.rest(within_s=100)
            assert spoken(more, 27) == "More."
            c.say(end(3))
            assert (await c.rest())[-1]["cancelled"] is False
            assert c.wire.times[-1] > last_chunk_at + 99
            await c.gone()

    run(body())


def test_a_session_whose_text_is_still_being_spoken_is_not_idle() -> None:
    async def body() -> None:
        async with world(speech={"rtf": 60.0, "unit_ms": 1000, "piece_ms": 3000}) as w:
            c = connect(w)
            c.say(start())
            c.say(delta("ab.", 1))
            heard = [m for _ in "ab." for m in await c.until("audio_chunk", within_s=200)]
            assert spoken([m for m in heard if m["type"] == "audio_chunk"]) == "ab."
            assert c.wire.times[-1] > c.wire.times[0] + 120
            assert await c.hear(within_s=119) is None
            assert (await c.rest())[-1]["reason"] == "idle for 120 s"
            await c.gone()

    run(body())


def test_a_finished_session_that_is_held_and_says_nothing_is_ended() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            c = connect(w)
            c.say(start())
            c.say(delta("Hello.", 1))
            c.say(end(2))
            await c.rest()
            await c.gone()
            again = connect(w)
            again.say(start())
            await again.hear()
            heard = await again.rest(within_s=121)
            assert heard[-1]["reason"] == "idle for 120 s"
            assert again.code == 1000
            await again.gone()

    run(body())


def test_who_comes_back_has_the_whole_life_again_and_a_closed_session_has_no_timer() -> None:
    async def body() -> None:
        async with world(speech=FAST) as w:
            c = connect(w)
            c.say(start())
            await asyncio.sleep(100)
            await c.leave()
            again = connect(w)
            again.say(start())
            again.say(resume(-1))
            await asyncio.sleep(110)
            assert again.code is None
            assert await again.rest(within_s=15) != []
            assert again.code == 1000
            await again.gone()

    run(body())

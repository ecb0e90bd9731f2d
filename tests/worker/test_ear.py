"""What recognition promises: every chunk heard once, every word once, whoever dies when."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from listen_world import World, wav

from forebay.core.events import End, Ended, Final, InputItem, Notice, OutputEvent, Sound
from forebay.core.kinds import KINDS, Kind
from forebay.core.spec import JobSpec, Lease
from forebay.core.tones import WORD_SAMPLES, speak
from forebay.engines.synthetic_asr import SyntheticRecognition
from forebay.worker import listen
from forebay.worker.media import Frames
from virtual import virtual

CHUNK = 3200  # bytes: 0.1 s


def words(first: int, count: int) -> str:
    return " ".join(f"w{n}" for n in range(first, first + count))


def in_world(
    test: Callable[[World], Coroutine[Any, Any, None]],
) -> Callable[[], None]:
    async def run() -> None:
        world = World()
        try:
            await test(world)
        finally:
            await world.close()

    run.__name__ = test.__name__
    return virtual(run)


@in_world
async def test_chunks_are_heard_in_order_with_the_text_that_became_final(world: World) -> None:
    await world.worker(rtf=0.1)
    at = await world.job()
    pcm = speak(range(20))
    for n in range(20):
        await world.say(at, Sound(data=pcm[n * CHUNK : (n + 1) * CHUNK], seq=n))
        await asyncio.sleep(0.1)
    await world.say(at, End())
    ended = await world.over()
    heard = await world.heard()
    assert [h.seq for h in heard] == list(range(20))
    assert [h.samples for h in heard] == [WORD_SAMPLES * (n + 1) for n in range(20)]
    assert [h.text for h in heard if h.text] == [words(0, 10), " " + words(10, 10)]
    assert [(f.text, f.start, f.end) for f in await world.finals()] == [
        (words(0, 10), 0, 16_000),
        (" " + words(10, 10), 16_000, 32_000),
    ]
    assert ended.state == "completed"
    assert ended.details == {"text": words(0, 20), "chunks": 20, "audio_s": 2.0}


@in_world
async def test_a_partial_that_was_replaced_keeps_its_number_and_loses_its_text(
    world: World,
) -> None:
    await world.worker(rtf=0.1)
    at = await world.job()
    for n in range(5):
        await world.say(at, Sound(data=speak([n]), seq=n))
        await asyncio.sleep(0.1)
    assert [p.text for p in await world.partials()] == ["", "", "", "", words(0, 5)]
    live = [e.text for push in world.pushed for e in getattr(push, "events", ()) if e.n == 3]
    assert words(0, 3) in live


class SlowDecoder:
    """Inside `read` until it is let out; to be closed only from outside."""

    def __init__(self) -> None:
        self.inside, self.out, self.gone = (threading.Event() for _ in range(3))
        self.reading = self.closed = self.closed_inside = False

    def read(self, samples: int) -> Frames:
        self.reading = True
        self.inside.set()
        self.out.wait(5)
        self.reading = False
        return np.zeros(0, np.int16)

    def close(self) -> None:
        self.closed_inside = self.reading
        self.closed = True
        self.gone.set()


@pytest.mark.parametrize("opening", [False, True])
async def test_a_file_whose_job_is_cancelled_is_closed_when_its_thread_has_left(
    monkeypatch: pytest.MonkeyPatch, opening: bool
) -> None:
    decoder = SlowDecoder()

    def open_it(source: object) -> SlowDecoder:
        if opening:
            decoder.read(0)
        return decoder

    monkeypatch.setattr(listen, "open_sound", open_it)
    monkeypatch.setattr(listen, "is_quick", lambda source: False)
    spec = JobSpec(id="j", kind=Kind.RECOGNITION, pool="recognition/synthetic", params={})
    ear = listen.Ear(KINDS[Kind.RECOGNITION], Lease(spec=spec, attempt=1))
    ear.feed([Sound(data=b"OggS", form="file", offset=1)], 0.0)
    span = ear.take(0.0)
    assert span is not None
    reading = asyncio.ensure_future(ear.read(span))
    await asyncio.to_thread(decoder.inside.wait, 5)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    ear.close()
    assert not decoder.closed
    decoder.out.set()
    assert await asyncio.to_thread(decoder.gone.wait, 5)
    assert decoder.closed and not decoder.closed_inside


@in_world
async def test_a_complete_container_and_the_end_force_a_final(world: World) -> None:
    await world.worker(rtf=0.1, words=100)
    at = await world.job()
    await world.say(at, Sound(data=wav(speak(range(3))), form="file", seq=7))
    await asyncio.sleep(1)
    assert [h.text for h in await world.heard()] == [words(0, 3)]
    await world.say(at, Sound(data=speak([3, 4]), seq=8), End())
    ended = await world.over()
    assert [f.text for f in await world.finals()] == [words(0, 3), " " + words(3, 2)]
    assert ended.details["text"] == words(0, 5)


@in_world
async def test_a_container_in_parts_is_one_chunk(world: World) -> None:
    await world.worker(rtf=0.1)
    at = await world.job()
    data = wav(speak(range(30)))
    for start in range(0, len(data), 20_000):
        more = start + 20_000 < len(data)
        part = data[start : start + 20_000]
        await world.say(at, Sound(data=part, form="file", seq=1, more=more))
    await world.say(at, End())
    ended = await world.over()
    assert (ended.details["text"], ended.details["chunks"]) == (words(0, 30), 1)


@in_world
async def test_twenty_seconds_without_a_final_force_one(world: World) -> None:
    await world.worker(rtf=0.01, words=1000)
    at = await world.job()
    for n in range(45):
        await world.say(at, Sound(data=speak(range(10 * n, 10 * n + 10)), seq=n))
        await asyncio.sleep(0.5)
    assert [f.end for f in await world.finals()] == [320_000, 640_000]


@in_world
async def test_what_is_open_becomes_final_when_nothing_comes_and_the_session_is_parked(
    world: World,
) -> None:
    await world.worker(rtf=0.1)
    at = await world.job()
    await world.say(at, Sound(data=speak(range(3))))
    await asyncio.sleep(2.5)
    assert [f.text for f in await world.finals()] == [words(0, 3)]
    (pool,) = world.broker.pools()
    assert pool.parked == 1 and pool.queued == 0
    await world.say(at, Sound(data=speak(range(3, 6)), seq=1), End())
    ended = await world.over()
    assert ended.details["text"] == words(0, 6)
    assert (await world.broker.status("j")).attempts == 2


@in_world
async def test_silence_is_forgotten_as_it_passes(world: World) -> None:
    await world.worker(rtf=0.01)
    at = await world.job()
    for n in range(600):
        await world.say(at, Sound(data=bytes(CHUNK), seq=n))
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    entry = world.broker._core.entries["j"]
    assert entry.inp.bytes < 2 * CHUNK
    assert await world.finals() == []


@in_world
async def test_hours_of_silence_keep_nothing_but_their_count(world: World) -> None:
    await world.worker(rtf=0.0001)
    at = await world.job()
    piece, hours = bytes(8 * 32_000), 2
    kept = []
    for n in range(hours * 450):
        await world.say(at, Sound(data=piece, seq=n))
        await asyncio.sleep(0.05)
        entry = world.broker._core.entries["j"]
        kept.append((entry.inp.bytes, entry.out.bytes))
    assert max(size for size, _ in kept) < 3 * len(piece)
    assert max(size for _, size in kept) < 256 * 1024
    await world.say(at, End())
    ended = await world.over()
    assert ended.details == {"text": "", "chunks": hours * 450, "audio_s": hours * 3600.0}


@in_world
async def test_input_counts_until_it_is_heard_and_is_kept_until_it_is_final(world: World) -> None:
    await world.worker(rtf=0.1, words=1000)
    at = await world.job()
    for n in range(100):
        await world.say(at, Sound(data=speak([n]), seq=n))
    await asyncio.sleep(1.5)
    entry = world.broker._core.entries["j"]
    assert entry.unheard() == (0, 0)
    assert entry.inp.bytes > 100 * CHUNK


@in_world
async def test_other_rates_are_brought_to_sixteen_kilohertz(world: World) -> None:
    await world.worker(rtf=0.1)
    at = await world.job()
    for n in range(10):
        await world.say(at, Sound(data=bytes(9600), rate=48_000, seq=n))
    await world.say(at, Sound(data=wav(bytes(2 * 22_050), 44_100), form="file", seq=10), End())
    ended = await world.over()
    assert ended.details["audio_s"] == pytest.approx(1.5, abs=0.01)
    assert ended.details["chunks"] == 11


@in_world
async def test_an_empty_chunk_is_heard_too(world: World) -> None:
    await world.worker(rtf=0.1)
    at = await world.job()
    await world.say(at, Sound(seq=5), Sound(seq=6), End())
    ended = await world.over()
    assert [h.seq for h in await world.heard()] == [5, 6]
    assert ended.details == {"text": "", "chunks": 2, "audio_s": 0.0}


BAD = {
    "odd bytes": Sound(data=b"\0" * 321),
    "zero rate": Sound(data=b"\0" * 320, rate=0),
    "no container": Sound(data=b"hello, this is text", form="file"),
    "zero rate wav": Sound(
        data=wav(bytes(64)).replace(b"\x80>\0\0\0}", b"\0\0\0\0\0}"), form="file"
    ),
    "65535 channels": Sound(
        data=wav(bytes(64)).replace(b"\x01\0\x01\0\x80>", b"\x01\0\xff\xff\x80>"), form="file"
    ),
    "a head alone": Sound(data=wav(bytes(64))[:20], form="file"),
    "unfinished parts": Sound(data=wav(bytes(64)), form="file", more=True),
    "no such blob": Sound(form="file", blob="0" * 32),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_audio_fails_that_job_alone_and_by_name(what: str) -> None:
    @in_world
    async def run(world: World) -> None:
        await world.worker(rtf=0.1)
        bad, good = await world.job("bad", file=True), await world.job("good")
        await world.say(bad, BAD[what], End())
        await world.say(good, Sound(data=speak([1])), End())
        ended = await world.over("bad")
        assert ended.state == "failed"
        assert ended.code == ("unsupported" if "blob" in what else "bad_audio"), ended
        assert (await world.over("good")).details["text"] == "w1"

    run()


PASSED_OVER = [what for what in BAD if what not in ("unfinished parts", "no such blob")]


@pytest.mark.parametrize("what", PASSED_OVER)
def test_a_session_is_told_of_a_bad_chunk_and_goes_on(what: str) -> None:
    @in_world
    async def run(world: World) -> None:
        await world.worker(rtf=0.1)
        at = await world.job()
        await world.say(
            at, Sound(data=speak([1]), seq=0), msgspec.structs.replace(BAD[what], seq=1)
        )
        await world.say(at, Sound(data=speak([2]), seq=2), End(seq=2))
        ended = await world.over()
        assert (ended.state, ended.details["text"], ended.details["chunks"]) == (
            "completed", "w1 w2", 2,
        )  # fmt: skip
        assert [h.seq for h in await world.heard()] == [0, 2]
        [told] = [e for e in await world.events() if isinstance(e, Notice)]
        assert (told.code, told.details) == ("bad_audio", {"seq": 1})

    run()


@in_world
async def test_a_bad_chunk_is_told_once_though_its_worker_dies(world: World) -> None:
    await world.worker(rtf=0.1)
    at = await world.job()
    await world.say(at, Sound(data=speak([1]), seq=0), Sound(data=b"\0", seq=1))
    await asyncio.sleep(1)
    await world.kill("w1")
    await world.worker(rtf=0.1)
    await world.say(at, Sound(data=speak([2]), seq=2), Sound(data=b"\0", seq=3), End())
    assert (await world.over()).details["text"] == "w1 w2"
    told = [e.details["seq"] for e in await world.events() if isinstance(e, Notice)]
    assert told == [1, 3]


@in_world
async def test_a_header_that_lies_changes_nothing(world: World) -> None:
    await world.worker(rtf=0.1)
    honest = wav(speak(range(4)))
    at = await world.job()
    for n, size in enumerate((0, 5_000_000, 0xFFFFFFFF)):
        lying = honest[:40] + size.to_bytes(4, "little") + honest[44:]
        await world.say(at, Sound(data=lying, form="file", seq=n))
    await world.say(at, End())
    ended = await world.over()
    assert ended.details["text"] == " ".join([words(0, 4)] * 3)
    assert ended.details["audio_s"] == pytest.approx(1.2)


class Failing(SyntheticRecognition):
    async def step(self, session: Any, items: Sequence[InputItem]) -> AsyncIterator[OutputEvent]:
        async for event in super().step(session, items):
            yield Ended(state="completed") if isinstance(event, Final) else event


@in_world
async def test_an_engine_that_yields_no_transcript_fails_the_job(world: World) -> None:
    await world.worker(Failing())
    at = await world.job()
    await world.say(at, Sound(data=speak([1])), End())
    assert (await world.over()).code == "engine_failed"


# ------------------------------------------------------------------ any interleaving


def chunks(pcm: bytes, chance: random.Random) -> list[Sound]:
    """``pcm`` as a client might send it: odd places, containers, parts, empty chunks."""
    found: list[Sound] = []
    at = seq = 0
    while at < len(pcm):
        seq += 1
        size = 2 * chance.choice((0, 50, 1600, 1600, 1600, 2400, 20_000))
        piece = pcm[at : at + size]
        at += len(piece)
        how = chance.random()
        if how < 0.15:
            data, cut = wav(piece), chance.randrange(1, 44)
            if how < 0.05:
                found.append(Sound(data=data[:cut], form="file", seq=seq, more=True))
                data = data[cut:]
            found.append(Sound(data=data, form="file", seq=seq))
        elif how < 0.3 and len(piece) > 4:
            found.append(Sound(data=piece[:2], seq=seq, more=True))
            found.append(Sound(data=piece[2:], seq=seq))
        else:
            found.append(Sound(data=piece, seq=seq))
    return found


@pytest.mark.parametrize("seed", range(25))
def test_workers_killed_at_any_moment_lose_and_double_nothing(seed: int) -> None:
    @virtual
    async def run() -> None:
        chance = random.Random(seed)
        world = World()
        # A worker must live as long as one final takes, or nothing can be done at all.
        rtf, words_each = chance.choice(((0.0, 500), (0.02, 20), (0.1, 10), (0.5, 1), (0.5, 3)))
        options = {"rtf": rtf, "words": words_each}
        alive = [await world.worker(slots=2, **options) for _ in range(2)]
        said = {f"j{n}": 1000 * n for n in range(3)}
        sent = {
            name: chunks(speak(range(first, first + 150)), chance) for name, first in said.items()
        }

        async def client(name: str) -> None:
            at = await world.job(name)
            for item in sent[name]:
                await world.say(at, item)
                await asyncio.sleep(chance.choice((0, 0, 0.05, 0.1, 0.1, 3.0)))
            await world.say(at, End(seq=9))

        async def reaper() -> None:
            while True:
                await asyncio.sleep(chance.uniform(0.01, 0.8))
                await world.kill(alive.pop(0))
                if chance.random() < 0.5:
                    await asyncio.sleep(chance.uniform(0, 0.5))
                alive.append(await world.worker(slots=2, **options))

        death = asyncio.create_task(reaper())
        await asyncio.gather(*(client(name) for name in said))
        ends = {name: await world.over(name) for name in said}
        death.cancel()
        await asyncio.gather(death, return_exceptions=True)
        for name, first in said.items():
            heard, finals = await world.heard(name), await world.finals(name)
            assert ends[name].state == "completed"
            assert ends[name].details["text"] == words(first, 150)
            assert ends[name].details["audio_s"] == 15.0
            assert "".join(f.text for f in finals) == words(first, 150)
            assert words(first, 150).startswith("".join(h.text for h in heard))
            assert [h.seq for h in heard] == [s.seq for s in sent[name] if not s.more]
            assert heard[-1].samples == 240_000
            positions = [0, *(p for f in finals for p in (f.start, f.end))]
            assert positions == sorted(positions)
        await world.close()

    run()

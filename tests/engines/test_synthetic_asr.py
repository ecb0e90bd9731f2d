"""The recogniser that is no model, by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engine_helpers import load

from forebay.core.events import End, Final, Partial, Sound
from forebay.core.tones import speak
from forebay.engines import Resume, create
from forebay.errors import ConfigError, EngineFailed
from virtual import virtual


async def hear(engine: Any, items: list[Any], **params: Any) -> list[Any]:
    session = await engine.open(params, Resume())
    return [event async for event in engine.step(session, items)]


@virtual
async def test_words_become_finals_by_the_number_and_the_rest_a_partial() -> None:
    engine = create("recognition", "synthetic", {"rtf": "0", "words": "3"})
    info = (await load(engine)).info
    assert (info.synthetic, info.slots, info.facts["rtf"]) == (True, 1, 0.0)
    events = await hear(engine, [Sound(data=speak(range(4)))])
    assert events == [
        Final(text="w0 w1 w2", start=0, end=4800),
        Partial(text="w3", start=4800, end=6400),
    ]
    events = await hear(engine, [Sound(data=speak([1])), End()])
    assert [(e.text, e.end) for e in events] == [("w1", 1600), ("", 1600)]
    assert [e.text for e in await hear(engine, [Sound(data=speak([1]))], partials=False)] == []


@virtual
async def test_it_holds_its_slot_for_its_share_of_the_sound_and_fails_when_told() -> None:
    engine = create("recognition", "synthetic", {"rtf": 0.5, "latency_ms": 100})
    began = asyncio.get_running_loop().time()
    await hear(engine, [Sound(data=speak(range(10)))])
    assert asyncio.get_running_loop().time() - began == pytest.approx(0.6)
    with pytest.raises(EngineFailed, match="synthetic failure"):
        await hear(create("recognition", "synthetic", {"fail": 1}), [Sound(data=speak([1]))])
    with pytest.raises(ConfigError, match="no option 'voice'"):
        create("recognition", "synthetic", {"voice": "x"})

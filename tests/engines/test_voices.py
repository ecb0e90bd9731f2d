"""The real voices, where their packages and weights are present."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest
from engine_helpers import Loaded, load, need, run, say, spoken

from forebay.core.events import Audio
from forebay.engines import Resume, create, weights
from forebay.engines.kokoro import Kokoro
from forebay.errors import CannotBoot, ConfigError, Unsupported

MODELS = weights.default_dir(os.environ)
FOX = "The quick brown fox jumps over the lazy dog."
WEATHER = "今天天气很好，我们去公园。"


def make(**options: object):
    return create("speech", "voices", {"models_dir": str(MODELS), **options})


@pytest.fixture(scope="module")
def english():
    need("hibari", MODELS, "hibari")
    loaded = asyncio.run(load(make(zh="no")))
    yield loaded
    asyncio.run(loaded.engine.unload())


@pytest.fixture(scope="module")
def both():
    need("hibari", MODELS, "hibari")
    need("kokoro-zh", MODELS, "misaki", "jieba", "cn2an", "pypinyin")
    loaded = asyncio.run(load(make(zh="yes")))
    yield loaded
    asyncio.run(loaded.engine.unload())


def seconds(pcm: bytes) -> float:
    return len(pcm) / 2 / 24_000


def level(pcm: bytes) -> float:
    return float(np.sqrt(np.mean((np.frombuffer(pcm, "<i2") / 32768.0) ** 2)))


async def test_english_is_spoken_at_a_sensible_length_and_level(english: Loaded):
    pcm = spoken(await run(english.engine, say(FOX, unit=5)), FOX, unit=5)
    assert 2 < seconds(pcm) < 4
    assert 0.04 < level(pcm) < 0.2
    assert english.info.rate == 24_000
    assert not english.info.synthetic


async def test_the_first_sound_comes_without_the_models_leading_silence(english: Loaded):
    pcm = np.frombuffer(spoken(await run(english.engine, say(FOX)), FOX), "<i2")
    assert int(np.argmax(np.abs(pcm) > 400)) < 0.1 * 24_000


async def test_a_new_attempt_makes_the_very_same_sound(english: Loaded):
    first = spoken(await run(english.engine, say(FOX, unit=9)), FOX, unit=9)
    again = spoken(await run(english.engine, say(FOX, unit=9)), FOX, unit=9)
    assert first == again


@pytest.mark.parametrize(
    "text",
    [
        "...",
        " ",
        "\n",
        "😀😀",
        "—",
        "!",
        "'",
        "\u200b",
        "7",
        "№",
        "x\x00y",
        "a",
        "π is 3.14",
        "x² ¹ ① ½",
    ],
)
async def test_odd_segments_become_sound_or_a_short_silence_never_an_error(
    english: Loaded, text: str
):
    pcm = spoken(await run(english.engine, say(text)), text)
    assert 0.02 < seconds(pcm) < 4


async def test_speed_changes_the_length(english: Loaded):
    slow = spoken(await run(english.engine, say(FOX), {"speed": 0.7}), FOX)
    fast = spoken(await run(english.engine, say(FOX), {"speed": 1.5}), FOX)
    assert seconds(slow) > 1.4 * seconds(fast)


async def test_without_the_chinese_voice_chinese_is_refused_with_the_command(english: Loaded):
    with pytest.raises(Unsupported, match="forebay models fetch kokoro-zh"):
        await run(english.engine, say("你好"))
    assert english.info.facts["languages"] == ["en"]
    assert "kokoro-zh" in english.info.facts["missing"]["zh"]


async def test_another_script_and_an_unknown_voice_are_refused_by_name(english: Loaded):
    with pytest.raises(Unsupported, match="speaks Cyrillic script"):
        await run(english.engine, say("Привет, мир"))
    with pytest.raises(Unsupported, match="no voice is called 'bob', expected one of heart"):
        await english.engine.open({"voice": "bob"}, Resume())
    await english.engine.open({"voice": "alloy"}, Resume())


async def test_many_sessions_speak_at_once(english: Loaded):
    texts = [f"Session number {n} is speaking now." for n in range(8)]
    found = await asyncio.gather(*(run(english.engine, say(t)) for t in texts))
    for text, events in zip(texts, found, strict=True):
        assert 1 < seconds(spoken(events, text)) < 5


async def test_chinese_is_spoken_in_clauses(both: Loaded):
    events = await run(both.engine, say(WEATHER, unit=3))
    pcm = spoken(events, WEATHER, unit=3)
    assert 1.5 < seconds(pcm) < 6
    assert 0.03 < level(pcm) < 0.2
    assert both.info.facts["languages"] == ["en", "zh"]


async def test_a_sentence_may_change_language(both: Loaded):
    text = "This is what people in Beijing say to each other: 你好。"
    events = await run(both.engine, say(text))
    pcm = spoken(events, text)
    assert seconds(pcm) > 3
    parts = [e for e in events if isinstance(e, Audio)]
    assert len(parts) == 2
    loudness = [level(p.data) for p in parts]
    assert max(loudness) < 3 * min(loudness)


async def test_cancel_takes_effect_between_clauses(both: Loaded):
    session = await both.engine.open({}, Resume())
    stepping = both.engine.step(session, say("今天天气真的非常好，" * 3))
    await anext(stepping)
    start = asyncio.get_running_loop().time()
    await stepping.aclose()
    assert asyncio.get_running_loop().time() - start < 10


def test_every_chinese_character_and_odd_sign_has_phonemes_or_none(both: Loaded):
    kokoro = both.engine._zh  # type: ignore[attr-defined]
    assert isinstance(kokoro, Kokoro)
    for text in (
        "兙",
        "你兙好",
        "，",
        "〇",
        "々",
        "1/0",
        "9" * 30,
        "℃",
        "hello 你好",
        "E=mc²",
        "㐀",
    ):
        assert len(kokoro.tokens(text)) < 200
    assert len(kokoro.tokens("你好")) > 4
    assert kokoro.tokens("你兙好") == kokoro.tokens("你") + kokoro.tokens("好")
    assert len(kokoro.tokens("好" * 600)) <= 509


async def test_a_forced_chinese_voice_without_weights_cannot_boot(tmp_path: Path):
    pytest.importorskip("hibari")
    with pytest.raises(CannotBoot, match="forebay models fetch kokoro-zh"):
        await load(make(zh="yes", models_dir=str(tmp_path)))


async def test_no_voice_is_ever_downloaded_by_the_library(tmp_path: Path, monkeypatch):
    pytest.importorskip("hibari")
    monkeypatch.setenv("HIBARI_HOME", str(tmp_path))
    with pytest.raises(CannotBoot, match="put it there or use 'heart'"):
        await load(make(en_voice="emma", zh="no"))
    with pytest.raises(CannotBoot, match="hibari has no voice"):
        await load(make(en_voice="nobody", zh="no"))
    with pytest.raises(ConfigError, match="expected one of auto, yes, no"):
        make(zh="maybe")

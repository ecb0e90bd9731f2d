"""Piper voices, where the GPL runtime has been installed; and what is refused before it is needed."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import numpy as np
import pytest
from engine_helpers import Loaded, load, run, say, spoken

from forebay.engines import create, weights
from forebay.engines.piper import PiperSpeech
from forebay.errors import CannotBoot, MissingEngine

MODELS = weights.default_dir(os.environ)
FOX = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def joe():
    pytest.importorskip("piper", reason="run pip install 'forebay[tts-piper]'")
    if weights.locate("joe", MODELS) is None:
        pytest.skip("run forebay models fetch joe")
    loaded = asyncio.run(load(create("speech", "piper", {"models_dir": str(MODELS)})))
    yield loaded
    asyncio.run(loaded.engine.unload())


async def test_a_sentence_is_spoken_at_the_voices_own_rate(joe: Loaded):
    pcm = spoken(await run(joe.engine, say(FOX, unit=4)), FOX, unit=4)
    assert joe.info.rate == 22_050
    assert 1.5 < len(pcm) / 2 / 22_050 < 5
    assert np.sqrt(np.mean((np.frombuffer(pcm, "<i2") / 32768.0) ** 2)) > 0.02


@pytest.mark.parametrize("text", ["...", " ", "😀", "7", "x\x00y", "你好"])
async def test_odd_segments_become_sound_or_silence(joe: Loaded, text: str):
    assert spoken(await run(joe.engine, say(text)), text)


async def test_two_sessions_speak_at_once(joe: Loaded):
    both = await asyncio.gather(*(run(joe.engine, say(FOX)) for _ in range(2)))
    assert all(len(spoken(events, FOX)) > 60_000 for events in both)


def test_a_voice_that_cannot_work_is_refused_at_load(tmp_path: Path):
    model = tmp_path / "v.onnx"
    with pytest.raises(CannotBoot, match="cannot read"):
        asyncio.run(load(PiperSpeech(voice=str(model))))
    for config, words in (
        ({}, "is no Piper voice description"),
        ({"audio": {"sample_rate": 22050}}, "there is no"),
    ):
        Path(f"{model}.json").write_text(json.dumps(config))
        with pytest.raises(CannotBoot, match=words):
            asyncio.run(load(PiperSpeech(voice=str(model))))
    model.write_bytes(b"")
    for config, words in (
        ({"audio": {"sample_rate": 22050}, "phoneme_type": "pinyin"}, "takes pinyin phonemes"),
        ({"audio": {"sample_rate": 4000}}, "4000 Hz, expected 8000 to 48000"),
    ):
        Path(f"{model}.json").write_text(json.dumps(config))
        with pytest.raises(CannotBoot, match=words):
            asyncio.run(load(PiperSpeech(voice=str(model))))


async def test_a_missing_voice_names_the_command(tmp_path: Path):
    if weights.locate("joe", tmp_path) is not None:
        pytest.skip("the voice is installed as a package")
    with pytest.raises(MissingEngine, match="forebay models fetch joe"):
        await load(PiperSpeech(models_dir=str(tmp_path)))

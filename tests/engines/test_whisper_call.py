"""One call of Whisper: how much it computes, when it hears again, what it leaves out."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from engine_helpers import need

from forebay.engines import weights, whisper_call
from forebay.engines.whisper_call import Heard, hear

MODELS = weights.default_dir(os.environ)
RATE = 16_000


class Model:
    """Stands where faster-whisper's would: 100 frames of features a second."""

    def feature_extractor(self, audio: Any) -> Any:
        return np.zeros((80, len(audio) // 160 + 1), np.float32)


def heard(text: str, **more: Any) -> Heard:
    facts: dict[str, Any] = {
        "language": "en", "logprob": -0.2, "no_speech": 0.0, "cut": False, "sure": True,
    }  # fmt: skip
    return Heard(text=text, **(facts | more))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give the answers; see the frames and the language of each call."""

    def given(*answers: Heard) -> list[tuple[int, str | None]]:
        seen: list[tuple[int, str | None]] = []
        left = list(answers)

        def call(model: Any, window: Any, length: int, language: str | None, *_: Any) -> Heard:
            seen.append((length, language))
            return left.pop(0)

        monkeypatch.setattr(whisper_call, "_hear", call)
        return seen

    return given


def words(seconds: float, language: str | None = None) -> tuple[str, str]:
    audio = np.zeros(round(seconds * RATE), np.float32)
    return hear(Model(), audio, language=language, prompt=None, task="transcribe", beam=1)


@pytest.mark.parametrize(
    ("seconds", "frames"), [(2.2, 1500), (12.0, 1700), (20.0, 2500), (29, 3000)]
)
def test_a_short_utterance_costs_a_short_window(calls: Any, seconds: float, frames: int) -> None:
    seen = calls(heard("yes"))
    assert words(seconds) == ("yes", "en")
    assert seen == [(frames, None)]


@pytest.mark.parametrize(
    "doubt", [{"cut": True}, {"logprob": -1.4}, {"sure": False}, {"text": "so it goes. " * 30}]
)
def test_what_sounds_wrong_is_heard_again_with_the_whole_window(calls: Any, doubt: Any) -> None:
    seen = calls(heard(**({"text": "no"} | doubt)), heard("yes"))
    assert words(2.2) == ("yes", "en")
    assert seen == [(1500, None), (3000, None)]


def test_what_repeats_itself_to_the_end_is_left_out(calls: Any) -> None:
    calls(heard("so it goes. " * 30), heard("so it goes. " * 30))
    assert words(2.2) == ("", "en")


def test_a_long_utterance_keeps_the_language_it_began_in(calls: Any) -> None:
    seen = calls(heard("你好", language="zh"), heard("再见", language="zh"))
    assert words(40.0) == ("你好再见", "zh")
    assert seen == [(3000, None), (1500, "zh")]


def test_the_real_model_looks_at_the_sound_once_to_find_the_language_and_the_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need("whisper-base", MODELS, "faster_whisper")
    from faster_whisper import WhisperModel

    folder = str(weights.require("whisper-base", MODELS))
    model = WhisperModel(folder, device="cpu", compute_type="int8", local_files_only=True)
    looks: list[Any] = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda f: looks.append(f.shape) or encode(f))
    noise = np.random.default_rng(1).normal(0, 0.01, 2 * RATE).astype(np.float32)
    _, language = hear(
        model, noise, language=None, prompt=None, task="transcribe", beam=1, again=False
    )
    assert looks == [(80, 1500)] and language in model.supported_languages

"""One call of Whisper: the words of an utterance, with one look at its sound.

faster-whisper's own `transcribe` computes the sound twice where no language is named (once
to find it out, once for the words), and always a window of 30 s. Here the language is read
from the same computation, and a short utterance has a shorter window. A window that is too
short makes Whisper repeat itself or doubt what it hears: what looks like that is heard again
with the whole one. No answer may be longer than speech of that length can be, so a loop
costs a second and not ten.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from forebay.engines.endpoint import Samples

__all__ = ["Heard", "hear"]

_FRAMES_S = 100
_WHOLE = 3000  # frames: what Whisper was trained on
_SHORT = 1500
_AFTER = 5 * _FRAMES_S  # it must see that the sound has ended; 2 s of that made loops
_PROMPT_TOKENS = 223  # as in faster-whisper: half of its text, less one
_TEXT_TOKENS = 448
_TOKENS, _TOKENS_S = 32, 30  # of an answer: to begin with, and for each second
_NO_SPEECH, _LOW_LOGPROB, _COMPRESSED = 0.6, -1.0, 2.4
_SURE = 0.5  # of a language
# Whisper writes either script and few marks, unless it is shown what is wanted.
_ZH_PROMPT = "以下是普通话的句子，使用简体中文和标点。"


@dataclass(frozen=True, slots=True)
class Heard:
    """What one window gave. ``language``: as asked, or found out."""

    text: str
    language: str
    logprob: float
    no_speech: float
    cut: bool
    """It was still writing when it had to stop."""
    sure: bool
    """The language was named, or is likelier than all others together."""

    @property
    def repeats(self) -> bool:
        data = self.text.encode()
        return len(data) / len(zlib.compress(data)) > _COMPRESSED

    @property
    def imagined(self) -> bool:
        """Text made up for noise: Whisper doubts it itself, or it repeats one phrase."""
        return (self.no_speech > _NO_SPEECH and self.logprob < _LOW_LOGPROB) or self.repeats

    @property
    def doubtful(self) -> bool:
        """Whether the whole window may hear it better."""
        return self.cut or self.repeats or self.logprob < _LOW_LOGPROB or not self.sure


def hear(
    model: Any,
    audio: Samples,
    *,
    language: str | None,
    prompt: str | None,
    task: str,
    beam: int,
    again: bool = True,
) -> tuple[str, str]:
    """The words of ``audio`` and their language. ``model``: faster-whisper's. Blocks.

    ``again``: hear what is doubtful with the whole window.
    """
    said: list[str] = []
    for window in _windows(model, audio):
        heard = _hear(model, window, _length(window), language, prompt, task, beam)
        if again and heard.doubtful and _length(window) < _WHOLE:
            heard = _hear(model, window, _WHOLE, language, prompt, task, beam)
        language = heard.language
        if heard.text and not heard.imagined:
            said.append(heard.text)
    joint = "" if language in ("zh", "ja", "yue") else " "
    return joint.join(said), language or "en"


def _windows(model: Any, audio: Samples) -> Iterator[Any]:
    """Features of 30 s at most each; an utterance is nearly always one."""
    features = model.feature_extractor(audio)
    content = max(1, features.shape[-1] - 1)  # the last frame is of what was padded
    for start in range(0, content, _WHOLE):
        yield features[:, start : min(content, start + _WHOLE)]


def _length(window: Any) -> int:
    """Frames to compute for ``window``: an even number, the encoder halves them."""
    wanted = max(_SHORT, int(window.shape[-1]) + _AFTER)
    return min(_WHOLE, wanted + wanted % 2)


def _hear(
    model: Any,
    window: Any,
    length: int,
    language: str | None,
    prompt: str | None,
    task: str,
    beam: int,
) -> Heard:
    from faster_whisper.tokenizer import Tokenizer
    from faster_whisper.transcribe import get_suppressed_tokens

    frames = window.shape[-1]
    seen = model.encode(np.pad(window, ((0, 0), (0, length - frames))).astype(np.float32))
    sure = True
    if language is None:
        language, sure = _language(model, seen)
    if language == "zh" and not prompt:
        prompt = _ZH_PROMPT
    words = Tokenizer(model.hf_tokenizer, model.model.is_multilingual, task, language)
    before = words.encode(" " + prompt.strip())[-_PROMPT_TOKENS:] if prompt else []
    start = model.get_prompt(words, before, without_timestamps=True)
    room = min(_TEXT_TOKENS - len(start), _TOKENS + frames * _TOKENS_S // _FRAMES_S)
    result = model.model.generate(
        seen,
        [start],
        beam_size=beam,
        max_length=len(start) + room,
        return_scores=True,
        return_no_speech_prob=True,
        suppress_blank=True,
        suppress_tokens=get_suppressed_tokens(words, [-1]),
    )[0]
    ids = result.sequences_ids[0]
    return Heard(
        text=words.decode(ids).strip(),
        language=language,
        logprob=result.scores[0] * len(ids) / (len(ids) + 1),
        no_speech=result.no_speech_prob,
        cut=len(ids) >= room,
        sure=sure,
    )


def _language(model: Any, seen: Any) -> tuple[str, bool]:
    """A model that knows English alone is not asked."""
    if not model.model.is_multilingual:
        return "en", True
    token, likely = model.model.detect_language(seen)[0][0]
    return token[2:-2], likely >= _SURE

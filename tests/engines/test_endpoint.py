"""Utterances out of voice activity, and the two engines that live on them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from forebay.engines.endpoint import WINDOW, Endpointer

RATE = 16_000


def sound(*parts: tuple[float, float]) -> np.ndarray:
    """Seconds of a level each; the level is what the scripted detector will say."""
    return np.concatenate([np.full(round(s * RATE), level, np.float32) for s, level in parts])


def ends() -> Endpointer:
    return Endpointer(lambda window: float(window.mean()))


def cut(end: Endpointer, samples: np.ndarray, chunk: int) -> Iterator[tuple[float, float]]:
    for at in range(0, len(samples), chunk):
        for said in end.feed(samples[at : at + chunk]):
            assert len(said.audio) == said.end - said.start
            yield said.start / RATE, said.end / RATE


@pytest.mark.parametrize("chunk", [100, 512, 1600, 16_000])
def test_a_pause_ends_an_utterance_wherever_the_chunks_fall(chunk: int) -> None:
    found = list(cut(ends(), sound((1, 0), (1, 0.9), (1, 0), (0.5, 0.9), (1, 0)), chunk))
    assert found == [
        (pytest.approx(0.75, abs=0.05), pytest.approx(2.25, abs=0.05)),
        (pytest.approx(2.75, abs=0.05), pytest.approx(3.75, abs=0.05)),
    ]


def test_a_short_pause_does_not() -> None:
    assert len(list(cut(ends(), sound((1, 0.9), (0.4, 0), (1, 0.9), (1, 0)), 1600))) == 1


def test_a_cough_is_none() -> None:
    assert list(cut(ends(), sound((1, 0), (0.1, 0.9), (2, 0)), 1600)) == []


def test_a_flush_closes_what_is_open_and_leaves_nothing() -> None:
    end = ends()
    assert list(cut(end, sound((0.5, 0), (1, 0.9)), 1600)) == []
    said = end.flush()
    assert said is not None and said.end == end.given == end.quiet
    assert end.flush() is None


def test_what_is_done_with_never_passes_an_open_utterance_and_silence_is_forgotten() -> None:
    end = ends()
    list(cut(end, sound((10, 0)), 1600))
    assert end.quiet == pytest.approx(9.75 * RATE, abs=2 * WINDOW)
    assert len(end._kept) < RATE / 2
    list(cut(end, sound((1, 0.9)), 1600))
    assert end.quiet <= 10 * RATE

"""The formulas against the same system played out."""

from __future__ import annotations

import pytest

from forebay.core.capacity import Pool, lag
from forebay.lab.simulate import play


@pytest.mark.parametrize(("streams", "workers", "slots"), [(60, 10, 1), (80, 10, 1), (64, 2, 4)])
def test_with_random_arrivals_the_predicted_p95_is_what_happens(
    streams: int, workers: int, slots: int
) -> None:
    pool = Pool(rtf=0.1, workers=workers, slots=slots)
    predicted = lag(streams, pool).wait
    played = play(streams, 0.1, workers=workers, slots=slots, for_s=120, random_arrivals=True)
    assert predicted is not None
    assert played.busy == pytest.approx(streams * 0.1 / workers / slots, rel=0.1)
    assert predicted.p95_s == pytest.approx(played.p95_s, rel=0.25, abs=0.002)


def test_paced_streams_never_wait_longer_than_predicted() -> None:
    predicted = lag(500, Pool(rtf=0.1, workers=60)).wait
    played = play(500, 0.1, workers=60, for_s=20)
    assert predicted is not None
    assert played.p95_s <= predicted.p95_s


def test_above_full_load_the_wait_grows_with_time() -> None:
    short = play(22, 0.1, workers=2, for_s=20)
    long = play(22, 0.1, workers=2, for_s=40)
    assert long.max_s > 1.7 * short.max_s

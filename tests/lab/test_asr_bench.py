"""The recognition load tool: its material, its word check, its verdict."""

from __future__ import annotations

import base64
from collections import Counter
from typing import Any

import pytest

from forebay.core.tones import Reader
from forebay.errors import ConfigError
from forebay.lab.asr import Options, clips, figures, judge, make_clip, plans
from forebay.lab.asr_user import Notice, Outcome, word_errors


def test_a_clip_says_its_words_in_whole_chunks() -> None:
    clip = make_clip(3.0, 70, 500)
    sound = b"".join(base64.b64decode(chunk) for chunk in clip.chunks)
    assert {len(base64.b64decode(chunk)) for chunk in clip.chunks} == {2240}
    assert tuple(word.text for word in Reader().feed(sound)) == clip.words
    assert clip.words[0] == "w500"
    assert clip.audio_s == pytest.approx(3.0, abs=0.07)


@pytest.mark.parametrize(
    ("heard", "missing", "extra"),
    [
        ("a b c d", 0, 0),
        ("a c d", 1, 0),
        ("a b b c d", 0, 1),
        ("a b x d", 1, 1),
        ("", 4, 0),
        ("c d a b", 2, 2),
    ],
)
def test_lost_doubled_and_wrong_words_are_counted(heard: str, missing: int, extra: int) -> None:
    assert word_errors(("a", "b", "c", "d"), heard.split()) == (missing, extra)


def test_scenarios_say_how_long_people_speak_and_who_drops() -> None:
    flat = plans(Options(scenario="flat", audio_s=4, concurrency=10))
    assert {plan.clip.audio_s for plan in flat} == {4.0}
    assert all(not plan.drops for plan in flat)
    mixed = plans(Options(scenario="mixed", concurrency=200))
    assert 5 <= sum(bool(plan.drops) for plan in mixed) <= 40
    assert mixed == plans(Options(scenario="mixed", concurrency=200))
    lengths = [clip.audio_s for clip in clips(Options(scenario="long", concurrency=30))]
    assert min(lengths) >= 59 and max(lengths) <= 121


@pytest.mark.parametrize(
    "wrong",
    [{"scenario": "x"}, {"concurrency": 0}, {"chunk_ms": 1}, {"audio_s": 0.1}],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Options(**wrong).check()


def done(**facts: Any) -> Outcome:
    outcome = Outcome(ended="completed", finals=1, audio_s=10, words=100, rtf=1.0, told_s=[0.1])
    for name, value in facts.items():
        setattr(outcome, name, value)
    return outcome


def verdict(*outcomes: Outcome, workers: tuple[int, int, float] | None = (1, 1, 0.1)) -> Any:
    return judge(outcomes, figures(outcomes, 20.0, workers), workers)


def test_all_served_is_ok() -> None:
    assert verdict(done(), done()).kind == "ok"


def test_a_queue_that_grew_is_capacity_and_says_how_many_workers() -> None:
    waited = done(notices=[Notice(0.0, 3, 5.0)], left_at=6.0)
    refused = Outcome(ended="refused", refusals=Counter({"http_503": 2}))
    found = verdict(*[waited] * 30, refused)
    assert found.kind == "capacity"
    assert "add 3 workers (4 in all)" in found.said
    assert "add 1 worker (2 in all)" in verdict(*[waited] * 12).said


@pytest.mark.parametrize(
    "facts",
    [
        {"missing_words": 1},
        {"extra_words": 1},
        {"lost_chunks": 1},
        {"repeated_chunks": 1},
        {"out_of_order": 1},
        {"finals": 2},
        {"errors": ["timeout"], "ended": "timeout"},
    ],
)
def test_anything_lost_doubled_or_hung_is_a_fault(facts: dict[str, Any]) -> None:
    found = verdict(done(**facts), done())
    assert found.kind == "fault"
    for event in ("process.exited", "worker.gone", "job.failed"):  # names that logs have
        assert event in found.said


def test_predicted_waits_are_compared_with_real_ones() -> None:
    outcome = done(notices=[Notice(0.0, 5, 12.0), Notice(9.0, 1, 0.5)], left_at=10.0)
    assert outcome.eta_errors == [pytest.approx(0.2)], "waits under 2 s do not count"


def test_goodput_is_the_share_of_the_slots_that_served_admitted_people() -> None:
    found = figures([done(), done()], 2.0, (1, 1, 0.1))
    assert found["goodput"] == 1.0

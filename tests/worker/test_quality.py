"""A worker counts answers that run in circles or are no text."""

from __future__ import annotations

from collections import Counter

from forebay.commands.quality import counted, judged
from forebay.core.events import Ended, TextDelta
from forebay.core.spec import WorkerView, counts_of
from forebay.gateway.metrics import GatewayMetrics
from forebay.worker.quality import Quality, counts_in

DONE = Ended(state="completed")


def told(quality: Quality, key: str, text: str, ended: Ended = DONE) -> None:
    for at in range(0, len(text), 7):
        quality.hear(key, TextDelta(text=text[at : at + 7]))
    quality.hear(key, ended)


def test_every_finished_answer_is_counted_by_how_it_reads() -> None:
    quality = Quality()
    told(quality, "a", "A plain answer.")
    told(quality, "b", "round and round we go again, " * 40)
    told(quality, "c", "\ufffd\ufffd\ufffd\ufffd")
    told(quality, "d", "cut off", Ended(state="failed"))
    quality.hear("e", TextDelta(text="round "))
    quality.forget("e")
    assert quality.counts == Counter(answers=3, repeats=1, garbled=1)


def test_counts_travel_in_beats_to_metrics_and_doctor() -> None:
    load = {"busy": 1.0, **counts_in(Counter(answers=50, repeats=5), {"failovers": 2}, ())}
    metrics = GatewayMetrics()
    view = WorkerView(id="w1", pools=["text/m"], slots=1, sessions=1, counts=counts_of(load))
    metrics.workers = lambda: [view]
    found = counted(metrics.render().decode())
    assert found == {"text/m": Counter(answers=50, repeats=5, failovers=2)}
    finding = judged("text/m", found["text/m"])
    assert finding.state == "warn"
    assert "5 repeat themselves" in finding.detail
    assert "2 went to another server" in finding.detail
    assert judged("text/m", Counter(answers=50)).state == "ok"
    assert judged("text/m", Counter(answers=3, garbled=3)).state == "ok"

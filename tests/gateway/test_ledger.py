"""The first-byte ledger: stages of an answer, gaps between pieces, and what was slow."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from http_helpers import stand
from structlog.testing import capture_logs

from forebay.core.events import Ended, OutputEvent, TextDelta
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec, JobView, Lease
from forebay.gateway.ledger import Ledger
from forebay.gateway.metrics import GatewayMetrics


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(clock: Clock, metrics: GatewayMetrics, slow_s: float = 0.0) -> Ledger:
    spec = JobSpec(id="j", kind=Kind.TEXT, pool="text/tiny", params={}, dialect="d")
    view = JobView(spec=spec, state="queued", epoch="e")
    asked, clock.now = clock.now + 0.001, clock.now + 0.003
    return Ledger(view, metrics, clock, begun=100.0, asked=asked, slow_s=slow_s)


def test_each_stage_is_told_once_it_is_over(clock: Clock) -> None:
    ledger = opened(clock, GatewayMetrics())
    clock.now += 0.5
    assert ledger.stages_ms() == {"accept": 1.0, "dispatch": 2.0, "queue": 500.0}
    ledger.leased()
    clock.now += 0.02
    ledger.leased()
    event = TextDelta(text="a")
    ledger.arrived(event)
    clock.now += 0.001
    ledger.encoded()
    assert ledger.header().decode() == (
        "accept;dur=1.00, dispatch;dur=2.00, queue;dur=500.00, first_output;dur=20.00, "
        "flush;dur=1.00"
    )
    clock.now += 0.002
    assert ledger.sent(event) == pytest.approx(0.526)
    assert ledger.stages_ms()["write"] == 2.0
    assert ledger.sent(Ended(state="completed")) is None


def test_gaps_between_pieces_are_counted_by_kind(clock: Clock) -> None:
    metrics = GatewayMetrics()
    ledger = opened(clock, metrics)
    for _ in range(3):
        clock.now += 0.2
        ledger.sent(TextDelta(text="a"))
    shown = metrics.render().decode()
    assert 'forebay_chunk_gap_seconds_count{kind="text"} 2.0' in shown
    assert 'forebay_chunk_gap_seconds_bucket{kind="text",le="0.1"} 0.0' in shown


@pytest.mark.parametrize(("first_s", "gap_s", "slow"), [(3, 0, 1), (0, 3, 1), (1, 1, 0)])
def test_a_slow_stream_is_one_event(clock: Clock, first_s: float, gap_s: float, slow: int) -> None:
    ledger = opened(clock, GatewayMetrics(), slow_s=2.0)
    clock.now += first_s
    ledger.sent(TextDelta(text="secret"))
    clock.now += gap_s
    ledger.sent(TextDelta(text="secret"))
    with capture_logs() as logs:
        ledger.close()
    assert len(logs) == slow
    assert "secret" not in str(logs)
    if slow:
        assert logs[0]["event"] == "stream.slow"
        assert (logs[0]["job"], logs[0]["limit_s"], logs[0]["pieces"]) == ("j", 2.0, 2)


async def test_an_operation_ends_with_its_stages() -> None:
    async def words(lease: Lease) -> AsyncIterator[OutputEvent]:
        yield TextDelta(text="one ")
        yield TextDelta(text="two")

    payload = {"QId": "q", "content": "?"}
    asked = {"notebook_id": "n", "operation": {"type": "user_question", "payload": payload}}
    async with stand(slow_stream_s=0.0001) as made, aiohttp.ClientSession() as http:
        made.text.script = words
        with capture_logs() as logs:
            async with http.post(f"{made.url}/send_operation", json=asked) as answer:
                assert answer.headers["Server-Timing"].startswith("accept;dur=")
                lines = [json.loads(line) async for line in answer.content if line.strip()]
        assert [log["dialect"] for log in logs if log["event"] == "stream.slow"] == ["operations"]
        assert set(lines[-1]["data"]["timing"]) == {
            "accept", "dispatch", "queue", "first_output", "flush", "write",
        }  # fmt: skip
        body = {"stream": True, "messages": [{"role": "user", "content": "?"}]}
        async with http.post(f"{made.url}/v1/chat/completions", json=body) as answer:
            assert "first_output;dur=" in answer.headers["Server-Timing"]
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")

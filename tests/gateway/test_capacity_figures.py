"""What operators read of each pool: needed workers and spare streams."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from forebay.core.kinds import KINDS, Kind
from forebay.core.spec import PoolView, QueuePlace, WorkerView
from forebay.gateway.capacity import capacity, needs, pool_capacity
from forebay.gateway.metrics import GatewayMetrics


def served(**facts) -> PoolView:
    return PoolView(name="recognition/m", kind=Kind.RECOGNITION, workers=60, ready=60, slots=60,
                    free_credits=40, **facts)  # fmt: skip


def test_a_scrape_says_how_many_workers_the_load_needs():
    pools = [served(running=500, rtf=0.1), PoolView(name="text/new", kind=Kind.TEXT)]
    ctx = SimpleNamespace(broker=SimpleNamespace(pools=lambda: pools, workers=list), rows=KINDS)
    metrics = GatewayMetrics()
    metrics.needs = lambda: needs(ctx)
    text = metrics.render().decode()
    (line,) = [row for row in text.splitlines() if row.startswith("forebay_needed_workers{")]
    assert line.startswith('forebay_needed_workers{pool="recognition/m"}')
    assert 50 < float(line.split()[-1]) <= 60
    assert 'forebay_spare_streams{pool="recognition/m"}' in text


def test_a_pool_of_unknown_cost_is_left_out():
    broker = SimpleNamespace(pools=lambda: [served(running=5)], workers=list)
    ctx = SimpleNamespace(broker=broker, rows=KINDS)
    assert list(needs(ctx)) == []


def worker(name, sessions, **facts):
    return WorkerView(id=name, pools=["recognition/m"], slots=1, sessions=sessions, **facts)


async def asked(pool, workers):
    """The pool as `GET /v1/capacity` answers it."""
    broker = SimpleNamespace(
        pools=lambda: [pool],
        workers=lambda: workers,
        place_for=lambda *_: QueuePlace(position=1, eta_s=0.0),
    )
    body = b""

    async def send(message):
        nonlocal body
        body += message.get("body", b"")

    scope = {"type": "http", "forebay.tenant": "local", "query_string": b""}
    await capacity(scope, None, send, SimpleNamespace(broker=broker, rows=KINDS))
    return json.loads(body)["pools"][0]


@pytest.mark.parametrize("measured", [0.10153, 0.1, 0.08])
async def test_what_a_pool_holds_is_what_its_workers_admit_and_not_a_hair_less(measured):
    facts = {"name": "recognition/m", "kind": Kind.RECOGNITION, "ready": 1, "slots": 1}
    free = PoolView(**facts, engine="e", free_credits=9, rtf=measured)
    found = await asked(free, [worker("a", 9), worker("spare", 5, standby=True)])
    assert (found["free_now"], found["holds_streams"], found["spare_streams"]) == (9, 9, 9)
    full = PoolView(**facts, engine="e", free_credits=0, running=9, rtf=measured)
    found = await asked(full, [worker("a", 9)])
    assert (found["holds_streams"], found["needed_workers"], found["spare_streams"]) == (9, 1, 0)


async def test_a_model_much_slower_than_it_said_still_needs_more_workers():
    pool = PoolView(name="recognition/m", kind=Kind.RECOGNITION, ready=1, slots=1, engine="e",
                    free_credits=0, running=9, rtf=0.2)  # fmt: skip
    found = await asked(pool, [worker("a", 9)])
    assert found["holds_streams"] == 9
    assert found["needed_workers"] > 1


@pytest.mark.parametrize(
    ("facts", "said"),
    [({}, None), ({"engine": "synthetic", "synthetic": True}, True), ({"engine": "x"}, False)],
)
def test_whether_a_pool_is_synthetic_is_not_said_before_a_worker_has(facts, said):
    pool = PoolView(name="recognition/m", kind=Kind.RECOGNITION, **facts)
    assert pool_capacity(pool, max_wait_s=1.0, live=True)["synthetic"] is said

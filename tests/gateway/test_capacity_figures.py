"""What operators read of each pool: needed workers and spare streams."""

from __future__ import annotations

from types import SimpleNamespace

from forebay.core.kinds import KINDS, Kind
from forebay.core.spec import PoolView
from forebay.gateway.capacity import needs
from forebay.gateway.metrics import GatewayMetrics


def served(**facts) -> PoolView:
    return PoolView(name="recognition/m", kind=Kind.RECOGNITION, workers=60, ready=60, slots=60,
                    free_credits=40, **facts)  # fmt: skip


def test_a_scrape_says_how_many_workers_the_load_needs():
    pools = [served(running=500, rtf=0.1), PoolView(name="text/new", kind=Kind.TEXT)]
    ctx = SimpleNamespace(broker=SimpleNamespace(pools=lambda: pools), rows=KINDS)
    metrics = GatewayMetrics()
    metrics.needs = lambda: needs(ctx)
    text = metrics.render().decode()
    (line,) = [row for row in text.splitlines() if row.startswith("forebay_needed_workers{")]
    assert line.startswith('forebay_needed_workers{pool="recognition/m"}')
    assert 50 < float(line.split()[-1]) <= 60
    assert 'forebay_spare_streams{pool="recognition/m"}' in text


def test_a_pool_of_unknown_cost_is_left_out():
    ctx = SimpleNamespace(broker=SimpleNamespace(pools=lambda: [served(running=5)]), rows=KINDS)
    assert list(needs(ctx)) == []

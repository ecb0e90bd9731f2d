"""``GET /v1/capacity``: what each pool could still take, and what its load would need.

Everything comes from what was measured here: the pool's real-time factor, or how long its
jobs take. ``?max_wait=`` (seconds, default 1) is the p95 wait that "needed" and "spare" mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

from forebay.core.capacity import Pool, plan, spare_streams, work_rate
from forebay.core.kinds import Cut
from forebay.core.spec import PoolView
from forebay.errors import BadRequest
from forebay.gateway.context import GatewayContext
from forebay.gateway.responses import Receive, Scope, Send, reply_json
from forebay.gateway.routes import Route

__all__ = ["ROUTES", "capacity", "needs", "pool_capacity"]

UTILISATION = 0.8
SCRAPED_WAIT_S = 1.0


async def capacity(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    fields = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=20)
    max_wait_s = _seconds(fields.get("max_wait", ["1"])[-1])
    tenant = scope["forebay.tenant"]
    pools = []
    for pool in ctx.broker.pools():
        place = ctx.broker.place_for(pool.name, tenant, 1.0)
        live = ctx.rows[pool.kind].cut is Cut.SPAN
        found = pool_capacity(pool, max_wait_s=max_wait_s, live=live, each=_each(ctx, pool))
        found["wait_now_s"] = None if place.eta_s is None else round(place.eta_s, 2)
        found["position_now"] = place.position
        pools.append(found)
    await reply_json(send, {"max_wait_s": max_wait_s, "pools": pools})


def needs(ctx: GatewayContext) -> Iterator[tuple[str, int, int]]:
    """For scrapes: each pool whose cost has been measured, the workers its load needs for a
    p95 wait of `SCRAPED_WAIT_S`, and the streams that would still fit."""
    for pool in ctx.broker.pools():
        live = ctx.rows[pool.kind].cut is Cut.SPAN
        found = pool_capacity(pool, max_wait_s=SCRAPED_WAIT_S, live=live, each=_each(ctx, pool))
        if found["needed_workers"] is not None:
            yield pool.name, found["needed_workers"], found["spare_streams"]


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 3600:
        raise BadRequest("max_wait is no number of seconds from 0 to 3600", param="max_wait")
    return value


def _each(ctx: GatewayContext, pool: PoolView) -> float | None:
    """Jobs that a worker of the pool admits at once, on average; None where none has said.
    They settle that when they load, from the RTF of then: a little more or less measured
    since changes nothing of what they take."""
    if not pool.ready:
        return None
    known = [w for w in ctx.broker.workers() if pool.name in w.pools and w.sessions]
    regular = [w.sessions for w in known if not w.standby] or [w.sessions for w in known]
    return sum(regular) / len(regular) if regular else None


def pool_capacity(
    pool: PoolView, *, max_wait_s: float, live: bool, each: float | None = None
) -> dict[str, Any]:
    """One pool's figures. ``live``: its jobs are streams in real time (recognition), counted
    by their RTF; otherwise jobs that are answered whole, counted by their service time.
    ``each``: jobs that one worker admits at once, where known."""
    found: dict[str, Any] = {
        "name": pool.name,
        "kind": str(pool.kind),
        "model": pool.model,
        "synthetic": pool.synthetic if pool.engine else None,  # no worker has said yet
        "workers": pool.ready,
        "slots": pool.slots,
        "queued": pool.queued,
        "running": pool.running,
        "parked": pool.parked,
        "free_now": pool.free_credits,
        "rtf": _round(pool.rtf),
        "service_s": _round(pool.service_s),
        "jobs_per_s": _round(pool.drain_rate),
    }
    rtf = pool.rtf if pool.rtf is not None else pool.facts.get("rtf")
    if live and isinstance(rtf, int | float) and rtf > 0:
        return found | _live(pool, float(rtf), max_wait_s, each)
    if not live and pool.service_s and pool.drain_rate and pool.slots:
        return found | _whole(pool, pool.service_s, pool.drain_rate, max_wait_s)
    return found | {"load": None, "needed_workers": None, "spare_streams": None}


def _live(pool: PoolView, rtf: float, max_wait_s: float, each: float | None) -> dict[str, Any]:
    wanted = pool.running + pool.queued
    workers = max(1, pool.ready)
    slots = max(1, pool.slots // workers)
    needs = plan(
        max(1, wanted), rtf, workers=workers, slots=slots, max_wait_s=max_wait_s,
        utilisation=UTILISATION, each=each,
    )  # fmt: skip
    serves = Pool(rtf=rtf, workers=workers, slots=slots, each=each)
    spare = spare_streams(pool.running, serves, max_wait_s=max_wait_s)
    return {
        "rtf": round(rtf, 5),
        "load": round(pool.running * rtf / (workers * slots), 4),
        "holds_streams": max(needs.held, pool.free_credits),
        "needed_workers": needs.needed if wanted else 0,
        "spare_streams": min(spare, pool.free_credits) if pool.ready else 0,
        "simple_rule": {
            "rule": "workers = streams x rtf / utilisation / slots",
            "utilisation": UTILISATION,
            "workers": needs.simple if wanted else 0,
            "workers_at_full_load": needs.full_load if wanted else 0,
        },
    }


def _whole(
    pool: PoolView, service_s: float, jobs_per_s: float, max_wait_s: float
) -> dict[str, Any]:
    rate = work_rate(
        jobs_per_s, service_s, pool.slots, workers=max(1, pool.ready), max_wait_s=max_wait_s
    )
    return {
        "load": round(rate.load, 4),
        "wait_p95_s": None if rate.wait is None else round(rate.wait.p95_s, 3),
        "needed_workers": rate.needed,
        "spare_streams": pool.free_credits,
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


ROUTES = [Route(method="GET", path="/v1/capacity", handler=capacity, needs="read")]

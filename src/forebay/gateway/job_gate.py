"""The job gate as far as it can be asked without a job: at a POST's headers.

What would be refused anyway is refused here, before a large body is read.
"""

from __future__ import annotations

import random

from forebay.core.admission import JobFacts, JobLimits, refuse_job
from forebay.core.kinds import Kind
from forebay.core.spec import QueuePlace
from forebay.gateway.context import GatewayContext

__all__ = ["ask_gate"]


def ask_gate(ctx: GatewayContext, kind: Kind) -> None:
    """Raises what a new job of this kind would be refused with: `NoWorkers`, `QueueFull`."""
    pools = [pool for pool in ctx.broker.pools() if pool.kind == kind]
    place = QueuePlace(position=1)
    if pools:
        place = ctx.broker.place_for(pools[0].name, "", 1.0)
    facts = JobFacts(
        workers=sum(pool.workers for pool in pools),
        queued=sum(pool.queued for pool in pools),
        free=sum(pool.free_credits for pool in pools),
        place=place,
        drain_rate=pools[0].drain_rate if pools else None,
    )
    refusal = refuse_job(facts, JobLimits(queue=ctx.queue_limit), jitter=random.random())
    if refusal is not None:
        raise refusal

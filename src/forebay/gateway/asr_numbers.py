"""S4's numbers: how its queue stands, what all tasks came to, what the original's dashboard polls."""

from __future__ import annotations

import psutil

from forebay.gateway.asr_sessions import asr_pools, iso, scribe_of
from forebay.gateway.context import GatewayContext
from forebay.gateway.responses import Receive, Scope, Send, reply_json
from forebay.history import Stats

__all__ = ["queue_status", "stats", "test_report", "test_results"]


async def queue_status(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/v1/asr/queue/status``."""
    pools = asr_pools(ctx)
    failed = 0
    if ctx.scribe is not None:
        failed = (await ctx.scribe.history.stats(scope["forebay.tenant"])).failed
    running, workers = sum(p.running for p in pools), sum(p.ready for p in pools)
    await reply_json(
        send,
        {
            "queued": sum(pool.queued for pool in pools),
            "processing": running,
            "failed": failed,
            "workers": workers,
            "workers_busy": min(workers, running),
            "detached": sum(pool.detached for pool in pools),
            "queue_limit": ctx.queue_limit,
        },
    )


async def stats(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/v1/stats``."""
    found = Stats()
    if ctx.scribe is not None:
        found = await ctx.scribe.history.stats(scope["forebay.tenant"])
    await reply_json(
        send,
        {
            "total_tasks": found.tasks,
            "total_duration": round(found.audio_s, 3),
            "avg_rtf": round(found.rtf, 4),
            "storage_used": f"{found.audio_bytes / 1e6:.1f} MB",
        },
    )


async def test_results(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``/test/results/latest``: what the original's dashboard polls once a second."""
    memory, pools = psutil.virtual_memory(), asr_pools(ctx)
    await reply_json(
        send,
        {
            "timestamp": iso(scribe_of(ctx).wall()) if ctx.scribe is not None else None,
            "cpu_percent": psutil.cpu_percent(),
            "memory_percent": memory.percent,
            "memory_mb": round(memory.used / 1e6, 1),
            "active_workers": sum(pool.ready for pool in pools),
            "queued_tasks": sum(pool.queued for pool in pools),
        },
    )


async def test_report(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``/test/report/latest``: the same page's totals, over this process's life."""
    found = Stats()
    if ctx.scribe is not None:
        found = await ctx.scribe.history.stats(scope["forebay.tenant"])
    lived_s = max(0.001, ctx.clock() - ctx.started_s)
    pools = asr_pools(ctx)
    done = max(0, found.tasks - found.failed)
    await reply_json(
        send,
        {
            "total_requests": found.tasks,
            "success": done,
            "avg_latency": round(pools[0].service_s or 0.0, 4) if pools else 0.0,
            "throughput": round(done / lived_s, 4),
            "duration": round(lived_s, 1),
            "concurrency": sum(pool.running for pool in pools),
        },
    )

"""What the gateway says about itself: health, readiness, status, metrics, info, tickets."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import msgspec

from forebay.core.kinds import Kind
from forebay.core.spec import PoolView
from forebay.gateway import jobs_api
from forebay.gateway.access import header
from forebay.gateway.auth import Principal, port_of
from forebay.gateway.captions_pages import landing
from forebay.gateway.console import page
from forebay.gateway.context import GatewayContext
from forebay.gateway.metrics import CONTENT_TYPE
from forebay.gateway.personality import PERSONALITIES, Personality
from forebay.gateway.photo_tasks import root_body as photo_facts
from forebay.gateway.responses import Receive, Scope, Send, reply, reply_json

__all__ = [
    "health",
    "jobs",
    "metrics",
    "orch_health",
    "pool_facts",
    "ready",
    "readiness",
    "root",
    "status",
    "ticket",
    "tts_health",
]

VIEWS = ("talk", "listen", "photos", "captions", "notebook", "pools")


async def root(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``/``: the console, or on ports of original servers a few facts. Programs that ask the
    main port for no page get the photo service's facts, as its clients expect."""
    personality = port_of(scope).personality
    wants_page = personality.name != "main" or "text/html" in (header(scope, b"accept") or "")
    if personality.face == "photos" or not wants_page:
        await reply_json(send, photo_facts(ctx))
        return
    if personality.face == "console":
        await page(scope, receive, send, ctx)
        return
    if personality.face == "captions":
        await landing(scope, receive, send, ctx)
        return
    await reply_json(
        send,
        {
            "service": "forebay",
            "version": ctx.version,
            "port": personality.name,
            "about": personality.about,
            "status": "draining" if ctx.draining else "ok",
        },
    )


# ----------------------------------------------------------------------------- health


async def health(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``/health`` on the main port: the photo service's fields, which its clients poll."""
    pools = ctx.broker.pools()
    running = sum(pool.running + pool.queued for pool in pools)
    await reply_json(
        send,
        {
            "status": "healthy",
            "timestamp": (ctx.started_at.timestamp() + _uptime(ctx)),
            "active_tasks": running,
            "model_status": {
                "initialized": any(pool.ready for pool in pools),
                "cuda_available": False,
                "device": "cpu",
            },
        },
    )


async def tts_health(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """The voice server's health, field for field; on the orchestrator's port only `status`.

    Live, not ready: it answers 200 while models load."""
    if port_of(scope).personality.name == "chat":
        await orch_health(scope, receive, send, ctx)
        return
    voice = next((p for p in ctx.broker.pools() if p.kind == Kind.SPEECH), None)
    facts = voice.facts if voice is not None else {}
    rate = facts.get("sample_rate", facts.get("rate"))
    await reply_json(
        send,
        {
            "status": "ok",
            "engine": voice.engine if voice is not None else "",
            "engine_resolved": voice.engine if voice is not None else "",
            "version": ctx.version,
            "started_at": ctx.started_at.isoformat(),
            "uptime_s": round(_uptime(ctx), 3),
            "piper_root": "",
            "piper_binary_exists": False,
            "piper_model_exists": voice is not None and voice.engine == "piper",
            "model_sample_rate": rate if isinstance(rate, int) else None,
            "default_model_name": voice.model if voice is not None else "",
            "synthetic": voice.synthetic if voice is not None else False,
        },
    )


async def orch_health(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """The orchestrator's health."""
    await reply_json(send, {"status": "ok"})


def readiness(ctx: GatewayContext) -> dict[str, Any]:
    """Whether work sent now would be served, and if not, what is missing and how far it is."""
    pools = {pool.name: pool for pool in ctx.broker.pools()}
    missing = [name for name in ctx.expected if name not in pools]
    if ctx.hands_over:  # pools belong to all gateways: none is less ready for one that is empty
        store_up = ctx.store_up()
        ready = store_up and not missing and all(pools[name].ready > 0 for name in ctx.expected)
    else:
        store_up = True
        ready = bool(pools) and not missing and all(pool.ready > 0 for pool in pools.values())
    return {
        "ready": ready and not ctx.draining,
        "store": "up" if store_up else "down",
        "draining": ctx.draining,
        "missing": missing,
        "pools": [
            {
                "name": pool.name,
                "ready": pool.ready,
                "workers": pool.workers,
                "stages": msgspec.to_builtins(pool.stages),
            }
            for pool in pools.values()
        ],
    }


async def ready(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``/readyz``: 200 when every pool has a ready worker, else 503 with the load stages."""
    facts = readiness(ctx)
    if facts["ready"]:
        await reply_json(send, facts)
    else:
        await reply_json(send, facts, 503, [(b"retry-after", b"1")])


def _uptime(ctx: GatewayContext) -> float:
    return ctx.clock() - ctx.started_s


# --------------------------------------------------------------------- numbers, status


async def metrics(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    await reply(
        send,
        200,
        ctx.metrics.render(),
        [(b"content-type", CONTENT_TYPE.encode()), (b"cache-control", b"no-store")],
    )


def pool_facts(pool: PoolView) -> dict[str, Any]:
    """A pool as JSON, every field present."""
    facts = msgspec.structs.asdict(pool)
    facts["stages"] = msgspec.to_builtins(pool.stages)
    return facts


async def status(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``/api/status``: what the console shows."""
    pools = ctx.broker.pools()
    await reply_json(
        send,
        {
            "service": "forebay",
            "version": ctx.version,
            "started_at": ctx.started_at.isoformat(),
            "uptime_s": round(_uptime(ctx), 3),
            "draining": ctx.draining,
            "ready": readiness(ctx)["ready"],
            "pools": [pool_facts(pool) for pool in pools],
            "queued": sum(pool.queued for pool in pools),
            "running": sum(pool.running for pool in pools),
            "connections": ctx.metrics.connections(),
            "voice_sessions": ctx.metrics.voice_sessions,
            "first_bytes": ctx.metrics.first_bytes(),
            "ports": {name: PERSONALITIES[name].about for name in ctx.ports},
            "views": _views(port_of(scope).personality),
            "signed_in": ctx.auth.signed_in(scope),
        },
    )


def _views(manners: Personality) -> list[str]:
    """The pages that work on a port, and so are linked to each other there."""
    if manners.face != "console":
        return []
    return ["talk", "listen", "captions"] if manners.compat else list(VIEWS)


async def ticket(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /api/ticket``: a one-time stand-in for the caller's key, for a WebSocket
    opened by a browser as ``?ticket=``."""
    principal: Principal = scope["forebay.principal"]
    made = await ctx.tickets.issue(principal)
    await reply_json(send, {"ticket": made, "expires_s": ctx.options.ticket_s})


async def jobs(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``/api/jobs...``. An administrator sees every tenant's jobs, others their own."""
    principal: Principal = scope["forebay.principal"]
    fields = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=20)
    answer = await jobs_api.answer(
        ctx.broker,
        None if principal.may("admin") else principal.tenant,
        scope["method"],
        scope["path"].removeprefix("/api/jobs"),
        {name: values[-1] for name, values in fields.items()},
        None if ctx.scribe is None else ctx.scribe.retried,
    )
    await reply_json(send, answer)

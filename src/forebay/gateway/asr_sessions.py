"""S4's session REST: health, history, one session, its recording. What the Go backend served.

Live sessions are read from the broker, finished ones from the history; a client sees its own
tenant's. Errors are ``{"error": text}``, as that backend's clients read them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import structlog

from forebay.core.events import Ended, Heard
from forebay.core.kinds import Kind
from forebay.core.spec import DELETED, JobView, PoolView
from forebay.dialects.asr import AsrDialect
from forebay.errors import ForebayError, NotFound, ResumeNotAvailable, StoreFull
from forebay.gateway.auth import PUBLIC, port_of
from forebay.gateway.context import GatewayContext
from forebay.gateway.responses import Receive, Scope, Send, reply_json
from forebay.gateway.routes import rows
from forebay.gateway.scribe import STATUS, Scribe
from forebay.history import SessionRecord

__all__ = ["ROUTES", "asr_pools", "iso", "scribe_of"]

LISTED = 20
LAST_WORD_S = 5.0
"""Whoever reads a session that is deleted may take so long to hear its end."""
ELSEWHERE_S = 1.0
"""The same at another gateway, of which only that something was delivered is known."""
LOOK_S = 0.05
GO_PORTS = frozenset({"voice", "voice-alt"})
PORTS = frozenset({"main", "voice", "voice-alt", "api", "api-alt"})

log = structlog.get_logger(__name__)


def asr_pools(ctx: GatewayContext) -> list[PoolView]:
    return [pool for pool in ctx.broker.pools() if pool.kind == Kind.RECOGNITION]


def scribe_of(ctx: GatewayContext) -> Scribe:
    """Raises `StoreFull` where no history is kept."""
    if ctx.scribe is None:
        raise StoreFull("no history is kept here")
    return ctx.scribe


def iso(when: Any) -> str | None:
    return None if when is None else when.isoformat()


async def health(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``/api/v1/health``: the fields of both originals. The Go backend was always "ready",
    the Python service said how it stood; each port says it in its own way."""
    pools = asr_pools(ctx)
    ready = sum(pool.ready for pool in pools)
    known = sum(pool.workers for pool in pools)
    go = port_of(scope).personality.name in GO_PORTS
    status = "ready" if ready else "degraded" if known else "unavailable"
    body: dict[str, Any] = {
        "status": "ready" if go else status,
        "funasr_ready": ready > 0,
        "redis_ready": True,
        "workers_ready": ready,
        "model_loaded": ready > 0,
        "redis_connected": True,
        "workers_active": ready,
        "uptime": round(ctx.clock() - ctx.started_s, 3),
    }
    if not ready:
        body["error"] = "models are loading" if known else "no recognition worker is running"
    await reply_json(send, body)


async def history(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/v1/history``: the newest sessions that are done."""
    store, tenant = scribe_of(ctx).history, scope["forebay.tenant"]
    records = await store.sessions(tenant, LISTED)
    total = await store.count_sessions(tenant)
    await reply_json(send, {"total": total, "records": [_listed(r) for r in records]})


def _listed(record: SessionRecord) -> dict[str, Any]:
    found: dict[str, Any] = {
        "session_id": record.name,
        "text": record.text,
        "duration": record.duration_s,
        "chunk_count": record.chunks,
        "created_at": iso(record.created_at),
        "audio_s": record.audio_s,
        "rtf": round(record.model_s / record.audio_s, 4) if record.audio_s else None,
    }
    if record.audio_path:
        found["audio_path"] = f"recordings/{record.audio_path}"
    return found


# ------------------------------------------------------------------------- one session


async def session(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/v1/session/ID``: live, just finished, or from the history."""
    name, tenant = scope["path_params"]["id"], scope["forebay.tenant"]
    view = await _find(ctx, tenant, name)
    record = None
    if ctx.scribe is not None and (view is None or view.ended_s is not None):
        record = await ctx.scribe.history.session(tenant, name)
    if view is not None:
        await reply_json(send, await _live(ctx, view, record))
    elif record is not None:
        await reply_json(send, _finished(record))
    else:
        raise _no_session()


async def delete_session(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``DELETE /api/v1/session/ID``: cancelled if live, and forgotten with its recording."""
    name, tenant = scope["path_params"]["id"], scope["forebay.tenant"]
    view = await _find(ctx, tenant, name)
    known = view is not None
    if view is not None:
        with suppress(NotFound):  # its window has just passed
            await _delete_job(ctx, view)
    if ctx.scribe is not None:
        record = await ctx.scribe.history.session(tenant, name)
        if record is not None and record.audio_path:
            await ctx.scribe.tape.remove([record.audio_path])
        known = await ctx.scribe.history.delete_session(tenant, name) or known
    if not known:
        raise _no_session()
    await reply_json(send, {"message": "Delete successful"})


async def _delete_job(ctx: GatewayContext, view: JobView) -> None:
    """Nobody finds the job of ``view`` from now on. Raises `NotFound`."""
    job = view.spec.id
    if view.ended_s is None:
        view = await ctx.broker.cancel(job, reason=DELETED)
    if ctx.scribe is not None:
        await ctx.scribe.forget(job)
    begun = ctx.clock()
    if not view.deleted or await _all_heard(ctx, job, begun):
        await ctx.broker.forget(job)
        return

    async def later() -> None:
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                if await _all_heard(ctx, job, begun):
                    break
            await ctx.broker.forget(job)
        except ForebayError as error:  # its window is short, and nobody is shown it
            log.debug("session.not_forgotten", job=job, code=error.code)

    ctx.hub.spawn(later())


async def _all_heard(ctx: GatewayContext, job: str, begun: float) -> bool:
    """Whether those who read ``job`` have had its end, or had their time for it. A stream that
    is forgotten sooner could not say how it ended."""
    waited = ctx.clock() - begun
    if ctx.hub.readers(job):
        return waited >= LAST_WORD_S
    if hasattr(ctx.broker, "at_head"):  # in this process: nobody reads elsewhere
        return True
    view = await ctx.broker.status(job)
    return view.delivered >= view.head or waited >= ELSEWHERE_S


async def recording(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/v1/session/ID/audio``: the recording, where one is kept."""
    scribe, tenant = scribe_of(ctx), scope["forebay.tenant"]
    record = await scribe.history.session(tenant, scope["path_params"]["id"])
    if record is None or not record.audio_path:
        raise _no_session()
    path = await asyncio.to_thread(scribe.recordings.path, record.audio_path)
    await send_file(send, path, "audio/wav")


def _no_session() -> NotFound:
    return NotFound("no such session", word="Session not found")


async def _find(ctx: GatewayContext, tenant: str, name: str) -> JobView | None:
    """The newest job of that name, unless it was deleted."""
    view = await ctx.broker.find(tenant, AsrDialect.name, name)
    return None if view is not None and view.deleted else view


async def _live(ctx: GatewayContext, view: JobView, record: SessionRecord | None) -> dict[str, Any]:
    results, ended = await _results(ctx, view)
    until = ctx.clock() if view.ended_s is None else view.ended_s
    duration = max(0.0, until - view.created_s)
    if ctx.scribe is not None:
        created = ctx.scribe.created_at(view)
    else:
        created = ctx.started_at + timedelta(seconds=view.created_s - ctx.started_s)
    text = "".join(results.values())
    status = "finishing" if view.input_ended else "recording"
    if ended is not None:
        status = STATUS.get(ended.state, "failed")
    found: dict[str, Any] = {
        "id": view.spec.name,
        "user_id": view.spec.params.get("user", ""),
        "status": status,
        "chunk_count": len(results),
        "results": {str(seq): said for seq, said in results.items()},
        "completed": {str(seq): True for seq in results},
        "final_text": text if ended is None else str(ended.details.get("text", text)),
        "duration": round(duration, 3),
        "created_at": iso(created),
        "position": view.place.position if view.place is not None else None,
        "eta_s": view.place.eta_s if view.place is not None else None,
    }
    if ended is not None:
        found["completed_at"] = iso(created + timedelta(seconds=duration))
        if ended.state != "completed":
            found["error"] = ended.message or ended.code or ended.state
    if record is not None and record.job == view.spec.id and record.audio_path:
        found["audio_path"] = f"recordings/{record.audio_path}"
    return found


async def _results(ctx: GatewayContext, view: JobView) -> tuple[dict[int, str], Ended | None]:
    """Text by chunk, as far as it is kept, and the end."""
    results: dict[int, str] = {}
    ended: Ended | None = None
    after = max(0, view.first - 1)
    while True:
        try:
            events = await ctx.broker.read_after(view.spec.id, after, epoch=view.epoch)
        except ResumeNotAvailable:
            return results, ended
        for event in events:
            if isinstance(event, Heard):
                results[event.seq] = results.get(event.seq, "") + event.text
            elif isinstance(event, Ended):
                ended = event
        if not events or ended is not None:
            return results, ended
        after = events[-1].offset


def _finished(record: SessionRecord) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": record.name,
        "user_id": record.user,
        "status": record.status,
        "chunk_count": record.chunks,
        "results": {},
        "completed": {},
        "final_text": record.text,
        "duration": record.duration_s,
        "created_at": iso(record.created_at),
        "completed_at": iso(record.completed_at),
    }
    if record.audio_path:
        found["audio_path"] = f"recordings/{record.audio_path}"
    if record.error:
        found["error"] = record.error
    return found


PIECE_BYTES = 256 * 1024


async def send_file(
    send: Send, path: Any, media: str, more: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """A whole file as the answer, read in a thread, piece by piece. ``more``: headers, which
    win over those that every file has."""
    file = await asyncio.to_thread(path.open, "rb")
    try:
        size = (await asyncio.to_thread(path.stat)).st_size
        headers = [
            (b"content-type", media.encode()),
            (b"content-length", b"%d" % size),
            (b"x-content-type-options", b"nosniff"),
        ]
        kept = {b"cache-control": b"private, no-store", **dict(more)}
        headers += kept.items()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while size > 0:
            part = await asyncio.to_thread(file.read, min(PIECE_BYTES, size))
            if not part:
                raise ForebayError("the file was cut short while it was read")
            size -= len(part)
            await send({"type": "http.response.body", "body": part, "more_body": size > 0})
    finally:
        await asyncio.to_thread(file.close)


_row = rows(on=PORTS, errors="error")

ROUTES = [
    _row("GET", "/api/v1/health", health, PUBLIC),
    _row("GET", "/api/v1/history", history, "read"),
    _row("GET", "/api/v1/session/{id}", session, "read"),
    _row("GET", "/api/v1/session/{id}/audio", recording, "read"),
    _row("DELETE", "/api/v1/session/{id}", delete_session, "cancel"),
]

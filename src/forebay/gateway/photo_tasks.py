"""Photos come out: how a task stands, its events, its tiles and its result; batches; cancel.

A task is the image job of that name, asked for each time, so any gateway can answer and a
restart changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from forebay.blobs import Blobs
from forebay.core.events import OutputEvent, Result, Tile
from forebay.core.kinds import Kind
from forebay.core.spec import JobView
from forebay.dialects import photos as words
from forebay.dialects.photos import PhotoWords, Standing
from forebay.errors import BadRequest, NotFound, ResumeNotAvailable, StoreFull
from forebay.gateway.asr_sessions import send_file
from forebay.gateway.auth import PUBLIC
from forebay.gateway.console import named_page
from forebay.gateway.context import GatewayContext
from forebay.gateway.photo_zip import ZipEntry, send_zip, unique_names
from forebay.gateway.photos import PORTS
from forebay.gateway.responses import Receive, Scope, Send, reply_json
from forebay.gateway.routes import rows
from forebay.gateway.sse import serve_events, serve_events_socket

__all__ = ["ROUTES", "health_body", "root_body"]

NEWEST = 4
"""The last events of a job say how it stands: progress beside a tile, or result and end."""
MAX_LISTED = 1000
COMPAT = frozenset({"api", "api-alt"})


# ------------------------------------------------------------------------------- finding


async def _view(scope: Scope, ctx: GatewayContext) -> JobView:
    return await _named(ctx, scope["forebay.tenant"], scope["path_params"]["id"])


async def _named(ctx: GatewayContext, tenant: str, task: str) -> JobView:
    """Raises `NotFound` for another tenant's task as for none at all."""
    view = await ctx.broker.find(tenant, words.DIALECT, task)
    if view is None:
        raise NotFound("no such task", word="Task not found")
    return view


async def _standing(ctx: GatewayContext, view: JobView) -> Standing:
    events: list[OutputEvent] = []
    if view.head:
        after = max(view.first - 1, view.head - NEWEST, 0)
        try:
            events = await ctx.broker.read_after(view.spec.id, after, epoch=view.epoch)
        except ResumeNotAvailable:
            events = []
    return Standing.of(view, events, ctx.clock())


async def _batch(scope: Scope, ctx: GatewayContext) -> list[Standing]:
    tenant, batch = scope["forebay.tenant"], scope["path_params"]["id"]
    views: list[JobView] = []
    index, files = 0, words.BATCH_FILES  # until one of its tasks says how many there were
    while index < files:
        view = await ctx.broker.find(tenant, words.DIALECT, words.sub_task_id(batch, index))
        if view is not None:
            views.append(view)
            files = int(view.spec.params.get("batch_files", 1))
        index += 1
    if not views:
        raise NotFound("no such batch", word="Batch task not found")
    return [await _standing(ctx, view) for view in views]


def _blobs(ctx: GatewayContext) -> Blobs:
    if ctx.blobs is None:
        raise StoreFull("this gateway keeps no files")
    return ctx.blobs


# ------------------------------------------------------------------------------- looking


async def status(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/v1/status/{id}``."""
    standing = await _standing(ctx, await _view(scope, ctx))
    await reply_json(send, words.task_body(standing))


async def tasks(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/v1/tasks``: the newest of the tenant's."""
    tenant = scope["forebay.tenant"]
    found = [
        Standing.of(view, (), ctx.clock())
        for view in await ctx.broker.jobs(limit=MAX_LISTED)
        if view.spec.dialect == words.DIALECT and view.spec.tenant == tenant and view.spec.name
    ]
    await reply_json(send, words.list_body(found))


async def batch_status(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/v1/batch/status/{id}``."""
    found = await _batch(scope, ctx)
    await reply_json(send, words.batch_body(scope["path_params"]["id"], found))


async def events(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/v1/tasks/{id}/events``: server-sent events, resumable."""
    view = await _view(scope, ctx)
    await serve_events(scope, receive, send, ctx, view, PhotoWords(view.spec.name))


async def socket(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``/api/v1/tasks/{id}/ws``: the same over a WebSocket."""
    view = await _view(scope, ctx)
    await serve_events_socket(scope, receive, send, ctx, view, PhotoWords(view.spec.name))


# ------------------------------------------------------------------------------- results


async def tile(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/v1/tasks/{id}/tiles/{n}``: one finished tile."""
    view, number = await _view(scope, ctx), scope["path_params"]["n"]
    if not (number.isascii() and number.isdigit() and len(number) <= 6):
        raise BadRequest("a tile's number is a whole number")
    found = await _tile(ctx, view, int(number))
    path = await asyncio.to_thread(_blobs(ctx).path, found.blob)
    kept = [(b"cache-control", b"private, max-age=3600, immutable")]
    await send_file(send, path, found.type or "application/octet-stream", kept)


async def _tile(ctx: GatewayContext, view: JobView, index: int) -> Tile:
    """Tiles are made in the order of their numbers, or nearly: a resumed job leaves out what
    is there, and an engine with several at work may finish a later one first."""
    job = view.spec.id
    for start in (index, 0):
        after = start
        while True:
            found = await _tiles_after(ctx, job, after)
            for event in found:
                if event.index == index:
                    return event
            if not found or start:
                break
            after = found[-1].tiles
    raise NotFound(f"tile {index} is not there yet", word="Tile not found")


async def _tiles_after(ctx: GatewayContext, job: str, count: int) -> list[Tile]:
    try:
        found = await ctx.broker.read_after_mark(job, "tiles", count)
    except ResumeNotAvailable:
        return []  # so many there are not
    return [event for event in found if isinstance(event, Tile)]


async def _result(ctx: GatewayContext, standing: Standing) -> Result:
    if standing.status != "completed":
        raise BadRequest(
            f"the task is {standing.status}",
            word=f"Task not completed. Current status: {standing.status}",
        )
    if standing.result is None:
        raise NotFound("its result is no longer kept", word="Result file not found")
    return standing.result


async def download(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/v1/download/{id}``."""
    standing = await _standing(ctx, await _view(scope, ctx))
    result = await _result(ctx, standing)
    path = await asyncio.to_thread(_blobs(ctx).path, result.blob)
    name = words.enhanced_name(standing.view.spec.params)
    headers = [
        (b"content-disposition", words.disposition(name)),
        (b"etag", b'"' + result.sha256[:32].encode() + b'"'),
    ]
    await send_file(send, path, result.type or "image/jpeg", headers)


async def batch_download(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/v1/batch/download/{id}``: a zip of what succeeded."""
    batch, found = scope["path_params"]["id"], await _batch(scope, ctx)
    state = words.batch_body(batch, found)["status"]
    if state not in ("completed", "partial_completed"):
        raise BadRequest(
            f"the batch is {state}", word=f"Batch task not completed. Current status: {state}"
        )
    done = [s for s in found if s.status == "completed" and s.result is not None]
    names = unique_names([words.enhanced_name(s.view.spec.params) for s in done])
    blobs = _blobs(ctx)
    entries = []
    for name, standing in zip(names, done, strict=True):
        result = await _result(ctx, standing)
        entries.append(ZipEntry(name, await asyncio.to_thread(blobs.path, result.blob)))
    headers = [(b"content-disposition", words.disposition(f"enhanced_{batch}.zip"))]
    await send_zip(send, entries, headers)


async def delete(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``DELETE /api/v1/tasks/{id}``: cancels; of a finished task it removes the result."""
    view = await _view(scope, ctx)
    if view.ended_s is None:
        await ctx.broker.cancel(view.spec.id, reason="deleted")
        await reply_json(send, {"message": "Task cancelled"})
        return
    standing = await _standing(ctx, view)
    if standing.result is not None and ctx.blobs is not None:
        await asyncio.to_thread(ctx.blobs.drop, standing.result.blob)
    await ctx.broker.forget(view.spec.id)
    await reply_json(send, {"message": "Task deleted"})


# ----------------------------------------------------------------------------- the service


def root_body(ctx: GatewayContext) -> dict[str, Any]:
    """``/`` of the original."""
    return {
        "service": "Forebay photo enhancement",
        "version": "2.0.0",
        "status": "draining" if ctx.draining else "running",
        "description": "Photos enhanced tile by tile: upload, follow, download",
        "features": {
            "async_processing": True,
            "batch_processing": True,
            "live_events": True,
            "cancel": True,
            "queue_position": True,
        },
        "endpoints": {
            "enhance": "/api/v1/enhance",
            "batch_enhance": "/api/v1/enhance/batch",
            "status": "/api/v1/status/{task_id}",
            "download": "/api/v1/download/{task_id}",
            "batch_status": "/api/v1/batch/status/{batch_task_id}",
            "batch_download": "/api/v1/batch/download/{batch_task_id}",
            "tasks": "/api/v1/tasks",
            "events": "/api/v1/tasks/{task_id}/events",
            "health": "/health",
            "page": "/examples/stream_processing.html",
        },
    }


def health_body(ctx: GatewayContext) -> dict[str, Any]:
    """``/health`` of the original, of the photo models alone."""
    pools = [pool for pool in ctx.broker.pools() if pool.kind == Kind.IMAGE]
    device = str(pools[0].facts.get("device", "cpu")) if pools else "cpu"
    return {
        "status": "healthy",
        "timestamp": time.time(),
        "active_tasks": sum(pool.queued + pool.running for pool in pools),
        "model_status": {
            "initialized": any(pool.ready for pool in pools),
            "cuda_available": device.startswith("cuda"),
            "device": device,
        },
    }


async def health(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /health`` on the ports of the original."""
    await reply_json(send, health_body(ctx))


async def page(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``/examples/stream_processing.html``: our page, where the original's clients look."""
    await named_page(scope, send, "photos.html")


_row = rows(on=PORTS, errors="detail")

ROUTES = [
    _row("GET", "/api/v1/status/{id}", status, "read"),
    _row("GET", "/api/v1/download/{id}", download, "read"),
    _row("GET", "/api/v1/batch/status/{id}", batch_status, "read"),
    _row("GET", "/api/v1/batch/download/{id}", batch_download, "read"),
    _row("GET", "/api/v1/tasks", tasks, "read"),
    _row("DELETE", "/api/v1/tasks/{id}", delete, "cancel"),
    _row("GET", "/api/v1/tasks/{id}/events", events, "read"),
    _row("WEBSOCKET", "/api/v1/tasks/{id}/ws", socket, "read"),
    _row("GET", "/api/v1/tasks/{id}/tiles/{n}", tile, "read"),
    _row("GET", "/health", health, PUBLIC, on=COMPAT),
    _row("GET", "/examples/stream_processing.html", page, PUBLIC),
]

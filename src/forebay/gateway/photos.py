"""Photos come in: ``POST /api/v1/enhance`` and ``/enhance/batch``.

Upload, look at the header, one durable job a photo. Everything that can be refused is refused
before the model hears of it, and most of it before the body is read. A batch is taken whole
or not at all; its tasks stand behind single photos for a while (`BATCH_PRIORITY`), so that a
batch of twenty does not keep somebody with one photo waiting for all of them.
"""

from __future__ import annotations

import asyncio
import mmap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import msgspec
import structlog

from forebay.blobs import Blobs
from forebay.core.events import End, InputItem, Picture
from forebay.core.kinds import Kind
from forebay.core.picture_head import check_size, read_head
from forebay.core.spec import JobSpec, JobView, PoolView
from forebay.dialects import photos as words
from forebay.errors import BadRequest, ForebayError, QueueFull, StoreFull
from forebay.gateway.context import GatewayContext
from forebay.gateway.job_gate import ask_gate
from forebay.gateway.responses import Receive, Scope, Send, reply_json
from forebay.gateway.routes import rows
from forebay.gateway.uploads import FileLimits, Stored, read_uploads

__all__ = ["BATCH_BYTES", "FORM_BYTES", "PORTS", "ROUTES", "measured", "photo_blobs"]

PORTS = frozenset({"main", "api", "api-alt"})
FORM_BYTES = words.FILE_BYTES + 256 * 1024
"""One photo with the rest of its form."""
BATCH_BYTES = words.BATCH_FILES * words.FILE_BYTES + 256 * 1024

BATCH_PRIORITY = -3
"""A head start of 30 model seconds for whoever sends one photo. What a tenant has used counts
against it as always, so a stream of single photos holds no batch up for longer than that."""

ONE = FileLimits(field="file", files=1, file_bytes=words.FILE_BYTES, also=("image",))
MANY = FileLimits(field="files", files=words.BATCH_FILES, file_bytes=words.FILE_BYTES, also=("file", "files[]"))  # fmt: skip

log = structlog.get_logger(__name__)


def query_of(scope: Scope) -> dict[str, str]:
    fields = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=50)
    return {name: values[-1] for name, values in fields.items()}


def photo_blobs(ctx: GatewayContext, tenant: str) -> Blobs:
    """Where a tenant's pictures go, for as long as their tasks may be asked for.

    Raises `StoreFull` where this gateway keeps no files."""
    if ctx.blobs is None:
        raise StoreFull("this gateway keeps no files")
    row = ctx.rows[Kind.IMAGE]
    waits_s = (row.queue_s or 0.0) + (row.run_s or 0.0)
    return ctx.blobs.of(tenant, waits_s + row.after_end_s)


# ----------------------------------------------------------------------------- the gates


def _gate(ctx: GatewayContext) -> None:
    """What would be refused anyway, before the body is read."""
    ask_gate(ctx, Kind.IMAGE)
    limit = ctx.photos.max_tasks
    pools = [pool for pool in ctx.broker.pools() if pool.kind == Kind.IMAGE]
    live = sum(pool.queued + pool.running for pool in pools)
    if limit is not None and live >= limit:
        raise QueueFull(
            f"{live} photos are waiting or worked on, expected fewer than {limit}",
            limit=limit,
            retry_after_s=max(1.0, pools[0].service_s or 1.0) if pools else 1.0,
        )


def measured(ctx: GatewayContext, stored: Stored, pool: PoolView) -> Picture:
    """The picture that a stored file is, from its header. Blocks. Raises what is wrong."""
    if ctx.blobs is None:
        raise StoreFull("this gateway keeps no files")
    if not stored.size_bytes:
        raise BadRequest("the file is empty")
    path = ctx.blobs.path(stored.blob)
    max_mpx, max_side = ctx.photos.max_mpx, ctx.photos.max_side
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        head = read_head(data)
    mpx = pool.facts.get("max_mpx", max_mpx)
    side = pool.facts.get("max_side", max_side)
    check_size(head, min(max_mpx, float(mpx)), min(max_side, int(side)))
    return Picture(
        blob=stored.blob,
        type=head.type,
        width=head.width,
        height=head.height,
        size_bytes=stored.size_bytes,
    )


async def _pictures(ctx: GatewayContext, pool: PoolView, files: Sequence[Stored]) -> list[Picture]:
    """Raises with ``file N:`` before what is wrong, where there are several."""
    found = []
    for number, stored in enumerate(files, 1):
        try:
            words.check_file(stored.name, stored.type)
            found.append(await asyncio.to_thread(measured, ctx, stored, pool))
        except ForebayError as error:
            if len(files) == 1:
                raise
            error.message = f"file {number}: {error.message}"
            if "word" in error.details:
                error.details["word"] = f"file {number}: {error.details['word']}"
            raise
    return found


# ------------------------------------------------------------------------------- the jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What all photos of one request have in common."""

    tenant: str
    pool: PoolView
    params: dict[str, Any]
    priority: int
    cost_s: float


def _spec(ctx: GatewayContext, order: _Order, task: str, params: dict[str, Any]) -> JobSpec:
    spec = ctx.spec(
        Kind.IMAGE,
        {**order.params, **params},
        tenant=order.tenant,
        dialect=words.DIALECT,
        name=task,
        model=order.pool.name.partition("/")[2],
        cost_s=order.cost_s,
    )
    return msgspec.structs.replace(spec, durable=True, priority=order.priority)


async def _submit(
    ctx: GatewayContext, order: _Order, tasks: Sequence[tuple[str, dict[str, Any], Picture]]
) -> list[JobView]:
    """All of them or none."""
    views: list[JobView] = []
    try:
        for task, params, picture in tasks:
            items: list[InputItem] = [picture, End()]
            views.append(await ctx.broker.submit(_spec(ctx, order, task, params), items))
    except ForebayError:
        for view in views:
            await _take_back(ctx, view)
        raise
    return views


async def _take_back(ctx: GatewayContext, view: JobView) -> None:
    try:
        await ctx.broker.cancel(view.spec.id, reason="the rest of its batch was refused")
    except ForebayError as error:
        log.warning("photos.not_taken_back", job=view.spec.id, code=error.code)


def _drop(blobs: Blobs, files: Sequence[Stored]) -> None:
    for stored in files:
        blobs.drop(stored.blob)


async def _order(
    scope: Scope, receive: Receive, ctx: GatewayContext, limits: FileLimits
) -> tuple[_Order, list[Stored], list[Picture]] | None:
    """Read and check a request; None when the client left inside it. What it stored is gone
    again where this raises."""
    tenant: str = scope["forebay.tenant"]
    query = query_of(scope)
    _gate(ctx)
    blobs = photo_blobs(ctx, tenant)
    words.read_wish(query, {})  # a wrong query is refused before the body
    read = await read_uploads(scope, receive, blobs, limits)
    if read is None:
        return None
    form, files = read
    try:
        if not files:
            raise words.Unprocessable(f"field required: {limits.field}", param=limits.field)
        params = words.read_wish(query, form.fields)
        pool = ctx.pool_view(Kind.IMAGE, query.get("model", form.text("model") or ""))
        pictures = await _pictures(ctx, pool, files)
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(_drop, blobs, files)))
        raise
    estimate_s = 1.0 if pool.service_s is None else max(0.05, pool.service_s)
    several = limits.files > 1
    order = _Order(
        tenant=tenant,
        pool=pool,
        params=params,
        priority=BATCH_PRIORITY if several else 0,
        # A batch asks for its turn as one photo does; what each task then uses is charged.
        cost_s=estimate_s / len(files),
    )
    return order, files, pictures


async def enhance(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /api/v1/enhance``."""
    read = await _order(scope, receive, ctx, ONE)
    if read is None:
        return
    order, (stored,), (picture,) = read
    task, created_at = words.new_task_id(ctx.new_id()), time.time()
    params = {"filename": words.clean_name(stored.name), "created_at": created_at}
    view = await _accepted(ctx, order, [(task, params, picture)], [stored])
    place = view[0].place
    await reply_json(
        send,
        {
            "task_id": task,
            "status": "queued",
            "message": "Image enhancement task created",
            "created_at": created_at,
            "position": None if place is None else place.position,
            "eta_s": None if place is None or place.eta_s is None else round(place.eta_s, 1),
        },
        headers=[(b"x-forebay-job", view[0].spec.id.encode())],
    )


async def enhance_batch(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /api/v1/enhance/batch``."""
    read = await _order(scope, receive, ctx, MANY)
    if read is None:
        return
    order, files, pictures = read
    batch, created_at = words.new_task_id(ctx.new_id()), time.time()
    tasks = []
    for index, (stored, picture) in enumerate(zip(files, pictures, strict=True)):
        params = {
            "filename": words.clean_name(stored.name),
            "created_at": created_at,
            "batch": batch,
            "batch_files": len(files),
        }
        tasks.append((words.sub_task_id(batch, index), params, picture))
    await _accepted(ctx, order, tasks, files)
    await reply_json(
        send,
        {
            "batch_task_id": batch,
            "total_files": len(files),
            "status": "queued",
            "message": f"Batch of {len(files)} created",
            "created_at": created_at,
            "sub_tasks": [task for task, _, _ in tasks],
        },
    )


async def _accepted(
    ctx: GatewayContext,
    order: _Order,
    tasks: Sequence[tuple[str, dict[str, Any], Picture]],
    files: Sequence[Stored],
) -> list[JobView]:
    try:
        return await _submit(ctx, order, tasks)
    except ForebayError:
        await asyncio.to_thread(_drop, photo_blobs(ctx, order.tenant), files)
        raise


_row = rows(on=PORTS, works=True, errors="detail")

ROUTES = [
    _row("POST", "/api/v1/enhance", enhance, "submit", body_bytes=FORM_BYTES),
    _row("POST", "/api/v1/enhance/batch", enhance_batch, "submit", body_bytes=BATCH_BYTES),
]

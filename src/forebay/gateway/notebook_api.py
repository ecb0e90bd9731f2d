"""`/v1/notebooks`: notebooks for clients of ours, and for the console's notebook page.

A cell is submitted and answered at once with its job; its output is an event stream that may
be read from any connection and any position, so a page that was reloaded sees everything
since the beginning and then goes on live.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Sequence
from typing import Any

from forebay.broker.affinity import What
from forebay.core.events import Display, OutputEvent
from forebay.core.kinds import Kind
from forebay.core.notebook import check_id
from forebay.core.spec import JobView
from forebay.dialects.job_events import Body, JobWords
from forebay.errors import BadRequest, NotFound
from forebay.gateway.access import header
from forebay.gateway.asr_sessions import send_file
from forebay.gateway.auth import PUBLIC
from forebay.gateway.console import named_page
from forebay.gateway.context import GatewayContext
from forebay.gateway.notebook_s0 import asked
from forebay.gateway.notebooks import CellRecord, control, file_op, is_known, live_job, run_cell
from forebay.gateway.responses import Receive, Scope, Send, reply_json
from forebay.gateway.routes import rows
from forebay.gateway.sse import own_job, serve_events

__all__ = ["ROUTES", "NotebookWords"]

SAFE_MEDIA = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_CELL = re.compile(r"[\w-]{1,64}", re.ASCII)
PAGE = 1000
WHAT: dict[str, What] = {
    "interrupt": "interrupt",
    "restart": "restart",
    "shutdown": "shutdown",
}


class NotebookWords(JobWords):
    """A cell's events as they are; what lies in a blob is named by its media type."""

    def event(self, event: OutputEvent) -> Sequence[Body]:
        bodies = super().event(event)
        if isinstance(event, Display) and event.blobs:
            return [{**body, "large": dict(event.blobs)} for body in bodies]
        return bodies


_WORDS = NotebookWords()


def _cell(said: str) -> str:
    if not _CELL.fullmatch(said):
        raise BadRequest("a cell's name is 1 to 64 letters, digits, _ and -", param="cell")
    return said


def _notebook(scope: Scope) -> str:
    return check_id(scope["path_params"]["id"])


# --------------------------------------------------------------------------- notebooks


async def create(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /v1/notebooks``: a new notebook. Its kernel begins with its first cell."""
    body = await asked(scope, receive)
    if body is None:
        return
    notebook = body.notebook() if body.notebook_id else secrets.token_hex(16)
    await file_op(ctx, scope["forebay.tenant"], notebook, "make")
    ctx.notebooks.make(scope["forebay.tenant"], notebook)
    await reply_json(send, {"notebook": notebook}, 201)


async def listed(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /v1/notebooks``: those this gateway remembers, newest use first."""
    found = ctx.notebooks.of(scope["forebay.tenant"])
    await reply_json(
        send,
        {
            "notebooks": [
                {"notebook": name, "created": r.created.isoformat(), "cells": len(r.cells)}
                for name, r in found
            ]
        },
    )


async def one(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /v1/notebooks/{id}``: its cells with their jobs, in the order they were made."""
    tenant, notebook = scope["forebay.tenant"], _notebook(scope)
    if not await is_known(ctx, tenant, notebook):
        raise NotFound("no notebook of that id")
    record = ctx.notebooks.get(tenant, notebook)
    cells = [] if record is None else list(record.cells.values())
    shown = [await _shown(ctx, notebook, cell) for cell in cells]
    await reply_json(send, {"notebook": notebook, "cells": shown, "kernel": _kernel(ctx)})


async def _shown(ctx: GatewayContext, notebook: str, cell: CellRecord) -> dict[str, Any]:
    try:
        state: str = (await ctx.broker.status(cell.job)).state
    except NotFound:
        state = "forgotten"  # its output was kept for an hour
    return {
        "cell": cell.cell,
        "job": cell.job,
        "code": cell.code,
        "state": state,
        "began": cell.began.isoformat(),
        "events": f"/v1/notebooks/{notebook}/cells/{cell.cell}/events",
    }


def _kernel(ctx: GatewayContext) -> dict[str, Any]:
    facts = ctx.pool_view(Kind.KERNEL)
    return {"engine": facts.engine, "synthetic": facts.synthetic, **facts.facts}


async def told(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /v1/notebooks/{id}/interrupt``, ``restart``, ``shutdown``. ``reached`` is false
    where no kernel runs."""
    tenant, notebook = scope["forebay.tenant"], _notebook(scope)
    what = WHAT[str(scope["path"]).rpartition("/")[2]]
    view = await live_job(ctx, tenant, notebook)
    if view is not None and view.state == "queued":
        await ctx.broker.cancel(view.spec.id, reason=f"{what} before it ran")
    reached = await control(ctx, tenant, notebook, what)
    await reply_json(send, {"notebook": notebook, "reached": reached})


# ------------------------------------------------------------------------------- cells


async def run(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /v1/notebooks/{id}/cells``: run ``code`` as the cell called ``cell``. Whoever
    accepts ``text/event-stream`` is answered with its events, one round trip sooner."""
    begun = ctx.clock()
    body = await asked(scope, receive)
    if body is None:
        return
    tenant, notebook = scope["forebay.tenant"], _notebook(scope)
    cell = _cell(body.cell or secrets.token_hex(4))
    view, began = await run_cell(ctx, tenant, notebook, body.code, cell=cell)
    timing = (b"server-timing", f"accept;dur={(ctx.clock() - begun) * 1000:.2f}".encode())
    if "text/event-stream" in (header(scope, b"accept") or ""):
        named = [timing, (b"x-forebay-job", view.spec.id.encode())]
        await serve_events(scope, receive, send, ctx, view, _WORDS, headers=named)
        return
    shown = {
        "notebook": notebook,
        "cell": cell,
        "job": view.spec.id,
        "epoch": view.epoch,
        "state": view.state,
        "began": began.isoformat(),
        "events": f"/v1/notebooks/{notebook}/cells/{cell}/events",
    }
    await reply_json(send, shown, 202, [timing])


async def _job(scope: Scope, ctx: GatewayContext) -> JobView:
    """The newest run of the cell that the path names; by its name where this gateway does
    not remember it."""
    tenant, notebook = scope["forebay.tenant"], _notebook(scope)
    cell = _cell(scope["path_params"]["cell"])
    record = ctx.notebooks.get(tenant, notebook)
    known = record.cells.get(cell) if record is not None else None
    if known is not None:
        return await own_job(ctx, tenant, known.job)
    found = await ctx.broker.find(tenant, "notebook", f"{notebook}/{cell}")
    if found is None:
        raise NotFound("no cell of that name has run")
    return found


async def events(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /v1/notebooks/{id}/cells/{cell}/events``: everything since the beginning, or
    after ``Last-Event-ID``, then live."""
    await serve_events(scope, receive, send, ctx, await _job(scope, ctx), _WORDS)


async def large(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET .../cells/{cell}/large/{blob}``: content that was too large for the stream."""
    view, wanted = await _job(scope, ctx), scope["path_params"]["blob"]
    at = view.first - 1
    while found := await ctx.broker.read_after(view.spec.id, at, epoch=view.epoch, limit=PAGE):
        at = found[-1].offset
        for event in found:
            for mime, blob in event.blobs.items() if isinstance(event, Display) else ():
                if blob == wanted and ctx.blobs is not None:
                    media = mime if mime in SAFE_MEDIA else "text/plain; charset=utf-8"
                    path = await asyncio.to_thread(ctx.blobs.path, blob)
                    await send_file(
                        send,
                        path,
                        media,
                        [(b"content-security-policy", b"default-src 'none'; sandbox")],
                    )
                    return
    raise NotFound("this cell has no such output")


async def forget(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``DELETE /v1/notebooks/{id}/cells/{cell}``: out of the list; what runs is cancelled."""
    view = await _job(scope, ctx)
    if view.ended_s is None:
        await ctx.broker.cancel(view.spec.id, reason="the cell was deleted")
    cell = scope["path_params"]["cell"]
    ctx.notebooks.forget_cell(scope["forebay.tenant"], _notebook(scope), cell)
    await reply_json(send, {"deleted": cell})


async def page(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /notebook``: the page."""
    await named_page(scope, send, "notebook.html")


_row = rows()
_ONE = "/v1/notebooks/{id}"
_CELLS = f"{_ONE}/cells"

ROUTES = [
    _row("POST", "/v1/notebooks", create, "submit", works=True),
    _row("GET", "/v1/notebooks", listed, "read"),
    _row("GET", _ONE, one, "read"),
    *(_row("POST", f"{_ONE}/{what}", told, "cancel") for what in WHAT),
    _row("POST", _CELLS, run, "submit", works=True),
    _row("GET", f"{_CELLS}/{{cell}}/events", events, "read"),
    _row("GET", f"{_CELLS}/{{cell}}/large/{{blob}}", large, "read"),
    _row("DELETE", f"{_CELLS}/{{cell}}", forget, "cancel"),
    _row("GET", "/notebook", page, PUBLIC, on=frozenset({"main"})),
]

"""The notebook backend's HTTP surface (S0): notebooks, cells, kernels.

What its front end expects, field for field, on port 18600 and on the main port. Answers that
the original gave with status 200 have it here too, and errors say what happened under every
name that a client of it reads: ``detail``, ``message`` and ``status``.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

import msgspec

from forebay.core.notebook import check_id
from forebay.core.spec import JobView
from forebay.dialects.notebook import Body, Outputs, language, read_body, say, words_of
from forebay.errors import ForebayError, NotFound
from forebay.gateway import calls
from forebay.gateway.access import header
from forebay.gateway.context import GatewayContext
from forebay.gateway.notebooks import (
    Reading,
    began_at,
    control,
    file_op,
    filled,
    is_known,
    live_job,
    run_cell,
)
from forebay.gateway.responses import (
    JSON_TYPE,
    Headers,
    Receive,
    Scope,
    Send,
    error_headers,
    new_request_id,
    reply,
    reply_json,
)
from forebay.gateway.routes import Handler, Route

__all__ = ["PORTS", "ROUTES", "answers", "asked", "language_of", "refuse", "route"]

PORTS = frozenset({"main", "notebook"})
CODE_BYTES = 1024 * 1024
PAGE = 1000
CREATED = "created"


# ----------------------------------------------------------------------------- manners


def language_of(scope: Scope) -> str:
    """``lang`` of the body (once it was read) or of the query, else what the browser
    prefers."""
    if "forebay.lang" in scope:
        return str(scope["forebay.lang"])
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=50)
    said = query.get("lang", [""])[-1] or (header(scope, b"accept-language") or "")
    return language(said)


async def asked(scope: Scope, receive: Receive) -> Body | None:
    """The request's JSON, with what the query says of ``notebook_id`` and ``lang``; None
    when the client left."""
    data = await calls.read_body(receive, CODE_BYTES)
    if data is None:
        return None
    body = read_body(data)
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=50)
    body.notebook_id = body.notebook_id or query.get("notebook_id", [""])[-1]
    scope["forebay.lang"] = language(body.lang) if body.lang else language_of(scope)
    return body


async def refuse(scope: Scope, send: Send, error: ForebayError, lang: str) -> None:
    """An error where this protocol's clients look for it."""
    request = str(scope.get("forebay.request_id") or new_request_id())
    said = words_of(error, lang)
    body: dict[str, Any] = {
        "status": "error",
        "detail": said,
        "message": said,
        "code": error.code,
        "request_id": request,
    }
    if error.retry_after_s is not None:
        body["retry_after_s"] = round(error.retry_after_s, 3)
    payload = msgspec.json.encode(body, enc_hook=str)
    await reply(send, error.http_status, payload, error_headers(error, request))


Answering = Callable[[Scope, Receive, Send, GatewayContext], Awaitable[None]]


def answers(handler: Answering) -> Handler:
    """``handler`` with its errors in this protocol's words."""

    async def answer(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
        try:
            await handler(scope, receive, send, ctx)
        except ForebayError as error:
            await refuse(scope, send, error, language_of(scope))

    return answer


def _now() -> str:
    return datetime.now(UTC).isoformat()


# --------------------------------------------------------------------------- notebooks


async def initialize(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /initialize``: a new notebook, its kernel on the way. Errors are 200 too."""
    body = await asked(scope, receive)
    if body is None:
        return
    lang, tenant, notebook = (
        language_of(scope),
        scope["forebay.tenant"],
        secrets.token_hex(16),
    )
    try:
        await file_op(ctx, tenant, notebook, "make")
        await run_cell(ctx, tenant, notebook, "")  # starts the kernel; nobody waits for it
    except ForebayError as error:
        said = words_of(error, lang)
        await reply_json(send, {"status": "error", "notebook_id": "", "message": said})
        return
    await reply_json(send, {"status": "ok", "notebook_id": notebook, "message": say(CREATED, lang)})


async def check(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /check_notebook_id/{id}``."""
    try:
        notebook = check_id(scope["path_params"]["id"])
    except ForebayError:
        await reply_json(send, {"exists": False})
        return
    await reply_json(send, {"exists": await is_known(ctx, scope["forebay.tenant"], notebook)})


async def restart(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /restart_kernel``: id in the query or in the body. Files are kept; a cell that
    runs is lost, one that waits is cancelled. An unknown id is an error with status 200."""
    body = await asked(scope, receive)
    if body is None:
        return
    notebook, tenant = body.notebook(), scope["forebay.tenant"]
    lang = language_of(scope)
    if not await is_known(ctx, tenant, notebook):
        said = say("no_notebook", lang)
        await reply_json(send, {"status": "error", "notebook_id": notebook, "message": said})
        return
    view = await live_job(ctx, tenant, notebook)
    if view is not None and view.state == "queued":
        await ctx.broker.cancel(view.spec.id, reason="the kernel was restarted")
    await control(ctx, tenant, notebook, "restart")
    said = say("restarted", lang)
    await reply_json(send, {"status": "ok", "notebook_id": notebook, "message": said})


async def shutdown(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /shutdown``. An unknown id is an error with status 200."""
    body = await asked(scope, receive)
    if body is None:
        return
    lang, tenant = language_of(scope), scope["forebay.tenant"]
    try:
        notebook = body.notebook()
        if not await is_known(ctx, tenant, notebook):
            raise NotFound("no notebook of that id", word=say("no_notebook", lang))
        view = await live_job(ctx, tenant, notebook)
        if view is not None and view.ended_s is None:
            await ctx.broker.cancel(view.spec.id, reason="the notebook was shut down")
        await control(ctx, tenant, notebook, "shutdown")
    except ForebayError as error:
        await reply_json(send, {"status": "error", "message": words_of(error, lang)})
        return
    await reply_json(send, {"status": "ok", "message": say("shut_down", lang)})


async def cancel(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /cancel_execution/{id}``: interrupt what runs, forget what waits."""
    lang, tenant = language_of(scope), scope["forebay.tenant"]
    notebook = check_id(scope["path_params"]["id"])
    if not await is_known(ctx, tenant, notebook):
        raise NotFound("no notebook of that id", word=say("no_notebook", language_of(scope)))
    view = await live_job(ctx, tenant, notebook)
    if view is None or view.ended_s is not None:
        await reply_json(send, {"status": "ok", "message": say("nothing_runs", lang)})
        return
    if view.state == "queued":
        await ctx.broker.cancel(view.spec.id, reason="cancelled before it ran")
    elif not await control(ctx, tenant, notebook, "interrupt"):
        await ctx.broker.cancel(view.spec.id, reason="its kernel cannot be reached")
    await reply_json(send, {"status": "ok", "message": say("interrupted", lang)})


# ------------------------------------------------------------------------------- cells


async def execute(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /execute``: run a cell and answer when it is over. The client may leave: the
    cell runs on, and `execution_status` has its output."""
    begun = ctx.clock()
    body = await asked(scope, receive)
    if body is None:
        return
    lang, tenant, notebook = language_of(scope), scope["forebay.tenant"], body.notebook()
    view, began = await run_cell(ctx, tenant, notebook, body.code, cell=body.cell, watched=True)
    submitted = ctx.clock()
    outputs = Outputs(began.isoformat(), lang)
    held: list[Any] = []  # from the first event whose content lies in a blob on

    def take(event: Any) -> None:
        if held or getattr(event, "blobs", None):
            held.append(event)
        else:
            outputs.take(event)

    async with Reading.open(ctx, view, take) as reading:
        watch = asyncio.create_task(_until_gone(receive, reading))
        try:
            await reading.ended()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
    if reading.gone:
        return
    for event in await filled(ctx, held):
        outputs.take(event)
    if outputs.ended is None and reading.failure is not None:
        raise reading.failure
    ended = ctx.clock()
    answer = {
        "status": outputs.verdict(),
        "outputs": outputs.items,
        "error": outputs.error or None,
        "timestamp": _now(),
        "elapsed_time": round(ended - begun, 6),
    }
    await _timed(send, ctx, answer, view, _Stages(begun, submitted, reading, ended, outputs.timing))


async def _until_gone(receive: Receive, reading: Reading) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    reading.leave()


class _Stages:
    """Where the time of one `/execute` went, in milliseconds."""

    def __init__(
        self, begun: float, submitted: float, reading: Reading, ended: float, told: dict[str, Any]
    ) -> None:
        leased = reading.leased_s if reading.leased_s is not None else ended
        first = reading.first_s if reading.first_s is not None else ended
        run_s = float(told.get("run") or 0.0) / 1000
        kernel_s = float(told.get("kernel") or 0.0) / 1000
        self.stages = {
            "accept": submitted - begun,
            "queue": max(0.0, leased - submitted),
            "dispatch": max(0.0, first - leased - float(told.get("first") or 0.0) / 1000),
            "first_output": float(told.get("first") or 0.0) / 1000,
            "run": run_s,
            "flush": max(0.0, ended - leased - kernel_s - run_s),
        }

    def header(self, write_s: float) -> bytes:
        stages = {**self.stages, "write": write_s}
        return ", ".join(f"{name};dur={s * 1000:.2f}" for name, s in stages.items()).encode()


async def _timed(
    send: Send, ctx: GatewayContext, answer: Any, view: JobView, stages: _Stages
) -> None:
    began = time.monotonic()
    payload = msgspec.json.encode(answer)
    headers: Headers = [
        (b"content-type", JSON_TYPE),
        (b"cache-control", b"no-store"),
        (b"x-forebay-job", view.spec.id.encode()),
        (b"server-timing", stages.header(time.monotonic() - began)),
    ]
    await reply(send, 200, payload, headers)


async def status(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /execution_status/{id}``: what the front end asks every second while a cell
    runs. ``outputs`` is the whole list so far."""
    tenant, notebook = scope["forebay.tenant"], check_id(scope["path_params"]["id"])
    view = await live_job(ctx, tenant, notebook)
    if view is None:
        if not await is_known(ctx, tenant, notebook):
            raise NotFound("no notebook of that id", word=say("no_notebook", language_of(scope)))
        await reply_json(send, {"status": "idle", "elapsed_time": 0.0, "timestamp": _now()})
        return
    began = began_at(ctx, view, notebook).isoformat()
    outputs = Outputs(began, language_of(scope))
    at = view.first - 1
    while events := await ctx.broker.read_after(view.spec.id, at, epoch=view.epoch, limit=PAGE):
        at = events[-1].offset
        for event in await filled(ctx, events):
            outputs.take(event)
    over = outputs.ended is not None
    since_s = (view.ended_s if over and view.ended_s is not None else ctx.clock()) - view.created_s
    verdict = {"ok": "idle"}.get(outputs.verdict(), outputs.verdict()) if over else "running"
    answer: dict[str, Any] = {
        "status": verdict,
        "elapsed_time": round(max(0.0, since_s), 6),
        "timestamp": _now(),
        "start_time": began,
        "outputs": outputs.items,
    }
    if outputs.error:
        answer["error"] = outputs.error
    await reply_json(send, answer)


def route(method: str, path: str, handler: Answering, needs: str, **facts: Any) -> Route:
    return Route(
        method=method,
        path=path,
        handler=answers(handler),
        needs=needs,
        on=PORTS,
        errors="detail",
        **facts,
    )


ROUTES = [
    route("POST", "/initialize", initialize, "submit", works=True),
    route("GET", "/check_notebook_id/{id}", check, "read"),
    route("POST", "/restart_kernel", restart, "cancel"),
    route("POST", "/execute", execute, "submit", works=True),
    route("POST", "/cancel_execution/{id}", cancel, "cancel"),
    route("GET", "/execution_status/{id}", status, "read"),
    route("POST", "/shutdown", shutdown, "cancel"),
]

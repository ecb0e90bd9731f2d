"""S4's task REST: a file in, its text later. What the Python API served.

A task is a durable recognition job: it survives the client, the worker and, through the
journal, the gateway. Its file is kept under a name of ours until the task is deleted. Errors
are ``{"detail": text}``, as that API's clients read them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import structlog

from forebay.core.events import End, InputItem, Sound
from forebay.core.kinds import Kind
from forebay.core.sniff import is_file
from forebay.core.spec import DELETED, Deadlines, JobSpec, JobView, QueuePlace
from forebay.errors import BadRequest, ForebayError, NotFound, StateLost, StoreFull, TooLarge
from forebay.gateway.access import header
from forebay.gateway.asr_numbers import queue_status, stats, test_report, test_results
from forebay.gateway.asr_sessions import PORTS, iso, scribe_of, send_file
from forebay.gateway.auth import port_of
from forebay.gateway.beside import drop_beside, set_beside
from forebay.gateway.calls import read_body
from forebay.gateway.context import GatewayContext
from forebay.gateway.forms import Upload, parse_form
from forebay.gateway.job_gate import ask_gate
from forebay.gateway.responses import Receive, Scope, Send, reply_json
from forebay.gateway.routes import rows
from forebay.gateway.scribe import Scribe
from forebay.history import TaskRecord

__all__ = ["FILE_BYTES", "ROUTES"]

FILE_BYTES = 100 * 1024 * 1024
FORM_BYTES = FILE_BYTES + 256 * 1024
QUEUE_S = 3600.0
RUN_S = 3600.0
DIALECT = "asr-task"
SUFFIXES = ("wav", "mp3", "m4a", "flac", "ogg")
MEDIA = {
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "m4a": "audio/mp4",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
}
MAX_LISTED = 100

log = structlog.get_logger(__name__)


class Unprocessable(BadRequest):
    """A parameter is missing or out of its range (422, as FastAPI has it)."""

    code = "unprocessable"
    http_status = 422


def _query(scope: Scope) -> dict[str, str]:
    fields = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=50)
    return {name: values[-1] for name, values in fields.items()}


# --------------------------------------------------------------------------- submitting


async def submit(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /api/v1/asr/submit``. What cannot be taken is refused before the body is read."""
    scribe, tenant = scribe_of(ctx), scope["forebay.tenant"]
    ask_gate(ctx, Kind.RECOGNITION)
    await _allowance(scope, ctx)
    upload = await _upload(scope, receive)
    if upload is None:
        return
    suffix = _checked(upload)
    language = _query(scope).get("language", "zh")[:32]
    task = TaskRecord(
        id=secrets.token_hex(4),
        job=ctx.new_id(),
        tenant=tenant,
        created_at=scribe.wall(),
        language=language,
        audio_bytes=len(upload.data),
    )
    name = await asyncio.to_thread(_stored, ctx, upload.data, task, suffix)
    task = replace(task, audio_path=name)
    try:
        view = await _begin(scope, ctx, task, upload.data)
    except BaseException:
        await scribe.tape.remove([name])
        raise
    await _say_queued(send, ctx, task, view)


async def _allowance(scope: Scope, ctx: GatewayContext) -> Mapping[str, Any]:
    """How long the file may be. Raises `QuotaExceeded`."""
    limited = ctx.auth.limits(port_of(scope))
    return await ctx.audio.allowance(scope["forebay.tenant"]) if limited else {}


async def _upload(scope: Scope, receive: Receive) -> Upload | None:
    body = await read_body(receive, FORM_BYTES)
    if body is None:
        return None
    content_type = header(scope, b"content-type") or ""
    if not content_type.lower().startswith("multipart/form-data"):
        raise Unprocessable("field required: audio", param="audio")
    form = await asyncio.to_thread(parse_form, content_type, body)
    found = form.files.get("audio")
    if found is None:
        raise Unprocessable("field required: audio", param="audio")
    return found


def _checked(upload: Upload) -> str:
    """The suffix its file will have. Raises for a name or content that is no audio file."""
    suffix = upload.name.rpartition(".")[2].lower() if "." in upload.name else ""
    if suffix not in SUFFIXES:
        listed = ", ".join(f".{s}" for s in SUFFIXES)
        raise BadRequest(
            "the file's name says no format that is taken",
            word=f"Invalid file format. Supported: {listed}",
        )
    if not upload.data:
        raise BadRequest(
            "the file has 0 bytes, expected a recording",
            word="Invalid file format: the file has 0 bytes",
        )
    if len(upload.data) > FILE_BYTES:
        raise TooLarge(f"a file of {len(upload.data)} bytes, expected no more than {FILE_BYTES}")
    if not is_file(upload.data):
        raise BadRequest(
            "the file's first bytes are those of no audio format",
            word="Invalid file format: the file is no audio",
        )
    return suffix


def _stored(ctx: GatewayContext, data: bytes, task: TaskRecord, suffix: str) -> str:
    return scribe_of(ctx).recordings.store(data, task.job, task.tenant, suffix)


async def _begin(scope: Scope, ctx: GatewayContext, task: TaskRecord, data: bytes) -> JobView:
    """Make the job of ``task``. Where that fails nothing of it is left."""
    spec = JobSpec(
        id=task.job,
        kind=Kind.RECOGNITION,
        pool=ctx.pool(Kind.RECOGNITION),
        params={"language": task.language, "file": True, **await _allowance(scope, ctx)},
        tenant=task.tenant,
        dialect=DIALECT,
        name=task.id,
        cost_s=max(0.1, len(data) / 32_000 * 0.1),
        detach_s=QUEUE_S + RUN_S,
        deadlines=Deadlines(queue_s=QUEUE_S, run_s=RUN_S),
        durable=True,
    )
    sound = await set_beside(ctx.blobs, Sound(data=data, form="file"), task.tenant)
    items: list[InputItem] = [sound, End()]
    try:
        view = await ctx.broker.submit(spec, items, gateway=ctx.gateway_id)
    except ForebayError:
        await asyncio.to_thread(drop_beside, ctx.blobs, items)
        raise
    ctx.audio.begun(view)
    scribe_of(ctx).began_task(view, task, items)
    return view


async def _say_queued(send: Send, ctx: GatewayContext, task: TaskRecord, view: JobView) -> None:
    """Answer with the task's place, once it is known after a restart too."""
    await scribe_of(ctx).written()
    place = view.place or QueuePlace(position=0, eta_s=0.0)
    await reply_json(
        send,
        {
            "task_id": task.id,
            "status": "queued",
            "position": place.position,
            "estimated_wait": 0.0 if place.eta_s is None else round(place.eta_s, 1),
        },
    )


async def retry(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /api/v1/asr/retry/ID``: a failed task again, from its file. Of several at once
    one begins it; the history's row decides which."""
    scribe, (task, status, _) = scribe_of(ctx), await _settled(scope, ctx)
    if status != "failed":
        raise _not_failed(status)
    ask_gate(ctx, Kind.RECOGNITION)
    path = await asyncio.to_thread(scribe.recordings.path, task.audio_path)
    data = await asyncio.to_thread(path.read_bytes)
    again = replace(
        task, job=ctx.new_id(), status="queued", error="", text="", completed_at=None, model_s=0.0
    )
    if not await scribe.history.swap_task(task, again):
        raise _not_failed("queued")
    try:
        view = await _begin(scope, ctx, again, data)
    except BaseException:
        await _fail_again(scribe, again, task)
        raise
    try:
        await ctx.broker.forget(task.job)  # tried again: no dead letter any more
    except ForebayError as error:
        log.debug("task.old_job_not_forgotten", job=task.job, code=error.code)
    await _say_queued(send, ctx, again, view)


def _not_failed(status: str) -> BadRequest:
    return BadRequest(f"the task is {status}, expected failed", word="Task is not failed")


async def _fail_again(scribe: Scribe, again: TaskRecord, failed: TaskRecord) -> None:
    """Its new job was never begun: the task stands as it stood."""
    try:
        await scribe.history.swap_task(again, failed)
    except StoreFull:  # it is written when the database is back
        scribe.history.put(replace(failed, job=again.job))


# ------------------------------------------------------------------------------ looking


async def _task(scope: Scope, ctx: GatewayContext) -> TaskRecord:
    found = await scribe_of(ctx).history.task(scope["forebay.tenant"], scope["path_params"]["id"])
    if found is None:
        raise NotFound("no such task", word="Task not found")
    return found


async def _status(ctx: GatewayContext, task: TaskRecord) -> tuple[str, JobView | None]:
    """How it stands now: the broker knows better than the row until the end is written."""
    if task.status in ("done", "failed"):
        return task.status, None
    try:
        view = await ctx.broker.status(task.job)
    except (NotFound, StateLost):
        return task.status, None
    if view.state == "queued" and view.attempts == 0:
        return "queued", view
    if view.state in ("queued", "running"):
        return "processing", view
    return ("done" if view.state == "completed" else "failed"), view


async def _settled(scope: Scope, ctx: GatewayContext) -> tuple[TaskRecord, str, JobView | None]:
    """The task, how it stands, and its job where that is not over and written."""
    task = await _task(scope, ctx)
    status, view = await _status(ctx, task)
    if view is not None and view.ended_s is not None:  # over, and its row not yet written
        await scribe_of(ctx).settle(task.job)
        task = await _task(scope, ctx)
        status = task.status
    return task, status, view


async def result(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/v1/asr/result/ID``."""
    task, status, view = await _settled(scope, ctx)
    await reply_json(send, _shown(task, status, view))


def _shown(task: TaskRecord, status: str, view: JobView | None) -> dict[str, Any]:
    failed = status == "failed"
    return {
        "task_id": task.id,
        "status": status,
        "text": task.text,
        "duration": task.audio_s,
        "created_at": iso(task.created_at),
        "completed_at": iso(task.completed_at),
        "audio_url": f"/api/v1/asr/audio/{task.id}" if task.audio_path else None,
        "error": task.error or None,
        "retry_url": f"/api/v1/asr/retry/{task.id}" if failed else None,
        "progress": _progress(task, status, view),
        "position": view.place.position if view is not None and view.place else None,
        "estimated_wait": view.place.eta_s if view is not None and view.place else None,
        "rtf": round(task.model_s / task.audio_s, 4) if task.audio_s else None,
        "language": task.language,
    }


def _progress(task: TaskRecord, status: str, view: JobView | None) -> float:
    """0 to 1. Only of plain WAV is the length known before the end."""
    if status == "done":
        return 1.0
    heard = 0 if view is None else view.marks.get("consumed", 0)
    if not heard or not task.audio_path.endswith(".wav"):
        return 0.0
    return round(min(0.99, heard * 2 / max(1, task.audio_bytes)), 3)


async def history(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/v1/asr/history?limit=N``."""
    text = _query(scope).get("limit", "20")
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_LISTED):
        raise Unprocessable(f"limit is {text[:20]!r}, expected 1 to {MAX_LISTED}", param="limit")
    store, tenant = scribe_of(ctx).history, scope["forebay.tenant"]
    found = await store.tasks(tenant, int(text))
    shown = []
    for task in found:
        status, view = await _status(ctx, task)
        shown.append(_shown(task, status, view))
    total = (await store.stats(tenant)).tasks
    await reply_json(send, {"total": total, "records": shown, "tasks": shown})


async def audio(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/v1/asr/audio/ID``."""
    task = await _task(scope, ctx)
    path: Path = await asyncio.to_thread(scribe_of(ctx).recordings.path, task.audio_path)
    await send_file(send, path, MEDIA.get(path.suffix[1:], "application/octet-stream"))


async def delete(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``DELETE /api/v1/asr/task/ID``: cancelled if live, and forgotten with its file."""
    scribe, task = scribe_of(ctx), await _task(scope, ctx)
    with suppress(NotFound):  # it was over long ago
        await ctx.broker.cancel(task.job, reason=DELETED)
    await scribe.forget(task.job)
    await ctx.broker.forget(task.job)  # with its text, its files, and as a dead letter
    await scribe.tape.remove([task.audio_path])
    await scribe.history.delete_task(task.tenant, task.id)
    await reply_json(send, {"message": "Task deleted", "task_id": task.id})


_row = rows(on=PORTS, errors="detail")

ROUTES = [
    _row("POST", "/api/v1/asr/submit", submit, "submit", works=True, body_bytes=FORM_BYTES),
    _row("GET", "/api/v1/asr/result/{id}", result, "read"),
    _row("GET", "/api/v1/asr/history", history, "read"),
    _row("GET", "/api/v1/asr/audio/{id}", audio, "read"),
    _row("POST", "/api/v1/asr/retry/{id}", retry, "submit", works=True),
    _row("DELETE", "/api/v1/asr/task/{id}", delete, "cancel"),
    _row("GET", "/api/v1/asr/queue/status", queue_status, "read"),
    _row("GET", "/api/v1/stats", stats, "read"),
    _row("GET", "/api/v1/test/results/latest", test_results, "read"),
    _row("GET", "/api/v1/test/report/latest", test_report, "read"),
    _row("GET", "/test/results/latest", test_results, "read"),
    _row("GET", "/test/report/latest", test_report, "read"),
]

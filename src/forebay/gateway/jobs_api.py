"""`/api/jobs`: what is running, and the three things one may do about it.

``GET /api/jobs[?dead=1&limit=N]``, ``GET /api/jobs/ID``, ``POST /api/jobs/ID/cancel`` and
``POST /api/jobs/ID/retry``. A beginning of an id that fits one job only will do for ID.
What users said is not shown: only facts about the job.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from forebay.broker import GatewayBroker
from forebay.core.kinds import KINDS, Cut
from forebay.core.spec import JobView
from forebay.errors import BadRequest, NotFound

__all__ = ["answer", "facts"]

MAX_LISTED = 1000
MIN_PREFIX = 6
ID_CHARS = 32


def facts(view: JobView) -> dict[str, Any]:
    """A job as JSON. Durations are seconds; None means: not yet."""
    spec = view.spec
    started, ended = view.started_s, view.ended_s
    return {
        "id": spec.id,
        "kind": str(spec.kind),
        "pool": spec.pool,
        "state": view.state,
        "tenant": spec.tenant,
        "dialect": spec.dialect,
        "name": spec.name,
        "priority": spec.priority,
        "durable": spec.durable,
        "attempts": view.attempts,
        "strikes": view.strikes,
        "code": view.code,
        "message": view.message,
        "position": view.place.position if view.place else None,
        "eta_s": view.place.eta_s if view.place else None,
        "waited_s": None if started is None else round(started - view.created_s, 3),
        "ran_s": None if started is None or ended is None else round(ended - started, 3),
        "model_s": round(view.model_s, 3),
        "events": view.head,
        "delivered": view.delivered,
        "marks": view.marks,
        "units": view.units,
        "input_ended": view.input_ended,
    }


async def answer(
    broker: GatewayBroker,
    tenant: str | None,
    method: str,
    path: str,
    query: Mapping[str, str],
    retried: Callable[[JobView, JobView], Awaitable[None]] | None = None,
) -> Any:
    """The JSON answer to ``method path``, where ``path`` is what follows ``/api/jobs``.

    ``tenant``: whose jobs may be seen and touched; None for an administrator, who sees all.
    ``retried`` is told of a job and the one that repeats it, before that is answered.
    Raises `NotFound` for another tenant's job as for none at all, and `BadRequest`.
    """
    words = [word for word in path.split("/") if word]
    match method, words:
        case "GET", []:
            return {"jobs": [facts(v) for v in await _listed(broker, tenant, query)]}
        case "GET", [job]:
            return facts(await _one(broker, tenant, job))
        case "POST", [job, "cancel"]:
            found = await _one(broker, tenant, job)
            return facts(await broker.cancel(found.spec.id, reason="operator"))
        case "POST", [job, "retry"]:
            found = await _one(broker, tenant, job)
            _check_whole(found)
            again = await broker.retry(found.spec.id)
            if retried is not None:
                await retried(found, again)
            return facts(again)
    raise NotFound(f"nothing answers {method} /api/jobs{path}")


def _check_whole(view: JobView) -> None:
    """Refuse to repeat a failed job whose client alone could have ended its input. The new job
    would wait for more of it, and no client knows that job's name."""
    whole = view.input_ended or KINDS[view.spec.kind].cut is Cut.WHOLE
    if view.state == "failed" and not whole:
        raise BadRequest(
            f"job {view.spec.id} cannot be retried: it was live, its client is gone and its input "
            f"has no end ({view.units} units came). Its client must begin a new session"
        )


async def _listed(
    broker: GatewayBroker, tenant: str | None, query: Mapping[str, str]
) -> list[JobView]:
    text = query.get("limit", "50")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_LISTED:
        raise BadRequest(f"limit is {text[:20]!r}, expected 1 to {MAX_LISTED}")
    dead = query.get("dead", "") in {"1", "true", "yes"}
    limit = int(text)
    views = await broker.jobs(dead=dead, limit=limit if tenant is None else MAX_LISTED)
    return [v for v in views if tenant is None or v.spec.tenant == tenant][:limit]


async def _one(broker: GatewayBroker, tenant: str | None, job: str) -> JobView:
    if len(job) >= ID_CHARS:
        view = await broker.status(job)
        if tenant is None or view.spec.tenant == tenant:
            return view
        raise NotFound(f"no job {job[:ID_CHARS]}")
    if len(job) < MIN_PREFIX:
        raise BadRequest(f"{job!r} has {len(job)} characters, expected at least {MIN_PREFIX}")
    both = {
        v.spec.id: v
        for dead in (True, False)
        for v in await broker.jobs(dead=dead, limit=MAX_LISTED)
        if v.spec.id.startswith(job) and (tenant is None or v.spec.tenant == tenant)
    }
    if len(both) != 1:
        number = "no job begins" if not both else f"{len(both)} jobs begin"
        raise NotFound(f"{number} with {job}")
    return next(iter(both.values()))

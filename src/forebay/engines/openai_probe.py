"""Is a model server there, and would it answer? The steps that `load` and `doctor` share.

Each step asks one thing, in the order in which a server comes up, and the first that fails
ends the probe: address, health, key, model, answer, context. A step says what it found, how
long it took and, where it failed, the likely cause and what to do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from forebay.engines.openai_client import Upstream
from forebay.engines.openai_errors import refusal
from forebay.engines.openai_wire import Answer, SseLines, request_body
from forebay.errors import ForebayError, UpstreamFailed

__all__ = ["Step", "probe"]

STEP_S = 10.0
ANSWER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One finding. ``name``: address, health, key, model, answer or context.

    ``facts``: ``model`` (the one that will be used), ``models`` (all listed), ``context``.
    ``error``: what was raised, None when ``ok``. A step may be ok and still have a ``hint``.
    """

    name: str
    ok: bool
    detail: str
    hint: str = ""
    ms: float = 0.0
    facts: dict[str, Any]
    error: ForebayError | None = None


async def probe(upstream: Upstream, *, model: str = "", answer: bool = True) -> AsyncIterator[Step]:
    """Yield a `Step` each, stopping after the first that failed. ``upstream`` is open.

    ``answer``: also ask for one token, which occupies the model for a moment.
    """
    facts: dict[str, Any] = {}
    steps = [_address, _health, _models, _model]
    if answer:
        steps.append(_answer)
    steps.append(_context)
    for step in steps:
        name = "key" if step is _models else step.__name__[1:]
        begun = time.monotonic()
        try:
            detail, hint = await step(upstream, model, facts)
        except ForebayError as exc:
            yield Step(
                name=name,
                ok=False,
                detail=exc.message,
                hint=str(exc.details.get("hint", "")),
                ms=(time.monotonic() - begun) * 1000,
                facts=facts,
                error=exc,
            )
            return
        ms = (time.monotonic() - begun) * 1000
        yield Step(name=name, ok=True, detail=detail, hint=hint, ms=ms, facts=facts)


async def _address(upstream: Upstream, model: str, facts: dict[str, Any]) -> tuple[str, str]:
    host, _, port = upstream.address.rpartition("@")[2].rpartition(":")
    host = (host or port).strip("[]")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError as exc:
        raise UpstreamFailed(
            f"model server's name {host!r} has no address",
            reason="no_address",
            hint="check base_url",
        ) from exc
    return f"{upstream.base} at {found[0][4][0]}", ""


async def _health(upstream: Upstream, model: str, facts: dict[str, Any]) -> tuple[str, str]:
    status, _ = await upstream.get_json("/health", STEP_S)
    if status == 503:
        raise refusal(status, b"its /health says it is not ready", model=model, key_given=False)
    if status == 200:
        return "healthy", ""
    return f"/health answered {status}, which says nothing", ""


async def _models(upstream: Upstream, model: str, facts: dict[str, Any]) -> tuple[str, str]:
    status, body = await upstream.get_json("/models", STEP_S)
    if status in (401, 403) or status >= 500:
        raise refusal(status, b"", model=model, key_given=upstream.key_given)
    listed = body.get("data") if status == 200 and isinstance(body, dict) else None
    facts["listed"] = (
        [m for m in listed if isinstance(m, dict) and isinstance(m.get("id"), str)]
        if isinstance(listed, list)
        else None
    )
    if facts["listed"] is None:
        return f"/models answered {status} without a list", "the key is proven by the answer step"
    return "accepted" if upstream.key_given else "none needed", ""


async def _model(upstream: Upstream, model: str, facts: dict[str, Any]) -> tuple[str, str]:
    listed: list[dict[str, Any]] | None = facts.pop("listed")
    names = [m["id"] for m in listed or ()]
    facts["models"] = names
    if not model and not names:
        raise UpstreamFailed(
            "model server lists no model and none is set", reason="unknown_model", hint="set model"
        )
    facts["model"] = model = model or names[0]
    if names and model not in names:
        raise refusal(
            404, b'{"error":{"code":"model_not_found"}}', model=model, key_given=upstream.key_given
        )
    for entry in listed or ():
        length = entry.get("max_model_len") or entry.get("context_length")
        if entry["id"] == model and isinstance(length, int) and length > 0:
            facts["context"] = length
    return f"{model} is listed" if names else f"{model}, not proven: nothing is listed", ""


async def _answer(upstream: Upstream, model: str, facts: dict[str, Any]) -> tuple[str, str]:
    name = facts["model"]
    body = request_body(
        [{"role": "user", "content": "Hi"}], {}, model=name, max_tokens=1, usage=False
    )
    lines, answer = SseLines(), Answer()
    deadline = asyncio.get_running_loop().time() + ANSWER_S
    async with upstream.post("/chat/completions", body, model=name, deadline=deadline) as response:
        watch = upstream.watch(response, deadline)
        try:
            while not answer.over:
                data = await watch.read(answer.begun)
                answer.take(lines.feed(data) if data else lines.end())
                if not data:
                    break
        finally:
            watch.stop()
    if error := answer.failure():
        raise error
    return "answered one token", ""


async def _context(upstream: Upstream, model: str, facts: dict[str, Any]) -> tuple[str, str]:
    length = facts.get("context")
    if length is None:
        return "not told by the server", "set context to the model's length if you know it"
    return f"{length} tokens", ""

"""What an OpenAI-compatible server says when it refuses, in our words. Pure.

SGLang, vLLM, llama.cpp and OpenAI tell the same few things in different sentences; this is
the one place that knows them. Every error made here has ``details["reason"]``, which a
program may switch on, and where an operator can do something, ``details["hint"]``.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from forebay.errors import (
    BadRequest,
    ForebayError,
    PromptTooLong,
    UpstreamFailed,
    UpstreamRefused,
)

__all__ = ["in_stream", "refusal", "refused", "retry_after", "unreachable"]

_TEXT_CHARS = 300  # of an upstream's own sentence; some echo the request after it
_RETRY_AFTER_MAX_S = 3600.0

_MEMORY = re.compile(r"out of memory|outofmemory|cuda error|kv cache (pool )?is full|\boom\b", re.I)
_TOO_LONG = re.compile(
    r"context[ _-](length|size|window)|context_length_exceeded|exceed_context_size"
    r"|(prompt|input)\b.{0,40}\b(too long|is longer|exceed)|maximum prompt length"
    r"|kv_capacity=",
    re.I,
)
_LIMITS = tuple(
    re.compile(p, re.I)
    for p in (
        r"context (?:length|size|window) (?:of|is|is only) (\d+)",
        r"context length \(?(\d+)",
        r"configured limit of (\d+)",
        r"maximum prompt length is (\d+)",
        r"(?:maximum|allowed) input length (?:of )?\(?(\d+)",
        r"> (\d+) maximum",
        r"kv_capacity=(\d+)",
    )
)
_TOKENS = tuple(
    re.compile(p, re.I)
    for p in (
        r"the input \((\d+) tokens\)",
        r"(\d+) tokens from the input",
        r"\((\d+) in (?:the|your) (?:messages|prompt)",
        r"(?:resulted in|you passed|input_tokens=|too long:) ?(\d+)",
        r"(?:request has|contains(?: at least)?) (\d+)",
        r"requested (?:about )?(\d+)(?: tokens)? in the messages",
        r"total length (\d+)",
        r"input length \(?(\d+)",
        r"requested (?:about )?(\d+) tokens",
    )
)
_ANSWER = tuple(
    re.compile(p, re.I)
    for p in (
        r"(\d+) (?:tokens )?(?:for|in) (?:the|your) completion",
        r"requested (\d+) output",
        r"max_new_tokens=(\d+)",
        r"too large: (\d+)",
    )
)
_UNKNOWN_MODEL = re.compile(
    r"model.{0,200}(not exist|not found|unknown)|(invalid|unknown) model", re.I | re.S
)


class _Facts(msgspec.Struct, frozen=True):
    """What could be read from an error body of any of the usual shapes."""

    text: str = ""
    code: str = ""
    tokens: int | None = None
    limit: int | None = None


def refusal(
    status: int, body: bytes, *, model: str, key_given: bool, retry_after_s: float | None = None
) -> ForebayError:
    """The error for an answer that is no event stream with status 200."""
    facts = _facts(body)
    if status == 200:
        return UpstreamFailed(
            f"model server answered no event stream: {_short(facts.text)}",
            reason="garbage",
            hint="check that base_url is an OpenAI-compatible server",
        )
    if status in (400, 404, 413, 422) and (too_long := _too_long(facts)):
        return too_long
    if status in (401, 403):
        return _key(status, key_given)
    if status in (400, 404) and (
        facts.code == "model_not_found" or _UNKNOWN_MODEL.search(facts.text)
    ):
        return refused(
            f"model server does not know model {model!r}",
            reason="unknown_model",
            hint="set model to a name that its /v1/models lists",
            status=status,
        )
    if _MEMORY.search(facts.text):
        return _memory(status, facts.text)
    if status == 429 or status >= 500:
        return _busy(status, facts.text, retry_after_s)
    return _client_error(status, facts.text)


def in_stream(error: Any, *, begun: bool) -> ForebayError:
    """The error for an ``error`` object inside an event stream that began with status 200."""
    facts = _facts(msgspec.json.encode({"error": error}))
    if not begun and (too_long := _too_long(facts)):
        return too_long
    if _MEMORY.search(facts.text):
        return _memory(200, facts.text)
    return UpstreamFailed(
        f"model server failed while answering: {_short(facts.text)}", reason="failed", status=200
    )


def unreachable(why: str, reason: str) -> UpstreamFailed:
    """Nobody answered: refused, reset, or closed without a byte.

    The address is left out: this is told to clients, and where the server stands is not
    their business."""
    return UpstreamFailed(
        f"model server {why}, still loading?",
        reason=reason,
        hint="wait until its /health answers, or check base_url",
    )


def refused(message: str, *, reason: str, hint: str, status: int) -> UpstreamRefused:
    return UpstreamRefused(message, reason=reason, hint=hint, status=status)


def retry_after(value: str | None) -> float | None:
    """Seconds of a ``Retry-After`` header; the date form is not used by model servers."""
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return min(seconds, _RETRY_AFTER_MAX_S) if seconds >= 0 else None


def _key(status: int, key_given: bool) -> UpstreamRefused:
    what = "refused the api_key" if key_given else "wants an api_key and none is set"
    return refused(
        f"model server {what} (status {status})",
        reason="key",
        hint="set api_key, or api_key_file, of the openai engine",
        status=status,
    )


def _memory(status: int, text: str) -> UpstreamFailed:
    return UpstreamFailed(
        f"model server is out of memory: {_short(text)}",
        reason="out_of_memory",
        hint="lower its --mem-fraction-static or --gpu-memory-utilization, "
        "or slots, max_tokens and max_total_tokens here",
        status=status,
    )


def _busy(status: int, text: str, retry_after_s: float | None) -> UpstreamFailed:
    what = {429: "is over its rate limit", 503: "is loading or overloaded"}.get(status, "failed")
    error = UpstreamFailed(
        f"model server {what} (status {status}): {_short(text)}",
        retry_after_s=retry_after_s,
        reason={429: "rate_limit", 503: "unavailable"}.get(status, "failed"),
        status=status,
    )
    if retry_after_s is not None:  # so that it survives a journey as (code, message, details)
        error.details["retry_after_s"] = retry_after_s
    return error


def _client_error(status: int, text: str) -> ForebayError:
    if status in (400, 413, 422):
        return BadRequest(
            f"model server refused the request: {_short(text)}", reason="refused", status=status
        )
    return refused(
        f"model server answered status {status}, expected 200",
        reason="wrong_address",
        hint="check base_url: the path before /chat/completions, usually ending in /v1",
        status=status,
    )


def _too_long(facts: _Facts) -> PromptTooLong | None:
    if facts.limit is None and not _TOO_LONG.search(f"{facts.code} {facts.text}"):
        return None
    limit = facts.limit or _first(_LIMITS, facts.text)
    tokens = facts.tokens or _first(_TOKENS, facts.text)
    answer = _first(_ANSWER, facts.text)
    details: dict[str, Any] = {"reason": "prompt_too_long", "tokens": tokens, "limit": limit}
    if tokens is None or limit is None:
        return PromptTooLong(f"prompt is too long: {_short(facts.text)}", **details)
    if answer and tokens < limit:
        return PromptTooLong(
            f"prompt has {tokens} tokens and the answer asks for {answer}, "
            f"expected no more than {limit} together",
            requested=answer,
            **details,
        )
    return PromptTooLong(f"prompt has {tokens} tokens, expected fewer than {limit}", **details)


def _first(patterns: tuple[re.Pattern[str], ...], text: str) -> int | None:
    for pattern in patterns:
        if found := pattern.search(text):
            return int(found.group(1)[:18])
    return None


def _facts(body: bytes) -> _Facts:
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Facts(text=body[:2000].decode("utf-8", "replace"))
    error = said.get("error", said) if isinstance(said, dict) else said
    if not isinstance(error, dict):
        return _Facts(text=str(error)[:2000])
    text = error.get("message") or error.get("detail") or error.get("msg") or ""
    if isinstance(text, list):  # pydantic: [{loc, msg, input}]; input is the user's, so left out
        text = "; ".join(str(p.get("msg", "")) for p in text if isinstance(p, dict))
    return _Facts(
        text=str(text)[:2000],
        code=f"{error.get('code') or ''} {error.get('type') or ''}".split(" ")[0],
        tokens=_number(error.get("n_prompt_tokens")),
        limit=_number(error.get("n_ctx")),
    )


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line[:_TEXT_CHARS] if line else "no reason given"

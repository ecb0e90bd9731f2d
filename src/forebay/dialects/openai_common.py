"""What the OpenAI surfaces share: the parsed call, their error objects, bounded decoding."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from forebay.core.events import InputItem
from forebay.core.kinds import Kind
from forebay.errors import (
    BadRequest,
    Forbidden,
    ForebayError,
    ModelNotFound,
    NotFound,
    PromptTooLong,
    QuotaExceeded,
    Refused,
    Unauthorized,
    UpstreamFailed,
)

__all__ = ["Call", "check_depth", "decode_request", "error_object", "sse", "status_of"]

MAX_DEPTH = 32
"""Nesting of a request body; deeper is refused before anything walks it."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One HTTP request as a job to be: what to run, on what, and how to answer.

    ``model`` names the pool, None takes the kind's first. ``stream``: the answer leaves as
    it is made. ``units``: characters to be spoken or samples to be heard, for the cost.
    ``run_s``: model time it may take, None for the kind's. ``request``: the dialect's own
    struct, which its encoders read. ``detach_s``: how long the job outlives its client, which
    was given a handle; 0 makes leaving a cancel. ``durable``: it also outlives the gateway.
    ``after``: the output position a returning client has.
    """

    kind: Kind
    model: str | None
    params: dict[str, Any]
    items: tuple[InputItem, ...]
    stream: bool
    request: Any
    units: int = 0
    run_s: float | None = None
    detach_s: float = 0.0
    durable: bool = False
    after: int = 0


def decode_request(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """One JSON request. Raises `BadRequest`; ``details["param"]`` is the field at fault.

    The message never repeats what was sent."""
    try:
        return decoder.decode(body)
    except RecursionError:
        raise BadRequest(f"json is nested too deeply, expected at most {MAX_DEPTH}") from None
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        raise BadRequest(_lower(text), param=path.strip("`").lstrip(".") or None) from None
    except msgspec.DecodeError as error:
        said = str(error).removeprefix("JSON is malformed: ")
        raise BadRequest(f"body is no json: {_lower(said)}") from None
    except UnicodeDecodeError:
        raise BadRequest("body is not utf-8") from None


def check_depth(value: Any, name: str, left: int = MAX_DEPTH) -> None:
    """Raises `BadRequest` where ``value`` is nested deeper than `MAX_DEPTH`."""
    if left <= 0:
        raise BadRequest(f"{name} is nested too deeply, expected at most {MAX_DEPTH}", param=name)
    inside = value.values() if isinstance(value, dict) else value
    if isinstance(value, (dict, list)):
        for part in inside:
            check_depth(part, name, left - 1)


def sse(payload: bytes) -> bytes:
    """One event of an event stream."""
    return b"data: " + payload + b"\n\n"


_TYPES: tuple[tuple[type[ForebayError], str], ...] = (
    (BadRequest, "invalid_request_error"),
    (Unauthorized, "authentication_error"),
    (Forbidden, "permission_error"),
    (NotFound, "invalid_request_error"),
    (QuotaExceeded, "rate_limit_error"),
    (Refused, "overloaded_error"),
)


def error_object(error: ForebayError, request_id: str = "") -> dict[str, Any]:
    """``{"error": {message, type, param, code, ...}}``, as OpenAI's clients read it.

    ``code`` is OpenAI's word where it has one and ours otherwise; the facts (tokens, limit,
    status of an upstream) are in ``details``."""
    kind = next((word for cls, word in _TYPES if isinstance(error, cls)), "server_error")
    code = error.code
    if isinstance(error, PromptTooLong):
        code = "context_length_exceeded"
    elif isinstance(error, Unauthorized):
        code = "invalid_api_key"
    facts = {k: v for k, v in error.details.items() if k != "param"}
    body: dict[str, Any] = {
        "message": error.message,
        "type": kind,
        "param": error.details.get("param"),
        "code": code,
    }
    if facts:
        body["details"] = facts
    if error.retry_after_s is not None:
        body["retry_after_s"] = error.retry_after_s
    if request_id:
        body["request_id"] = request_id
    return {"error": body}


def status_of(error: ForebayError) -> int:
    """The HTTP status: an upstream that is over its limit or loading is our 503."""
    if isinstance(error, UpstreamFailed) and error.details.get("status") in (429, 503):
        return 503
    return 404 if isinstance(error, ModelNotFound) else error.http_status


_PATTERN = re.compile(r"matching regex .*$")


def _lower(text: str) -> str:
    text = _PATTERN.sub("of another form", text)
    return (text[:1].lower() + text[1:])[:200]

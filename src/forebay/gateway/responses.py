"""Whole HTTP answers: JSON, errors, and the header sets that go with them.

An error body carries the code, the message and a request id that the log has too; never a
traceback, never what the client sent. Its shape is OpenAI's, so that their clients show the
message.
"""

from __future__ import annotations

import math
import os
import random
import traceback
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any, Literal

import msgspec

from forebay.errors import BadRequest, ForebayError, Refused

__all__ = [
    "JSON_TYPE",
    "ErrorFace",
    "Headers",
    "Receive",
    "Scope",
    "Send",
    "error_headers",
    "error_payload",
    "new_request_id",
    "raw_error",
    "reply",
    "reply_error",
    "reply_json",
    "where",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
ErrorFace = Literal["openai", "error", "detail", "message"]
"""``openai``: an object under ``error``; otherwise one text under that name."""

JSON_TYPE = b"application/json"
RETRY_JITTER = 0.2


def new_request_id() -> str:
    return os.urandom(8).hex()


def error_payload(error: ForebayError, request_id: str, face: ErrorFace = "openai") -> bytes:
    """The JSON body for ``error``, in the shape that the path's clients read."""
    if face != "openai":
        return _plain_payload(error, request_id, face)
    kind = "invalid_request_error" if isinstance(error, BadRequest) else error.code
    body: dict[str, Any] = {
        "message": error.message,
        "type": kind,
        "code": error.code,
        "param": None,
        "request_id": request_id,
    }
    if error.details:
        body["details"] = error.details
    if error.retry_after_s is not None:
        body["retry_after_s"] = error.retry_after_s
    return msgspec.json.encode({"error": body}, enc_hook=str)


def _plain_payload(error: ForebayError, request_id: str, face: ErrorFace) -> bytes:
    body: dict[str, Any] = {
        face: error.details.get("word", error.message),
        "code": error.code,
        "request_id": request_id,
    }
    if error.retry_after_s is not None:
        body["retry_after_s"] = round(error.retry_after_s, 3)
    return msgspec.json.encode(body)


def error_headers(error: ForebayError, request_id: str) -> Headers:
    """The headers that go with `error_payload`, length excluded.

    ``Retry-After`` is jittered, so that the refused do not all come back at once."""
    headers: Headers = [
        (b"content-type", JSON_TYPE),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"x-request-id", request_id.encode()),
    ]
    wait_s = error.retry_after_s
    if wait_s is None and isinstance(error, Refused):
        wait_s = 1.0
    if wait_s is not None:
        jittered = wait_s * random.uniform(1 - RETRY_JITTER, 1 + RETRY_JITTER)
        headers.append((b"retry-after", str(min(30, max(1, math.ceil(jittered)))).encode()))
    if error.http_status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def raw_error(status: int, error: ForebayError, request_id: str) -> bytes:
    """A whole HTTP/1.1 answer as bytes, for requests that never reached the application."""
    body = error_payload(error, request_id)
    lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
    lines += [name + b": " + value for name, value in error_headers(error, request_id)]
    lines += [b"content-length: %d" % len(body), b"connection: close", b"", body]
    return b"\r\n".join(lines)


async def reply(
    send: Send,
    status: int,
    body: bytes = b"",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Answer a request with a whole body."""
    start = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})


async def reply_json(
    send: Send, value: Any, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Answer with ``value`` as JSON, never cached."""
    start = [(b"content-type", JSON_TYPE), (b"cache-control", b"no-store"), *headers]
    await reply(send, status, msgspec.json.encode(value, enc_hook=str), start)


async def reply_error(
    send: Send,
    error: ForebayError,
    request_id: str,
    headers: Iterable[tuple[bytes, bytes]] = (),
    face: ErrorFace = "openai",
) -> None:
    """Answer with ``error``'s status, body and headers."""
    start = [*error_headers(error, request_id), *headers]
    await reply(send, error.http_status, error_payload(error, request_id, face), start)


def where(error: BaseException) -> str:
    """Where an unforeseen error happened, for the log: the innermost places, but not its
    message, which may hold what a user said."""
    places = traceback.extract_tb(error.__traceback__)[-4:]
    return " < ".join(f"{p.filename.rpartition('/')[2]}:{p.lineno}" for p in reversed(places))

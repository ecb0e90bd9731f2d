"""What a wire protocol brings to a plain HTTP call: how it reads, and how it words its answer.

No I/O: `gateway.calls` runs the job and `gateway.delivery` carries its events to the wire.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from forebay.core.events import OutputEvent
from forebay.dialects.openai_common import Call, error_object, status_of
from forebay.errors import ForebayError
from forebay.gateway.batch import FlushRule
from forebay.gateway.fetching import Files
from forebay.gateway.responses import (
    Headers,
    Scope,
    Send,
    error_headers,
    new_request_id,
    reply,
)

__all__ = ["CallOptions", "Collector", "Ident", "Surface", "refuse", "request_id"]

Encode = Callable[[OutputEvent], Sequence[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """``hold_head_s``: how long an event stream's head waits for a first event; 0: it leaves
    at once. ``keepalive_s``: silence after which an event stream gets a sign of life; 0: never.
    ``flush``: whether text waits for more of itself."""

    body_bytes: int = 1024 * 1024
    hold_head_s: float = 5.0
    keepalive_s: float = 15.0
    flush: FlushRule = FlushRule()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ident:
    """What an answer is called. ``created``: seconds since 1970. ``epoch``: of its output.
    ``timing``: milliseconds of each stage so far (`gateway.ledger`)."""

    job: str
    created: int
    model: str
    epoch: str = ""
    timing: Callable[[], Mapping[str, float]] = dict


class Collector(Protocol):
    def take(self, event: OutputEvent) -> None:
        """Raises `TooLarge` when the answer outgrows what may be held."""

    def body(self) -> bytes: ...


class Surface(ABC):
    """One wire protocol's words for a call. ``keepalive``: its sign of life in a silence.
    ``files``: those its encoder takes; a surface with files is made for one request, and its
    collector's body is put together in a thread."""

    name: str
    keepalive = b": still here\n"
    files: Files[Any] | None = None

    @abstractmethod
    def parse(self, body: bytes) -> Call: ...

    @abstractmethod
    def events(self, call: Call) -> bool:
        """True: the streamed answer is an event stream, which can say that it broke.
        False: it is the bare content, which can only be cut."""

    @abstractmethod
    def headers(self, call: Call) -> Headers: ...

    @abstractmethod
    def encoder(self, call: Call, ident: Ident) -> Encode: ...

    @abstractmethod
    def collector(self, call: Call, ident: Ident) -> Collector: ...

    def facts(self, call: Call, ident: Ident) -> Headers:
        """Headers that name the job."""
        return [(b"x-forebay-job", ident.job.encode())]

    def opening(self, call: Call, ident: Ident) -> Sequence[bytes]:
        """Frames that leave with the head, before the model has said anything."""
        return ()

    def timed(self, timing: bytes) -> Sequence[bytes]:
        """Frames after the last one, with what ``Server-Timing`` says by then. An event
        stream's readers pass over comments; no empty line follows, which some SDKs take for
        an event of its own."""
        return (b": server-timing: " + timing + b"\n",)

    def broken(self, call: Call, error: ForebayError, request_id: str) -> Sequence[bytes]:
        """Frames that end an event stream whose job has not ended."""
        body = msgspec.json.encode(error_object(error, request_id), enc_hook=str)
        return (b"data: " + body + b"\n\n",)

    async def refuse(
        self,
        send: Send,
        error: ForebayError,
        request_id: str,
        call: Call | None = None,
        headers: Headers | None = None,
    ) -> None:
        """Answer with ``error`` while nothing has been answered. ``call``: None where the
        request could not be read."""
        await refuse(send, error, request_id, headers)


async def refuse(send: Send, error: ForebayError, request_id: str, headers: Headers | None = None) -> None:  # fmt: skip
    """Answer with an error in OpenAI's shape; ``Retry-After`` where waiting helps."""
    body = msgspec.json.encode(error_object(error, request_id), enc_hook=str)
    start = [*error_headers(error, request_id), *(headers or [])]
    await reply(send, status_of(error), body, start)


def request_id(scope: Scope) -> str:
    """The id that the log has too."""
    return str(scope.get("forebay.request_id") or new_request_id())

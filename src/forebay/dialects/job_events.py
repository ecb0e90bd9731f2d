"""A job's output as JSON events: the form that every event stream and WebSocket of ours has.

One event is one JSON object with a ``type``. As server-sent events it is
``id: EPOCH:OFFSET``, ``event: TYPE``, ``data: JSON``; over a WebSocket it is the same object
with the position as ``id``. What is stored has a position, and a client that comes back says
the last one it has; queue news and the like have none and are not told twice.

`EventWords` is what a protocol of its own puts in the place of `JobWords`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from forebay.core.events import Audio, Display, Ended, OutputEvent, Partial, Progress
from forebay.core.spec import JobView, QueuePlace
from forebay.core.stream import tag_of
from forebay.dialects import error_of
from forebay.errors import BadRequest, ForebayError, ResumeNotAvailable

__all__ = [
    "Body",
    "EventWords",
    "JobWords",
    "Position",
    "body_of",
    "error_body",
    "is_replaced",
    "place_body",
    "position_id",
    "read_position",
    "sse_event",
    "ws_event",
]

Body = Mapping[str, Any]

_POSITION = re.compile(r"(?:([0-9A-Za-z_.-]{1,64}):)?([0-9]{1,15})")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a client that comes back stands. ``epoch``: empty where it did not say."""

    epoch: str
    offset: int

    def check(self, view: JobView) -> int:
        """The offset to go on after. Raises `ResumeNotAvailable`: the stream is another one,
        or is not so far."""
        if self.epoch and self.epoch != view.epoch:
            raise ResumeNotAvailable("the stream was lost and begun anew", reason="state_lost")
        if self.offset > view.head:
            raise ResumeNotAvailable(
                f"position {self.offset} is after the newest, {view.head}", reason="ahead_of_head"
            )
        return self.offset


def position_id(epoch: str, offset: int) -> str:
    return f"{epoch}:{offset}"


def read_position(text: str) -> Position:
    """``EPOCH:OFFSET``, or the offset alone. Raises `BadRequest` for anything else."""
    found = _POSITION.fullmatch(text.strip())
    if found is None:
        raise BadRequest("the position is neither OFFSET nor EPOCH:OFFSET", param="after")
    return Position(found[1] or "", int(found[2]))


# ------------------------------------------------------------------------------ frames


def _json(body: Body) -> bytes:
    return msgspec.json.encode(body, enc_hook=str)


def sse_event(body: Body, position: str = "") -> bytes:
    """``body`` as one server-sent event. ``position``: empty for what is not stored."""
    name = str(body.get("type", "message")).encode()
    head = b"id: " + position.encode() + b"\n" if position else b""
    return head + b"event: " + name + b"\ndata: " + _json(body) + b"\n\n"


def ws_event(body: Body, position: str = "") -> str:
    """``body`` as one text frame."""
    return _json({**body, "id": position} if position else body).decode()


# -------------------------------------------------------------------------------- words


class EventWords(Protocol):
    """How a protocol words the events of one job. Each call gives none, one or several
    objects with a ``type``, and depends on its arguments and on constants only."""

    def opening(self, view: JobView) -> Sequence[Body]:
        """What a stream begins with, before the first event and again at each return."""

    def event(self, event: OutputEvent) -> Sequence[Body]: ...

    def place(self, place: QueuePlace) -> Sequence[Body]:
        """Its place in the queue changed."""

    def lease(self, running: bool) -> Sequence[Body]:
        """It is being worked on, or waits again because its worker was lost."""

    def error(self, error: ForebayError) -> Sequence[Body]:
        """The stream cannot go on, although the job may."""


def is_replaced(event: OutputEvent) -> bool:
    """Whether a newer event took this one's place while it was stored: nothing is left."""
    match event:
        case Progress():
            return not event.stage
        case Display():
            return not event.what
        case Partial():
            return not event.text
        case _:
            return False


def body_of(event: OutputEvent) -> dict[str, Any]:
    """Every field of ``event`` in its own words; bytes as base64."""
    fields = msgspec.structs.asdict(event)
    if "type" in fields:  # of its content; the word itself is the event's own here
        fields["media"] = fields.pop("type")
    body: dict[str, Any] = {"type": tag_of(event), **fields}
    if "data" in body and isinstance(body["data"], bytes):
        data = body.pop("data")
        if isinstance(event, Audio):
            body["data"] = base64.b64encode(data).decode()
    body.pop("blob", None)  # a name inside the system
    body.pop("blobs", None)
    return body


def place_body(place: QueuePlace) -> dict[str, Any]:
    """A place in the queue. ``eta_s`` is null until a job of this kind has been measured."""
    return {
        "type": "queued",
        "position": place.position,
        "eta_s": _tenths(place.eta_s),
        "low_s": _tenths(place.low_s),
        "high_s": _tenths(place.high_s),
    }


def _tenths(value_s: float | None) -> float | None:
    return None if value_s is None else round(value_s, 1)


def error_body(error: ForebayError) -> dict[str, Any]:
    body: dict[str, Any] = {"type": "error", "code": error.code, "message": error.message}
    if error.details:
        body["details"] = dict(error.details)
    if error.retry_after_s is not None:
        body["retry_after_s"] = round(error.retry_after_s, 1)
    return body


class JobWords:
    """The words of ``/v1/jobs/{id}/events``: every event as it is."""

    def opening(self, view: JobView) -> Sequence[Body]:
        job: dict[str, Any] = {
            "type": "job",
            "job": view.spec.id,
            "kind": str(view.spec.kind),
            "state": view.state,
            "epoch": view.epoch,
            "first": view.first,
            "head": view.head,
        }
        if view.state == "queued" and view.place is not None:
            return (job, *self.place(view.place))
        return (job,)

    def event(self, event: OutputEvent) -> Sequence[Body]:
        if is_replaced(event):
            return ()
        body = body_of(event)
        if isinstance(event, Ended) and event.state in ("failed", "expired"):
            error = error_of(event)
            body["error"] = {"code": error.code, "message": error.message}
        return (body,)

    def place(self, place: QueuePlace) -> Sequence[Body]:
        return (place_body(place),)

    def lease(self, running: bool) -> Sequence[Body]:
        return ({"type": "running"},) if running else ({"type": "requeued"},)

    def error(self, error: ForebayError) -> Sequence[Body]:
        return (error_body(error),)

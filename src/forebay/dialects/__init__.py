"""Wire protocols, one module each: translations and nothing else.

A dialect turns frames into intents and events into frames. It does no I/O, reads no clock,
starts no task, and decides nothing about whether an intent is allowed: that is
`core.session`. What it remembers of a connection is one small frozen state that it is
handed and gives back.

An encoder is a function of the event and of the job's parameters, never of what it encoded
before, so any gateway can go on where another stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec

from forebay.core.events import Ended, OutputEvent
from forebay.core.intents import Failed, Finished, Intent, Started, Took
from forebay.core.kinds import Kind
from forebay.core.session import Rules
from forebay.core.spec import QueuePlace
from forebay.errors import BadRequest, ForebayError, by_code

__all__ = ["About", "Frame", "Leave", "SessionDialect", "decode", "error_of"]

Frame = str | bytes
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The session an answer or event belongs to: its client's name and the job's parameters.

    ``age_s``: seconds from the job's beginning to now, or to its end. ``pending``: jobs that
    wait for the same model, where that is asked for (`SessionDialect.place`)."""

    session: str
    params: Mapping[str, Any]
    age_s: Callable[[], float] = lambda: 0.0
    pending: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """A gateway sends a client elsewhere: how far both sides are, and when to come back.

    ``units``: input the store has. ``offset``: the last output event sent."""

    units: int
    offset: int
    retry_after_ms: int


class SessionDialect(Protocol):
    """A WebSocket protocol whose sessions are resumable jobs of one kind (`/tts`).

    ``concurrent``: how many sessions one connection may hold; one more leaves the oldest, or
    is refused, as ``rules`` has it. ``notice_gap_s``: queue news is not sent before the
    session has waited so long.
    """

    name: str
    kind: Kind
    concurrent: int
    rules: Rules
    notice_gap_s: float

    def receive(self, state: Any, frame: Frame) -> tuple[Any, Sequence[Intent]]:
        """Translate one frame. ``state`` is None for a connection's first one.

        Raises `BadRequest`: answer it with `refuse` and end the connection.
        """

    def encode(self, event: OutputEvent, about: About, *, have: int = 0) -> Sequence[Frame]:
        """The frames of one output event, trimmed to what a client with ``have`` lacks."""

    def answer(self, what: Started | Finished | Failed | Took, about: About) -> Sequence[Frame]: ...

    def refuse(self, state: Any, error: ForebayError) -> Sequence[Frame]:
        """The frames of an error that concerns the connection as it stands, which then
        ends, unless ``rules`` keep it."""

    def word(self, error: ForebayError) -> str:
        """What an error is called on this wire; metrics count by it."""

    def place(self, state: Any, place: QueuePlace | None, about: About) -> Sequence[Frame]:
        """News for a waiting client, where it asked for such; None: it waits no more."""

    def going_away(self, state: Any, leave: Leave, about: About) -> Sequence[Frame]:
        """That this gateway is about to close a connection whose session lives on; () where
        this protocol's clients know no such message (the close says the same)."""


def decode(decoder: msgspec.json.Decoder[T], frame: str | bytes) -> T:
    """Decode one JSON message. Raises `BadRequest` with what is wrong and where; never
    quotes the content."""
    try:
        return decoder.decode(frame)
    except RecursionError:
        raise BadRequest("the message is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        text = str(error).split(", got", 1)[0] if "got" not in str(error) else str(error)
        raise BadRequest(f"malformed message: {_lower(text)[:200]}") from None


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def error_of(ended: Ended) -> ForebayError:
    """The error that a failed or expired job ended with."""
    facts = {k: v for k, v in ended.details.items() if k not in ("message", "code")}
    retry = facts.pop("retry_after_s", None)
    error = by_code(ended.code or "job_failed", ended.message or ended.state, **facts)
    error.retry_after_s = retry
    return error

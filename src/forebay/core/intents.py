"""What a session is told and what it asks for: intents, facts and effects.

*Intents* are what a client asked, made by a dialect from one frame. *Facts* are what the
broker, the hub and the connection report. *Effects* are what `core.session.Session` wants
done; `gateway.driver` carries them out. All are plain frozen data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from forebay.core.events import InputItem, Sound
from forebay.core.spec import JobView
from forebay.errors import ForebayError

__all__ = [
    "Answer",
    "Append",
    "Attach",
    "Attached",
    "Begun",
    "Cancel",
    "CancelJob",
    "Cancelled",
    "Close",
    "Deliver",
    "Detach",
    "Effect",
    "EndInput",
    "Event",
    "ExpireJob",
    "Fact",
    "Failed",
    "Feed",
    "Finished",
    "Found",
    "From",
    "Gone",
    "Hear",
    "Idle",
    "Intent",
    "Lookup",
    "Lost",
    "NotBegun",
    "Open",
    "Over",
    "Refuse",
    "Resume",
    "Slow",
    "Started",
    "StopDelivery",
    "Stored",
    "Submit",
    "Superseded",
    "Tick",
    "Took",
    "Unread",
    "together",
]


class From(StrEnum):
    """Where delivery begins."""

    START = "start"
    DELIVERED = "delivered"  # after the last recorded delivered position
    MARK = "mark"  # at a value of the kind's counter
    AFTER = "after"  # after an event's offset


# ------------------------------------------------------------------------- intents


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Begin this session, or come back to it. ``params``: the job's, normalised.

    ``model``: which pool of the kind, "" for its first; of no account on a known id.
    ``after``: on a known id, deliver at once what follows this event's offset.
    """

    session: str
    params: Mapping[str, Any]
    model: str = ""
    after: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    session: str
    text: str
    seq: int


class Hear(msgspec.Struct, frozen=True, kw_only=True):
    """Audio to be recognised: one chunk of the client's, whole, as one item or several.

    ``units``: samples in it, as far as that is known before it is decoded. ``at``: which
    sample of the session it begins with, where the client counts them: then what is stored
    already is cut off, and a hole is refused."""

    session: str
    sounds: tuple[Sound, ...]
    seq: int
    units: int
    at: int | None = None


def together(chunks: Sequence[Hear]) -> Hear:
    """Chunks of one session that follow each other, as one."""
    if len(chunks) == 1:
        return chunks[0]
    first, last = chunks[0], chunks[-1]
    return Hear(
        session=first.session,
        sounds=tuple(sound for chunk in chunks for sound in chunk.sounds),
        seq=last.seq,
        units=sum(chunk.units for chunk in chunks),
        at=first.at,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EndInput:
    """``at``: how many samples came before, where the client counts them: more than are
    stored is a hole."""

    session: str
    seq: int
    at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    session: str
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Deliver what a client lacks that has ``have`` units (or whatever the kind counts)."""

    session: str
    have: int


Intent = Open | Feed | Hear | EndInput | Cancel | Resume


# --------------------------------------------------------------------------- facts


@dataclass(frozen=True, slots=True)
class Found:
    """Answer to `Lookup`; None when no job of that name is known."""

    view: JobView | None


@dataclass(frozen=True, slots=True)
class Attached:
    """Answer to `Submit` and `Attach`: this connection may now write as ``number``."""

    view: JobView
    number: int


class Stored(msgspec.Struct, frozen=True):
    """Answer to `Append`: ``units`` the store now has of this job's input."""

    units: int
    tell: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """Answer to `Deliver`: a reader is open."""


@dataclass(frozen=True, slots=True)
class NotBegun:
    """Answer to `Deliver`: that position cannot be read; nothing changed."""

    error: ForebayError


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Answer to `CancelJob`."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The broker refused or failed what the last effect asked."""

    error: ForebayError


@dataclass(frozen=True, slots=True)
class Over:
    """The terminal event has been written to the client."""


@dataclass(frozen=True, slots=True)
class Unread:
    """The job ended while nothing is delivered here."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Delivery broke off: its position left the window, or the store lost the stream."""

    error: ForebayError


@dataclass(frozen=True, slots=True)
class Slow:
    """The client fell behind its kind's bound; delivery has stopped."""

    waited_s: float
    limit_s: float


@dataclass(frozen=True, slots=True)
class Superseded:
    """Attachment ``number`` may no longer write."""

    number: int


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing was said or heard for so long, and nothing is under way."""

    for_s: float


@dataclass(frozen=True, slots=True)
class Gone:
    """The connection is closed, or leaves this session for another."""


@dataclass(frozen=True, slots=True)
class Tick:
    """`Session.deadline` may have passed."""


Fact = (
    Found
    | Attached
    | Stored
    | Begun
    | NotBegun
    | Cancelled
    | Refuse
    | Over
    | Unread
    | Lost
    | Slow
    | Superseded
    | Idle
    | Gone
    | Tick
)
Event = Intent | Fact


# ------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Lookup:
    """Find the newest job of this session's name; report `Found`."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Make a new job with these parameters and attach to write; report `Attached`."""

    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Attach:
    """Attach to write to this job; report `Attached`."""

    job: str


class Append(msgspec.Struct, frozen=True):
    """Append input; report `Stored`. ``units``: cumulative through these items. ``tell``:
    comes back in `Stored`, so that the client is told once the store has it."""

    items: Sequence[InputItem]
    pos: int | None
    units: int
    tell: bool = False


@dataclass(frozen=True, slots=True)
class Deliver:
    """(Re)open the reader; report `Begun` or `NotBegun`. ``value``: of the counter for
    `From.MARK`, the offset for `From.AFTER`."""

    start: From
    value: int = 0


@dataclass(frozen=True, slots=True)
class StopDelivery:
    """Close the reader; what is held back by the pace is dropped."""


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Cancel the job; report `Cancelled` (also when it had ended, or is unknown)."""


@dataclass(frozen=True, slots=True)
class ExpireJob:
    """End the job as failed with this error; nothing to report."""

    error: ForebayError


@dataclass(frozen=True, slots=True)
class Detach:
    """This connection no longer holds the job; nothing to report."""


@dataclass(frozen=True, slots=True)
class Started:
    """What a client that began or came back is told."""

    fresh: bool
    units_received: int
    last_seq_received: int
    over: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    seq: int
    cancelled: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    error: ForebayError
    seq: int


class Took(msgspec.Struct, frozen=True):
    """The client's input ``seq`` is in the store."""

    seq: int


class Answer(msgspec.Struct, frozen=True):
    """Encode this in the dialect's words and send it."""

    what: Started | Finished | Failed | Took


@dataclass(frozen=True, slots=True)
class Close:
    code: int = 1000
    reason: str = ""


Effect = (
    Lookup
    | Submit
    | Attach
    | Append
    | Deliver
    | StopDelivery
    | CancelJob
    | ExpireJob
    | Detach
    | Answer
    | Close
)

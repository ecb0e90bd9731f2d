"""Native `/v1/listen`: binary audio in, numbered transcripts out, resumable both ways.

Client messages: ``start`` (JSON, first), then binary frames of s16le mono PCM, ``from``
(which sample the next binary frame begins with), ``end``, ``cancel``. Server messages:
``started``, ``ack``, ``partial``, ``final``, ``notice``, ``queue_status``, ``ended``,
``error``. The page docs/reference/native-ws.md is the contract.

Samples are counted by the client's own rate, from 0, over the whole session. A frame that
overlaps what is stored is cut, so re-sending is always safe; one that leaves a hole is
refused. Every transcript carries ``event``, its number in the session: a client that comes
back names the last one it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from forebay.core.events import Ended, Final, Notice, OutputEvent, Partial, Sound
from forebay.core.intents import (
    Cancel,
    EndInput,
    Failed,
    Finished,
    Hear,
    Intent,
    Open,
    Started,
    Took,
)
from forebay.core.kinds import Kind
from forebay.core.session import Rules
from forebay.core.spec import QueuePlace
from forebay.dialects import About, Frame, Leave, decode, error_of
from forebay.errors import BadAudio, BadRequest, ForebayError, TooLarge

__all__ = ["FRAME_BYTES", "RATES", "ListenDialect", "State"]

RATES = (8000, 48_000)
FRAME_BYTES = 64 * 1024
EVENT_RATE = 16_000
"""Samples per second of event times, whatever the client sends."""

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Word = Annotated[str, Meta(max_length=128)]
Count = Annotated[int, Meta(ge=0, le=2**53)]


# ------------------------------------------------------------------ what clients say


class Start(msgspec.Struct, tag_field="type", tag="start", frozen=True):
    """``session_id``: absent, the server makes one. ``after_event``: the last one received.
    ``partials``, ``queue``: false leaves those messages out."""

    session_id: Name | None = None
    sample_rate: Annotated[int, Meta(ge=RATES[0], le=RATES[1])] = EVENT_RATE
    language: Word = ""
    model: Word = ""
    after_event: Count = 0
    partials: bool = True
    queue: bool = True


class FromSample(msgspec.Struct, tag_field="type", tag="from", frozen=True):
    sample: Count


class EndMessage(msgspec.Struct, tag_field="type", tag="end", frozen=True):
    pass


class CancelMessage(msgspec.Struct, tag_field="type", tag="cancel", frozen=True):
    pass


Message = Start | FromSample | EndMessage | CancelMessage
_decoder = msgspec.json.Decoder(Message)


# -------------------------------------------------------------------- what we answer


class StartedAnswer(msgspec.Struct, tag_field="type", tag="started", frozen=True):
    session_id: str
    resumed: bool
    samples: int
    finished: bool
    ttl_s: float


class Ack(msgspec.Struct, tag_field="type", tag="ack", frozen=True):
    samples: int


class PartialAnswer(msgspec.Struct, tag_field="type", tag="partial", frozen=True):
    event: int
    text: str
    start: float
    end: float


class FinalAnswer(msgspec.Struct, tag_field="type", tag="final", frozen=True, omit_defaults=True):
    event: int
    text: str
    start: float
    end: float
    language: str = ""


class NoticeAnswer(msgspec.Struct, tag_field="type", tag="notice", frozen=True):
    event: int
    code: str
    message: str


class QueueStatus(msgspec.Struct, tag_field="type", tag="queue_status", frozen=True):
    position: int  # 0: waiting no more
    eta_s: float | None = None
    eta_low_s: float | None = None
    eta_high_s: float | None = None


class GoingAway(msgspec.Struct, tag_field="type", tag="going_away", frozen=True):
    """The connection is about to be closed, the session goes on elsewhere: sound is stored
    up to ``samples``, ``event`` was the last one sent."""

    samples: int
    event: int
    retry_after_ms: int


class EndedAnswer(msgspec.Struct, tag_field="type", tag="ended", frozen=True, omit_defaults=True):
    """``event`` is None where the session was cancelled over this very connection.
    ``message``: why it was cancelled, where its client did not ask for it just now."""

    event: int | None
    state: Literal["completed", "cancelled"]
    text: str = ""
    text_from: int = 0
    audio_s: float = 0.0
    language: str = ""
    message: str = ""


class Error(msgspec.Struct, tag_field="type", tag="error", frozen=True, omit_defaults=True):
    code: str
    message: str
    retryable: bool = False
    retry_after_s: float | None = None
    details: dict[str, Any] = {}


def _text(message: msgspec.Struct) -> str:
    return msgspec.json.encode(message, enc_hook=str).decode()


def _error(error: ForebayError) -> str:
    return _text(
        Error(
            code=error.code,
            message=error.message,
            retryable=error.retryable,
            retry_after_s=error.retry_after_s,
            details=error.details,
        )
    )


@dataclass(frozen=True, slots=True)
class State:
    """What a connection has said: its session, the sample its next frame begins with."""

    session: str = ""
    rate: int = EVENT_RATE
    at: int = 0
    queue: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenDialect:
    """``new_session``: the id of a session that its client did not name. ``ttl_s``: how long
    a session waits for its client, as `started` promises."""

    new_session: str
    ttl_s: float = 120.0

    name = "listen"
    kind = Kind.RECOGNITION
    concurrent = 1
    rules = Rules(silence_s=0.0, acknowledges=True)
    notice_gap_s = 0.0

    # ------------------------------------------------------------------- receiving

    def receive(self, state: State | None, frame: Frame) -> tuple[State, Sequence[Intent]]:
        state = state or State()
        if isinstance(frame, bytes):
            return self._audio(state, frame)
        message = decode(_decoder, frame)
        if isinstance(message, Start):
            return self._start(state, message)
        if not state.session:
            raise BadRequest("the first message must be start")
        match message:
            case FromSample():
                return replace(state, at=message.sample), ()
            case EndMessage():
                return state, (EndInput(session=state.session, seq=state.at, at=state.at),)
            case _:
                return state, (Cancel(session=state.session, seq=state.at),)

    def _start(self, state: State, message: Start) -> tuple[State, Sequence[Intent]]:
        if state.session:
            raise BadRequest("one session per connection, and it was started")
        session = message.session_id or self.new_session
        params: dict[str, Any] = {"sample_rate": message.sample_rate}
        if message.language:
            params["language"] = message.language
        if not message.partials:
            params["partials"] = False
        return (
            State(session=session, rate=message.sample_rate, queue=message.queue),
            (
                Open(
                    session=session,
                    params=params,
                    model=message.model,
                    after=message.after_event,
                ),
            ),
        )

    @staticmethod
    def _audio(state: State, frame: bytes) -> tuple[State, Sequence[Intent]]:
        if not state.session:
            raise BadRequest("the first message must be start")
        if len(frame) > FRAME_BYTES:
            raise TooLarge(
                f"read a frame of {len(frame)} bytes, expected no more than {FRAME_BYTES}"
            )
        if len(frame) % 2:
            raise BadAudio(f"{len(frame)} bytes are not a whole number of 16-bit samples")
        samples = len(frame) // 2
        if not samples:
            return state, ()
        end = state.at + samples
        sound = Sound(data=frame, rate=state.rate, seq=end)
        return replace(state, at=end), (
            Hear(session=state.session, sounds=(sound,), seq=end, units=samples, at=state.at),
        )

    # -------------------------------------------------------------------- encoding

    def encode(self, event: OutputEvent, about: About, *, have: int = 0) -> Sequence[Frame]:
        match event:
            case Partial() if event.text and about.params.get("partials", True):
                return (_text(PartialAnswer(event.offset, event.text, *_span(event))),)
            case Final():
                start, end = _span(event)
                return (_text(FinalAnswer(event.offset, event.text, start, end, event.language)),)
            case Notice():
                return (_text(NoticeAnswer(event.offset, event.code, event.message)),)
            case Ended():
                return (self._ended(event),)
            case _:
                return ()

    @staticmethod
    def _ended(event: Ended) -> str:
        match event.state:
            case "completed":
                facts = event.details
                return _text(
                    EndedAnswer(
                        event=event.offset,
                        state="completed",
                        text=str(facts.get("text", "")),
                        text_from=int(facts.get("text_from", 0)),
                        audio_s=float(facts.get("audio_s", 0.0)),
                        language=str(facts.get("language", "")),
                    )
                )
            case "cancelled":
                return _text(
                    EndedAnswer(event=event.offset, state="cancelled", message=event.message)
                )
            case _:
                return _error(error_of(event))

    def answer(self, what: Started | Finished | Failed | Took, about: About) -> Sequence[Frame]:
        match what:
            case Started():
                return (
                    _text(
                        StartedAnswer(
                            session_id=about.session,
                            resumed=not what.fresh,
                            samples=what.units_received,
                            finished=what.over,
                            ttl_s=self.ttl_s,
                        )
                    ),
                )
            case Took():
                return (_text(Ack(samples=what.seq)),)
            case Finished():
                return (_text(EndedAnswer(event=None, state="cancelled")),)
            case Failed():
                return (_error(what.error),)

    def refuse(self, state: State | None, error: ForebayError) -> Sequence[Frame]:
        return (_error(error),)

    def word(self, error: ForebayError) -> str:
        return error.code

    def place(self, state: State | None, place: QueuePlace | None, about: About) -> Sequence[Frame]:
        if state is None or not state.queue:
            return ()
        if place is None:
            return (_text(QueueStatus(position=0)),)
        return (
            _text(
                QueueStatus(
                    position=place.position,
                    eta_s=_round(place.eta_s),
                    eta_low_s=_round(place.low_s),
                    eta_high_s=_round(place.high_s),
                )
            ),
        )

    def going_away(self, state: State | None, leave: Leave, about: About) -> Sequence[Frame]:
        message = GoingAway(
            samples=leave.units, event=leave.offset, retry_after_ms=leave.retry_after_ms
        )
        return (_text(message),)


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _span(event: Partial | Final) -> tuple[float, float]:
    """Start and end in seconds since the session's first sample."""
    return round(event.start / EVENT_RATE, 3), round(event.end / EVENT_RATE, 3)

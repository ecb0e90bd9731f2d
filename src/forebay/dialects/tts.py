"""S1 `/tts`: text in, paced audio out, resumable by unit.

Client messages: `start`, `text_delta`, `text_end`, `cancel`, `resume`. Server messages:
`start_ack`, `audio_chunk`, `tts_end`, `error`, and `queue_status` for clients that set
``"notices": true`` in `start`. A unit is one Unicode code point, counted from 0 over all
text of a session. Unknown fields are ignored in both directions; fields that the original
did not have are additive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from forebay.core.audio import trim_audio, wav_header
from forebay.core.events import Audio, Ended, OutputEvent
from forebay.core.intents import (
    Cancel,
    EndInput,
    Failed,
    Feed,
    Finished,
    Intent,
    Open,
    Resume,
    Started,
    Took,
)
from forebay.core.kinds import Kind
from forebay.core.session import Rules
from forebay.core.spec import QueuePlace
from forebay.dialects import About, Frame, Leave, decode, error_of
from forebay.errors import (
    BadRequest,
    DeadlineExceeded,
    ForebayError,
    NotFound,
    Refused,
    ResumeNotAvailable,
    SlowClient,
    StateLost,
    Unsupported,
)

__all__ = [
    "AUDIO_FORMAT",
    "RATES",
    "State",
    "TtsDialect",
    "error_frame",
    "s1_code",
    "speech_params",
]

AUDIO_FORMAT = "pcm16_wav"
RATES = (8000, 48000)
SPEEDS = (0.25, 4.0)

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Word = Annotated[str, Meta(max_length=128)]
Number = Annotated[int, Meta(ge=-(2**53), le=2**53)]


# ------------------------------------------------------------------ what clients say


class Start(msgspec.Struct, tag_field="type", tag="start", frozen=True):
    session_id: Name
    audio_format: Word
    sample_rate: Number
    channels: Number
    voice: Word = ""
    speed: float = 1.0
    language: Word | None = None
    model: Word = ""
    notices: bool = False


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta", frozen=True):
    session_id: Name
    seq: Number
    text: Annotated[str, Meta(min_length=1)]


class TextEnd(msgspec.Struct, tag_field="type", tag="text_end", frozen=True):
    session_id: Name
    seq: Number


class CancelMessage(msgspec.Struct, tag_field="type", tag="cancel", frozen=True):
    session_id: Name
    seq: Number


class ResumeMessage(msgspec.Struct, tag_field="type", tag="resume", frozen=True):
    session_id: Name
    last_unit_index_received: Annotated[int, Meta(ge=-1, le=2**53)]


Message = Start | TextDelta | TextEnd | CancelMessage | ResumeMessage
_decoder = msgspec.json.Decoder(Message)


# -------------------------------------------------------------------- what we answer


class StartAck(msgspec.Struct, tag_field="type", tag="start_ack", frozen=True):
    session_id: str
    audio_format: str
    sample_rate: int
    channels: int
    ttl_s: float
    wav_header_base64: bytes
    last_seq_received: int
    units_received: int
    resumed: bool


class AudioChunk(msgspec.Struct, tag_field="type", tag="audio_chunk", frozen=True):
    session_id: str
    seq: int
    chunk_seq: int
    unit_index_start: int
    unit_index_end: int
    units_text: str
    audio_format: str
    sample_rate: int
    channels: int
    audio_base64: bytes


class TtsEnd(msgspec.Struct, tag_field="type", tag="tts_end", frozen=True, omit_defaults=True):
    session_id: str
    seq: int
    cancelled: bool
    reason: str = ""  # where the client did not ask for the end


class Error(msgspec.Struct, tag_field="type", tag="error", frozen=True, omit_defaults=True):
    session_id: str
    seq: int
    code: str
    message: str
    detail_code: str = ""
    reason: str = ""
    retry_after_s: float | None = None


class QueueStatus(msgspec.Struct, tag_field="type", tag="queue_status", frozen=True):
    session_id: str
    position: int  # 0: waiting no more
    eta_s: float | None = None
    eta_low_s: float | None = None
    eta_high_s: float | None = None


class GoingAway(msgspec.Struct, tag_field="type", tag="going_away", frozen=True):
    """This gateway closes the connection; the session goes on. ``position``: of the last
    event sent."""

    session_id: str
    units_received: int
    position: int
    retry_after_ms: int


@dataclass(frozen=True, slots=True)
class State:
    """What a connection has said: its session, newest number, and whether it wants notices."""

    session: str = ""
    seq: int = 0
    notices: bool = False


def _text(message: msgspec.Struct) -> str:
    return msgspec.json.encode(message).decode()


def s1_code(error: ForebayError) -> str:
    """One of S1's four frozen words for any of our errors."""
    match error:
        case BadRequest():
            return "bad_request"
        case Refused() | SlowClient():
            return "backpressure"
        case DeadlineExceeded() if error.details.get("deadline") == "queue":
            return "backpressure"
        case ResumeNotAvailable() | StateLost() | NotFound():
            return "resume_not_available"
        case _:
            return "internal_error"


def error_frame(error: ForebayError, session: str, seq: int) -> str:
    code = s1_code(error)
    return _text(
        Error(
            session_id=session,
            seq=seq,
            code=code,
            message=error.message,
            detail_code=error.code,
            reason=str(error.details.get("reason", "")),
            retry_after_s=error.retry_after_s,
        )
    )


def speech_params(
    *, sample_rate: int, channels: int, voice: str, speed: float, language: str | None
) -> dict[str, Any]:
    """The parameters of a speech job, checked and in one form, so that they compare equal.

    Raises `BadRequest` with the value and the limits."""
    low, high = RATES
    if not low <= sample_rate <= high:
        raise BadRequest(f"sample_rate {sample_rate} is not offered, expected {low} to {high}")
    if channels not in (1, 2):
        raise BadRequest(f"channels {channels} is not offered, expected 1 or 2")
    slow, fast = SPEEDS
    if not slow <= speed <= fast:
        raise BadRequest(f"speed {speed:g} is not offered, expected {slow:g} to {fast:g}")
    params: dict[str, Any] = {"sample_rate": sample_rate, "channels": channels, "format": "pcm16"}
    if voice:
        params["voice"] = voice
    if speed != 1.0:
        params["speed"] = float(speed)
    if language:
        params["language"] = language
    return params


class TtsDialect:
    """``ttl_s``: what `start_ack` promises, the kind's detach time; also the idle life of a
    session whose connection is open."""

    name = "tts"
    kind = Kind.SPEECH
    concurrent = 1
    rules: Rules
    notice_gap_s = 0.0

    def __init__(self, ttl_s: float = 120.0) -> None:
        self.ttl_s = float(ttl_s)
        self.rules = Rules(idle_s=self.ttl_s)

    # ------------------------------------------------------------------- receiving

    def receive(self, state: State | None, frame: Frame) -> tuple[State, Sequence[Intent]]:
        state = state or State()
        if isinstance(frame, bytes):
            return state, ()  # the original ignores binary frames
        message = decode(_decoder, frame)
        if isinstance(message, Start):
            return self._start(message)
        if not state.session:
            raise BadRequest("the first message must be start")
        if message.session_id != state.session:
            raise BadRequest("session_id is not the one that was started on this connection")
        if isinstance(message, ResumeMessage):
            return state, (
                Resume(session=state.session, have=message.last_unit_index_received + 1),
            )
        state = replace(state, seq=message.seq)
        return state, (self._intent(message),)

    def _start(self, message: Start) -> tuple[State, Sequence[Intent]]:
        if message.audio_format != AUDIO_FORMAT:
            raise Unsupported(f"audio_format is not offered, expected {AUDIO_FORMAT}")
        params = speech_params(
            sample_rate=message.sample_rate,
            channels=message.channels,
            voice=message.voice,
            speed=message.speed,
            language=message.language,
        )
        state = State(session=message.session_id, notices=message.notices)
        return state, (Open(session=message.session_id, params=params, model=message.model),)

    @staticmethod
    def _intent(message: TextDelta | TextEnd | CancelMessage) -> Intent:
        match message:
            case TextDelta():
                return Feed(session=message.session_id, text=message.text, seq=message.seq)
            case TextEnd():
                return EndInput(session=message.session_id, seq=message.seq)
            case _:
                return Cancel(session=message.session_id, seq=message.seq)

    # -------------------------------------------------------------------- encoding

    def encode(self, event: OutputEvent, about: About, *, have: int = 0) -> Sequence[Frame]:
        match event:
            case Audio():
                return self._audio(event, about, have)
            case Ended():
                return (self._ended(event, about),)
            case _:
                return ()

    @staticmethod
    def _audio(event: Audio, about: About, have: int) -> Sequence[Frame]:
        if event.units <= have:
            return ()
        channels: int = about.params["channels"]
        if event.unit < have:
            event = trim_audio(event, have, channels)
        chunk = AudioChunk(
            session_id=about.session,
            seq=event.seq,
            chunk_seq=event.n,
            unit_index_start=event.unit,
            unit_index_end=event.unit + len(event.text) - 1,
            units_text=event.text,
            audio_format=AUDIO_FORMAT,
            sample_rate=about.params["sample_rate"],
            channels=channels,
            audio_base64=event.data,
        )
        return (_text(chunk),)

    @staticmethod
    def _ended(event: Ended, about: About) -> str:
        if event.state in ("completed", "cancelled"):
            cancelled = event.state == "cancelled"
            return _text(TtsEnd(session_id=about.session, seq=event.seq, cancelled=cancelled))
        return error_frame(error_of(event), about.session, event.seq)

    def answer(self, what: Started | Finished | Failed | Took, about: About) -> Sequence[Frame]:
        match what:
            case Took():
                return ()  # the original acknowledges no text
            case Started():
                return (self._ack(what, about.session, about.params),)
            case Finished():
                end = TtsEnd(
                    session_id=about.session,
                    seq=what.seq,
                    cancelled=what.cancelled,
                    reason=what.reason,
                )
                return (_text(end),)
            case Failed():
                return (error_frame(what.error, about.session, what.seq),)

    def _ack(self, what: Started, session: str, params: Mapping[str, Any]) -> str:
        rate, channels = params["sample_rate"], params["channels"]
        return _text(
            StartAck(
                session_id=session,
                audio_format=AUDIO_FORMAT,
                sample_rate=rate,
                channels=channels,
                ttl_s=self.ttl_s,
                wav_header_base64=wav_header(rate, channels),
                last_seq_received=what.last_seq_received,
                units_received=what.units_received,
                resumed=not what.fresh,
            )
        )

    def refuse(self, state: State | None, error: ForebayError) -> Sequence[Frame]:
        state = state or State()
        return (error_frame(error, state.session, state.seq),)

    def word(self, error: ForebayError) -> str:
        return s1_code(error)

    def place(self, state: State | None, place: QueuePlace | None, about: About) -> Sequence[Frame]:
        if state is None or not state.notices:
            return ()
        if place is None:
            return (_text(QueueStatus(session_id=about.session, position=0)),)
        return (
            _text(
                QueueStatus(
                    session_id=about.session,
                    position=place.position,
                    eta_s=place.eta_s,
                    eta_low_s=place.low_s,
                    eta_high_s=place.high_s,
                )
            ),
        )

    def going_away(self, state: State | None, leave: Leave, about: About) -> Sequence[Frame]:
        if state is None or not state.notices:
            return ()
        message = GoingAway(
            session_id=about.session,
            units_received=leave.units,
            position=leave.offset,
            retry_after_ms=leave.retry_after_ms,
        )
        return (_text(message),)

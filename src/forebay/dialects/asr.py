"""S4 `/ws/asr`: audio in, text out, resumable by starting again under the same id.

Client messages carry ``action``: `start`, `chunk`, `finish`, and, added, `cancel`. Server
messages: `ack`, `chunk_result`, `final_result`, `error`, and `queue_status` while a session
waits. Strict clients read exactly ack, ack, chunk_result, final_result, so nothing else is
ever said in between. ``chunk_index`` is in every answer, 0 where it means nothing; other
empty fields are left out. The socket outlives its sessions and their errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from forebay.core.events import Ended, Heard, Notice, OutputEvent, Sound
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
from forebay.core.sniff import is_file
from forebay.core.spec import QueuePlace
from forebay.dialects import About, Frame, Leave, error_of
from forebay.errors import (
    BadAudio,
    BadRequest,
    DeadlineExceeded,
    ForebayError,
    NoWorkers,
    QuotaExceeded,
    Refused,
)

__all__ = [
    "ANONYMOUS",
    "PIECE_BYTES",
    "RATE",
    "AsrDialect",
    "asr_params",
    "sounds_of",
    "wire_message",
]

RATE = 16_000
"""Sample rate of headerless audio."""
PIECE_BYTES = 192 * 1024
"""Headerless audio is stored in items of at most this size; a chunk whole or not at all."""
MAX_ECHO = 64
ANONYMOUS = "anonymous"
"""The user of a session whose client named none."""

Name = Annotated[str, Meta(max_length=256)]
Index = Annotated[int, Meta(ge=-(2**53), le=2**53)]


class Said(msgspec.Struct, frozen=True):
    """Any client message; which fields count depends on ``action``."""

    action: str = ""
    session_id: Name | None = None
    user_id: Name | None = None
    chunk_index: Index = 0
    audio_data: bytes | None = None
    language: Annotated[str, Meta(max_length=32)] | None = None
    model: Annotated[str, Meta(max_length=128)] | None = None


class SaidLoosely(Said, frozen=True):
    """The same where the audio is not base64, to say of which session and chunk."""

    audio_data: Any = None


_decoder = msgspec.json.Decoder(Said)
_loose = msgspec.json.Decoder(SaidLoosely)


class Answer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Any server message."""

    type: str
    session_id: str = ""
    chunk_index: Any = None  # always set, so never left out
    status: str = ""
    text: str | None = None
    duration: float | None = None
    chunk_count: int | None = None
    audio_s: float | None = None
    text_from: int | None = None
    message: str = ""
    code: str = ""
    detail: str = ""
    retry_after_s: float | None = None
    pending: int | None = None
    position: int | None = None
    eta_s: float | None = None
    resumed: bool = False
    finished: bool = False
    last_chunk_index: int | None = None


def _frame(kind: str, session: str = "", index: int = 0, **facts: Any) -> str:
    answer = Answer(type=kind, session_id=session, chunk_index=index, **facts)
    return msgspec.json.encode(answer).decode()


def _acked(session: str, index: int) -> str:
    """`_frame` of the first message that every chunk is answered with."""
    if not session:
        return _frame("ack", session, index, status="received")
    name = msgspec.json.encode(session).decode()
    return f'{{"type":"ack","session_id":{name},"chunk_index":{index},"status":"received"}}'


def _result(session: str, index: int, text: str) -> str:
    """`_frame` of the second."""
    if not session:
        return _frame("chunk_result", session, index, text=text or None)
    name = msgspec.json.encode(session).decode()
    said = f',"text":{msgspec.json.encode(text).decode()}' if text else ""
    return f'{{"type":"chunk_result","session_id":{name},"chunk_index":{index}{said}}}'


def wire_message(error: ForebayError) -> str:
    """The original's words for an error it had, ours for the others."""
    facts = error.details
    if facts.get("reason") == "unknown_session":
        return f"Session not found: {facts.get('session', '')}"
    if "word" in facts:
        return str(facts["word"])
    waited = isinstance(error, DeadlineExceeded) and facts.get("deadline") == "queue"
    if waited or (isinstance(error, Refused) and not isinstance(error, NoWorkers | QuotaExceeded)):
        return "System busy"
    return error.message


def _malformed(detail: str, word: str = "Invalid message format", **facts: Any) -> BadRequest:
    return BadRequest(detail, word=word, **facts)


def asr_params(user: str, language: str | None = None) -> dict[str, Any]:
    """The parameters of a recognition job, in one form, so that they compare equal. This
    protocol has no word for unfinished text, so none is asked for."""
    params: dict[str, Any] = {"user": user or ANONYMOUS, "partials": False}
    if language:
        params["language"] = language
    return params


def sounds_of(data: bytes, seq: int) -> tuple[Sound, ...]:
    """The input items of one chunk: a file is one whatever its size. Raises `BadAudio` for
    headerless audio that ends inside a sample."""
    if is_file(data):
        return (Sound(data=data, form="file", seq=seq),)
    if len(data) % 2:
        raise BadAudio(f"{len(data)} bytes are not a whole number of 16-bit samples")
    if len(data) <= PIECE_BYTES:
        return (Sound(data=data, rate=RATE, seq=seq),)
    pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
    last = len(pieces) - 1
    return tuple(
        Sound(data=piece, rate=RATE, seq=seq, more=n < last) for n, piece in enumerate(pieces)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AsrDialect:
    """``new_id`` names sessions that their client did not. ``notice_threshold``: queue news
    is sent only while more jobs wait than this."""

    new_id: Callable[[], str]
    notice_threshold: int = 0

    name = "asr"
    kind = Kind.RECOGNITION
    concurrent = 16
    rules = Rules(silence_s=0.0, over_code=None, acknowledges=True)
    notice_gap_s = 0.5

    # ------------------------------------------------------------------- receiving

    def receive(self, state: None, frame: Frame) -> tuple[None, Sequence[Intent]]:
        if isinstance(frame, bytes):
            raise _malformed("binary frames are not taken here")
        said = _parse(frame)
        session = said.session_id or ""
        match said.action:
            case "chunk":
                return state, (_chunk(said, session),)
            case "start":
                return state, (self._open(said),)
            case "finish":
                return state, (EndInput(session=session, seq=said.chunk_index),)
            case "cancel":
                return state, (Cancel(session=session, seq=said.chunk_index),)
        word = f"Unknown action: {said.action[:MAX_ECHO]}"
        given = "action is" + (" another word" if said.action else " missing or empty")
        raise _malformed(f"{given}, expected start, chunk, finish or cancel", word)

    def _open(self, said: Said) -> Open:
        params = asr_params(said.user_id or "", said.language)
        return Open(session=said.session_id or self.new_id(), params=params, model=said.model or "")

    # -------------------------------------------------------------------- encoding

    def encode(self, event: OutputEvent, about: About, *, have: int = 0) -> Sequence[Frame]:
        match event:
            case Heard():
                return (_result(about.session, event.seq, event.text),)
            case Notice() if "seq" in event.details:
                index = int(event.details["seq"])
                return (
                    _frame("error", about.session, index, message=event.message, code=event.code),
                )
            case Ended():
                return (self._ended(event, about),)
        return ()

    @staticmethod
    def _ended(event: Ended, about: About) -> str:
        if event.state == "completed":
            facts: Mapping[str, Any] = event.details
            return _frame(
                "final_result",
                about.session,
                text=str(facts.get("text", "")),
                duration=round(about.age_s(), 3),
                chunk_count=int(facts.get("chunks", 0)),
                audio_s=facts.get("audio_s"),
                text_from=facts.get("text_from"),
            )
        if event.state == "cancelled":
            message = event.message or "the session was cancelled"
            return _frame("error", about.session, message=message, code="cancelled")
        return _error(error_of(event), about.session, 0)

    def answer(self, what: Started | Finished | Failed | Took, about: About) -> Sequence[Frame]:
        if isinstance(what, Took):  # nearly all of them
            return (_acked(about.session, what.seq),)
        match what:
            case Started(fresh=True):
                return (_frame("ack", about.session, status="session_started"),)
            case Started():
                return (
                    _frame(
                        "ack",
                        about.session,
                        status="session_started",
                        resumed=True,
                        finished=what.over,
                        last_chunk_index=what.last_seq_received,
                    ),
                )
            case Finished():
                return (_frame("ack", about.session, status="session_cancelled"),)
            case Failed():
                return (_error(what.error, about.session, what.seq),)

    def refuse(self, state: None, error: ForebayError) -> Sequence[Frame]:
        session = str(error.details.get("session", ""))
        return (_error(error, session, int(error.details.get("chunk", 0))),)

    def word(self, error: ForebayError) -> str:
        return error.code

    def place(self, state: None, place: QueuePlace | None, about: About) -> Sequence[Frame]:
        if place is None or about.pending <= self.notice_threshold:
            return ()
        eta = None if place.eta_s is None else round(place.eta_s, 1)
        return (
            _frame(
                "queue_status",
                about.session,
                pending=about.pending,
                position=place.position,
                eta_s=eta,
            ),
        )

    def going_away(self, state: None, leave: Leave, about: About) -> Sequence[Frame]:
        return ()  # clients of the original show any message they do not know as an error


def _error(error: ForebayError, session: str, index: int) -> str:
    message = wire_message(error)
    return _frame(
        "error",
        session,
        index,
        message=message,
        code=error.code,
        detail="" if message == error.message else error.message,
        retry_after_s=error.retry_after_s,
    )


def _parse(frame: str) -> Said:
    try:
        return _decoder.decode(frame)
    except RecursionError:
        raise _malformed("the message is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        text = str(error)
        if "base64" not in text:
            raise _malformed(f"not a message of the documented shape: {text[:200]}") from None
    said = _loose.decode(frame)
    raise _malformed(
        "audio_data is not base64",
        "Invalid audio data",
        session=said.session_id or "",
        chunk=said.chunk_index,
    )


def _chunk(said: Said, session: str) -> Hear:
    data = said.audio_data or b""
    try:
        sounds = sounds_of(data, said.chunk_index)
    except BadAudio as error:
        error.details.update(session=session, chunk=said.chunk_index)
        raise
    plain = len(data) // 2 if sounds[0].form == "pcm16" else 0
    return Hear(session=session, sounds=sounds, seq=said.chunk_index, units=plain)

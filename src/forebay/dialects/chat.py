"""S1 `/chat`: a prompt in, text and speech out; and the text conversation on the same path.

Two wire protocols share the path. The first message tells them apart: with ``prompt`` it is
the voice orchestrator's (`VoiceChat`: one answer, `orchestrator_*` messages, audio as on
`/tts`, then close), with a ``type`` of chat, clear or ping it is the text orchestrator's
(`TextChat`: many answers on one connection).

Additive for clients that know us: ``text_only``, ``messages``, ``voice``, ``speed``,
``language``, ``model``, ``voice_model``, ``notices``, ``resumable``. A client that set the last
may come back on another connection with `resume`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from forebay.core.events import Audio, Notice, OutputEvent, TextDelta, ToolCalls, trim_text
from forebay.core.intents import Finished, Started
from forebay.core.spec import QueuePlace
from forebay.core.turn import (
    Answering,
    Ask,
    Back,
    Clear,
    Cleared,
    Ping,
    Pong,
    Said,
    Stop,
    TextDone,
    TurnCancelled,
    TurnFailed,
    VoiceDone,
    VoiceMissing,
)
from forebay.dialects import About, Frame, decode
from forebay.dialects.tts import AUDIO_FORMAT, TtsDialect, speech_params
from forebay.errors import (
    BadRequest,
    ForebayError,
    NotFound,
    ResumeNotAvailable,
    StateLost,
    Unsupported,
)

__all__ = ["ChatDialect", "TextChat", "VoiceChat", "choose", "greeting", "refusal"]

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Word = Annotated[str, Meta(max_length=128)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Unit = Annotated[int, Meta(ge=-1, le=2**53)]
ChatIntent = Ask | Back | Stop | Clear | Ping


class ChatMessage(msgspec.Struct, frozen=True):
    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(msgspec.Struct, frozen=True):
    prompt: Annotated[str, Meta(min_length=1)]
    session_id: Name
    audio_format: Word = AUDIO_FORMAT
    sample_rate: int = 16000
    channels: int = 1
    voice: Word = ""
    speed: float = 1.0
    language: Word | None = None
    model: Word = ""
    voice_model: Word = ""
    text_only: bool = False
    notices: bool = False
    resumable: bool = False
    messages: Annotated[list[ChatMessage], Meta(max_length=400)] | None = None


class ResumeMessage(msgspec.Struct, tag_field="type", tag="resume", frozen=True):
    session_id: Name
    chars_received: Count = 0
    last_unit_index_received: Unit = -1
    notices: bool = False


class Typed(msgspec.Struct, frozen=True):
    type: Word = ""
    prompt: msgspec.Raw = msgspec.Raw()


class Chat(msgspec.Struct, tag_field="type", tag="chat", frozen=True):
    text: Annotated[str, Meta(min_length=1)]
    use_rag: bool = True


class ClearMessage(msgspec.Struct, tag_field="type", tag="clear", frozen=True):
    pass


class PingMessage(msgspec.Struct, tag_field="type", tag="ping", frozen=True):
    pass


class CancelMessage(msgspec.Struct, tag_field="type", tag="cancel", frozen=True):
    pass


_typed = msgspec.json.Decoder(Typed)
_prompt = msgspec.json.Decoder(Prompt)
_resume = msgspec.json.Decoder(ResumeMessage)
_talk = msgspec.json.Decoder(Chat | ClearMessage | PingMessage | CancelMessage)


def _text(**message: Any) -> str:
    return msgspec.json.encode(message).decode()


def greeting() -> str:
    """What the server says first to clients of the text orchestrator."""
    return _text(type="connected", message="connected")


@dataclass(frozen=True, slots=True)
class State:
    """What a voice connection has said: its session and whether it wants notices."""

    session: str = ""
    notices: bool = False


class ChatDialect(Protocol):
    """A protocol whose connections hold conversations (`core.turn`).

    ``once``: one answer per connection.
    """

    name: str
    once: bool

    def receive(self, state: Any, frame: Frame) -> tuple[Any, Sequence[ChatIntent]]:
        """Translate one frame. Raises `BadRequest`: answer it as a `TurnFailed`."""

    def say(self, what: Said) -> Sequence[Frame]: ...

    def text(self, state: Any, event: OutputEvent, *, have: int = 0) -> Sequence[Frame]:
        """The frames of one event of the text job, trimmed to what a client with ``have``
        characters lacks; its end is said by `say`."""

    def audio(self, event: OutputEvent, about: About, *, have: int = 0) -> Sequence[Frame]:
        """The same of the speech job, for a client with ``have`` units."""

    def voice(self, about: About, *, resumed: bool = False) -> Sequence[Frame]:
        """The speech job exists: what its client must know before its audio."""

    def place(self, state: Any, place: QueuePlace | None) -> Sequence[Frame]: ...

    def context(self, results: Sequence[Mapping[str, Any]], failed: str) -> Sequence[Frame]:
        """Passages found for the question; ``failed``: why there are none."""

    def word(self, error: ForebayError) -> str: ...


def choose(frame: Frame, voice: VoiceChat, text: TextChat) -> ChatDialect:
    """Which of the two protocols a connection's first message speaks.

    Raises `BadRequest` when it is neither."""
    if isinstance(frame, bytes):
        raise BadRequest("the first message must be text")
    first = decode(_typed, frame)
    if first.type in ("chat", "clear", "ping"):
        return text
    if bytes(first.prompt) or first.type in ("", "resume"):
        return voice
    raise BadRequest("the first message must carry prompt, or be of type chat or resume")


def refusal(error: ForebayError) -> str:
    """The error of a connection that spoke neither protocol."""
    return VoiceChat.error(error)


def _code(error: ForebayError) -> str:
    match error:
        case BadRequest():
            return "bad_request"
        case ResumeNotAvailable() | StateLost() | NotFound():
            return "resume_not_available"
        case _:
            return "internal_error"


def _facts(error: ForebayError) -> dict[str, Any]:
    """Additive: our own code, and what a client may use to do better."""
    facts: dict[str, Any] = {"detail_code": error.code}
    if error.retry_after_s is not None:
        facts["retry_after_s"] = error.retry_after_s
    facts.update({k: error.details[k] for k in ("reason", "tokens", "limit") if k in error.details})
    return facts


def _delta(event: OutputEvent, *, have: int = 0, notices: bool = False) -> Sequence[Frame]:
    match event:
        case TextDelta():
            event = trim_text(event, have)
            return (_text(type="llm_delta", delta=event.text),) if event.text else ()
        case ToolCalls():
            return (_text(type="tool_calls_delta", tool_calls=event.calls),)
        case Notice():
            return (
                _text(
                    type="notice" if notices else "orchestrator_warning",
                    code=event.code,
                    message=event.message,
                    details=event.details,
                ),
            )
        case _:
            return ()


class VoiceChat:
    """The voice orchestrator. ``flush_min_chars``, ``flush_on_punct``: echoed as they are."""

    name = "chat"
    once = True

    def __init__(
        self,
        tts: TtsDialect,
        *,
        flush_min_chars: int = 12,
        flush_on_punct: bool = True,
        prompt_chars: int = 20_000,
    ) -> None:
        self._tts = tts
        self._flush_min_chars = flush_min_chars
        self._flush_on_punct = flush_on_punct
        self._prompt_chars = prompt_chars

    # ------------------------------------------------------------------- receiving

    def receive(self, state: State | None, frame: Frame) -> tuple[State, Sequence[ChatIntent]]:
        if isinstance(frame, bytes):
            return state or State(), ()
        typed = decode(_typed, frame)
        if typed.type == "cancel":
            return state or State(), (Stop(),)
        if typed.type == "resume":
            back = decode(_resume, frame)
            return State(session=back.session_id, notices=back.notices), (
                Back(
                    session=back.session_id,
                    chars=back.chars_received,
                    units=back.last_unit_index_received + 1,
                ),
            )
        if typed.type:
            raise BadRequest("unknown message type, expected a prompt, resume or cancel")
        message = decode(_prompt, frame)
        _bounded(message.prompt, self._prompt_chars)
        state = State(session=message.session_id, notices=message.notices)
        return state, (self._ask(message),)

    @staticmethod
    def _ask(message: Prompt) -> Ask:
        speech = None
        if not message.text_only:
            if message.audio_format != AUDIO_FORMAT:
                raise Unsupported(f"audio_format is not offered, expected {AUDIO_FORMAT}")
            speech = speech_params(
                sample_rate=message.sample_rate,
                channels=message.channels,
                voice=message.voice,
                speed=message.speed,
                language=message.language,
            )
        before = message.messages
        return Ask(
            session=message.session_id,
            prompt=message.prompt,
            speech=speech,
            messages=[{"role": m.role, "content": m.content} for m in before] if before else (),
            model=message.model,
            voice_model=message.voice_model,
            notices=message.notices,
            resumable=message.resumable,
        )

    # -------------------------------------------------------------------- encoding

    def say(self, what: Said) -> Sequence[Frame]:
        match what:
            case Answering():
                more = {"resumed": True} if what.resumed else {}
                return (
                    _text(
                        type="orchestrator_start",
                        session_id=what.session,
                        tts_flush_min_chars=self._flush_min_chars,
                        tts_flush_on_punct=self._flush_on_punct,
                        resumable=what.resumable,
                        **more,
                    ),
                )
            case VoiceMissing():
                return (
                    _text(
                        type="orchestrator_warning",
                        code="tts_unavailable",
                        message=what.error.message,
                        **_facts(what.error),
                    ),
                )
            case TextDone():
                return (self._done(what),)
            case VoiceDone():
                finished = Finished(what.seq, cancelled=what.cancelled)
                return self._tts.answer(finished, About(session=what.session, params={}))
            case TurnCancelled():
                return (_text(type="orchestrator_cancelled", session_id=what.session),)
            case TurnFailed():
                return (self.error(what.error),)
            case _:
                return ()

    @staticmethod
    def error(error: ForebayError) -> str:
        return _text(
            type="orchestrator_error",
            code=_code(error),
            message=error.message,
            **_facts(error),
        )

    @staticmethod
    def _done(what: TextDone) -> str:
        message: dict[str, Any] = {
            "type": "llm_done",
            "elapsed_ms": round(what.elapsed_ms),
            "full_text_len": what.chars,
            "tool_calls": list(what.calls),
        }
        if what.usage is not None:
            message["finish_reason"] = what.usage.finish
            message["usage"] = {
                "prompt_tokens": what.usage.prompt_tokens,
                "completion_tokens": what.usage.completion_tokens,
            }
        return _text(**message)

    def text(self, state: State | None, event: OutputEvent, *, have: int = 0) -> Sequence[Frame]:
        return _delta(event, have=have, notices=state is not None and state.notices)

    def audio(self, event: OutputEvent, about: About, *, have: int = 0) -> Sequence[Frame]:
        return self._tts.encode(event, about, have=have) if isinstance(event, Audio) else ()

    def voice(self, about: About, *, resumed: bool = False) -> Sequence[Frame]:
        return self._tts.answer(Started(not resumed, 0, -1), about)

    def place(self, state: State | None, place: QueuePlace | None) -> Sequence[Frame]:
        if state is None or not state.notices:
            return ()
        position = 0 if place is None else place.position
        eta = None if place is None else place.eta_s
        return (_text(type="queue_status", session_id=state.session, position=position, eta_s=eta),)

    def context(self, results: Sequence[Mapping[str, Any]], failed: str) -> Sequence[Frame]:
        return ()

    def word(self, error: ForebayError) -> str:
        return _code(error)


class TextChat:
    """The text orchestrator. Errors leave the connection open."""

    name = "chat-text"
    once = False

    def __init__(self, *, prompt_chars: int = 20_000) -> None:
        self._prompt_chars = prompt_chars

    def receive(self, state: Any, frame: Frame) -> tuple[Any, Sequence[ChatIntent]]:
        if isinstance(frame, bytes):
            return state, ()
        match decode(_talk, frame):
            case Chat() as message:
                _bounded(message.text, self._prompt_chars)
                return state, (Ask(session="", prompt=message.text, retrieve=message.use_rag),)
            case ClearMessage():
                return state, (Clear(),)
            case PingMessage():
                return state, (Ping(),)
            case _:
                return state, (Stop(),)

    def say(self, what: Said) -> Sequence[Frame]:
        match what:
            case TextDone():
                return (
                    _text(
                        type="llm_complete",
                        elapsed_ms=round(what.elapsed_ms),
                        response_length=what.chars,
                    ),
                )
            case TurnFailed():
                return (_text(type="error", message=what.error.message, **_facts(what.error)),)
            case TurnCancelled():
                return (_text(type="cancelled"),)
            case Cleared():
                return (_text(type="cleared"),)
            case Pong():
                return (_text(type="pong"),)
            case _:
                return ()

    def text(self, state: Any, event: OutputEvent, *, have: int = 0) -> Sequence[Frame]:
        return _delta(event)

    def audio(self, event: OutputEvent, about: About, *, have: int = 0) -> Sequence[Frame]:
        return ()

    def voice(self, about: About, *, resumed: bool = False) -> Sequence[Frame]:
        return ()

    def place(self, state: Any, place: QueuePlace | None) -> Sequence[Frame]:
        return ()

    def context(self, results: Sequence[Mapping[str, Any]], failed: str) -> Sequence[Frame]:
        """``message`` is additive: the original said nothing of a search that failed."""
        more = {"message": failed} if failed else {}
        return (_text(type="rag_context", results=results, count=len(results), **more),)

    def word(self, error: ForebayError) -> str:
        return _code(error)


def _bounded(text: str, limit: int) -> None:
    if len(text) > limit:
        raise BadRequest(f"the prompt has {len(text)} characters, expected no more than {limit}")

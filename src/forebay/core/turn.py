"""One answer of a conversation: a text job, and a speech job that reads it aloud.

A `Turn` is a state machine like `core.session`: intents and facts in, effects out, no I/O.
It decides what the client is told and in which order (the text is done before the speech
is, a voice that fails leaves the text going on), and when both jobs are stopped.

::

    idle ── ask ──▶ starting ── begun ──▶ answering ── text and voice over ──▶ idle or closed
                        └── not begun ──▶ idle or closed
    idle ── back ──▶ starting: the jobs of an answer that a client came back to are found
    any ── stop, gone, slow, lost ──▶ both jobs stopped ──▶ idle or closed
    resumable: gone, slow, superseded ──▶ both jobs left as they are ──▶ closed

A voice connection (`once`) has one turn and is closed after it; a text connection keeps its
history and goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from forebay.core.events import Ended, Usage
from forebay.errors import BadRequest, ForebayError, SlowClient

__all__ = [
    "TABLE",
    "Answering",
    "Ask",
    "Back",
    "Broken",
    "Clear",
    "Cleared",
    "CloseTurn",
    "FindTurn",
    "Gone",
    "LeaveTurn",
    "Lost",
    "NotStarted",
    "Ping",
    "Pong",
    "Read",
    "Said",
    "Say",
    "Slow",
    "StartTurn",
    "Started",
    "Stop",
    "StopTurn",
    "Superseded",
    "TextDone",
    "TextOver",
    "Turn",
    "TurnCancelled",
    "TurnEffect",
    "TurnEvent",
    "TurnFailed",
    "TurnPhase",
    "VoiceDone",
    "VoiceMissing",
    "VoiceOver",
]

MAX_WAITING = 4
"""Questions of a text connection that wait for the answer before; one more is refused."""


class TurnPhase(StrEnum):
    IDLE = "idle"
    STARTING = "starting"
    ANSWERING = "answering"
    CLOSED = "closed"


# ------------------------------------------------------------------ intents and facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A prompt. ``speech``: parameters of a speech job, None for text only. ``messages``:
    the conversation before, where the client keeps it; None: the connection's own.
    ``resumable``: the answer outlives its connection, to be asked for again (`Back`).
    ``retrieve``: passages that may help are looked for first, where there is a service."""

    session: str
    prompt: str
    speech: Mapping[str, Any] | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    model: str = ""
    voice_model: str = ""
    notices: bool = False
    resumable: bool = False
    retrieve: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Back:
    """The client of a resumable answer is back. ``chars``, ``units``: how much of its text
    and of its speech it has."""

    session: str
    chars: int = 0
    units: int = 0


@dataclass(frozen=True, slots=True)
class Stop:
    """The client cancels the answer."""


@dataclass(frozen=True, slots=True)
class Clear:
    """Forget the conversation so far."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer at once."""


@dataclass(frozen=True, slots=True)
class Started:
    """Both jobs exist; ``missing`` says why there is no voice although one was asked for.
    ``age_s``: of an answer that was found, how long it has taken, or took."""

    voice: bool
    missing: ForebayError | None = None
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class NotStarted:
    error: ForebayError


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOver:
    """The text job's terminal event, and what it wrote after the first ``before`` characters."""

    ended: Ended
    error: ForebayError | None = None
    text: str = ""
    before: int = 0
    calls: Sequence[Mapping[str, Any]] = ()
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class VoiceOver:
    ended: Ended
    error: ForebayError | None = None


@dataclass(frozen=True, slots=True)
class Slow:
    limit_s: float


@dataclass(frozen=True, slots=True)
class Lost:
    error: ForebayError


@dataclass(frozen=True, slots=True)
class Gone:
    """The connection is closed."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer connection reads this answer."""


@dataclass(frozen=True, slots=True)
class Broken:
    """What the client sent cannot be taken."""

    error: ForebayError


TurnEvent = (
    Ask
    | Back
    | Stop
    | Clear
    | Ping
    | Started
    | NotStarted
    | TextOver
    | VoiceOver
    | Slow
    | Lost
    | Gone
    | Superseded
    | Broken
)


# ------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class StartTurn:
    """Submit the jobs and pipe them; report `Started` or `NotStarted`."""

    ask: Ask
    messages: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class FindTurn:
    """Find the jobs of this answer and hold them; report `Started` or `NotStarted`."""

    back: Back


@dataclass(frozen=True, slots=True)
class Read:
    """Open the readers."""


@dataclass(frozen=True, slots=True)
class StopTurn:
    """Close the readers; cancel whatever of the two jobs is not over."""


@dataclass(frozen=True, slots=True)
class LeaveTurn:
    """Close the readers; both jobs go on without this connection, for their detach time."""


@dataclass(frozen=True, slots=True)
class Answering:
    session: str
    voice: bool
    resumable: bool = False
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class VoiceMissing:
    error: ForebayError


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDone:
    elapsed_ms: float
    chars: int
    calls: Sequence[Mapping[str, Any]] = ()
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class VoiceDone:
    session: str
    seq: int
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class TurnCancelled:
    session: str


@dataclass(frozen=True, slots=True)
class TurnFailed:
    error: ForebayError


@dataclass(frozen=True, slots=True)
class Cleared:
    pass


@dataclass(frozen=True, slots=True)
class Pong:
    pass


Said = Answering | VoiceMissing | TextDone | VoiceDone | TurnCancelled | TurnFailed | Cleared | Pong


@dataclass(frozen=True, slots=True)
class Say:
    """Encode this in the dialect's words and send it."""

    what: Said


@dataclass(frozen=True, slots=True)
class CloseTurn:
    """Close the connection."""

    code: int = 1000
    reason: str = ""


TurnEffect = StartTurn | FindTurn | Read | StopTurn | LeaveTurn | Say | CloseTurn
Effects = list[TurnEffect]


# ------------------------------------------------------------------------- machine

BUSY = (TurnPhase.STARTING, TurnPhase.ANSWERING)

TABLE: dict[tuple[TurnPhase, type], str] = {
    (TurnPhase.IDLE, Ask): "_ask",
    **{(p, Ask): "_ask_busy" for p in BUSY},
    (TurnPhase.IDLE, Back): "_back",
    **{(p, Back): "_back_busy" for p in BUSY},
    **{(p, Stop): "_stop" for p in BUSY},
    (TurnPhase.IDLE, Stop): "_stop_idle",
    **{(p, Clear): "_clear" for p in (TurnPhase.IDLE, *BUSY)},
    **{(p, Ping): "_ping" for p in (TurnPhase.IDLE, *BUSY)},
    (TurnPhase.STARTING, Started): "_started",
    (TurnPhase.STARTING, NotStarted): "_not_started",
    (TurnPhase.ANSWERING, TextOver): "_text_over",
    (TurnPhase.ANSWERING, VoiceOver): "_voice_over",
    (TurnPhase.ANSWERING, Slow): "_slow",
    (TurnPhase.ANSWERING, Lost): "_lost",
    **{(p, Superseded): "_superseded" for p in BUSY},
    **{(p, Broken): "_broken" for p in (TurnPhase.IDLE, *BUSY)},
    (TurnPhase.IDLE, Gone): "_gone",
    **{(p, Gone): "_gone" for p in BUSY},
    (TurnPhase.CLOSED, Started): "_too_late",
    (TurnPhase.IDLE, Started): "_too_late",
}


@dataclass(slots=True)
class _Answer:
    """What is known of the answer under way."""

    ask: Ask
    began_s: float
    resumed: bool = False
    voice: bool = False
    text_over: bool = False
    voice_over: Ended | None = None


@dataclass(slots=True, kw_only=True)
class Turn:
    """The conversation of one connection. Call `receive` with every intent and fact, carry
    out the effects in order, and feed back what they report before the next intent.

    ``once``: one turn, then the connection is closed. ``history_messages``: newest messages
    of the connection's own history that go along with a question.
    """

    once: bool
    system_prompt: str = ""
    history_messages: int = 40
    phase: TurnPhase = TurnPhase.IDLE
    history: list[dict[str, Any]] = field(default_factory=list)
    _answer: _Answer | None = None
    _waiting: deque[Ask] = field(default_factory=deque)

    def receive(self, event: TurnEvent, now: float) -> Effects:
        """Take one event. What is not in `TABLE` comes too late and changes nothing."""
        name = TABLE.get((self.phase, type(event)))
        if name is None:
            return []
        effects: Effects = getattr(self, name)(event, now)
        return effects

    # --------------------------------------------------------------------- asking

    def _ask(self, ask: Ask, now: float) -> Effects:
        self.phase = TurnPhase.STARTING
        self._answer = _Answer(ask, now)
        return [StartTurn(ask, self._messages(ask))]

    def _messages(self, ask: Ask) -> list[dict[str, Any]]:
        before = [dict(m) for m in (self.history if ask.messages is None else ask.messages)]
        before = before[max(0, len(before) - self.history_messages) :]
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        if any(m.get("role") == "system" for m in before):
            system = []
        return [*system, *before, {"role": "user", "content": ask.prompt}]

    def _ask_busy(self, ask: Ask, now: float) -> Effects:
        if self.once:
            return self._fail(BadRequest("one prompt per connection, one was given before"), now)
        if len(self._waiting) >= MAX_WAITING:
            error = BadRequest(f"{MAX_WAITING} questions wait already, expected no more")
            return [Say(TurnFailed(error))]
        self._waiting.append(ask)
        return []

    def _back(self, back: Back, now: float) -> Effects:
        self.phase = TurnPhase.STARTING
        ask = Ask(session=back.session, prompt="", messages=(), resumable=True)
        self._answer = _Answer(ask, now, resumed=True)
        return [FindTurn(back)]

    def _back_busy(self, back: Back, now: float) -> Effects:
        return self._fail(BadRequest("resume must be a connection's first message"), now)

    def _clear(self, event: Clear, now: float) -> Effects:
        self.history.clear()
        return [Say(Cleared())]

    def _ping(self, event: Ping, now: float) -> Effects:
        return [Say(Pong())]

    # ------------------------------------------------------------------ answering

    def _started(self, event: Started, now: float) -> Effects:
        answer = self._current()
        self.phase = TurnPhase.ANSWERING
        answer.voice = event.voice
        answer.began_s -= event.age_s
        ask = answer.ask
        said = Answering(ask.session, event.voice, ask.resumable, answer.resumed)
        effects: Effects = [Say(said)]
        if event.missing is not None:
            effects.append(Say(VoiceMissing(event.missing)))
        return [*effects, Read()]

    def _not_started(self, event: NotStarted, now: float) -> Effects:
        return self._fail(event.error, now)

    def _text_over(self, event: TextOver, now: float) -> Effects:
        answer = self._current()
        if event.ended.state == "cancelled":
            return self._cancelled(now)
        if event.error is not None:
            return self._fail(event.error, now)
        answer.text_over = True
        if answer.ask.messages is None:
            self._remember(answer.ask.prompt, event.text)
        done = TextDone(
            elapsed_ms=(now - answer.began_s) * 1000,
            chars=event.before + len(event.text),
            calls=event.calls,
            usage=event.usage,
        )
        effects: Effects = [Say(done)]
        if not answer.voice:
            return [*effects, *self._finish(now)]
        if answer.voice_over is not None:
            return [*effects, *self._voice_done(answer.voice_over, now)]
        return effects

    def _remember(self, prompt: str, text: str) -> None:
        self.history.append({"role": "user", "content": prompt})
        self.history.append({"role": "assistant", "content": text})
        del self.history[: max(0, len(self.history) - self.history_messages)]

    def _voice_over(self, event: VoiceOver, now: float) -> Effects:
        answer = self._current()
        if event.error is not None:
            answer.voice = False
            effects: Effects = [Say(VoiceMissing(event.error))]
            return [*effects, *self._finish(now)] if answer.text_over else effects
        if not answer.text_over:
            answer.voice_over = event.ended  # the text reader is a little behind
            return []
        return self._voice_done(event.ended, now)

    def _voice_done(self, ended: Ended, now: float) -> Effects:
        said = VoiceDone(
            self._current().ask.session, ended.seq, cancelled=ended.state == "cancelled"
        )
        return [Say(said), *self._finish(now)]

    # ---------------------------------------------------------------------- ending

    def _stop(self, event: Stop, now: float) -> Effects:
        return self._cancelled(now)

    def _stop_idle(self, event: Stop, now: float) -> Effects:
        if not self.once:
            return []
        return self._fail(BadRequest("cancel before a prompt"), now)

    def _cancelled(self, now: float) -> Effects:
        answer = self._current()
        session = answer.ask.session
        effects: Effects = [StopTurn()]
        if answer.voice:
            effects.append(Say(VoiceDone(session, 0, cancelled=True)))
        return [*effects, Say(TurnCancelled(session)), *self._finish(now)]

    def _slow(self, event: Slow, now: float) -> Effects:
        error = SlowClient(f"the client took nothing for {event.limit_s:g} s")
        if self._resumable:
            return self._leave(CloseTurn(4408, error.message))
        return self._fail(error, now)

    def _superseded(self, event: Superseded, now: float) -> Effects:
        return self._leave(CloseTurn(4409, "superseded")) if self._resumable else []

    def _lost(self, event: Lost, now: float) -> Effects:
        return self._fail(event.error, now)

    def _fail(self, error: ForebayError, now: float) -> Effects:
        return [StopTurn(), Say(TurnFailed(error)), *self._finish(now)]

    def _gone(self, event: Gone, now: float) -> Effects:
        self._waiting.clear()
        if self._resumable:
            return self._leave()
        self.phase = TurnPhase.CLOSED
        return [StopTurn()]

    @property
    def _resumable(self) -> bool:
        return self._answer is not None and self._answer.ask.resumable

    def _leave(self, *close: TurnEffect) -> Effects:
        self.phase = TurnPhase.CLOSED
        self._answer = None
        return [LeaveTurn(), *close]

    def _broken(self, event: Broken, now: float) -> Effects:
        """A mistake ends a voice connection; a text connection goes on."""
        return self._fail(event.error, now) if self.once else [Say(TurnFailed(event.error))]

    def _too_late(self, event: Started, now: float) -> Effects:
        return [StopTurn()]

    def _finish(self, now: float) -> Effects:
        self._answer = None
        if self.once:
            self.phase = TurnPhase.CLOSED
            return [CloseTurn()]
        self.phase = TurnPhase.IDLE
        if self._waiting:
            return self._ask(self._waiting.popleft(), now)
        return []

    def _current(self) -> _Answer:
        assert self._answer is not None  # `TABLE` leads here only while an answer is under way
        return self._answer

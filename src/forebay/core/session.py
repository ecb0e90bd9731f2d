"""One client's hold on one resumable job: what it may ask, and what that does.

A `Session` is a state machine without I/O. Its caller feeds it *intents* (what a client
asked, made by a dialect) and *facts* (what the broker and the hub answered), and carries
out the *effects* it returns. `TABLE` says what each pair of phase and event does; a pair
that is not in it is a mistake of the client (`BadRequest`) for an intent, and stale news,
ignored, for a fact.

::

    finding ── known ──▶ opening ── attached ──▶ held ── resume, text, silence ──▶ streaming
       └─ unknown ─▶ opening ── submitted ───────────────────────────────────────▶    │
                                                            text_end ──▶ flushing ◀───┘
    held on a job that is over: text begins a new job (opening), anything else reads the old
    any ── cancel ──▶ cancelling ──▶ closed;   any ── gone, superseded, slow, end ──▶ closed

Facts may come at any moment, also while effects are being carried out: `receive` is the
only step, and it is atomic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from forebay.core.audio import SAMPLE_BYTES
from forebay.core.events import End, Sound, Text
from forebay.core.intents import (
    Answer,
    Append,
    Attach,
    Attached,
    Begun,
    Cancel,
    CancelJob,
    Cancelled,
    Close,
    Deliver,
    Detach,
    Effect,
    EndInput,
    Event,
    ExpireJob,
    Failed,
    Feed,
    Finished,
    Found,
    From,
    Gone,
    Hear,
    Idle,
    Intent,
    Lookup,
    Lost,
    NotBegun,
    Open,
    Over,
    Refuse,
    Resume,
    Slow,
    Started,
    StopDelivery,
    Stored,
    Submit,
    Superseded,
    Tick,
    Took,
    Unread,
)
from forebay.core.spec import BY_CLIENT, JobView
from forebay.errors import BadRequest, ForebayError, QuotaExceeded, ResumeNotAvailable, SlowClient

__all__ = ["TABLE", "Phase", "Rules", "Session", "Sessions"]


class Phase(StrEnum):
    FINDING = "finding"  # asked the broker whether the id is known
    OPENING = "opening"  # submit or attach is under way
    HELD = "held"  # a known id was answered; nothing is delivered yet
    STREAMING = "streaming"
    FLUSHING = "flushing"  # the input has ended
    CANCELLING = "cancelling"
    CLOSED = "closed"


Effects = list[Effect]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How one dialect deviates.

    ``silence_s``: after so long without a message a held live job is delivered; 0: at once.
    ``over_code``: the close code of a session that ended; None: the connection stays, for
    others, and a mistake ends nothing. ``idle_s``: a session that has nothing under way ends
    after so long without a message; None: never. ``acknowledges``: input is answered with
    `Took` once the store has it, and its end has no number of its own."""

    silence_s: float = 1.0
    over_code: int | None = 1000
    idle_s: float | None = None
    acknowledges: bool = False


LIVE = (Phase.HELD, Phase.STREAMING, Phase.FLUSHING)
OPEN = tuple(p for p in Phase if p is not Phase.CLOSED)

TABLE: dict[tuple[Phase, type], str] = {
    (Phase.FINDING, Found): "_found",
    (Phase.FINDING, Refuse): "_refused",
    (Phase.OPENING, Attached): "_attached",
    (Phase.OPENING, Refuse): "_refused",
    (Phase.HELD, Resume): "_resume",
    (Phase.HELD, Feed): "_feed_held",
    (Phase.HELD, Hear): "_feed_held",
    (Phase.HELD, EndInput): "_end_held",
    (Phase.HELD, Begun): "_begun",
    (Phase.HELD, NotBegun): "_not_begun",
    (Phase.HELD, Unread): "_unread",
    (Phase.HELD, Tick): "_silence",
    (Phase.STREAMING, Resume): "_resume",
    (Phase.STREAMING, Feed): "_feed",
    (Phase.STREAMING, Hear): "_hear",
    (Phase.STREAMING, EndInput): "_end",
    (Phase.STREAMING, NotBegun): "_not_begun",
    (Phase.FLUSHING, Resume): "_resume",
    (Phase.FLUSHING, Feed): "_late",
    (Phase.FLUSHING, Hear): "_late",
    (Phase.FLUSHING, EndInput): "_nothing",
    (Phase.FLUSHING, NotBegun): "_not_begun",
    **{(p, Stored): "_stored" for p in LIVE},
    **{(p, Refuse): "_refused" for p in LIVE},
    **{(p, Cancel): "_cancel" for p in LIVE},
    **{(p, Over): "_over" for p in LIVE},
    **{(p, Idle): "_idle" for p in (Phase.HELD, Phase.STREAMING)},
    **{(p, Slow): "_slow" for p in LIVE},
    **{(p, Lost): "_lost" for p in LIVE},
    **{(p, Superseded): "_superseded" for p in (*LIVE, Phase.CANCELLING)},
    (Phase.CANCELLING, Cancelled): "_cancelled",
    (Phase.CANCELLING, Refuse): "_refused",
    **{(p, Gone): "_gone" for p in OPEN},
    (Phase.CLOSED, Attached): "_too_late",
}
INTENTS = (Open, Feed, Hear, EndInput, Cancel, Resume)
NUMBERED = (Feed, Hear, EndInput, Cancel)


class Session:
    """The hold of one connection on one session id.

    ``open`` returns the first effects. Afterwards call ``receive`` with every intent, every
    fact, and a `Tick` once ``deadline`` (seconds, the clock of ``now``; None: never) has
    passed. Carry out the effects in order, and feed back what they report before the next
    intent.
    """

    __slots__ = (
        "_after",
        "_cancelled_by_client",
        "_ended_input",
        "_idle_for",
        "_job_over",
        "_number",
        "_params",
        "_pending",
        "_rules",
        "_seen",
        "_told",
        "deadline",
        "job",
        "name",
        "phase",
        "seq",
        "units",
    )

    def __init__(
        self,
        name: str,
        params: Mapping[str, Any],
        rules: Rules | None = None,
        after: int | None = None,
    ) -> None:
        self.name = name
        self.phase = Phase.FINDING
        self.job = ""
        self.seq = 0  # newest client number seen on this connection
        self.units = 0  # units of input the store has
        self.deadline: float | None = None
        self._after = after  # a client that comes back has every event up to this one
        self._params = dict(params)
        self._rules = rules or Rules()
        self._number = 0
        self._seen = 0  # client number the store had when this connection came
        self._ended_input = False
        self._job_over = False  # the job held is over
        self._told = False  # the client has had its answer to `Open`
        self._cancelled_by_client = False
        self._idle_for = ""
        self._pending: Feed | Hear | None = None  # the input that begins a new job

    @property
    def idle_s(self) -> float | None:
        """After so long without a word either way, report `Idle`; None: never."""
        return self._rules.idle_s

    def open(self) -> Effects:
        """Carry these out first."""
        return [Lookup()]

    def receive(self, event: Event, now: float) -> Effects:
        """Take one event. Returns what the caller must do, in order."""
        if self.phase is Phase.CLOSED and isinstance(event, INTENTS):
            return self._after_end(event)
        if isinstance(event, NUMBERED):
            self.seq = event.seq
        name = TABLE.get((self.phase, type(event)))
        if name is not None:
            effects: Effects = getattr(self, name)(event, now)
            return effects
        if isinstance(event, INTENTS):
            word = type(event).__name__.lower()
            return self._mistake(BadRequest(f"{word} is not possible while {self.phase.value}"))
        return []

    def _after_end(self, event: Event) -> Effects:
        """The client spoke before it heard that this is over; where the connection stays,
        it may have heard, and is told again."""
        if self._rules.over_code is not None or self._cancelled_by_client:
            return []
        error = BadRequest("this session is over", session=self.name, reason="unknown_session")
        return [Answer(Failed(error, event.seq if isinstance(event, Feed | Hear) else self.seq))]

    # --------------------------------------------------------------------- opening

    def _found(self, event: Found, now: float) -> Effects:
        view = event.view
        self.phase = Phase.OPENING
        view = None if view is not None and view.deleted else view
        other = view is not None and view.spec.params != self._params
        if view is None or (other and _is_over(view) and not self._after):
            # Who has had events of a session that is not known any more must not take
            # another one for it.
            return self._fail(self._unknown()) if self._after else [Submit(self._params)]
        if other:
            return self._fail(self._others(view))
        return [Attach(view.spec.id)]

    def _unknown(self) -> ForebayError:
        return ResumeNotAvailable(
            f"no session {self.name!r} is known here: it ended more than its window ago, or with "
            "the process that held it. Begin a new one",
            reason="unknown",
        )

    def _others(self, view: JobView) -> ForebayError:
        names = sorted({*view.spec.params, *self._params})
        names = [n for n in names if view.spec.params.get(n) != self._params.get(n)]
        return BadRequest(
            f"session {self.name!r} has other parameters: {', '.join(names)[:200]}. "
            "Send those it was begun with, or take another id",
            parameters=names[:10],
        )

    def _attached(self, event: Attached, now: float) -> Effects:
        view = event.view
        fresh = view.input_head == 0 and not _is_over(view) and view.head == 0
        self.job = view.spec.id
        self.units = view.units
        self._number = event.number
        self._seen = view.client_pos if view.input_head else -1
        self._ended_input = view.input_ended
        self._job_over = _is_over(view)
        unheard = self._job_over and self._rules.silence_s == 0 and view.delivered < view.head
        unheard = unheard and not (view.state == "cancelled" and view.message == BY_CLIENT)
        told, self._told = self._told, True
        effects: Effects = []
        if not told:
            effects.append(Answer(Started(fresh, view.units, self._seen, over=self._job_over)))
        if fresh and not self._after:
            self.phase = Phase.STREAMING
            effects.append(Deliver(From.START))
        elif self._after is not None:
            self._ended_input = self._ended_input or self._job_over
            self._reading()
            effects.append(Deliver(From.AFTER, self._after))
        else:
            self.phase = Phase.HELD
            self.deadline = None
            if unheard or not self._job_over:
                self.deadline = now + self._rules.silence_s
        pending, self._pending = self._pending, None
        return effects if pending is None else [*effects, *self.receive(pending, now)]

    def _too_late(self, event: Attached, now: float) -> Effects:
        return [Detach()]

    # ------------------------------------------------------------------------ held

    def _reading(self) -> None:
        self.phase = Phase.FLUSHING if self._ended_input else Phase.STREAMING
        self.deadline = None

    def _silence(self, event: Tick, now: float) -> Effects:
        if self.deadline is None or now < self.deadline:
            return []
        self._reading()
        return [Deliver(From.DELIVERED)]

    def _feed_held(self, event: Feed | Hear, now: float) -> Effects:
        if self._job_over:
            self.phase = Phase.OPENING
            self.deadline = None
            self._pending = event
            return [Detach(), Submit(self._params)]
        self._reading()
        return [Deliver(From.DELIVERED), *self.receive(event, now)]

    def _end_held(self, event: EndInput, now: float) -> Effects:
        self._ended_input = self._ended_input or self._job_over
        self._reading()
        return [Deliver(From.DELIVERED), *self.receive(event, now)]

    def _unread(self, event: Unread, now: float) -> Effects:
        self._job_over = self._ended_input = True
        return []

    def _resume(self, event: Resume, now: float) -> Effects:
        self.deadline = None
        if event.have > self.units:
            return self._not_begun(
                NotBegun(
                    ResumeNotAvailable(
                        f"asked for what follows unit {event.have - 1}, "
                        f"{self.units} units were received",
                        reason="ahead_of_head",
                    )
                ),
                now,
            )
        return [Deliver(From.MARK, event.have)]

    def _begun(self, event: Begun, now: float) -> Effects:
        self._reading()
        return []

    def _not_begun(self, event: NotBegun, now: float) -> Effects:
        if not isinstance(event.error, ResumeNotAvailable) or self._after is not None:
            return self._fail(event.error)
        return [Answer(Failed(event.error, self.seq))]

    # ------------------------------------------------------------------- streaming

    def goes_on(self, chunks: Sequence[Hear]) -> bool:
        """Whether ``chunks`` may be taken `together`: sound that follows what came before,
        without a gap, and, where there are several, none of which may be a repeat."""
        if self.phase is not Phase.STREAMING:
            return False
        seq, at = self._seen + 1, self.units
        for chunk in chunks:
            if chunk.at is None:
                if len(chunks) > 1 and chunk.seq < seq:
                    return False
                seq = chunk.seq
            elif chunk.at != at:
                return False
            at += chunk.units
        return True

    def _feed(self, event: Feed, now: float) -> Effects:
        total = self.units + len(event.text)
        item = Text(text=event.text, unit=self.units, seq=event.seq)
        return [Append((item,), event.seq, total)]

    def _hear(self, event: Hear, now: float) -> Effects:
        if event.at is None:
            return [Append(event.sounds, event.seq, self.units + event.units, tell=True)]
        known = self.units - event.at
        if known < 0:
            return self._hole("begins", event.at)
        if known >= event.units:
            return [Answer(Took(self.units))]
        total = event.at + event.units
        return [Append(_without(event.sounds, known), total, total, tell=True)]

    def _stored(self, event: Stored, now: float) -> Effects:
        self.units = event.units
        return [Answer(Took(self.seq))] if event.tell and self._rules.acknowledges else []

    def _hole(self, word: str, at: int) -> Effects:
        return self._mistake(
            BadRequest(
                f"audio {word} at sample {at}, {self.units} samples are stored", stored=self.units
            )
        )

    def _end(self, event: EndInput, now: float) -> Effects:
        if event.at is not None and event.at > self.units:
            return self._hole("ends", event.at)
        self.phase = Phase.FLUSHING
        self._ended_input = True
        pos = None if self._rules.acknowledges else event.seq
        return [Append((End(seq=event.seq),), pos, self.units)]

    def _late(self, event: Feed | Hear, now: float) -> Effects:
        if event.seq <= self._seen:  # a repeat from before the connection was lost
            return [Answer(Took(event.seq))] if self._rules.acknowledges else []
        word = "text" if isinstance(event, Feed) else "audio"
        return self._mistake(BadRequest(f"{word} after the end of the {word}"))

    def _nothing(self, event: Event, now: float) -> Effects:
        return []

    # ---------------------------------------------------------------------- ending

    def _cancel(self, event: Cancel, now: float) -> Effects:
        self.phase = Phase.CANCELLING
        self.deadline = None
        self._cancelled_by_client = True
        return [StopDelivery(), CancelJob()]

    def _idle(self, event: Idle, now: float) -> Effects:
        self.phase = Phase.CANCELLING
        self.deadline = None
        self._idle_for = f"idle for {event.for_s:g} s"
        return [StopDelivery(), CancelJob()]

    def _cancelled(self, event: Cancelled, now: float) -> Effects:
        return self._end_with(Answer(Finished(self.seq, cancelled=True, reason=self._idle_for)))

    def _over(self, event: Over, now: float) -> Effects:
        return self._end_with()

    def _slow(self, event: Slow, now: float) -> Effects:
        error = SlowClient(
            f"the oldest unsent event waited {event.waited_s:g} s, "
            f"expected no more than {event.limit_s:g} s"
        )
        return [ExpireJob(error), *self._fail(error)]

    def _lost(self, event: Lost, now: float) -> Effects:
        if not isinstance(event.error, ResumeNotAvailable) or self._rules.over_code is None:
            return self._fail(event.error)
        self.phase = Phase.HELD
        return [StopDelivery(), Answer(Failed(event.error, self.seq))]

    def _superseded(self, event: Superseded, now: float) -> Effects:
        if event.number != self._number:
            return []
        self.phase = Phase.CLOSED
        self.deadline = None
        return [StopDelivery(), Detach(), Close(4409, "superseded")]

    def _gone(self, event: Gone, now: float) -> Effects:
        self.phase = Phase.CLOSED
        self.deadline = None
        return [StopDelivery(), Detach()] if self.job else []

    def _refused(self, event: Refuse, now: float) -> Effects:
        if self.phase in LIVE and isinstance(event.error, BadRequest):
            return self._mistake(event.error)
        if self.phase in LIVE and isinstance(event.error, QuotaExceeded):
            # Delivery stops first: the error is told once, with the time to wait.
            return [StopDelivery(), ExpireJob(event.error), *self._fail(event.error)]
        return self._fail(event.error)

    def _mistake(self, error: BadRequest) -> Effects:
        """What the client sent cannot be taken; only where the connection is the session's
        own does that end it."""
        if self._rules.over_code is None:
            return [Answer(Failed(error, self.seq))]
        return self._fail(error)

    def _fail(self, error: ForebayError) -> Effects:
        return self._end_with(Answer(Failed(error, self.seq)))

    def _end_with(self, *answers: Effect) -> Effects:
        self.phase = Phase.CLOSED
        self.deadline = None
        held: Effects = [Detach()] if self.job else []
        code = self._rules.over_code
        close: Effects = [Close(code)] if code is not None else []
        return [StopDelivery(), *answers, *close, *held]


def _without(sounds: tuple[Sound, ...], samples: int) -> tuple[Sound, ...]:
    """``sounds`` (headerless) without their first ``samples``."""
    kept = []
    for sound in sounds:
        skip = min(samples, len(sound.data) // SAMPLE_BYTES)
        samples -= skip
        data = sound.data[skip * SAMPLE_BYTES :]
        if data:
            kept.append(msgspec.structs.replace(sound, data=data) if skip else sound)
    return tuple(kept)


def _is_over(view: JobView) -> bool:
    return view.state not in ("queued", "running")


class Sessions:
    """The sessions of one connection, by name. ``limit``: how many at once; opening one
    more makes the connection leave the oldest (S1: a second `start` switches)."""

    __slots__ = ("_open", "_rules", "limit")

    def __init__(self, limit: int = 1, rules: Rules | None = None) -> None:
        self.limit = limit
        self._rules = rules
        self._open: dict[str, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._open.values()))

    @property
    def _keeps_connection(self) -> bool:
        return self._rules is not None and self._rules.over_code is None

    def choose(self, intent: Intent) -> tuple[Session, list[Session]]:
        """The session that ``intent`` is for, and those that must be told `Gone` first.

        For an `Open` the session is new: carry out `Session.open`. Raises `BadRequest` for
        anything said before `Open`, to a session this connection does not hold, or, where
        the connection outlives its sessions, for one more than ``limit``.
        """
        if isinstance(intent, Open):
            done = (Phase.CLOSED,) if self._keeps_connection else ()
            leaving = [s for s in self if s.name == intent.session or s.phase in done]
            others = [s for s in self if s not in leaving]
            if self._keeps_connection and len(others) >= self.limit:
                raise BadRequest(
                    f"{len(others)} sessions are open on this connection, "
                    f"expected no more than {self.limit}",
                    session=intent.session,
                )
            leaving += others[: max(0, len(others) + 1 - self.limit)]
            for session in leaving:
                del self._open[session.name]
            session = Session(intent.session, intent.params, self._rules, intent.after)
            self._open[intent.session] = session
            return session, leaving
        found = self._open.get(intent.session)
        if found is None:
            said = "no session was started" if not self._open else "that session is not this one"
            raise BadRequest(
                f"{said} on this connection", session=intent.session, reason="unknown_session"
            )
        return found, []

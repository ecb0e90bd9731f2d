"""The `/chat` endpoint: one connection that watches a text job and the speech job it feeds.

`serve_chat` finds out which of the two chat protocols a client speaks, and `_Conversation`
carries what `core.turn` wants done to the broker, the hub and the socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import structlog

from forebay.broker import Attachment, GatewayPush, LeasePush, PlacePush, SupersededPush
from forebay.core.events import Audio, Ended, OutputEvent, TextDelta, trim_text
from forebay.core.kinds import Kind
from forebay.core.turn import (
    Answering,
    Back,
    Broken,
    CloseTurn,
    FindTurn,
    Gone,
    LeaveTurn,
    Lost,
    Read,
    Say,
    Slow,
    StartTurn,
    StopTurn,
    Superseded,
    TextOver,
    Turn,
    TurnEffect,
    TurnEvent,
    TurnFailed,
    TurnPhase,
    VoiceOver,
)
from forebay.dialects import About, Frame, error_of
from forebay.dialects.chat import ChatDialect, TextChat, VoiceChat, choose, greeting, refusal
from forebay.dialects.tts import TtsDialect
from forebay.errors import ForebayError, StateLost
from forebay.gateway.answer import Answer
from forebay.gateway.connection import Frames, Receive, Scope, Send, accepted_wire
from forebay.gateway.context import GatewayContext
from forebay.gateway.hub import AudioPace, Reader
from forebay.gateway.retrieval import grounded, passages_for
from forebay.gateway.under_way import holds
from forebay.gateway.wire import Wire

__all__ = ["Greeting", "serve_chat"]

Greeting = str
"""silent; at_once: greet after the accept; patient: only a client that says nothing at first."""

log = structlog.get_logger(__name__)


async def serve_chat(
    scope: Scope,
    receive: Receive,
    send: Send,
    ctx: GatewayContext,
    *,
    tenant: str = "local",
    greet: Greeting = "silent",
    first_message_s: float | None = None,
) -> None:
    """Serve one chat connection to its end. Gates and keys have been passed.

    ``greet``: silent, patient (a client that says nothing for ``ctx.chat.greet_after_s`` is
    greeted, as the text orchestrator's clients wait for it) or at_once."""
    async with AsyncExitStack() as stack:
        wire = await accepted_wire(stack, scope, receive, send)
        if wire is None:
            return
        frames = Frames(receive)
        stack.push_async_callback(frames.close)
        ctx.metrics.connection_opened()
        stack.callback(ctx.metrics.connection_closed)
        try:
            frame = await _first(frames, wire, ctx, greet, first_message_s)
        except TimeoutError:
            ctx.metrics.deadline("first_message")
            wire.close(4408, f"no message within {first_message_s:g} s")
            frame = await frames.next()
        await _converse(frame, frames, wire, ctx, tenant, scope)


async def _first(
    frames: Frames, wire: Wire, ctx: GatewayContext, greet: Greeting, limit_s: float | None
) -> Frame | None:
    """The first message, after the greeting if there is to be one."""
    async with asyncio.timeout(limit_s):
        if greet == "at_once":
            wire.send(greeting())
        elif greet == "patient" and not await frames.ready(ctx.chat.greet_after_s):
            wire.send(greeting())
        return await frames.next()


async def _converse(
    frame: Frame | None,
    frames: Frames,
    wire: Wire,
    ctx: GatewayContext,
    tenant: str,
    scope: Scope,
) -> None:
    if frame is None or wire.closed:
        return
    options = ctx.chat
    tts = TtsDialect(ctx.rows[Kind.SPEECH].detach_s)
    try:
        dialect = choose(
            frame,
            VoiceChat(
                tts,
                flush_min_chars=options.tts_flush_min_chars,
                flush_on_punct=options.tts_flush_on_punct,
                prompt_chars=options.prompt_chars,
            ),
            TextChat(prompt_chars=options.prompt_chars),
        )
    except ForebayError as error:
        ctx.metrics.error("bad_request")
        wire.send(refusal(error))
        wire.close(1000)
        await frames.next()
        return
    conversation = _Conversation(ctx, dialect, wire, tenant)
    undrain = ctx.on_drain(conversation.drain)
    let_go = holds(scope, conversation)
    try:
        next_frame: Frame | None = frame
        while next_frame is not None:
            if not wire.closed:
                await conversation.one(next_frame)
            next_frame = await frames.next()
    finally:
        undrain()
        let_go()
        leaving = ctx.hub.spawn(conversation.leave())
        if leaving is not None:
            await asyncio.shield(leaving)


class _Conversation:
    def __init__(self, ctx: GatewayContext, dialect: ChatDialect, wire: Wire, tenant: str) -> None:
        self._ctx = ctx
        self._dialect = dialect
        self._wire = wire
        self._tenant = tenant
        self._state: Any = None
        self._turn = Turn(
            once=dialect.once,
            system_prompt=ctx.chat.system_prompt,
            history_messages=ctx.chat.history_messages,
        )
        self._jobs: Answer | None = None

    # -------------------------------------------------------------------- entrances

    async def one(self, frame: Frame) -> None:
        """Take one frame of the client."""
        try:
            self._state, intents = self._dialect.receive(self._state, frame)
            for intent in intents:
                await self._carry(self._receive(intent))
        except ForebayError as error:
            await self._carry(self._receive(Broken(error)))
        except Exception as error:  # noqa: BLE001 - the supervised boundary of one connection
            log.error("conversation.failed", error=type(error).__name__, exc_info=error)
            failure = ForebayError("the gateway failed, this connection cannot go on")
            await self._carry(self._receive(Broken(failure)))

    async def leave(self) -> None:
        """The connection is closed: for who has no handle to come back with, that is cancel."""
        await self._carry(self._receive(Gone()))
        await self._end(stop=False)  # an answer that is over is still held

    def drain(self) -> None:
        """The gateway is shutting down: an answer under way is the last one."""
        self._turn.once = True
        if self._turn.phase is TurnPhase.IDLE:
            self._wire.close(1012, "going away")

    @property
    def busy(self) -> bool:
        """Whether an answer is under way, though nothing of it may have come yet."""
        return self._turn.phase not in (TurnPhase.IDLE, TurnPhase.CLOSED)

    def cut(self) -> None:
        """The time of a drain is over: an answer that does not go on elsewhere is lost."""
        if self.busy and not self._ctx.hands_over:
            error = StateLost(
                "this server is shutting down: this answer, not over within the "
                f"{self._ctx.options.drain_s:g} s that open sessions have at most "
                "(server.drain_s), ends unfinished. Ask again",
                reason="state_lost",
            )
            self._say(TurnFailed(error))
        self._wire.close(1012, "going away")

    def tell(self, fact: TurnEvent) -> None:
        """Take a fact from a callback, now; what has to wait is done by the hub's tasks."""
        later: list[TurnEffect] = []
        for effect in self._receive(fact):
            if later or isinstance(effect, StartTurn | FindTurn | StopTurn | LeaveTurn):
                later.append(effect)
            else:
                self._now(effect)
        if later:
            self._ctx.hub.spawn(self._carry(later))

    # --------------------------------------------------------------------- machine

    def _receive(self, event: TurnEvent) -> Sequence[TurnEffect]:
        return self._turn.receive(event, self._ctx.clock())

    async def _carry(self, effects: Sequence[TurnEffect]) -> None:
        for effect in effects:
            match effect:
                case StartTurn() | FindTurn():
                    fact = await self._start(effect)
                    if fact is not None:
                        await self._carry(self._receive(fact))
                case StopTurn() | LeaveTurn():
                    await self._end(stop=isinstance(effect, StopTurn))
                case _:
                    self._now(effect)

    def _now(self, effect: TurnEffect) -> None:
        match effect:
            case Say(what):
                self._say(what)
            case Read():
                self._read()
            case CloseTurn(code, reason):
                self._wire.close(code, reason)

    def _say(self, what: Any) -> None:
        if isinstance(what, TurnFailed):
            self._ctx.metrics.error(self._dialect.word(what.error))
        self._send(self._dialect.say(what))
        jobs = self._jobs
        if isinstance(what, Answering) and what.voice and jobs is not None:
            self._send(self._dialect.voice(self._about(jobs), resumed=what.resumed))

    def _send(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            self._wire.send(frame)

    @staticmethod
    def _about(jobs: Answer) -> About:
        return About(session=jobs.back.session, params=jobs.voice)

    # ---------------------------------------------------------------- starting, ending

    async def _start(self, effect: StartTurn | FindTurn) -> TurnEvent | None:
        """Make or find the jobs of an answer; None when it was stopped meanwhile."""
        await self._end(stop=True)
        asked = isinstance(effect, StartTurn)
        back = Back(session=effect.ask.session) if isinstance(effect, StartTurn) else effect.back
        jobs = self._jobs = Answer(
            self._ctx, self._tenant, back, lambda push: self._hear(jobs, push)
        )
        if isinstance(effect, StartTurn) and effect.ask.retrieve and self._ctx.chat.retrieval_url:
            effect = await self._grounded(effect)
            if self._jobs is not jobs:
                return None
        fact = await (jobs.begin(effect) if isinstance(effect, StartTurn) else jobs.find())
        if self._jobs is jobs:
            return fact
        await (jobs.stop() if asked else jobs.leave())
        return None

    async def _grounded(self, effect: StartTurn) -> StartTurn:
        """With the passages that a search service has for the question, which the client is
        shown before the answer."""
        chat = self._ctx.chat
        found, failed = await passages_for(chat.retrieval_url, effect.ask.prompt, chat.retrieval_s)
        self._send(self._dialect.context([msgspec.to_builtins(p) for p in found], failed))
        return StartTurn(effect.ask, grounded(effect.messages, found))

    async def _end(self, *, stop: bool) -> None:
        """Stop the answer, or leave it, if one is under way."""
        jobs, self._jobs = self._jobs, None
        if jobs is not None:
            await (jobs.stop() if stop else jobs.leave())

    # --------------------------------------------------------------------- reading

    def _read(self) -> None:
        jobs = self._jobs
        if jobs is None or jobs.text is None:
            return
        have, state = jobs.back.chars, self._state
        jobs.readers.append(
            self._open(
                jobs.text,
                Kind.TEXT,
                have,
                encode=lambda event: self._dialect.text(state, event, have=have),
                on_sent=lambda event: self._text_sent(jobs, event),
                on_end=lambda ended: self.tell(self._text_over(jobs, ended)),
            )
        )
        if jobs.speech is None:
            return
        about, units = self._about(jobs), jobs.back.units
        pace_s = self._ctx.rows[Kind.SPEECH].pace_s
        jobs.readers.append(
            self._open(
                jobs.speech,
                Kind.SPEECH,
                units,
                encode=lambda event: self._dialect.audio(event, about, have=units),
                pace=AudioPace(pace_s, int(about.params["sample_rate"])),
                on_sent=lambda event: self._audio_sent(jobs, event),
                on_end=lambda ended: self.tell(VoiceOver(ended, _error(ended))),
            )
        )

    def _open(self, held: Attachment, kind: Kind, have: int, **how: Any) -> Reader:
        row = self._ctx.rows[kind]
        return self._ctx.hub.open(
            held.job,
            epoch=held.view.epoch,
            after=None if have else 0,
            mark=(row.counter, have) if have else None,
            wire=self._wire,
            row=row,
            on_slow=lambda reader: self.tell(Slow(row.slow_reader_s)),
            on_reset=lambda error: self.tell(Lost(error)),
            **how,
        )

    def _text_sent(self, jobs: Answer, event: OutputEvent) -> None:
        if isinstance(event, TextDelta):
            event = trim_text(event, jobs.back.chars)
        jobs.gathered.take(event)
        if isinstance(event, TextDelta) and jobs.first_text_at is None and not jobs.resumed:
            jobs.first_text_at = self._ctx.clock()
            self._ctx.metrics.ttft(jobs.first_text_at - jobs.asked_at)

    def _audio_sent(self, jobs: Answer, event: OutputEvent) -> None:
        if isinstance(event, Audio) and not jobs.sounded and not jobs.resumed:
            jobs.sounded = True
            began = jobs.first_text_at if jobs.first_text_at is not None else jobs.asked_at
            self._ctx.metrics.ttfa(self._ctx.clock() - began)

    @staticmethod
    def _text_over(jobs: Answer, ended: Ended) -> TextOver:
        said = jobs.gathered
        return TextOver(
            ended=ended,
            error=_error(ended),
            text="".join(said.parts),
            before=jobs.back.chars,
            calls=said.calls,
            usage=said.usage,
        )

    def _hear(self, jobs: Answer, push: GatewayPush) -> None:
        if jobs is not self._jobs:
            return
        match push:
            case SupersededPush() if jobs.text is not None and push.number == jobs.text.number:
                self.tell(Superseded())
            case PlacePush():
                jobs.waits = True
                self._send(self._dialect.place(self._state, push.place))
            case LeasePush() if push.running and jobs.waits:
                jobs.waits = False
                self._send(self._dialect.place(self._state, None))


def _error(ended: Ended) -> ForebayError | None:
    return error_of(ended) if ended.state in ("failed", "expired") else None

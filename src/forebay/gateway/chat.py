"""The `/chat` endpoint: one connection that watches a text job and the speech job it feeds.

`serve_chat` finds out which of the two chat protocols a client speaks, and `_Conversation`
carries what `core.turn` wants done to the broker, the hub and the socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import structlog

from forebay.broker import Attachment, GatewayPush, LeasePush, PlacePush
from forebay.core.events import Audio, Ended, OutputEvent, Prompt, TextDelta, ToolCalls, Usage
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec, PipeSpec
from forebay.core.turn import (
    Answering,
    Ask,
    CloseTurn,
    Gone,
    Lost,
    NotStarted,
    Read,
    Say,
    Slow,
    Started,
    StartTurn,
    StopTurn,
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
from forebay.errors import ForebayError
from forebay.gateway.connection import Frames, Receive, Scope, Send, accepted_wire
from forebay.gateway.context import GatewayContext
from forebay.gateway.hub import AudioPace, Reader
from forebay.gateway.pipes import Carrier, carry
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
        await _converse(frame, frames, wire, ctx, tenant)


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
    frame: Frame | None, frames: Frames, wire: Wire, ctx: GatewayContext, tenant: str
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
    try:
        next_frame: Frame | None = frame
        while next_frame is not None:
            if not wire.closed:
                await conversation.one(next_frame)
            next_frame = await frames.next()
    finally:
        undrain()
        leaving = ctx.hub.spawn(conversation.leave())
        if leaving is not None:
            await asyncio.shield(leaving)


class _Gathered:
    """What a text job has said so far."""

    __slots__ = ("calls", "parts", "usage")

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.calls: Sequence[Any] = ()
        self.usage: Usage | None = None

    def take(self, event: OutputEvent) -> None:
        match event:
            case TextDelta():
                self.parts.append(event.text)
            case ToolCalls():
                self.calls = event.calls
            case Usage():
                self.usage = event


class _Jobs:
    """The two jobs of one answer, what this connection holds of them, and their readers."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.text: Attachment | None = None
        self.speech: Attachment | None = None
        self.carrier: Carrier | None = None
        self.readers: list[Reader] = []
        self.stops: list[Callable[[], None]] = []
        self.gathered = _Gathered()
        self.asked_at = 0.0
        self.first_text_at: float | None = None
        self.sounded = False
        self.waits = False

    def close(self) -> list[Attachment]:
        """Stop reading and carrying; what is still attached, to be detached."""
        for reader in self.readers:
            reader.close()
        for stop in self.stops:
            stop()
        self.stops.clear()
        if self.carrier is not None:
            self.carrier.close()
        held = [a for a in (self.text, self.speech) if a is not None]
        self.text = self.speech = None
        return held


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
        self._jobs: _Jobs | None = None

    # -------------------------------------------------------------------- entrances

    async def one(self, frame: Frame) -> None:
        """Take one frame of the client."""
        try:
            self._state, intents = self._dialect.receive(self._state, frame)
            for intent in intents:
                await self._carry(self._receive(intent))
        except ForebayError as error:
            await self._broken(error)
        except Exception as error:  # noqa: BLE001 - the supervised boundary of one connection
            log.error("conversation.failed", error=type(error).__name__, exc_info=error)
            await self._broken(ForebayError("the gateway failed, this connection cannot go on"))

    async def leave(self) -> None:
        """The connection is closed: without a handle to come back with, that is cancel."""
        await self._carry(self._receive(Gone()))

    def drain(self) -> None:
        """The gateway is shutting down: an answer under way is the last one."""
        self._turn.once = True
        if self._turn.phase is TurnPhase.IDLE:
            self._wire.close(1012, "going away")

    def tell(self, fact: TurnEvent) -> None:
        """Take a fact from a callback, now; what has to wait is done by the hub's tasks."""
        later: list[TurnEffect] = []
        for effect in self._receive(fact):
            if later or isinstance(effect, StartTurn | StopTurn):
                later.append(effect)
            else:
                self._now(effect)
        if later:
            self._ctx.hub.spawn(self._carry(later))

    async def _broken(self, error: ForebayError) -> None:
        """An error of the connection itself: a voice connection ends with it."""
        self._say(TurnFailed(error))
        if self._dialect.once:
            self._wire.close(1000)
            await self.leave()

    # --------------------------------------------------------------------- machine

    def _receive(self, event: TurnEvent) -> Sequence[TurnEffect]:
        return self._turn.receive(event, self._ctx.clock())

    async def _carry(self, effects: Sequence[TurnEffect]) -> None:
        for effect in effects:
            match effect:
                case StartTurn():
                    fact = await self._start(effect)
                    if fact is not None:
                        await self._carry(self._receive(fact))
                case StopTurn():
                    await self._stop()
                case _:
                    self._now(effect)

    def _now(self, effect: TurnEffect) -> None:
        match effect:
            case Say(what):
                self._say(what)
            case Read():
                self._read()
            case CloseTurn():
                self._wire.close(1000)

    def _say(self, what: Any) -> None:
        if isinstance(what, TurnFailed):
            self._ctx.metrics.error(self._dialect.word(what.error))
        self._send(self._dialect.say(what))
        jobs = self._jobs
        if isinstance(what, Answering) and what.voice and jobs is not None:
            self._send(self._dialect.voice(self._about(jobs)))

    def _send(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            self._wire.send(frame)

    @staticmethod
    def _about(jobs: _Jobs) -> About:
        return About(session=jobs.ask.session, params=jobs.ask.speech or {})

    # ---------------------------------------------------------------- starting, ending

    async def _start(self, effect: StartTurn) -> TurnEvent | None:
        """Make the jobs of an answer; None when it was stopped meanwhile."""
        await self._stop()
        jobs = self._jobs = _Jobs(effect.ask)
        jobs.asked_at = self._ctx.clock()
        fact = await self._submit_both(jobs, effect)
        if self._jobs is jobs:
            return fact
        for attachment in jobs.close():
            await self._give_back(attachment)
        return None

    async def _submit_both(self, jobs: _Jobs, effect: StartTurn) -> TurnEvent:
        """The text job goes first: its first word is what takes longest."""
        ask = effect.ask
        try:
            jobs.text = await self._submit(
                jobs,
                self._spec(Kind.TEXT, self._ctx.chat.sampling, ask.model),
                [Prompt(messages=effect.messages)],
            )
        except ForebayError as error:
            return NotStarted(error)
        if ask.speech is None:
            return Started(voice=False)
        try:
            jobs.speech = await self._submit(
                jobs, self._spec(Kind.SPEECH, ask.speech, ask.voice_model), []
            )
            pipe = PipeSpec(
                id=self._ctx.new_id(), source=jobs.text.job, target=jobs.speech.job, map="speak"
            )
            jobs.carrier = await carry(self._ctx.hub, pipe)
        except ForebayError as error:
            if jobs.speech is not None:
                await self._give_back(jobs.speech)
                jobs.speech = None
            return Started(voice=False, missing=error)
        self._ctx.metrics.session_started()
        return Started(voice=True)

    def _spec(self, kind: Kind, params: Any, model: str) -> JobSpec:
        return self._ctx.spec(
            kind, params, tenant=self._tenant, dialect="chat", model=model, detach_s=0.0
        )

    async def _submit(self, jobs: _Jobs, spec: JobSpec, items: list[Any]) -> Attachment:
        broker, gateway = self._ctx.broker, self._ctx.gateway_id
        jobs.stops.append(self._ctx.hub.listen(spec.id, self._hear))
        view = await broker.submit(spec, items, gateway=gateway)
        return await broker.attach(view.spec.id, gateway=gateway, write=False)

    async def _stop(self) -> None:
        """Stop the answer, if one is under way. A job that is over stays as it ended."""
        jobs, self._jobs = self._jobs, None
        if jobs is None:
            return
        for attachment in jobs.close():
            await self._give_back(attachment)

    async def _give_back(self, attachment: Attachment) -> None:
        try:
            await self._ctx.broker.cancel(attachment.job, reason="client")
            await self._ctx.broker.detach(attachment)
        except ForebayError as error:
            log.debug("chat.not_stopped", job=attachment.job, code=error.code)

    # --------------------------------------------------------------------- reading

    def _read(self) -> None:
        jobs = self._jobs
        if jobs is None or jobs.text is None:
            return
        jobs.readers.append(
            self._open(
                jobs.text,
                Kind.TEXT,
                encode=self._dialect.text,
                on_sent=lambda event: self._text_sent(jobs, event),
                on_end=lambda ended: self.tell(self._text_over(jobs, ended)),
            )
        )
        if jobs.speech is None or jobs.ask.speech is None:
            return
        about = self._about(jobs)
        pace_s = self._ctx.rows[Kind.SPEECH].pace_s
        jobs.readers.append(
            self._open(
                jobs.speech,
                Kind.SPEECH,
                encode=lambda event: self._dialect.audio(event, about),
                pace=AudioPace(pace_s, int(jobs.ask.speech["sample_rate"])),
                on_sent=lambda event: self._audio_sent(jobs, event),
                on_end=lambda ended: self.tell(VoiceOver(ended, _error(ended))),
            )
        )

    def _open(self, held: Attachment, kind: Kind, **how: Any) -> Reader:
        row = self._ctx.rows[kind]
        return self._ctx.hub.open(
            held.job,
            epoch=held.view.epoch,
            after=0,
            wire=self._wire,
            row=row,
            on_slow=lambda reader: self.tell(Slow(row.slow_reader_s)),
            on_reset=lambda error: self.tell(Lost(error)),
            **how,
        )

    def _text_sent(self, jobs: _Jobs, event: OutputEvent) -> None:
        jobs.gathered.take(event)
        if isinstance(event, TextDelta) and jobs.first_text_at is None:
            jobs.first_text_at = self._ctx.clock()
            self._ctx.metrics.ttft(jobs.first_text_at - jobs.asked_at)

    def _audio_sent(self, jobs: _Jobs, event: OutputEvent) -> None:
        if isinstance(event, Audio) and not jobs.sounded:
            jobs.sounded = True
            began = jobs.first_text_at if jobs.first_text_at is not None else jobs.asked_at
            self._ctx.metrics.ttfa(self._ctx.clock() - began)

    @staticmethod
    def _text_over(jobs: _Jobs, ended: Ended) -> TextOver:
        said = jobs.gathered
        return TextOver(
            ended=ended,
            error=_error(ended),
            text="".join(said.parts),
            calls=said.calls,
            usage=said.usage,
        )

    def _hear(self, push: GatewayPush) -> None:
        jobs = self._jobs
        if jobs is None:
            return
        if isinstance(push, PlacePush):
            jobs.waits = True
            self._send(self._dialect.place(self._state, push.place))
        elif isinstance(push, LeasePush) and push.running and jobs.waits:
            jobs.waits = False
            self._send(self._dialect.place(self._state, None))


def _error(ended: Ended) -> ForebayError | None:
    return error_of(ended) if ended.state in ("failed", "expired") else None

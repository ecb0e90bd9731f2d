"""The two jobs of one answer, as one connection holds them: made, found again, left, stopped.

A resumable answer is found by its text job, whose name is the client's session; its speech
job is named by that text job, so that the two always belong together. The connection that
attached last is the one that reads (`SupersededPush` tells the one before).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from forebay.broker import Attachment, GatewayPush
from forebay.core.events import OutputEvent, Prompt, TextDelta, ToolCalls, Usage
from forebay.core.kinds import Kind
from forebay.core.spec import BY_CLIENT, JobSpec, JobView, PipeSpec
from forebay.core.turn import Ask, Back, NotStarted, Started, StartTurn, TurnEvent
from forebay.dialects.chat import VoiceChat
from forebay.errors import BadRequest, ForebayError, ResumeNotAvailable
from forebay.gateway.context import GatewayContext
from forebay.gateway.hub import Reader
from forebay.gateway.pipes import Carrier, carry

__all__ = ["Answer", "Gathered"]

DIALECT = VoiceChat.name
VOICE = "chat.voice"
PAGE = 256

log = structlog.get_logger(__name__)


class Gathered:
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


class Answer:
    """Call `begin` or `find` once, then open readers; end with `leave` or `stop`.

    ``back``: how much of text and speech the client has, zero of a new answer. ``hear`` is
    given every push about the two jobs.
    """

    def __init__(
        self, ctx: GatewayContext, tenant: str, back: Back, hear: Callable[[GatewayPush], None]
    ) -> None:
        self.back = back
        self.text: Attachment | None = None
        self.speech: Attachment | None = None
        self.readers: list[Reader] = []
        self.gathered = Gathered()
        self.asked_at = ctx.clock()
        self.first_text_at: float | None = None
        self.sounded = False
        self.waits = False
        self._ctx = ctx
        self._tenant = tenant
        self._hear = hear
        self._carrier: Carrier | None = None
        self._stops: list[Callable[[], None]] = []
        self._resumable = False
        self.resumed = False

    @property
    def voice(self) -> Mapping[str, Any]:
        """The parameters of the speech job; empty where there is none."""
        return {} if self.speech is None else self.speech.view.spec.params

    # -------------------------------------------------------------------- beginning

    async def begin(self, effect: StartTurn) -> TurnEvent:
        """Submit both jobs and pipe them. The text job goes first: its first word is what
        takes longest."""
        ask = effect.ask
        self._resumable = ask.resumable
        try:
            if ask.resumable:
                await self._unknown(ask.session)
            spec = self._spec(Kind.TEXT, self._ctx.chat.sampling, ask.model, DIALECT, ask.session)
            self.text = await self._submit(spec, [Prompt(messages=effect.messages)])
        except ForebayError as error:
            return NotStarted(error)
        if ask.speech is None:
            return Started(voice=False)
        try:
            await self._speak(ask, ask.speech, self.text.job)
        except ForebayError as error:
            if self.speech is not None:
                await self._stop(self.speech)
                self.speech = None
            return Started(voice=False, missing=error)
        self._ctx.metrics.session_started()
        return Started(voice=True)

    async def _unknown(self, session: str) -> None:
        view = await self._ctx.broker.find(self._tenant, DIALECT, session)
        if view is not None and view.ended_s is None:
            raise BadRequest(
                "an answer of this session is under way, resume or cancel it",
                reason="session_live",
            )

    async def _speak(self, ask: Ask, params: Mapping[str, Any], text: str) -> None:
        spec = self._spec(Kind.SPEECH, params, ask.voice_model, VOICE, text)
        self.speech = await self._submit(spec, [])
        pipe = PipeSpec(id=self._ctx.new_id(), source=text, target=spec.id, map="speak")
        self._carrier = await carry(self._ctx.hub, pipe)

    def _spec(self, kind: Kind, params: Any, model: str, dialect: str, name: str) -> JobSpec:
        """Without a name nobody can come back: then leaving is cancel."""
        return self._ctx.spec(
            kind,
            params,
            tenant=self._tenant,
            dialect=dialect,
            model=model,
            name=name if self._resumable else "",
            detach_s=None if self._resumable else 0.0,
        )

    async def _submit(self, spec: JobSpec, items: list[Any]) -> Attachment:
        self._stops.append(self._ctx.hub.listen(spec.id, self._hear))
        view = await self._ctx.broker.submit(spec, items, gateway=self._ctx.gateway_id)
        return await self._attach(view)

    async def _attach(self, view: JobView) -> Attachment:
        """Who holds the text job to write is the one connection of a resumable answer."""
        write = self._resumable and view.spec.kind is Kind.TEXT
        return await self._ctx.broker.attach(
            view.spec.id, gateway=self._ctx.gateway_id, write=write
        )

    # ---------------------------------------------------------------------- finding

    async def find(self) -> TurnEvent:
        """Find both jobs, see that what the client lacks is there, and hold them."""
        self._resumable = self.resumed = True
        try:
            text, speech = await self._found()
            await self._ctx.broker.read_after_mark(text.spec.id, "chars", self.back.chars, limit=1)
            if speech is not None:
                job = speech.spec.id
                await self._ctx.broker.read_after_mark(job, "units", self.back.units, limit=1)
            self.text = await self._hold(text)
            self.speech = None if speech is None else await self._hold(speech)
            await self._recall(text)
        except ForebayError as error:
            reason = str(error.details.get("reason", "unknown"))
            self._ctx.metrics.resume(reason)
            await self.leave()
            return NotStarted(error)
        self._ctx.metrics.resume("exact")
        now = self._ctx.clock()
        age_s = (now if text.ended_s is None else text.ended_s) - text.created_s
        return Started(voice=speech is not None, age_s=max(0.0, age_s))

    async def _found(self) -> tuple[JobView, JobView | None]:
        broker = self._ctx.broker
        text = await broker.find(self._tenant, DIALECT, self.back.session)
        if text is None:
            raise ResumeNotAvailable("no resumable answer of this session", reason="unknown")
        speech = await broker.find(self._tenant, VOICE, text.spec.id)
        kept_s = self._ctx.rows[Kind.SPEECH].after_end_s
        if speech is None and text.ended_s is not None:
            age_s = self._ctx.clock() - text.ended_s
            if age_s >= kept_s:  # whether it had a voice is no longer known
                raise ResumeNotAvailable(
                    f"the answer ended {age_s:.0f} s ago, expected no more than {kept_s:g}",
                    reason="window_expired",
                )
        return text, speech

    async def _hold(self, view: JobView) -> Attachment:
        self._stops.append(self._ctx.hub.listen(view.spec.id, self._hear))
        return await self._attach(view)

    async def _recall(self, view: JobView) -> None:
        """Tool calls made before what the client lacks belong to the answer as a whole."""
        at = view.first - 1
        while events := await self._ctx.broker.read_after(
            view.spec.id, at, epoch=view.epoch, limit=PAGE
        ):
            for event in events:
                if isinstance(event, TextDelta) and event.chars > self.back.chars:
                    return
                if isinstance(event, ToolCalls):
                    self.gathered.take(event)
            at = events[-1].offset

    # ----------------------------------------------------------------------- ending

    def close(self) -> None:
        """Stop reading. A pipe is carried on: its end is the end of what it carries."""
        for reader in self.readers:
            reader.close()
        for stop in self._stops:
            stop()
        self._stops.clear()

    async def leave(self) -> None:
        """This connection holds the jobs no more; a job nobody can come back to ends."""
        self.close()
        await self._ctx.hub.flush_delivered()
        for attachment in self._held():
            await self._detach(attachment)

    async def stop(self) -> None:
        """End both jobs. One that is over stays as it ended."""
        self.close()
        if self._carrier is not None:
            self._carrier.close()
        for attachment in self._held():
            await self._stop(attachment)

    def _held(self) -> list[Attachment]:
        held = [a for a in (self.text, self.speech) if a is not None]
        self.text = self.speech = None
        return held

    async def _stop(self, attachment: Attachment) -> None:
        try:
            await self._ctx.broker.cancel(attachment.job, reason=BY_CLIENT)
        except ForebayError as error:
            log.debug("chat.not_stopped", job=attachment.job, code=error.code)
        await self._detach(attachment)

    async def _detach(self, attachment: Attachment) -> None:
        try:
            await self._ctx.broker.detach(attachment)
        except ForebayError as error:
            log.debug("chat.not_detached", job=attachment.job, code=error.code)

"""Carries what a session wants done to the broker, the socket and the timers.

A `Hold` is one connection's hold on one session. Intents come through `take`, which returns
when everything they ask for has been done; facts come from callbacks through `tell`, which
never waits: what is quick is done at once and the rest in the hub's task group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import structlog

from forebay.broker import (
    Attachment,
    GatewayPush,
    InputAck,
    LeasePush,
    OutputPush,
    PlacePush,
    SupersededPush,
)
from forebay.core.events import Audio, Ended, InputItem, OutputEvent
from forebay.core.intents import (
    Answer,
    Append,
    Attach,
    Attached,
    Begun,
    CancelJob,
    Cancelled,
    Close,
    Deliver,
    Detach,
    Effect,
    Event,
    ExpireJob,
    Failed,
    Feed,
    Found,
    From,
    Gone,
    Hear,
    Idle,
    Lookup,
    Lost,
    NotBegun,
    Over,
    Refuse,
    Slow,
    Started,
    StopDelivery,
    Stored,
    Submit,
    Superseded,
    Tick,
    Took,
    Unread,
    together,
)
from forebay.core.kinds import Kind
from forebay.core.lease import SECOND_LOOK_S
from forebay.core.session import Phase, Session
from forebay.core.spec import BY_CLIENT, JobView, QueuePlace
from forebay.dialects import About, Frame, Leave, SessionDialect, error_of
from forebay.errors import (
    BadRequest,
    Fenced,
    ForebayError,
    NotFound,
    ResumeNotAvailable,
    SlowClient,
    StateLost,
    StoreDown,
)
from forebay.gateway.beside import goes_beside, set_beside
from forebay.gateway.context import GatewayContext
from forebay.gateway.hub import AudioPace, Reader
from forebay.gateway.idle import IdleLife, has_more
from forebay.gateway.notices import Notices
from forebay.gateway.reader import patient
from forebay.gateway.wire import Wire

__all__ = ["AppendNow", "Hold"]

log = structlog.get_logger(__name__)

LATE_S = 0.05
"""A timer later than this means that this process had no processor meanwhile."""

Fact = Event | None
AppendNow = Callable[..., InputAck]
"""`LocalBroker.append_now`."""


class Hold:
    """One session of one connection. ``state`` gives the dialect's newest connection state."""

    __slots__ = (
        "_about",
        "_attachment",
        "_ctx",
        "_delivery",
        "_dialect",
        "_first_text_at",
        "_fresh",
        "_idle_life",
        "_looks_again",
        "_meter",
        "_model",
        "_notices",
        "_promised",
        "_reader",
        "_row",
        "_state",
        "_tenant",
        "_timer",
        "_timer_at",
        "_unlisten",
        "_view",
        "_wire",
        "full",
        "session",
    )

    def __init__(
        self,
        ctx: GatewayContext,
        session: Session,
        dialect: SessionDialect,
        wire: Wire,
        *,
        params: Any,
        tenant: str,
        model: str = "",
        promised: bool = False,
        limited: bool = False,
        state: Callable[[], Any],
    ) -> None:
        self.session = session
        self.full = False  # input is over its bound: await `room` before feeding more
        self._ctx = ctx
        self._dialect = dialect
        self._wire = wire
        self._row = patient(ctx.rows[dialect.kind])
        self._about = About(session=session.name, params=params, age_s=self._age_s)
        self._tenant = tenant
        self._model = model
        self._promised = promised
        self._state = state
        counts = limited and dialect.kind is Kind.RECOGNITION
        self._meter = ctx.audio.meter(tenant) if counts else None
        self._attachment: Attachment | None = None
        self._view: JobView | None = None
        self._reader: Reader | None = None
        self._delivery = 0  # raised by everything that makes an unfinished `Deliver` void
        self._unlisten: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._looks_again = False
        self._first_text_at: float | None = None
        self._fresh = False
        self._notices = Notices(ctx, dialect.notice_gap_s, self._tell_place, dialect.kind)
        self._idle_life = IdleLife(ctx, session.idle_s, self._busy, self._idled)

    @property
    def idle(self) -> bool:
        """Nothing was said and nothing is being delivered: leaving now costs nothing."""
        return self._reader is None or (self.session.units == 0 and self._reader.cursor == 0)

    # -------------------------------------------------------------------- entrances

    async def open(self) -> None:
        """Begin: look the session up, submit or attach, answer the client."""
        self._idle_life.touch()
        await self._carry(self.session.open())

    async def take(self, event: Event) -> None:
        """Do all that ``event`` asks for. Cancelling this may leave the rest undone; the
        session itself stays whole, and `leave` cleans up."""
        self._idle_life.touch()
        if isinstance(event, Feed) and self._first_text_at is None and self._fresh:
            self._first_text_at = self._ctx.clock()
        await self._carry(self._receive(event))

    def take_at_once(
        self, chunks: Sequence[Hear], append_now: AppendNow, send_late: Callable[[Frame], None]
    ) -> bool:
        """As `take`, for sound that the store has room for and nothing speaks against. False:
        nothing was changed, `take` it. ``send_late``: how it is said that the sound has come."""
        session, attachment = self.session, self._attachment
        if self.full or attachment is None or not session.goes_on(chunks):
            return False
        (effect,) = self._receive(together(chunks))
        if type(effect) is not Append or any(map(goes_beside, effect.items)):
            return False
        try:
            if self._meter is not None:
                self._meter.ask(effect.items)
            ack = append_now(
                attachment.job,
                effect.items,
                attachment=attachment.number,
                client_pos=effect.pos,
                units=effect.units,
            )
        except ForebayError:
            return False
        self._idle_life.touch()
        for answer in self._receive(self._note_stored(attachment.job, effect, effect.items, ack)):
            if type(answer) is Answer and type(answer.what) is Took:
                for chunk in chunks:
                    for frame in self._dialect.answer(Took(chunk.seq), self._about):
                        send_late(frame)
            else:
                self._now(answer)
        return True

    async def leave(self) -> None:
        """The connection is closed, or goes to another session. Idempotent."""
        await self.take(Gone())
        await self._detach(Detach())

    def say_going_away(self, retry_after_ms: int) -> None:
        """Tell the client that its connection will be closed and its session goes on."""
        sent = self._reader.cursor if self._reader is not None else 0
        leave = Leave(units=self.session.units, offset=sent, retry_after_ms=retry_after_ms)
        self._send(self._dialect.going_away(self._state(), leave, self._about))

    def tell(self, fact: Event) -> None:
        """Take a fact from a callback, now."""
        later: list[Effect] = []
        for effect in self._receive(fact):
            if type(effect) in self._AWAITED:
                later.append(effect)
            else:
                self._now(effect)
        if later:
            self._ctx.hub.spawn(self._carry(later))

    async def room(self) -> None:
        """Return when the job takes input again. Losing this to a cancel costs nothing."""
        if self._attachment is not None:
            try:
                await self._ctx.broker.input_room(self._attachment.job)
            except NotFound:
                log.debug("input.gone", job=self._attachment.job)
        self.full = False

    # --------------------------------------------------------------------- machine

    def _receive(self, event: Event) -> Sequence[Effect]:
        effects = self.session.receive(event, self._ctx.clock())
        deadline = self.session.deadline
        if deadline != self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = (
                None if deadline is None else self._ctx.hub.call_at(deadline, self._ticked)
            )
        return effects

    async def _busy(self) -> bool:
        view = self._view
        return view is None or await has_more(self._ctx.broker, view.spec.id, self._row.counter)

    def _idled(self, for_s: float) -> None:
        self.tell(Idle(for_s))

    def _ticked(self) -> None:
        clock, due = self._ctx.clock, self._timer_at
        if due is not None and clock() > due + LATE_S and not self._looks_again:
            # This process stood still. What the client said meanwhile is read before anybody
            # concludes that it said nothing.
            self._looks_again = True
            self._timer = self._ctx.hub.call_at(clock() + SECOND_LOOK_S, self._ticked)
            return
        self._looks_again = False
        self._timer = self._timer_at = None
        self.tell(Tick())

    async def _carry(self, effects: Sequence[Effect]) -> None:
        ending = self.session.phase is Phase.CLOSED
        for effect in effects:
            if not ending and self.session.phase is Phase.CLOSED:
                return  # closed meanwhile: what was still to be done is void
            work = self._AWAITED.get(type(effect))
            if work is None:
                self._now(effect)
                continue
            fact = await self._guarded(work, effect)
            if fact is not None:
                await self._carry(self._receive(fact))

    async def _guarded(self, work: Callable[[Any, Any], Awaitable[Fact]], effect: Effect) -> Fact:
        try:
            return await work(self, effect)
        except Fenced:
            number = self._attachment.number if self._attachment is not None else None
            return Superseded(number or 0)
        except StoreDown as error:
            if self._attachment is None:
                return Refuse(error)
            # Whether the last write landed is not known. Whoever comes back is told exactly
            # what is stored, and the new attachment fences what may still be on its way.
            log.info("session.sent_away", reason=error.code)
            self._wire.close(1012, f"store down, retry_after_ms={self._ctx.retry_after_ms() + 500}")
            return None
        except ForebayError as error:
            return Refuse(error)
        except Exception as error:  # noqa: BLE001 - the supervised boundary of one session
            log.error("session.failed", error=type(error).__name__, exc_info=error)
            return Refuse(ForebayError("the gateway failed, this session cannot go on"))

    def _now(self, effect: Effect) -> None:
        match effect:
            case Answer(what):
                if isinstance(what, Failed):
                    self._count(what.error)
                self._send(self._dialect.answer(what, self._about))
                if isinstance(what, Started):
                    self._note_start(what)
            case StopDelivery():
                self._stop_reader()
            case Close(code, reason):
                self._wire.close(code, reason)

    def _send(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            self._wire.send(frame)

    def _tell_place(self, place: QueuePlace | None) -> None:
        about = self._about
        if place is not None and self._view is not None:
            pool = self._view.spec.pool
            waiting = [p.queued for p in self._ctx.broker.pools() if p.name == pool]
            about = replace(about, pending=sum(waiting))
        self._send(self._dialect.place(self._state(), place, about))

    def _age_s(self) -> float:
        """How old the job is, or became."""
        view = self._view
        if view is None:
            return 0.0
        until = self._ctx.clock() if view.ended_s is None else view.ended_s
        return max(0.0, until - view.created_s)

    def _note_start(self, what: Started) -> None:
        self._fresh = what.fresh
        if what.fresh and self._dialect.kind is Kind.SPEECH:
            self._ctx.metrics.session_started()

    def _count(self, error: ForebayError) -> None:
        if isinstance(error, ResumeNotAvailable):
            self._ctx.metrics.resume(str(error.details.get("reason", "unknown")))
        self._ctx.metrics.error(self._dialect.word(error))

    # ------------------------------------------------------------- broker, by effect

    async def _lookup(self, effect: Lookup) -> Fact:
        found = await self._ctx.broker.find(self._tenant, self._dialect.name, self.session.name)
        return Found(found)

    async def _submit(self, effect: Submit) -> Fact:
        if self._meter is not None:
            await self._meter.admit()
        promised, self._promised = self._promised, False
        spec = self._ctx.spec(
            self._dialect.kind,
            effect.params,
            tenant=self._tenant,
            dialect=self._dialect.name,
            name=self.session.name,
            model=self._model,
            promised=promised,
        )
        view = await self._ctx.broker.submit(spec, gateway=self._ctx.gateway_id, promised=promised)
        return await self._attach(Attach(view.spec.id))

    async def _attach(self, effect: Attach) -> Fact:
        hub = self._ctx.hub
        early: list[int] = []  # who was superseded while our own number was on its way here

        def note(push: GatewayPush) -> None:
            if isinstance(push, SupersededPush):
                early.append(push.number)

        stop = hub.listen(effect.job, note)
        try:
            attachment = await self._ctx.broker.attach(
                effect.job, gateway=self._ctx.gateway_id, write=True
            )
        finally:
            stop()
        self._attachment = attachment
        self._view = attachment.view
        if self._meter is not None:
            self._meter.attached(attachment.view)
        self._unlisten = hub.listen(effect.job, self._hear)
        if attachment.number in early:  # once the session knows its number
            asyncio.get_running_loop().call_soon(self.tell, Superseded(attachment.number or 0))
        if self._ctx.scribe is not None and self._dialect.kind is Kind.RECOGNITION:
            self._ctx.scribe.began(attachment.view)
        return Attached(attachment.view, attachment.number or 0)

    async def _append(self, effect: Append) -> Fact:
        attachment = self._attachment
        if attachment is None or attachment.number is None:
            raise StateLost("no job is held")
        if self._meter is not None:
            self._meter.ask(effect.items)
        items: Sequence[InputItem] = effect.items
        if any(map(goes_beside, items)):
            blobs, tenant = self._ctx.blobs, self._tenant
            items = [await set_beside(blobs, item, tenant) for item in items]
        try:
            ack = await self._ctx.broker.append(
                attachment.job,
                items,
                attachment=attachment.number,
                client_pos=effect.pos,
                units=effect.units,
            )
        except BadRequest:
            view = await self._ctx.broker.status(attachment.job)
            if view.ended_s is None:
                raise
            return None  # the job ended while this was on its way; its end is what they hear
        return self._note_stored(attachment.job, effect, items, ack)

    def _note_stored(
        self, job: str, effect: Append, items: Sequence[InputItem], ack: InputAck
    ) -> Stored:
        self.full = ack.over
        if not ack.repeats:
            if self._meter is not None:
                self._meter.stored(effect.items)
            if self._ctx.scribe is not None:
                self._ctx.scribe.heard(job, effect.items, items)
        return Stored(ack.units, effect.tell)

    async def _deliver(self, effect: Deliver) -> Fact:
        view = self._view
        if view is None:
            raise StateLost("no job is held")
        self._delivery += 1
        mine = self._delivery
        after: int | None = 0
        mark: tuple[str, int] | None = None
        job = view.spec.id
        try:
            if effect.start is From.DELIVERED:
                await self._ctx.hub.flush_delivered()
                now = await self._ctx.broker.status(job)
                after = now.delivered
                if now.ended_s is not None:  # its end is told again to whoever asks
                    after = max(0, min(after, now.head - 1))
            elif effect.start is From.AFTER:
                after = effect.value
                await self._ctx.broker.read_after(job, after, epoch=view.epoch, limit=1)
            elif effect.start is From.MARK:
                after, mark = None, (self._row.counter, effect.value)
                await self._ctx.broker.read_after_mark(job, *mark, limit=1)
        except ResumeNotAvailable as error:
            return NotBegun(error) if mine == self._delivery else None
        if mine != self._delivery:
            return None
        if effect.start is not From.START:
            self._ctx.metrics.resume("exact" if mark else "delivered")
        self._open_reader(view, after, mark, effect.value if mark else 0)
        return Begun()

    async def _cancel(self, effect: CancelJob) -> Fact:
        if self._view is not None:
            try:
                await self._ctx.broker.cancel(self._view.spec.id, reason=BY_CLIENT)
            except NotFound:
                return Cancelled()
        return Cancelled()

    async def _expire(self, effect: ExpireJob) -> Fact:
        if self._view is not None:
            error = effect.error
            if isinstance(error, SlowClient):
                self._ctx.metrics.slow_client()
            await self._ctx.broker.expire(
                self._view.spec.id,
                Ended(state="failed", code=error.code, message=error.message, retryable=True),
            )
        return None

    async def _detach(self, effect: Detach) -> Fact:
        attachment, self._attachment = self._attachment, None
        self._notices.stop()
        self._idle_life.stop()
        if self._unlisten is not None:
            self._unlisten()
            self._unlisten = None
        if attachment is not None:
            await self._ctx.hub.flush_delivered()
            try:
                await self._ctx.broker.detach(attachment)
            except StoreDown as error:  # the next attachment, or its time, ends this one
                log.info("session.not_detached", job=attachment.job, code=error.code)
        return None

    _AWAITED: ClassVar[dict[type, Callable[[Any, Any], Awaitable[Fact]]]] = {
        Lookup: _lookup,
        Submit: _submit,
        Attach: _attach,
        Append: _append,
        Deliver: _deliver,
        CancelJob: _cancel,
        ExpireJob: _expire,
        Detach: _detach,
    }

    # -------------------------------------------------------------------- delivery

    def _open_reader(
        self, view: JobView, after: int | None, mark: tuple[str, int] | None, have: int
    ) -> None:
        old, self._reader = self._reader, None
        if old is not None:
            old.close()
        about, dialect = self._about, self._dialect
        pace: AudioPace | None = None
        if self._row.pace_s is not None:
            pace = AudioPace(self._row.pace_s, int(about.params.get("sample_rate", 16000)))

        def encode(event: OutputEvent) -> Sequence[Frame]:
            return dialect.encode(event, about, have=have)

        self._reader = self._ctx.hub.open(
            view.spec.id,
            epoch=view.epoch,
            after=after,
            mark=mark,
            encode=encode,
            wire=self._wire,
            row=self._row,
            pace=pace,
            on_end=self._on_end,
            on_slow=lambda _: self.tell(Slow(self._row.slow_reader_s, self._row.slow_reader_s)),
            on_reset=lambda error: self.tell(Lost(error)),
            on_sent=self._on_sent,
        )

    def _stop_reader(self) -> None:
        self._delivery += 1
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _on_end(self, event: Ended) -> None:
        if event.state in ("failed", "expired"):
            self._ctx.metrics.error(self._dialect.word(error_of(event)))
        self._notices.ended(event)
        self.tell(Over())

    def _on_sent(self, event: OutputEvent) -> None:
        self._idle_life.touch()
        if self._first_text_at is not None and isinstance(event, Audio):
            self._ctx.metrics.ttfa(self._ctx.clock() - self._first_text_at)
            self._first_text_at = None
            self._fresh = False

    def _hear(self, push: GatewayPush) -> None:
        if isinstance(push, OutputPush):  # nearly all of them
            if self._meter is not None:
                refusal = self._meter.hear(push.events)
                if refusal is not None:
                    self.tell(Refuse(refusal))
            if push.events and isinstance(push.events[-1], Ended):
                self.tell(Unread())
            return
        match push:
            case SupersededPush():
                self.tell(Superseded(push.number))
            case PlacePush():
                self._notices.waits(push.place)
            case LeasePush() if push.running:
                self._notices.begun()

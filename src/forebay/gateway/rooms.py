"""Rooms, as everybody in this gateway uses them: who may write, who reads, what is counted."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import structlog

from forebay.broker.rooms import RoomBroker
from forebay.core.events import Caption, OutputEvent
from forebay.core.kinds import Kind, Row, row
from forebay.core.pace import WriterPace
from forebay.core.room import Member, RoomAnswer, RoomSpec, RoomView, room_id
from forebay.dialects.captions import Message, Posted
from forebay.errors import (
    ForebayError,
    NotFound,
    QuotaExceeded,
    ResumeNotAvailable,
    Unauthorized,
)
from forebay.gateway.crowd import Counts, Crowd, Seat
from forebay.gateway.hub import Hub
from forebay.gateway.passphrases import Passphrases
from forebay.gateway.showing import Showing

__all__ = [
    "Answer",
    "Place",
    "RoomOptions",
    "Rooms",
    "read_ticket",
    "ticket_tenant",
    "view_ticket",
]

LINGER_S = 5.0
"""A room stays watched for so long after its last reader has left."""
FRESH_S = 1.0
"""A sender's proof is held against the room's own record again after so long."""
WRITERS = 10_000

Answer = RoomAnswer | ForebayError | str

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomOptions:
    """Limits and manners of rooms. ``per_s``, ``burst``: finals of one writer;
    ``previews_per_s``: likewise, past it a preview is dropped. ``persist``: rooms outlive the
    process unless their first message says otherwise. ``private``: reading needs the
    passphrase too. ``frame_ancestors``: pages that may frame a display. ``google_fonts``:
    displays may load fonts from Google. ``ticket_s``: life of a link for viewing."""

    per_s: float = 10.0
    burst: int = 128
    previews_per_s: float = 20.0
    persist: bool = True
    private: bool = False
    frame_ancestors: tuple[str, ...] = ()
    google_fonts: bool = False
    ticket_s: float = 24 * 3600.0


@dataclass(slots=True)
class Place:
    """Where a reader begins: sit down in ``crowd`` after ``after``, without awaiting between
    the answer that says so and sitting down. ``recovered``: it is where the reader asked."""

    crowd: Crowd
    epoch: str
    after: int
    recovered: bool


class Rooms:
    """The rooms of one gateway. ``wall``: seconds since 1970."""

    def __init__(
        self,
        broker: RoomBroker,
        hub: Hub,
        gateway_id: str,
        options: RoomOptions,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        room_row: Row | None = None,
    ) -> None:
        self.broker = broker
        self.options = options
        self.counts = Counts()
        self.showing = Showing(hub, broker)
        self.published = 0
        self.held = 0
        self.repeats = 0
        self.refused = 0
        self._hub = hub
        self._gateway = gateway_id
        self._clock, self._wall = clock, wall
        self._row = row(Kind.ROOM) if room_row is None else room_row
        self._passphrases = Passphrases(clock)
        self._fresh: OrderedDict[str, tuple[RoomView, float]] = OrderedDict()
        self._making: dict[str, asyncio.Lock] = {}
        self._paces: OrderedDict[tuple[str, str, bool], WriterPace] = OrderedDict()
        self._crowds: dict[str, _Watched] = {}

    def now_ms(self) -> int:
        return int(self._wall() * 1000)

    def readers(self) -> int:
        """How many read a room here now."""
        return sum(len(watched.crowd) for watched in self._crowds.values())

    def rooms_read(self) -> int:
        return len(self._crowds)

    # --------------------------------------------------------------------- passphrases

    async def _view(self, room: str) -> RoomView:
        """The room, seen at most `FRESH_S` ago. Raises `NotFound`."""
        found = self._fresh.get(room)
        now = self._clock()
        if found is not None and found[1] > now:
            return found[0]
        view = await self.broker.room(room)
        self._fresh[room] = (view, now + FRESH_S)
        self._fresh.move_to_end(room)
        if len(self._fresh) > WRITERS:
            self._fresh.popitem(last=False)
        return view

    async def admit(self, tenant: str, name: str, passphrase: str, persist: bool | None) -> str:
        """The room's id, if this is its passphrase; a room that is not there is made with it.
        Raises `Unauthorized`, `QuotaExceeded`, `StoreFull`."""
        room = room_id(tenant, name)
        try:
            view = await self._view(room)
        except NotFound:
            view = None
        if view is None or not view.spec.secret:
            view = await self._make(room, tenant, name, passphrase, persist)
        await self._passphrases.check(passphrase, view.spec.secret)
        return room

    async def _make(
        self, room: str, tenant: str, name: str, passphrase: str, persist: bool | None
    ) -> RoomView:
        """Make the room, once for all who want to at the same time."""
        lock = self._making.setdefault(room, asyncio.Lock())
        try:
            async with lock:
                try:
                    view = await self.broker.room(room)
                except NotFound:
                    view = None
                if view is None or not view.spec.secret:
                    spec = RoomSpec(
                        id=room,
                        tenant=tenant,
                        name=name,
                        secret=await self._passphrases.make(passphrase),
                        title=name,
                        persist=self.options.persist if persist is None else persist,
                        created_ms=self.now_ms(),
                    )
                    view = await self.broker.open_room(spec)
                    log.info("room.opened", persist=view.spec.persist)
        finally:
            self._making.pop(room, None)
        self._fresh[room] = (view, self._clock() + FRESH_S)
        return view

    def forget(self, room: str) -> None:
        """The room was dropped: look again before the next use."""
        self._fresh.pop(room, None)

    # ------------------------------------------------------------------------- writing

    async def post(self, tenant: str, posted: Posted, *, limited: bool) -> list[Answer]:
        """Take one post; one answer for each message. ``limited``: no sender may send faster
        than the options say. Raises what refuses all of it."""
        room = await self.admit(tenant, posted.room, posted.passphrase, posted.persist)
        try:
            return await self._post(room, posted, limited)
        except NotFound:  # dropped since it was last seen
            self._fresh.pop(room, None)
            room = await self.admit(tenant, posted.room, posted.passphrase, posted.persist)
            return await self._post(room, posted, limited)

    async def _post(self, room: str, posted: Posted, limited: bool) -> list[Answer]:
        answers: dict[int, Answer] = {}
        items, places = [], []
        refusal: ForebayError | None = None
        for index, message in enumerate(posted.messages):
            if message.error is not None:
                answers[index] = message.error
            elif message.preview:
                answers[index] = await self._preview(room, posted, message)
            elif limited and (refusal := refusal or self._over(room, posted, message)):
                answers[index] = refusal
            else:
                items.append(message.item(posted.client, posted.settled))
                places.append(index)
        if items:
            for index, answer in zip(places, await self.broker.publish(room, items), strict=True):
                answers[index] = answer
                self._count(answer)
        self.refused += sum(isinstance(answer, ForebayError) for answer in answers.values())
        return [answers[index] for index in range(len(posted.messages))]

    def _count(self, answer: RoomAnswer) -> None:
        if answer.result == "repeat":
            self.repeats += 1
        elif answer.result != "skipped":
            self.published += 1
            self.held += answer.result == "held"

    def _over(self, room: str, posted: Posted, message: Message) -> ForebayError | None:
        user = message.caption.user if message.caption else ""
        pace = self._pace(room, posted.client or user, preview=False)
        wait_s = pace.take(self._clock(), message.seq)
        if wait_s is None:
            return None
        return QuotaExceeded(
            f"more than {self.options.per_s:g} messages a second", retry_after_s=wait_s
        )

    def _pace(self, room: str, writer: str, *, preview: bool) -> WriterPace:
        key = (room, writer, preview)
        pace = self._paces.get(key)
        if pace is None:
            options = self.options
            rate = options.previews_per_s if preview else options.per_s
            burst = max(1, int(options.previews_per_s)) if preview else options.burst
            pace = self._paces[key] = WriterPace(rate, burst, self._clock())
            if len(self._paces) > WRITERS:
                self._paces.popitem(last=False)
        else:
            self._paces.move_to_end(key)
        return pace

    async def _preview(self, room: str, posted: Posted, message: Message) -> str:
        caption = message.caption
        assert caption is not None
        pace = self._pace(room, posted.client or caption.user, preview=True)
        if pace.take(self._clock()) is not None:
            return "dropped"
        await self.broker.preview(room, caption)
        return "preview"

    # ------------------------------------------------------------------------- reading

    async def may_read(self, tenant: str, name: str, passphrase: str) -> None:
        """Raises `Unauthorized` where reading is private and the passphrase is not right."""
        if not self.options.private:
            return
        try:
            view = await self._view(room_id(tenant, name))
        except NotFound:
            view = None
        if view is None or not view.spec.secret or not passphrase:
            raise Unauthorized("this room needs its passphrase", word="Invalid passphrase")
        await self._passphrases.check(passphrase, view.spec.secret)

    async def proven(self, tenant: str, name: str, passphrase: str) -> None:
        """Raises `Unauthorized` unless this is the passphrase of a room that is there."""
        view = await self._view(room_id(tenant, name))
        await self._passphrases.check(passphrase, view.spec.secret)

    async def history(self, tenant: str, name: str, limit: int) -> tuple[RoomView, list[Caption]]:
        """The newest ``limit`` captions, oldest first. Raises `NotFound`."""
        room = room_id(tenant, name)
        view = await self.broker.room(room)
        return view, await self.captions(room, max(view.first - 1, view.head - limit), limit)

    async def captions(self, room: str, after: int, limit: int) -> list[Caption]:
        events: list[OutputEvent] = []
        while len(events) < limit:
            page = await self.broker.read_room(
                room, after + len(events), limit=min(256, limit - len(events))
            )
            events += page
            if not page:
                break
        return [event for event in events if isinstance(event, Caption)]

    async def place(
        self, tenant: str, name: str, position: tuple[str, int] | None, *, oldest: bool = False
    ) -> Place:
        """Where a reader begins: at ``position`` (epoch, offset), at the oldest caption kept
        where that cannot be answered or where ``oldest`` asks for it, else at the head.

        A room that is not there is waited for. Give it back with `leave`."""
        room = room_id(tenant, name)
        watched = await self._watch(room, tenant, name)
        crowd = watched.crowd
        watched.guests += 1
        try:
            if position is None and not oldest:
                return Place(crowd, crowd.epoch, crowd.head, False)
            if position is not None and position[0] in ("", crowd.epoch):
                try:
                    await self.broker.read_room(room, position[1], epoch=crowd.epoch, limit=1)
                except ResumeNotAvailable as error:
                    log.debug("room.not_recovered", reason=error.details.get("reason"))
                else:
                    return Place(crowd, crowd.epoch, position[1], True)
            view = await self.broker.room(room)
            return Place(crowd, crowd.epoch, view.first - 1, position is None)
        except BaseException:
            self._guest_left(watched)
            raise

    def leave(self, place: Place, seat: Seat | None) -> None:
        """A reader is gone, whether or not it ever sat down."""
        if seat is not None:
            place.crowd.leave(seat)
        watched = self._crowds.get(place.crowd.room)
        if watched is not None and watched.crowd is place.crowd:  # not one that was lost
            self._guest_left(watched)

    def _guest_left(self, watched: _Watched) -> None:
        watched.guests -= 1
        if watched.guests == 0:
            when = self._hub.clock() + LINGER_S
            watched.timer = self._hub.call_at(when, lambda: self._unwatch(watched))

    async def _watch(self, room: str, tenant: str, name: str) -> _Watched:
        watched = self._crowds.get(room)
        if watched is not None and watched.crowd.lost:
            watched.stop()
            watched = None
        if watched is None:
            crowd = Crowd(self._hub, self.broker, room, self._row, self.counts, self.showing.wrote)
            watched = self._crowds[room] = _Watched(crowd)
            watched.stop = self._hub.listen(room, crowd.hear)
        if watched.timer is not None:
            watched.timer.cancel()
            watched.timer = None
        watched.guests += 1
        try:
            async with watched.turn:
                if not watched.known:
                    view = await self._seen(room, tenant, name)
                    watched.crowd.begin(view.epoch, view.head)
                    watched.known = True
        finally:
            self._guest_left(watched)
        return watched

    async def _seen(self, room: str, tenant: str, name: str) -> RoomView:
        try:
            return await self.broker.watch_room(room, self._gateway)
        except NotFound:
            spec = RoomSpec(id=room, tenant=tenant, name=name, title=name, created_ms=self.now_ms())
            await self.broker.open_room(spec)
            return await self.broker.watch_room(room, self._gateway)

    def _unwatch(self, watched: _Watched) -> None:
        room = watched.crowd.room
        if watched.guests == 0 and self._crowds.get(room) is watched:
            self._hub.spawn(self._give_back(watched))

    async def _give_back(self, watched: _Watched) -> None:
        room = watched.crowd.room
        async with watched.turn:
            if watched.guests:
                return
            watched.known = False
            try:
                await self.broker.unwatch_room(room, self._gateway)
            except ForebayError as error:
                log.warning("room.not_unwatched", code=error.code)
            if not watched.guests:
                watched.stop()
                if self._crowds.get(room) is watched:
                    del self._crowds[room]

    # ------------------------------------------------------------------------ presence

    async def join(self, tenant: str, name: str, member: Member) -> None:
        member = msgspec.structs.replace(member, gateway=self._gateway, since_ms=self.now_ms())
        await self.broker.join_room(room_id(tenant, name), member)

    async def part(self, tenant: str, name: str, member: str) -> None:
        try:
            await self.broker.leave_room(room_id(tenant, name), member)
        except ForebayError as error:
            log.debug("room.not_parted", code=error.code)

    async def members(self, tenant: str, name: str) -> Sequence[Member]:
        return await self.broker.room_members(room_id(tenant, name))


class _Watched:
    """A crowd and how many need it: seated, or about to be."""

    __slots__ = ("crowd", "guests", "known", "stop", "timer", "turn")

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.guests = 0
        self.known = False
        self.turn = asyncio.Lock()
        self.timer: asyncio.TimerHandle | None = None
        self.stop: Callable[[], None] = lambda: None


# ---------------------------------------------------------------------- links for viewing


def view_ticket(view: RoomView, until_s: float) -> str:
    """What a link carries that lets its holder read this room until then. It is signed with
    the room's own secret, so it is good in every gateway and ends with the room."""
    stem = f"v1.{view.spec.tenant}.{int(until_s):x}"
    return f"{stem}.{_sign(view, stem)}"


def _sign(view: RoomView, stem: str) -> str:
    text = f"{stem}\0{view.spec.id}".encode()
    return hmac.new(view.spec.secret.encode(), text, hashlib.sha256).hexdigest()[:40]


def ticket_tenant(ticket: str) -> str:
    """The tenant a ticket names; it proves nothing yet. Raises `Unauthorized`."""
    parts = ticket.split(".")
    if len(parts) != 4 or parts[0] != "v1":
        raise Unauthorized("this link for viewing is malformed")
    return parts[1]


def read_ticket(ticket: str, view: RoomView, now_s: float) -> None:
    """Raises `Unauthorized` unless ``ticket`` lets its holder read this room now."""
    stem, _, signed = ticket.rpartition(".")
    good = view.spec.secret != "" and hmac.compare_digest(signed, _sign(view, stem))
    try:
        until_s = int(stem.rpartition(".")[2], 16)
    except ValueError:
        until_s = 0
    if not good or until_s <= now_s:
        raise Unauthorized("this link for viewing is not valid, or not any more")

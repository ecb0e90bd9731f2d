"""`RoomBroker` in plain structures, beside the jobs of LocalBroker.

Every call does its work at once in the event loop; cancelling one loses nothing. What must
happen later (a hold that runs out, an old room that nobody needs) hangs on the broker's timers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog

from forebay.broker import GatewayPush, OutputPush
from forebay.broker.journal_rooms import RoomJournal, SavedRoom
from forebay.broker.local_base import Base
from forebay.broker.rooms import GonePush, PreviewPush, RoomSettings
from forebay.broker.timers import Timer
from forebay.core.events import Caption, OutputEvent
from forebay.core.room import (
    HISTORY_ITEMS,
    Member,
    Plan,
    Room,
    RoomAnswer,
    RoomItem,
    RoomSpec,
    RoomView,
)
from forebay.errors import ForebayError, NotFound, ResumeNotAvailable, StoreFull

__all__ = ["LocalRooms"]

REAP_S = 600.0
"""Old captions and rooms that nobody needs are looked for so often, while there are rooms."""
BACK_S = 2.0
"""After a restart what is held waits so much longer: its senders have to find us again."""
RETRY_S = 1.0
"""Held messages that the journal could not take are tried again after so long."""

log = structlog.get_logger(__name__)


class _Record:
    """A room, who watches it, its next timer, and what the journal has of it."""

    __slots__ = ("bytes", "gateways", "room", "saved", "timer", "trimmed")

    def __init__(self, room: Room) -> None:
        self.room = room
        self.gateways: set[str] = set()
        self.timer: Timer | None = None
        self.bytes = 0
        self.trimmed = 0  # last offset that the journal may still have and we have not
        self.saved = set(room.writers)


class LocalRooms:
    """The rooms of one process. ``base``: the broker's clock, timers, gateways and journal."""

    def __init__(self, base: Base, settings: RoomSettings) -> None:
        self._base = base
        self._settings = settings
        self._wall: Callable[[], float] = base.journal.wall if base.journal else time.time
        self._rooms: dict[str, _Record] = {}
        self._bytes = 0
        self._reaper: Timer | None = None
        self._journal = RoomJournal(base.journal) if base.journal else None
        if self._journal is not None:
            for saved in self._journal.load():
                self._restore(saved)

    def _now_ms(self) -> int:
        return int(self._wall() * 1000)

    def _record(self, room: str) -> _Record:
        record = self._rooms.get(room)
        if record is None:
            raise NotFound("no such room")
        return record

    # ------------------------------------------------------------------------ rooms

    async def open_room(self, spec: RoomSpec) -> RoomView:
        record = self._rooms.get(spec.id)
        if record is not None:
            if spec.secret and not record.room.spec.secret:
                self._claim(record, spec)
            return record.room.view()
        limit = self._settings.rooms if spec.secret else max(1, self._settings.rooms // 2)
        if len(self._rooms) >= limit or self._bytes > self._settings.store_bytes:
            self.reap()
        if len(self._rooms) >= limit:
            raise StoreFull(
                f"there are {len(self._rooms)} rooms, expected no more than {limit}",
                retry_after_s=10.0,
            )
        self._refuse_over(self._settings.store_bytes)
        room = Room(spec, self._base.ids())
        if self._journal is not None and spec.persist:
            self._journal.made(spec, room.log.epoch)
        self._add(room)
        return room.view()

    def _claim(self, record: _Record, spec: RoomSpec) -> None:
        """A room that somebody waited to read gets its secret; it was never written to."""
        if self._journal is not None and spec.persist:
            self._journal.made(spec, record.room.log.epoch)
        record.room.spec = spec
        record.room.active_ms = spec.created_ms

    def _add(self, room: Room) -> _Record:
        record = self._rooms[room.spec.id] = _Record(room)
        self._account(record)
        if self._reaper is None:
            self._reaper = self._base.timers.at(self._base.clock() + REAP_S, self._reap_again)
        return record

    def _refuse_over(self, limit: int) -> None:
        if self._bytes > limit:
            raise StoreFull(
                f"rooms hold {self._bytes} bytes, expected no more than {limit}", retry_after_s=10.0
            )

    def _account(self, record: _Record) -> None:
        size = record.room.log.bytes
        self._bytes += size - record.bytes
        record.bytes = size

    async def room(self, room: str) -> RoomView:
        return self._record(room).room.view()

    async def list_rooms(self, tenant: str | None, *, limit: int = 200) -> list[RoomView]:
        views = [
            record.room.view()
            for record in self._rooms.values()
            if tenant is None or record.room.spec.tenant == tenant
        ]
        views.sort(key=lambda view: view.active_ms, reverse=True)
        return views[:limit]

    async def drop_room(self, room: str) -> None:
        record = self._rooms.get(room)
        if record is not None:
            self._drop(record)

    def _drop(self, record: _Record) -> None:
        room = record.room
        if self._journal is not None and room.spec.persist:
            self._journal.dropped(room.spec.id)
        del self._rooms[room.spec.id]
        self._bytes -= record.bytes
        if record.timer is not None:
            record.timer.cancel()
        self._tell(record, GonePush(job=room.spec.id, epoch=room.log.epoch))

    # ---------------------------------------------------------------------- writing

    async def publish(self, room: str, items: Sequence[RoomItem]) -> list[RoomAnswer]:
        record = self._record(room)
        if not record.room.spec.secret:
            raise NotFound("nobody has made this room yet")
        plan = record.room.plan(items, self._base.clock())
        if not plan.empty:
            self._refuse_over(2 * self._settings.store_bytes)
            self._carry_out(record, plan)
        return plan.answers

    def _carry_out(self, record: _Record, plan: Plan) -> None:
        """The journal first, then the room, then whoever watches."""
        room, now_ms = record.room, self._now_ms()
        if self._journal is not None and room.spec.persist:
            record.saved.update(plan.writers)
            forgotten = record.saved - plan.writers.keys() - room.writers.keys()
            self._journal.published(
                room.spec.id,
                plan.events,
                plan.writers,
                head=room.log.head + len(plan.events),
                active_ms=max(now_ms, room.active_ms),
                trimmed=record.trimmed,
                forgotten=forgotten,
            )
            record.saved -= forgotten
            record.trimmed = 0
        room.take(plan, now_ms)
        record.trimmed = max(record.trimmed, room.trim(now_ms))
        self._account(record)
        self._arm(record)
        if plan.events:
            self._tell(
                record,
                OutputPush(job=room.spec.id, epoch=room.log.epoch, events=plan.events),
            )

    def _arm(self, record: _Record) -> None:
        due = record.room.deadline
        if record.timer is not None:
            if due is not None and record.timer.call is not None and record.timer.when <= due:
                return  # it looks again by itself
            record.timer.cancel()
            record.timer = None
        if due is not None:
            record.timer = self._base.timers.at(due, lambda: self._overdue(record))

    def _overdue(self, record: _Record) -> None:
        record.timer = None
        plan = record.room.overdue(self._base.clock())
        if plan.empty:
            self._arm(record)
            return
        try:
            self._carry_out(record, plan)
        except StoreFull as error:
            log.error("room.release_not_written", room=record.room.spec.id, reason=error.message)
            again = self._base.clock() + RETRY_S
            record.timer = self._base.timers.at(again, lambda: self._overdue(record))

    async def preview(self, room: str, caption: Caption) -> None:
        record = self._record(room)
        self._tell(record, PreviewPush(job=room, caption=caption))

    def _tell(self, record: _Record, push: GatewayPush) -> None:
        for gateway in tuple(record.gateways):
            sink = self._base.gateways.get(gateway)
            if sink is not None:
                sink(push)

    # ---------------------------------------------------------------------- reading

    async def read_room(
        self, room: str, offset: int, *, epoch: str | None = None, limit: int = 256
    ) -> list[OutputEvent]:
        record = self._rooms.get(room)
        if record is None:
            raise ResumeNotAvailable("no such room", reason="unknown")
        stream = record.room.log
        if epoch is not None and epoch != stream.epoch:
            raise ResumeNotAvailable("the room was lost and begun anew", reason="state_lost")
        return stream.after(offset, limit)

    async def watch_room(self, room: str, gateway: str) -> RoomView:
        record = self._record(room)
        record.gateways.add(gateway)
        return record.room.view()

    async def unwatch_room(self, room: str, gateway: str) -> None:
        record = self._rooms.get(room)
        if record is None:
            return
        record.gateways.discard(gateway)
        if not record.gateways and not record.room.spec.secret:
            self._drop(record)

    # --------------------------------------------------------------------- presence

    async def join_room(self, room: str, member: Member) -> None:
        members = self._record(room).room.members
        if member.id in members or len(members) < self._settings.members:
            members[member.id] = member

    async def leave_room(self, room: str, member: str) -> None:
        record = self._rooms.get(room)
        if record is not None:
            record.room.members.pop(member, None)

    async def room_members(self, room: str, *, limit: int = 1000) -> list[Member]:
        return list(self._record(room).room.members.values())[:limit]

    # ------------------------------------------------------------ restart and reaping

    def _restore(self, saved: SavedRoom) -> None:
        now = self._base.clock()
        for writer in saved.writers.values():
            writer.since = dict.fromkeys(writer.held, now + BACK_S)
        room = Room(
            saved.spec,
            saved.epoch,
            last_offset=saved.head,
            events=saved.events[-HISTORY_ITEMS:],
            writers=saved.writers,
            active_ms=saved.active_ms,
        )
        record = self._add(room)
        record.trimmed = max(room.log.first - 1, room.trim(self._now_ms()))
        self._account(record)
        self._arm(record)

    def _reap_again(self) -> None:
        self._reaper = None
        self.reap()
        if self._rooms:
            self._reaper = self._base.timers.at(self._base.clock() + REAP_S, self._reap_again)

    def reap(self) -> None:
        """Let go of captions past their age, and of rooms that nobody needs any more."""
        now_ms = self._now_ms()
        for record in tuple(self._rooms.values()):
            record.trimmed = max(record.trimmed, record.room.trim(now_ms))
            self._account(record)
            try:
                if record.room.idle(now_ms):
                    self._drop(record)
            except ForebayError as error:
                log.error("room.not_reaped", room=record.room.spec.id, reason=error.message)

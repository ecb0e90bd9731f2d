"""`RoomBroker` on Redis.

`core.room` decides here, in the gateway that asks, on the state of the writers it has just
loaded; the store takes the decision only if nobody wrote to the room meanwhile, otherwise it is
made again on the newer state. So the rules of rooms exist once, and every batch is one step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog

from forebay.broker.redis_client import Store
from forebay.broker.redis_follow import Follower
from forebay.broker.redis_wire import decoder, encode
from forebay.broker.rooms import RoomSettings
from forebay.core.events import Caption, OutputEvent, size_of
from forebay.core.room import (
    Member,
    Plan,
    Room,
    RoomAnswer,
    RoomItem,
    RoomSpec,
    RoomView,
    Writer,
)
from forebay.errors import ForebayError, NotFound, ResumeNotAvailable, StoreDown, StoreFull

__all__ = ["RedisRooms"]

TRIES = 20
"""Decisions made again because somebody else wrote first, before giving up."""

log = structlog.get_logger(__name__)


class _View(msgspec.Struct, array_like=True, frozen=True):
    spec: RoomSpec
    epoch: str
    head: int
    first: int
    writers: int
    held: int
    members: int
    bytes: int
    active_ms: int

    def view(self) -> RoomView:
        return RoomView(**msgspec.structs.asdict(self))


class _Loaded(msgspec.Struct, array_like=True, frozen=True):
    spec: RoomSpec
    made: bool
    epoch: str
    head: int
    version: int
    now_s: float
    writers: dict[str, Writer]
    names: dict[str, int]

    def room(self) -> Room:
        return Room(
            self.spec,
            self.epoch,
            last_offset=self.head,
            writers=self.writers,
            names=self.names,
        )


_view = decoder(_View)
_views = decoder(list[_View])
_loaded = decoder(_Loaded)
_taken = decoder(bool)
_events = decoder(list[OutputEvent])
_members = decoder(list[Member])


class RedisRooms:
    """The rooms of the shard. ``ids``: 128 random bits in hex."""

    def __init__(
        self, store: Store, follower: Follower, settings: RoomSettings, ids: Callable[[], str]
    ) -> None:
        self._store = store
        self._follower = follower
        self._settings = settings
        self._ids = ids

    async def _ask(self, op: str, room: str, *blobs: bytes, **more: Any) -> Any:
        return await self._store.call(f"room_{op}", {"room": room, **more}, *blobs, again=True)

    # ------------------------------------------------------------------------ rooms

    async def open_room(self, spec: RoomSpec) -> RoomView:
        try:
            answer = await self._ask(
                "open",
                spec.id,
                encode(spec),
                secret=bool(spec.secret),
                active=spec.created_ms,
                epoch=self._ids(),
                limit=self._settings.rooms,
                store=self._settings.store_bytes,
            )
        except StoreFull as error:
            raise StoreFull(error.message, retry_after_s=10.0) from None
        view: RoomView = _view(answer).view()
        return view

    async def room(self, room: str) -> RoomView:
        view: RoomView = _view(await self._ask("view", room)).view()
        return view

    async def list_rooms(self, tenant: str | None, *, limit: int = 200) -> list[RoomView]:
        more = {} if tenant is None else {"tenant": tenant}
        return [view.view() for view in _views(await self._ask("list", "", limit=limit, **more))]

    async def drop_room(self, room: str) -> None:
        await self._ask("drop", room)

    # ---------------------------------------------------------------------- writing

    async def publish(self, room: str, items: Sequence[RoomItem]) -> list[RoomAnswer]:
        clients = sorted({item.client for item in items if item.seq})
        names = sorted({item.client for item in items if item.client and not item.seq})

        def decide(loaded: _Loaded) -> Plan:
            if not loaded.made:
                raise NotFound("nobody has made this room yet")
            return loaded.room().plan(items, loaded.now_s)

        plan = await self._write(room, decide, clients=clients, names=names, overdue=False)
        return plan.answers

    async def release(self, room: str) -> None:
        """What a room holds has waited long enough."""
        try:
            await self._write(
                room,
                lambda loaded: loaded.room().overdue(loaded.now_s),
                clients=[],
                names=[],
                overdue=True,
            )
        except ForebayError as error:
            log.warning("room.not_released", room=room, reason=error.message)

    async def _write(self, room: str, decide: Callable[[_Loaded], Plan], **load: Any) -> Plan:
        for _ in range(TRIES):
            loaded = _loaded(await self._ask("load", room, **load))
            plan = decide(loaded)
            if plan.empty or await self._put(room, loaded, plan):
                return plan
        raise StoreDown(f"others wrote to this room {TRIES} times meanwhile", retry_after_s=1.0)

    async def _put(self, room: str, loaded: _Loaded, plan: Plan) -> bool:
        writers = [
            [client, len(writer.held), round((writer.deadline or 0.0) * 1000)]
            for client, writer in plan.writers.items()
        ]
        captions = [event for event in plan.events if isinstance(event, Caption)]
        request = {
            "room": room,
            "version": loaded.version,
            "epoch": loaded.epoch,
            "writers": writers,
            "captions": [
                [size_of(one), one.created_ms, one.client if one.seq == 0 else ""]
                for one in captions
            ],
            "store": 2 * self._settings.store_bytes,
            "active": max((one.created_ms for one in captions), default=0),
        }
        blobs = [*map(encode, plan.writers.values()), *map(encode, captions)]
        # Not made twice: what did land would make the second one fail by its version.
        return bool(_taken(await self._store.call("room_put", request, *blobs)))

    async def preview(self, room: str, caption: Caption) -> None:
        await self._ask("preview", room, encode(caption))

    # ---------------------------------------------------------------------- reading

    async def read_room(
        self, room: str, offset: int, *, epoch: str | None = None, limit: int = 256
    ) -> list[OutputEvent]:
        more = {} if epoch is None else {"epoch": epoch}
        try:
            answer = await self._ask("read", room, offset=offset, limit=limit, **more)
        except ResumeNotAvailable as error:
            if error.details.get("reason") == "unknown" and self._follower.known(room):
                raise ResumeNotAvailable("the store lost the room", reason="state_lost") from None
            raise
        events: list[OutputEvent] = _events(answer)
        return events

    async def watch_room(self, room: str, gateway: str) -> RoomView:
        view: RoomView = _view(await self._ask("watch", room, gateway=gateway)).view()
        self._follower.begin(gateway, room, view.epoch, view.head)
        return view

    async def unwatch_room(self, room: str, gateway: str) -> None:
        self._follower.end(room, gateway)
        await self._ask("unwatch", room, gateway=gateway)

    # --------------------------------------------------------------------- presence

    async def join_room(self, room: str, member: Member) -> None:
        await self._ask(
            "join",
            room,
            encode(member),
            member=member.id,
            gateway=member.gateway,
            most=self._settings.members,
        )

    async def leave_room(self, room: str, member: str) -> None:
        await self._ask("leave", room, member=member)

    async def room_members(self, room: str, *, limit: int = 1000) -> list[Member]:
        found: list[Member] = _members(await self._ask("members", room, limit=limit))
        return found

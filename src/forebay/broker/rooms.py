"""The broker contract for rooms: what a gateway may ask about one, and what it is promised.

A room is a stream like any job's output: same positions, same refusals, same pushes
(`OutputPush` with the room's id in ``job``). What differs is who writes: many, each fenced by
its own identity (`core.room`), so every home runs the same rules in one atomic step.

Promises that hold for every implementation:

* *Publish* answers after the messages are in the store (a persistent room's: written down).
  The events it appends, what they release and the writers' new state are one step.
* *Held* messages are as durable as appended ones and leave at the latest `core.room.HOLD_S`
  after they came, whether or not anybody calls again, also after a restart (then a little later).
* *Previews* are pushed and forgotten: no number, no store, no replay.
* *Push* is a hint in order per room; the stream is the truth.
* A room that was dropped, or lost, comes back only under a new epoch.

``LocalBroker.rooms`` is one of these; so is every other home's attribute of that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from forebay.core.events import Caption, OutputEvent
from forebay.core.room import Member, RoomAnswer, RoomItem, RoomSpec, RoomView

__all__ = ["GonePush", "PreviewPush", "RoomBroker", "RoomSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomSettings:
    """What an operator may change. ``rooms``: how many there may be. ``store_bytes``: all of
    them together, over it no room is made; over twice that nothing is appended.
    ``members``: present in one room at once."""

    rooms: int = 1000
    store_bytes: int = 128 * 1024 * 1024
    members: int = 10_000


class PreviewPush(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="preview"):
    """A preview in a watched room. Unstored: whoever cannot take it now never gets it."""

    job: str
    caption: Caption


class GonePush(msgspec.Struct, frozen=True, kw_only=True, tag_field="p", tag="gone"):
    """A watched room was dropped: nothing more will come under this epoch."""

    job: str
    epoch: str


class RoomBroker(Protocol):
    """``room`` is always a room's id, as `core.room.room_id` makes it. Calls about one that
    is not there raise `NotFound`. Every call has a deadline of 1 s in a remote home."""

    async def open_room(self, spec: RoomSpec) -> RoomView:
        """Make the room unless it is there; return it as it stands. Compare ``spec.secret`` of
        the answer: with two makers at once the first one's counts.

        A room that was made without a secret, by somebody who waits to read it, becomes the
        first one's who brings one: it takes over ``spec``, with its epoch and readers. Until
        then it is forgotten when nobody watches it any more, and only half of the bound is
        for such rooms.

        Raises `StoreFull` for a new room when there are too many, or too much in them."""

    async def room(self, room: str) -> RoomView: ...

    async def list_rooms(self, tenant: str | None, *, limit: int = 200) -> list[RoomView]:
        """A tenant's rooms, or everybody's; the last active first."""

    async def drop_room(self, room: str) -> None:
        """Forget it and all that is in it; pushes `GonePush`. Idempotent."""

    async def publish(self, room: str, items: Sequence[RoomItem]) -> list[RoomAnswer]:
        """Put messages in, in this order, by the rules of `core.room`; one answer for each.

        All or nothing: `StoreFull` means that nothing was taken."""

    async def preview(self, room: str, caption: Caption) -> None:
        """Push a preview to every watching gateway."""

    async def read_room(
        self, room: str, offset: int, *, epoch: str | None = None, limit: int = 256
    ) -> list[OutputEvent]:
        """Captions after ``offset``, oldest first; [] at the head. Raises
        `ResumeNotAvailable` with the reason, as `GatewayBroker.read_after`."""

    async def watch_room(self, room: str, gateway: str) -> RoomView:
        """Push what happens in the room to this gateway from here on. Idempotent."""

    async def unwatch_room(self, room: str, gateway: str) -> None:
        """Push no more. Idempotent; a room that is gone is fine."""

    async def join_room(self, room: str, member: Member) -> None:
        """Somebody is present, until `leave_room` or until its gateway is gone. Past
        `RoomSettings.members` nothing is recorded."""

    async def leave_room(self, room: str, member: str) -> None:
        """Idempotent; a room that is gone is fine."""

    async def room_members(self, room: str, *, limit: int = 1000) -> list[Member]: ...

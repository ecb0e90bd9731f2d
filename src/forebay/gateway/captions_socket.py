"""`/connection/websocket`: rooms in real time, for Centrifuge's SDKs and for our own pages."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import structlog

from forebay.core.events import Caption
from forebay.core.room import Member, room_id
from forebay.core.shown import Shown
from forebay.dialects import centrifuge
from forebay.dialects.captions import parse_fields, room_name
from forebay.dialects.centrifuge import PING, SHUTDOWN, SLOW, STALE, Command, commands
from forebay.errors import (
    BadRequest,
    Forbidden,
    ForebayError,
    NotFound,
    QuotaExceeded,
)
from forebay.gateway.access import header
from forebay.gateway.auth import PUBLIC, Principal, port_of
from forebay.gateway.captions import query_of, reader_tenant, rooms_of, take_post
from forebay.gateway.connection import Frames, accepted_wire
from forebay.gateway.context import GatewayContext
from forebay.gateway.crowd import Seat
from forebay.gateway.responses import Receive, Scope, Send
from forebay.gateway.rooms import Place, Rooms
from forebay.gateway.routes import Route
from forebay.gateway.wire import LOW_WATER_BYTES, Wire

__all__ = ["ROUTES", "serve_rooms"]

CHANNELS = 32
"""Channels of one connection."""
PING_S = 25.0
HISTORY_PAGE = 100

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _ChannelFace:
    channel: str

    def write(self, caption: Caption) -> str:
        return centrifuge.pushed(self.channel, caption)


@dataclass(slots=True)
class _Subscription:
    tenant: str
    name: str
    place: Place
    seat: Seat | None = None
    shows: bool = False  # it is asked to tell what it shows


class _Client:
    """One connection: who it is, and what it reads."""

    def __init__(self, scope: Scope, ctx: GatewayContext, wire: Wire) -> None:
        self._scope, self._ctx, self._wire = scope, ctx, wire
        self._rooms: Rooms = rooms_of(ctx)
        self._query = query_of(scope)
        self._lenient = port_of(scope).personality.compat
        self._id = ctx.new_id()
        self._connected = False
        self._data: dict[str, Any] = {}
        self._subs: dict[str, _Subscription] = {}
        self._timer: Any = None

    # ------------------------------------------------------------------- its life

    async def run(self, frames: Frames) -> None:
        first_s = None if self._lenient else self._ctx.options.first_message_s
        if first_s is not None and not await frames.ready(first_s):
            self._ctx.metrics.deadline("first_message")
            self._wire.close(STALE, "no message")
        while (frame := await frames.next()) is not None:
            if self._wire.closed:
                continue
            try:
                for command in commands(frame):
                    await self._one(command)
            except BadRequest as error:
                self._wire.close(centrifuge.disconnect_code(error), "bad request")

    async def _one(self, command: Command) -> None:
        if command.method == "":
            return  # a pong
        if not self._connected and command.method != "connect":
            raise BadRequest("the first command is not connect")
        try:
            answer = await self._answer(command)
        except ForebayError as error:
            answer = centrifuge.failure(command, error)
        except Exception as error:  # noqa: BLE001 - the supervised boundary of one command
            log.error("captions.failed", error=type(error).__name__, exc_info=error)
            answer = centrifuge.failure(command, ForebayError("the gateway failed"))
        if answer is not None and command.id:
            self._wire.send(answer)

    async def _answer(self, command: Command) -> str | None:
        match command.method:
            case "connect":
                return self._connect(command)
            case "subscribe":
                await self._subscribe(command)
                return None
            case "unsubscribe":
                await self._unsubscribe(command)
                return centrifuge.reply(command)
            case "send" if isinstance(command.fields().get("shown"), dict):
                return self._shown(command)
            case "publish" | "send":
                return await self._publish(command)
            case "presence" | "presence_stats":
                return await self._presence(command)
            case "history":
                return await self._history(command)
            case "ping":
                return centrifuge.reply(command)
            case _:
                raise NotFound("no such method")

    def drain(self) -> None:
        self._wire.close(SHUTDOWN, "shutdown")

    async def leave(self) -> None:
        """Give back everything. Never raises."""
        if self._timer is not None:
            self._timer.cancel()
        for sub in self._subs.values():
            self._stand_up(sub)
        subs, self._subs = self._subs, {}
        for sub in subs.values():
            await self._rooms.part(sub.tenant, sub.name, self._id)

    # ------------------------------------------------------------------- commands

    def _connect(self, command: Command) -> str:
        if self._connected:
            raise BadRequest("connected already")
        token = command.text("token")
        if token.startswith("v1."):
            self._query["view"] = token
        elif token and header(self._scope, b"authorization") is None:
            bearer = (b"authorization", b"Bearer " + token.encode("latin-1", "replace"))
            self._scope["headers"] = [*self._scope["headers"], bearer]
        self._data = command.fields()
        self._connected = True
        self._ping_later()
        return centrifuge.connected(
            command, client=self._id, version=self._ctx.version, ping_s=PING_S
        )

    def _ping_later(self) -> None:
        when = self._ctx.hub.clock() + PING_S
        self._timer = self._ctx.hub.call_at(when, self._ping)

    def _ping(self) -> None:
        if not self._wire.closed:
            if self._wire.backlog() <= LOW_WATER_BYTES:
                self._wire.send(PING)
            self._ping_later()

    def _channel(self, command: Command) -> str:
        channel = command.text("channel")
        if not channel:
            raise BadRequest("channel is missing")
        return channel

    async def _tenant(self, command: Command, name: str) -> str:
        """Whose room of that name this connection may read; see `captions.reader_tenant`."""
        given = {**self._data, **command.fields()}
        extra: dict[str, str] = {
            key: str(given[key]) for key in ("passphrase", "view") if key in given
        }
        ticket = command.text("token")
        if ticket:
            extra["view"] = ticket
        return await reader_tenant(self._scope, self._ctx, name, {**self._query, **extra})

    async def _subscribe(self, command: Command) -> None:
        channel = self._channel(command)
        if channel in self._subs:
            raise BadRequest("subscribed already")
        if len(self._subs) >= CHANNELS:
            raise QuotaExceeded(f"{CHANNELS} channels are open, expected no more")
        name = room_name(channel, lenient=self._lenient)
        tenant = await self._tenant(command, name)
        position = None
        if command.flag("recover"):
            position = (command.text("epoch"), max(0, command.number("offset")))
        data = command.fields()
        oldest = position is None and data.get("history") is True
        place = await self._rooms.place(tenant, name, position, oldest=oldest)
        sub = self._subs[channel] = _Subscription(tenant, name, place)
        user = str(data.get("user") or self._data.get("user") or "")[:64]
        role = str(data.get("role") or "display")[:16]
        await self._rooms.join(tenant, name, Member(id=self._id, user=user, role=role))
        if data.get("shows") is True:
            sub.shows = self._rooms.showing.come(place.crowd.room, self._id)
        # From here on nothing is awaited: what follows the position comes after the answer.
        after = place.after if position is not None or oldest else place.crowd.head
        self._wire.send(
            centrifuge.subscribed(
                command,
                epoch=place.epoch,
                offset=after,
                recovered=place.recovered and position is not None,
                was_recovering=position is not None,
                shows=sub.shows,
            )
        )
        sub.seat = Seat(
            self._wire,
            _ChannelFace(channel),
            on_slow=lambda offset: self._wire.close(SLOW, f"slow at offset {offset}"),
            on_lost=lambda error: self._lost(channel),
            previews=data.get("previews") is not False,
            on_shown=self._on_shown(channel) if data.get("shown") is True else None,
        )
        place.crowd.sit(sub.seat, after)

    def _lost(self, channel: str) -> None:
        """The room is gone or begun anew: the client subscribes again by itself."""
        sub = self._subs.pop(channel, None)
        if sub is not None:
            sub.seat = None
            self._stand_up(sub)
            self._wire.send(centrifuge.resubscribe(channel))

    def _stand_up(self, sub: _Subscription) -> None:
        self._rooms.leave(sub.place, sub.seat)
        if sub.shows:
            self._rooms.showing.go(sub.place.crowd.room, self._id)

    def _on_shown(self, channel: str) -> Callable[[Shown], None]:
        return lambda news: self._wire.send(centrifuge.shown_push(channel, news))

    def _shown(self, command: Command) -> str:
        """What stands on this display. Not a word about channels it does not read."""
        said = command.fields()["shown"]
        sub = self._subs.get(str(said.get("channel", "")))
        told = centrifuge.reports(said)
        if sub is not None and sub.shows:
            self._rooms.showing.told(sub.place.crowd.room, self._id, told)
        return centrifuge.reply(command)

    async def _unsubscribe(self, command: Command) -> None:
        sub = self._subs.pop(self._channel(command), None)
        if sub is not None:
            self._stand_up(sub)
            await self._rooms.part(sub.tenant, sub.name, self._id)

    async def _publish(self, command: Command) -> str:
        principal = self._publisher()
        given = {**self._data, **command.fields(), "room": self._channel(command)}
        given.setdefault("user_name", given.get("user"))
        now_ms = self._rooms.now_ms()
        stamp = time.strftime("%H:%M:%S", time.localtime(now_ms / 1000))
        posted = parse_fields(given, lenient=self._lenient, now_ms=now_ms, stamp=stamp)
        body = await take_post(self._scope, self._ctx, principal.tenant, posted)
        del body["status"], body["message"]
        return centrifuge.reply(command, body)

    def _publisher(self) -> Principal:
        if self._ctx.refusing:
            raise Forbidden("this gateway is shutting down")
        return self._ctx.auth.check(self._scope, "room:publish")

    async def _read(self, command: Command) -> tuple[str, str]:
        """Tenant and name of a command's room, if this connection may read it."""
        channel = self._channel(command)
        sub = self._subs.get(channel)
        if sub is not None:
            return sub.tenant, sub.name
        name = room_name(channel, lenient=self._lenient)
        return await self._tenant(command, name), name

    async def _presence(self, command: Command) -> str:
        tenant, name = await self._read(command)
        members = await self._rooms.members(tenant, name)
        if command.method == "presence":
            return centrifuge.presence(command, members)
        return centrifuge.presence_stats(command, members)

    async def _history(self, command: Command) -> str:
        tenant, name = await self._read(command)
        limit = command.number("limit")
        limit = HISTORY_PAGE if limit < 0 else min(limit, HISTORY_PAGE)
        view = await self._rooms.broker.room(room_id(tenant, name))
        since = command.fields("since")
        captions: list[Caption] = []
        if limit and command.flag("reverse"):
            told = Command(0, "", since).number("offset")
            top = min(view.head, told - 1) if told > 0 else view.head
            after = max(view.first - 1, top - limit)
            captions = await self._rooms.captions(view.spec.id, after, max(0, top - after))
            captions.reverse()
        elif limit:
            after = view.first - 1
            if "offset" in since:
                after = Command(0, "", since).number("offset")
            epoch = since.get("epoch") or view.epoch
            await self._rooms.broker.read_room(view.spec.id, after, epoch=epoch, limit=1)
            captions = await self._rooms.captions(view.spec.id, after, limit)
        return centrifuge.history(command, captions, epoch=view.epoch, offset=view.head)


async def serve_rooms(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """One connection to its end."""
    async with AsyncExitStack() as stack:
        wire = await accepted_wire(stack, scope, receive, send)
        if wire is None:
            return
        frames = Frames(receive)
        stack.push_async_callback(frames.close)
        client = _Client(scope, ctx, wire)
        stack.push_async_callback(client.leave)
        stack.callback(ctx.on_drain(client.drain))
        await client.run(frames)


ROUTES = [
    Route(
        method="WEBSOCKET",
        path="/connection/websocket",
        handler=serve_rooms,
        needs=PUBLIC,
        errors="error",
    )
]

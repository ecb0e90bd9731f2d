"""Captions over HTTP: the original servers' calls, streams and pages, and the room console's.

Writing needs the room's passphrase and, where keys are demanded, a key with ``room:publish``.
Reading needs a key with ``room:view`` or a link's ticket there, and nothing on this machine,
unless reading is private.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import msgspec

from forebay.core.events import Caption
from forebay.core.kinds import Kind
from forebay.core.room import HISTORY_ITEMS, RoomView, room_id
from forebay.core.spec import PipeSpec
from forebay.dialects.captions import (
    Posted,
    answer_many,
    answer_one,
    missing_fields,
    parse_post,
    room_name,
    shown,
    shown_event,
    shown_json,
)
from forebay.dialects.captions_export import EXPORTS, export
from forebay.dialects.job_events import position_id
from forebay.errors import BadRequest, Forbidden, ForebayError, NotFound, Unauthorized
from forebay.gateway.auth import PUBLIC, Principal, port_of
from forebay.gateway.calls import read_body
from forebay.gateway.context import GatewayContext
from forebay.gateway.crowd import Seat
from forebay.gateway.pipes import carry_into_room
from forebay.gateway.responses import Headers, Receive, Scope, Send, reply, reply_json
from forebay.gateway.rooms import Answer, Place, Rooms, read_ticket, ticket_tenant, view_ticket
from forebay.gateway.routes import rows
from forebay.gateway.sse import KEEP_ALIVE, KEEPALIVE_S, SSE_HEADERS, own_job, position_of
from forebay.gateway.wire import LOW_WATER_BYTES, Wire

__all__ = ["ROUTES", "query_of", "reader_tenant", "rooms_of", "take_post"]

LISTED = 1000
INFO = {
    "service": "Local Transcription Multi-User Server",
    "version": "1.0.0",
    "status": "running",
    "server": "forebay",
    "endpoints": ["?action=send", "?action=list", "?action=stream"],
}


def rooms_of(ctx: GatewayContext) -> Rooms:
    """The gateway's rooms. Raises `NotFound` where it has none."""
    if ctx.rooms is None:
        raise NotFound("this gateway has no rooms")
    return ctx.rooms


def query_of(scope: Scope) -> dict[str, str]:
    raw = scope.get("query_string", b"").decode("latin-1")
    return {name: values[-1] for name, values in parse_qs(raw, max_num_fields=50).items()}


def _lenient(scope: Scope) -> bool:
    return port_of(scope).personality.compat


# ------------------------------------------------------------------------------ writing


async def take_post(
    scope: Scope, ctx: GatewayContext, tenant: str, posted: Posted
) -> dict[str, Any]:
    """Put one post into its room; the answer's body. Raises what refuses all of it."""
    limited = ctx.auth.limits(port_of(scope))
    answers: list[Answer] = await rooms_of(ctx).post(tenant, posted, limited=limited)
    if posted.many:
        return answer_many(posted, answers)
    only = answers[0]
    if isinstance(only, ForebayError):
        raise only
    return answer_one(posted, only)


async def send_message(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /api/send``."""
    rooms = rooms_of(ctx)
    body = await read_body(receive, ctx.options.body_bytes)
    if body is None:
        return
    now_ms = rooms.now_ms()
    stamp = time.strftime("%H:%M:%S", time.localtime(now_ms / 1000))
    posted = parse_post(body, lenient=_lenient(scope), now_ms=now_ms, stamp=stamp)
    await reply_json(send, await take_post(scope, ctx, scope["forebay.tenant"], posted))


async def php_post(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST .../server.php?action=send``."""
    if query_of(scope).get("action", "send") != "send":
        raise BadRequest("action is not send")
    await send_message(scope, receive, send, ctx)


# ------------------------------------------------------------------------------ reading


async def reader_tenant(
    scope: Scope, ctx: GatewayContext, name: str, query: Mapping[str, str]
) -> str:
    """Whose room of that name the caller may read. The route has checked host and origin.

    Raises `Unauthorized` or `Forbidden`."""
    rooms = rooms_of(ctx)
    try:
        principal = ctx.auth.check(scope, "room:view")
    except (Unauthorized, Forbidden):
        ticket = query.get("view")
        if not ticket:
            raise
        tenant = ticket_tenant(ticket)
        try:
            view = await rooms.broker.room(room_id(tenant, name))
        except NotFound:
            raise Unauthorized("this link for viewing is not valid, or not any more") from None
        read_ticket(ticket, view, time.time())
        return tenant
    await rooms.may_read(principal.tenant, name, query.get("passphrase", ""))
    return principal.tenant


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a reading call is about."""

    rooms: Rooms
    query: dict[str, str]
    name: str
    tenant: str


async def _asked(scope: Scope, ctx: GatewayContext) -> _Asked:
    query = query_of(scope)
    room = scope.get("path_params", {}).get("room") or query.get("room", "")
    if not room.strip():
        raise missing_fields()
    name = room_name(room, lenient=_lenient(scope))
    tenant = await reader_tenant(scope, ctx, name, query)
    return _Asked(rooms_of(ctx), query, name, tenant)


async def list_messages(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/list?room=R``: what the room keeps, newest last."""
    asked = await _asked(scope, ctx)
    captions = await _kept(asked)
    await reply_json(send, {"transcriptions": [shown(caption) for caption in captions]})


async def _kept(asked: _Asked) -> list[Caption]:
    text = asked.query.get("limit", "")
    limit = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else LISTED
    try:
        _, captions = await asked.rooms.history(asked.tenant, asked.name, min(limit, LISTED))
    except NotFound:
        return []
    return captions


async def php_get(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET .../server.php``: list and stream, with a passphrase, or what this is."""
    action = query_of(scope).get("action", "")
    if action == "":
        await reply_json(send, INFO)
    elif action in ("list", "stream"):
        asked = await _asked(scope, ctx)
        await _php_passphrase(asked)
        if action == "list":
            captions = await _kept(asked)
            await reply_json(send, {"transcriptions": [shown(caption) for caption in captions]})
        else:
            await _stream(scope, receive, send, ctx, asked)
    else:
        raise BadRequest("action is not send, list or stream")


async def _php_passphrase(asked: _Asked) -> None:
    """A passphrase that is given must be right, once the room is there."""
    said = asked.query.get("passphrase", "")
    if not said:
        return
    try:
        await asked.rooms.proven(asked.tenant, asked.name, said)
    except NotFound:
        return


@dataclass(frozen=True, slots=True)
class _SseFace:
    """Captions as server-sent events. Previews have no position."""

    epoch: str

    def write(self, caption: Caption) -> str:
        body = shown_json(shown(caption)).decode()
        if not caption.offset:
            return f"data: {body}\n\n"
        return f"id: {position_id(self.epoch, caption.offset)}\ndata: {body}\n\n"


async def stream(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/stream?room=R``: what the room keeps and what comes, resumed by
    ``Last-Event-ID`` or ``after``. ``shown=1``: news of displays too."""
    await _stream(scope, receive, send, ctx, await _asked(scope, ctx))


async def _stream(
    scope: Scope, receive: Receive, send: Send, ctx: GatewayContext, asked: _Asked
) -> None:
    said = position_of(scope)
    position = None if said is None else (said.epoch, said.offset)
    oldest = position is None and asked.query.get("history", "1") != "0"
    place = await asked.rooms.place(asked.tenant, asked.name, position, oldest=oldest)
    async with AsyncExitStack() as stack:
        reading = _Reading(asked.rooms, place)
        stack.callback(reading.leave)
        await send({"type": "http.response.start", "status": 200, "headers": [*SSE_HEADERS]})
        wire: Wire = scope["forebay.wire"]
        stack.callback(ctx.on_drain(reading.over.set))
        watch = asyncio.create_task(_until_gone(receive, reading.over))
        stack.push_async_callback(_stopped, watch)
        wire.send(": here\n\n")
        reading.begin(wire, asked.query.get("shown") == "1")
        while not await reading.ended(KEEPALIVE_S):
            if wire.backlog() <= LOW_WATER_BYTES:
                wire.send(KEEP_ALIVE)
        wire.close()


class _Reading:
    """One event stream's seat."""

    def __init__(self, rooms: Rooms, place: Place) -> None:
        self.over = asyncio.Event()
        self._rooms, self._place = rooms, place
        self._seat: Seat | None = None

    def begin(self, wire: Wire, shown: bool) -> None:
        self._seat = Seat(
            wire,
            _SseFace(self._place.epoch),
            on_slow=lambda offset: self.over.set(),
            on_lost=lambda error: self.over.set(),
            on_shown=(lambda news: wire.send(shown_event(news))) if shown else None,
        )
        self._place.crowd.sit(self._seat, self._place.after)

    def leave(self) -> None:
        self._rooms.leave(self._place, self._seat)

    async def ended(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                await self.over.wait()
        except TimeoutError:
            return False
        return True


async def _until_gone(receive: Receive, over: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    over.set()


async def _stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# ------------------------------------------------------------------------- room console


def _facts(view: RoomView) -> dict[str, Any]:
    return {
        "room": view.spec.name,
        "title": view.spec.title,
        "epoch": view.epoch,
        "messages": view.head,
        "kept": view.head + 1 - view.first,
        "writers": view.writers,
        "held": view.held,
        "present": view.members,
        "persist": view.spec.persist,
        "created_at": view.spec.created_ms,
        "active_at": view.active_ms,
    }


async def list_rooms(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/rooms``: this tenant's rooms, the last active first."""
    principal: Principal = scope["forebay.principal"]
    views = await rooms_of(ctx).broker.list_rooms(principal.tenant)
    await reply_json(send, {"rooms": [_facts(view) for view in views if view.spec.secret]})


async def room_facts(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/rooms/R``: its numbers and who is there."""
    asked = await _asked(scope, ctx)
    view = await asked.rooms.broker.room(room_id(asked.tenant, asked.name))
    members = await asked.rooms.members(asked.tenant, asked.name)
    who = [
        {"user": member.user, "role": member.role, "since": member.since_ms} for member in members
    ]
    await reply_json(send, {**_facts(view), "members": who})


async def export_room(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /api/rooms/R/export?form=srt|vtt|txt``."""
    asked = await _asked(scope, ctx)
    form = asked.query.get("form", "srt")
    _, captions = await asked.rooms.history(asked.tenant, asked.name, HISTORY_ITEMS)
    text = export(captions, form)
    name = asked.name.lstrip("~")
    headers: Headers = [
        (b"content-type", EXPORTS[form]),
        (b"content-disposition", f'attachment; filename="{name}.{form}"'.encode("latin-1")),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    await reply(send, 200, text.encode("utf-8", "replace"), headers)


async def _owned(
    scope: Scope, receive: Receive, ctx: GatewayContext
) -> tuple[Rooms, RoomView, dict[str, Any]] | None:
    """The room of the path, whose passphrase is in the body; None when the client left."""
    rooms = rooms_of(ctx)
    body = await read_body(receive, ctx.options.body_bytes)
    if body is None:
        return None
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise BadRequest("body is no json object") from None
    passphrase = fields.get("passphrase")
    if not isinstance(passphrase, str) or not passphrase:
        raise missing_fields()
    name = room_name(scope["path_params"]["room"], lenient=_lenient(scope))
    tenant = scope["forebay.tenant"]
    await rooms.proven(tenant, name, passphrase)
    return rooms, await rooms.broker.room(room_id(tenant, name)), fields


async def make_ticket(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /api/rooms/R/ticket`` with the passphrase: a link for viewing that needs no key."""
    found = await _owned(scope, receive, ctx)
    if found is None:
        return
    rooms, view, _ = found
    life_s = rooms.options.ticket_s
    ticket = view_ticket(view, time.time() + life_s)
    await reply_json(
        send,
        {
            "ticket": ticket,
            "display": f"/display?room={view.spec.name}&view={ticket}",
            "expires_s": life_s,
        },
    )


async def drop_room(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /api/rooms/R/drop`` with the passphrase: forget it and all that was said."""
    found = await _owned(scope, receive, ctx)
    if found is None:
        return
    rooms, view, _ = found
    await rooms.broker.drop_room(view.spec.id)
    rooms.forget(view.spec.id)
    await reply_json(send, {"status": "ok"})


async def pipe_job(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /api/rooms/R/pipe`` with ``job``, ``user_name`` and the passphrase: what that
    recognition job hears is said in the room from its beginning on."""
    found = await _owned(scope, receive, ctx)
    if found is None:
        return
    rooms, view, fields = found
    job, user = fields.get("job"), fields.get("user_name") or "speaker"
    if not isinstance(job, str) or not isinstance(user, str) or len(user) > 64:
        raise missing_fields()
    source = await own_job(ctx, scope["forebay.tenant"], job)
    if source.spec.kind is not Kind.RECOGNITION:
        raise BadRequest(f"job {job[:32]} is {source.spec.kind}, expected recognition")
    pipe = PipeSpec(
        id=f"{job}>{view.spec.name}", source=job, target=view.spec.id, map=f"captions:{user}"
    )
    await carry_into_room(ctx.hub, rooms.broker, pipe)
    await reply_json(send, {"status": "ok", "pipe": pipe.id})


_row = rows(errors="error")

ROUTES = [
    _row("POST", "/api/send", send_message, "room:publish", works=True),
    _row("GET", "/api/list", list_messages, PUBLIC),
    _row("GET", "/api/stream", stream, PUBLIC),
    *(
        _row(method, path, handler, needs, works=method == "POST")
        for path in ("/server.php", "/{folder}/server.php", "/{above}/{folder}/server.php")
        for method, handler, needs in (
            ("POST", php_post, "room:publish"),
            ("GET", php_get, PUBLIC),
        )
    ),
    _row("GET", "/api/rooms", list_rooms, "room:view"),
    _row("GET", "/api/rooms/{room}", room_facts, PUBLIC),
    _row("GET", "/api/rooms/{room}/export", export_room, PUBLIC),
    _row("POST", "/api/rooms/{room}/ticket", make_ticket, "room:publish"),
    _row("POST", "/api/rooms/{room}/drop", drop_room, "room:publish"),
    _row("POST", "/api/rooms/{room}/pipe", pipe_job, "room:publish", works=True),
]

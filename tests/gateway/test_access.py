"""Hosts, origins, keys and tickets: every route, every port, every kind of stranger."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asgi_calls import Pools, application, call, context

from forebay.errors import CannotBoot, Forbidden, NotFound
from forebay.gateway import keys
from forebay.gateway.auth import PUBLIC, Auth, Principal, refuse_open_bind
from forebay.gateway.endpoints import routes
from forebay.gateway.options import GatewayOptions
from forebay.gateway.personality import MAIN, PERSONALITIES, Personality
from forebay.gateway.responses import Receive, Scope, Send, reply
from forebay.gateway.routes import Route

VOICE = PERSONALITIES["voice"]
CHAT = PERSONALITIES["chat"]
PUBLIC_PATHS = {
    "/",
    "/examples/stream_processing.html",
    "/static/{name:path}",
    "/healthz",
    "/tts/healthz",
    "/orch/healthz",
    "/health",
    "/readyz",
    "/api/v1/health",
    "/captions",
    "/display",
    "/display.php",
    "/{folder}/display.php",
    "/{above}/{folder}/display.php",
    "/room",
    "/speak",
    "/notebook",
    "/pools",
    "/api/session",
}
"""Health, pages (files that say nothing of anybody), and signing out."""

ROOM_READING = {
    "/api/list",
    "/api/stream",
    "/server.php",
    "/{folder}/server.php",
    "/{above}/{folder}/server.php",
    "/api/rooms/{room}",
    "/api/rooms/{room}/export",
    "/connection/websocket",
}
"""A link's ticket stands for a key here, so their handlers ask, with the room at hand."""


async def stub(scope: Scope, receive: Receive, send: Send, ctx: Any) -> None:
    """Says who was let in."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        return
    await reply(send, 200, scope["forebay.tenant"].encode())


def stubs() -> list[Route]:
    return [replace(route, handler=stub) for route in routes()]


def concrete(route: Route) -> str:
    """A path that finds it."""
    return re.sub(r"\{\w+(:path)?\}", "abc", route.path)


def everywhere() -> Iterator[tuple[Route, Personality]]:
    for route in stubs():
        for personality in PERSONALITIES.values():
            if route.on is None or personality.name in route.on:
                yield route, personality


ROWS = list(everywhere())
IDS = [f"{route.method} {route.path} on {personality.name}" for route, personality in ROWS]


class Keyed:
    """An application off loopback, with one key per scope and some dead ones."""

    def __init__(self, path: Path) -> None:
        self.by_scope = {s: keys.create(path, now=0.0, tenant=f"t-{s.replace(':', '-')}",
                                        scopes=(s,))[1] for s in keys.SCOPES}  # fmt: skip
        record, self.revoked = keys.create(path, now=0.0)
        keys.revoke(path, record.id)
        _, self.expired = keys.create(path, now=0.0, expires_s=1)
        self.ctx = context(GatewayOptions(keys_file=str(path)))
        self.app = application(self.ctx, stubs())

    async def call(self, route: Route, personality: Personality, headers: Any = None) -> Any:
        return await call(
            self.app,
            concrete(route),
            method=route.method,
            headers={"host": "gw.example.com", **(headers or {})},
            personality=personality,
            loopback=False,
        )


@pytest.fixture
def keyed(tmp_path: Path) -> Keyed:
    return Keyed(tmp_path / "keys.json")


def needs(route: Route, personality: Personality) -> str:
    if personality.compat and route.compat_needs is not None:
        return route.compat_needs
    return route.needs


@pytest.mark.parametrize(("route", "personality"), ROWS, ids=IDS)
async def test_off_loopback_every_route_asks_for_a_key_with_its_scope(
    keyed: Keyed, route: Route, personality: Personality
) -> None:
    let_in = 101 if route.method == "WEBSOCKET" else 200
    if needs(route, personality) == PUBLIC:
        assert route.path in PUBLIC_PATHS | ROOM_READING
        assert (await keyed.call(route, personality)).status == let_in
        return
    for shown in (
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer nonsense"},
        {"authorization": f"Bearer {keyed.revoked}"},
        {"authorization": f"Bearer {keyed.expired}"},
        {"authorization": f"Basic {keyed.by_scope['admin']}"},
        {"x-api-key": keyed.by_scope["admin"]},
    ):
        answer = await keyed.call(route, personality, shown)
        assert answer.status == 401, shown
        assert answer.headers["www-authenticate"] == "Bearer"
    for scope, key in keyed.by_scope.items():
        answer = await keyed.call(route, personality, {"Authorization": f"bEaReR {key}"})
        right = scope in (needs(route, personality), "admin")
        assert answer.status == (let_in if right else 403), scope
        if right and let_in == 200:
            assert answer.body == f"t-{scope.replace(':', '-')}".encode()


def test_only_the_health_list_and_pages_are_public() -> None:
    open_to_all = [route for route in routes() if route.needs == PUBLIC]
    assert {route.path for route in open_to_all} == PUBLIC_PATHS | ROOM_READING
    changing = {route.path for route in open_to_all if route.method not in ("GET", "WEBSOCKET")}
    assert changing == {"/api/session"}, "forgets the caller's own cookie, nothing else"


@pytest.mark.parametrize("personality", [MAIN, PERSONALITIES["captions"]], ids=["main", "captions"])
@pytest.mark.parametrize("path", sorted(ROOM_READING - {"/connection/websocket"}))
async def test_off_loopback_reading_a_room_asks_for_a_key_that_may_view(
    keyed: Keyed, path: str, personality: Personality
) -> None:
    keyed.ctx.rooms = SimpleNamespace(may_read=_nobody, broker=SimpleNamespace(room=_no_room))
    real = application(keyed.ctx)

    async def ask(query: str = "", **headers: str) -> Any:
        where = re.sub(r"\{\w+\}", "talk", path) + f"?room=talk&action=stream&{query}"
        named = {"host": "gw.example.com", **headers}
        return await call(real, where, headers=named, personality=personality, loopback=False)

    for refused in (
        await ask(),
        await ask(authorization=f"Bearer {keyed.revoked}"),
        await ask("view=v1.nonsense"),
        await ask("passphrase=x&ticket=fbt_nonsense"),
    ):
        assert refused.status == 401, refused.body
    for scope, key in keyed.by_scope.items():
        answer = await ask(authorization=f"Bearer {key}")
        assert (answer.status == 403) == (scope not in ("room:view", "admin")), scope


async def _nobody(tenant: str, name: str, passphrase: str) -> None:
    raise NotFound("let in")


async def _no_room(room: str) -> Any:
    raise NotFound("no such room")


@pytest.mark.parametrize(("route", "personality"), ROWS, ids=IDS)
async def test_on_loopback_no_key_is_needed_and_foreign_bearers_are_ignored(
    route: Route, personality: Personality
) -> None:
    app = application(context(), stubs())
    for headers in ({}, {"authorization": "Bearer sk-anything"}):
        answer = await call(
            app, concrete(route), method=route.method, headers=headers, personality=personality
        )
        assert answer.status == (101 if route.method == "WEBSOCKET" else 200)


async def test_on_loopback_a_key_of_ours_counts_and_must_be_right(keyed: Keyed) -> None:
    async def ask(key: str) -> Any:
        headers = {"authorization": f"Bearer {key}"}
        return await call(keyed.app, "/v1/models", headers=headers)

    assert (await ask(keyed.by_scope["read"])).body == b"t-read"
    assert (await ask(keyed.by_scope["submit"])).status == 403
    assert (await ask(keyed.revoked)).status == 401


async def test_keys_in_the_query_work_on_compat_ports_only(keyed: Keyed) -> None:
    key = keyed.by_scope["submit"]
    for personality, expected in ((VOICE, 101), (CHAT, 101), (MAIN, 401)):
        answer = await call(
            keyed.app,
            f"/tts?api_key={key}",
            method="WEBSOCKET",
            personality=personality,
            loopback=False,
        )
        assert answer.status == expected


async def test_a_ticket_opens_one_websocket_for_its_tenant(keyed: Keyed) -> None:
    ctx = keyed.ctx
    app = application(ctx)  # the real ticket route
    headers = {"authorization": f"Bearer {keyed.by_scope['submit']}"}
    made = await call(app, "/api/ticket", method="POST", headers=headers, loopback=False)
    assert made.json["expires_s"] == 30
    path = f"/tts?ticket={made.json['ticket']}"
    stubbed = application(ctx, stubs())
    assert (await call(stubbed, path.replace("tts", "v1/models"), loopback=False)).status == 401
    first = await call(stubbed, path, method="WEBSOCKET", loopback=False)
    again = await call(stubbed, path, method="WEBSOCKET", loopback=False)
    assert (first.status, again.status) == (101, 401)
    bare = await call(app, "/api/ticket", method="POST", loopback=False)
    assert bare.status == 401


async def test_a_ticket_stands_for_its_key_at_every_gateway_for_half_a_minute(
    tmp_path: Path,
) -> None:
    _, key = keys.create(tmp_path / "k", tenant="acme", now=0.0)
    options, broker = GatewayOptions(keys_file=str(tmp_path / "k")), Pools()
    one = application(context(options, broker))
    other = application(context(options, broker), stubs())

    async def ticket() -> str:
        headers = {"authorization": f"Bearer {key}"}
        made = await call(one, "/api/ticket", method="POST", headers=headers, loopback=False)
        return f"/tts?ticket={made.json['ticket']}"

    async def shown(path: str, **facts: Any) -> int:
        return (await call(other, path, method="WEBSOCKET", loopback=False, **facts)).status

    path = await ticket()
    assert await shown(path, headers={"host": "gw.example", "origin": "http://evil.example"}) == 403
    assert [await shown(path), await shown(path)] == [101, 401]
    late = await ticket()
    broker.now += 30.0
    assert await shown(late) == 401


async def test_a_ticket_is_used_up_once_however_often_its_connection_is_asked_about() -> None:
    ctx = context(GatewayOptions(require_key=True))
    holder = Principal(tenant="acme", scopes=frozenset({"room:view"}), key_id="k", until=9e9)
    ticket = await ctx.tickets.issue(holder)
    scope = {
        "type": "websocket",
        "headers": [(b"host", b"127.0.0.1")],
        "query_string": f"room=R&ticket={ticket}".encode(),
    }
    await ctx.tickets.redeem(scope, ctx.auth)
    assert [ctx.auth.check(scope, "room:view") for _ in range(3)] == [holder] * 3
    with pytest.raises(Forbidden):
        ctx.auth.check(scope, "room:publish")


@pytest.mark.parametrize(
    ("shown", "status"),
    [
        ("", 401),
        ("?api_key=wrong", 401),
        ("?api_key=orch-secret", 101),
        ("?api_key=orch-secret2", 401),
    ],
)
async def test_the_orchestrators_own_key_guards_chat_on_compat_ports(
    shown: str, status: int
) -> None:
    app = application(context(GatewayOptions(orch_api_key="orch-secret")), stubs())
    for path in ("/chat", "/ws/chat"):
        answer = await call(app, path + shown, method="WEBSOCKET", personality=CHAT)
        assert answer.status == status
    assert (await call(app, "/chat", method="WEBSOCKET")).status == 101  # the main port
    assert (await call(app, "/tts", method="WEBSOCKET", personality=CHAT)).status == 101


async def test_the_orchestrators_key_works_as_bearer() -> None:
    app = application(context(GatewayOptions(orch_api_key="orch-secret")), stubs())
    headers = {"authorization": "Bearer orch-secret"}
    answer = await call(app, "/chat", method="WEBSOCKET", personality=CHAT, headers=headers)
    assert answer.status == 101


# ------------------------------------------------------------------- host and origin

FOREIGN = [
    "null",
    "file://",
    "",
    "https://evil.example",
    "http://localhost.evil.example",
    "http://evil.example:8600",
    "http://127.0.0.1.evil.example",
    "http://localhost@evil.example",
    "https://evil.example/http://localhost",
    "http://localhost:99999",
    "http://[::1",
    "ws://localhost",
    "localhost",
    "javascript://localhost/",
    "chrome-extension://abcdef",
    "http://10.0.0.1",
    "http://0.0.0.0:8600",
]


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize(("method", "path"), [("WEBSOCKET", "/tts"), ("POST", "/api/ticket")])
async def test_foreign_origins_are_refused_before_anything_happens(
    method: str, path: str, origin: str
) -> None:
    app = application(context(), stubs())
    headers = {"host": "localhost:8600", "origin": origin}
    answer = await call(app, path, method=method, headers=headers)
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers
    closed = await call(app, "/tts", method="WEBSOCKET", headers=headers, denial=False)
    assert closed.close == 4403


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:8600", "http://localhost:3000", "http://127.0.0.1:5173", "http://[::1]:80",
     "https://LOCALHOST", "http://dev.localhost:9000"],
)  # fmt: skip
async def test_pages_of_this_machine_may_come_in_on_loopback(origin: str) -> None:
    app = application(context(), stubs())
    answer = await call(app, "/tts", method="WEBSOCKET", headers={"origin": origin})
    assert answer.status == 101


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://gw.example.com", 101),
        ("https://GW.example.com:443", 101),
        ("http://gw.example.com:80", 101),
        ("https://gw.example.com:444", 403),
        ("https://sub.gw.example.com", 403),
        ("https://gw.example.com.evil.org", 403),
        ("http://localhost:3000", 403),
        ("null", 403),
        ("https://app.example.org", 101),
        ("https://app.example.org:8443", 403),
        ("http://app.example.org", 403),
    ],
)
async def test_off_loopback_only_the_same_origin_and_those_listed(
    tmp_path: Path, origin: str, status: int
) -> None:
    _, key = keys.create(tmp_path / "k", now=0.0)
    options = GatewayOptions(
        keys_file=str(tmp_path / "k"), allowed_origins=("https://app.example.org/",)
    )
    answer = await call(
        application(context(options), stubs()),
        "/tts",
        method="WEBSOCKET",
        headers={
            "host": "gw.example.com",
            "origin": origin,
            "authorization": f"Bearer {key}",
        },
        loopback=False,
    )
    assert answer.status == status


async def test_compat_ports_take_any_origin_on_loopback() -> None:
    app = application(context(), stubs())
    for origin in ("null", "file://", "https://anything.example"):
        headers = {"origin": origin}
        answer = await call(app, "/tts", method="WEBSOCKET", headers=headers, personality=VOICE)
        assert answer.status == 101
        answer = await call(app, "/healthz", headers=headers, personality=VOICE)
        assert answer.headers["access-control-allow-origin"] == "*"


async def test_preflights_are_answered_where_there_is_cors_at_all() -> None:
    app = application(context(GatewayOptions(allowed_origins=("https://a.example",))), stubs())
    asked = {
        "origin": "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-own",
    }
    answer = await call(app, "/v1/chat/completions", method="OPTIONS", headers=asked)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert answer.headers["access-control-allow-headers"] == "content-type,x-own"
    other = {**asked, "origin": "http://localhost:1"}
    answer = await call(app, "/v1/chat/completions", method="OPTIONS", headers=other)
    assert answer.status == 405


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8600", 200),
        ("127.0.0.1:8600", 200),
        ("127.1.2.3", 200),
        ("[::1]:8600", 200),
        ("app.localhost", 200),
        ("localhost.", 200),
        ("evil.example", 403),
        ("127.0.0.1.nip.io", 403),
        ("localhost.evil.example", 403),
        ("0.0.0.0:8600", 403),
        ("192.168.1.5", 403),
        ("", 403),
    ],
)
async def test_a_rebound_name_is_not_answered(host: str, status: int) -> None:
    app = application(context(), stubs())
    for path in ("/v1/models", "/healthz"):
        assert (await call(app, path, headers={"host": host})).status == status


async def test_listed_hosts_are_answered_and_then_want_a_key() -> None:
    app = application(context(GatewayOptions(allowed_hosts=("gw.example.com",))), stubs())
    headers = {"host": "gw.example.com"}
    assert (await call(app, "/healthz", headers=headers)).status == 200
    assert (await call(app, "/v1/models", headers=headers)).status == 401
    assert (await call(app, "/v1/models")).status == 401, "whoever proxies here looks local"


async def test_an_open_gateway_answers_to_addresses_but_not_to_any_name() -> None:
    app = application(context(GatewayOptions(insecure_no_auth=True)), stubs())
    for host, status in (("192.168.1.5:8600", 200), ("evil.example", 403)):
        answer = await call(app, "/v1/models", headers={"host": host}, loopback=False)
        assert answer.status == status


# ------------------------------------------------------------------------------ bind


def test_an_open_bind_without_keys_does_not_start(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(CannotBoot, match="forebay keys create"):
        refuse_open_bind(["127.0.0.1", "0.0.0.0"], GatewayOptions())
    with pytest.raises(CannotBoot):
        refuse_open_bind(["::"], GatewayOptions(keys_file=str(path)))
    refuse_open_bind(["127.0.0.1", "::1", "127.0.0.53"], GatewayOptions())
    refuse_open_bind(["0.0.0.0"], GatewayOptions(insecure_no_auth=True))
    keys.create(path, now=0.0)
    refuse_open_bind(["0.0.0.0"], GatewayOptions(keys_file=str(path)))


async def test_the_client_names_its_tenant_only_where_it_is_trusted_to() -> None:
    for trust, expected in ((False, b"local"), (True, b"acme")):
        app = application(context(GatewayOptions(trust_client_tenant=trust)), stubs())
        answer = await call(app, "/v1/models", headers={"x-tenant": "acme"})
        assert answer.body == expected


def test_require_key_true_means_everywhere() -> None:
    auth = Auth(GatewayOptions(require_key=True))
    from forebay.gateway.personality import Port

    assert auth.demands_key(Port(MAIN, True))
    assert not Auth(GatewayOptions()).demands_key(Port(MAIN, True))
    assert Auth(GatewayOptions()).demands_key(Port(MAIN, False))

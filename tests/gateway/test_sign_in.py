"""Signing in to the console: a cookie that stands for a key, and only for our own pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asgi_calls import Answer, application, call, context

from forebay.gateway import keys
from forebay.gateway.auth import COOKIE
from forebay.gateway.options import GatewayOptions
from forebay.gateway.personality import PERSONALITIES

HOST = {"host": "gw.example.com"}
OWN = {**HOST, "origin": "http://gw.example.com"}


class Door:
    """A gateway off loopback with one key, and what it answers."""

    def __init__(self, path: Path, scopes: tuple[str, ...] = ("read", "submit")) -> None:
        self.path = path
        self.record, self.key = keys.create(path, now=0.0, tenant="acme", scopes=scopes)
        self.app = application(context(GatewayOptions(keys_file=str(path))))
        self.cookie = {"cookie": f"other=1; {COOKIE}={self.key}"}

    async def ask(self, path: str = "/api/status", **facts: Any) -> Answer:
        return await call(self.app, path, loopback=False, **facts)

    async def sign_in(self, headers: dict[str, str] | None = None) -> Answer:
        shown = {"authorization": f"Bearer {self.key}", **OWN, **(headers or {})}
        return await self.ask("/api/session", method="POST", headers=shown)


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path / "keys.json")


async def test_signing_in_leaves_a_cookie_that_no_script_and_no_other_site_can_use(
    door: Door,
) -> None:
    answer = await door.sign_in()
    assert answer.json == {"signed_in": True, "tenant": "acme", "scopes": ["read", "submit"]}
    cookie = answer.headers["set-cookie"]
    assert cookie == f"{COOKIE}={door.key}; Path=/; HttpOnly; SameSite=Strict"
    assert answer.headers["cache-control"] == "no-store"
    behind_tls = await door.sign_in({"x-forwarded-proto": "https"})
    assert behind_tls.headers["set-cookie"].endswith("; Secure")
    out = await door.ask("/api/session", method="DELETE", headers=OWN)
    assert out.headers["set-cookie"].startswith(f"{COOKIE}=; ")
    assert "Max-Age=0" in out.headers["set-cookie"]


async def test_a_wrong_key_signs_nobody_in(door: Door) -> None:
    answer = await door.sign_in({"authorization": "Bearer fb_wrong"})
    assert answer.status == 401
    assert "set-cookie" not in answer.headers


async def test_the_cookie_lets_our_own_pages_read_and_act(door: Door) -> None:
    assert (await door.ask(headers=HOST)).status == 401
    reading = await door.ask(headers={**HOST, **door.cookie})
    assert (reading.status, reading.json["signed_in"]) == (200, True)
    ticket = await door.ask("/api/ticket", method="POST", headers={**OWN, **door.cookie})
    assert ticket.status == 200
    direct = await door.ask(headers={**HOST, "authorization": f"Bearer {door.key}"})
    assert direct.json["signed_in"] is False


@pytest.mark.parametrize(
    "around",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
async def test_another_sites_page_gets_nothing_with_it(door: Door, around: dict[str, str]) -> None:
    answer = await door.ask(headers={**HOST, **door.cookie, **around})
    assert answer.status in (401, 403)


async def test_without_an_origin_the_cookie_changes_nothing(door: Door) -> None:
    headers = {**HOST, **door.cookie}
    assert (await door.ask("/api/ticket", method="POST", headers=headers)).status == 401
    socket = await door.ask("/tts", method="WEBSOCKET", headers=headers)
    assert socket.status == 401


async def test_a_revoked_key_ends_the_session_and_a_key_keeps_its_scopes(
    door: Door, tmp_path: Path
) -> None:
    keys.revoke(door.path, door.record.id)
    revoked = Door(tmp_path / "other.json")
    stranger = {**HOST, "cookie": f"{COOKIE}={door.key}"}
    assert (await revoked.ask(headers=stranger)).status == 401
    viewer = Door(tmp_path / "viewer.json", scopes=("room:view",))
    assert (await viewer.ask(headers={**HOST, **viewer.cookie})).status == 403


async def test_ports_of_originals_and_this_machine_do_not_look_at_cookies(door: Door) -> None:
    voice = PERSONALITIES["voice"]
    headers = {**OWN, **door.cookie}
    answer = await door.ask("/tts", method="WEBSOCKET", headers=headers, personality=voice)
    assert answer.status == 401
    here = await call(door.app, "/api/status", headers={"cookie": f"{COOKIE}=stale"})
    assert (here.status, here.json["signed_in"]) == (200, False)
    nothing = await call(door.app, "/api/session", method="POST")
    assert nothing.json["signed_in"] is False
    assert "set-cookie" not in nothing.headers


@pytest.mark.parametrize("cookie", [f"{COOKIE}", f"{COOKIE}=", f"{COOKIE}=a b\x7f", f'{COOKIE}="'])
async def test_a_malformed_cookie_is_no_key(door: Door, cookie: str) -> None:
    assert (await door.ask(headers={**HOST, "cookie": cookie})).status == 401

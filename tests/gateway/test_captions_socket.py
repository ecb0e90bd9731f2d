"""Rooms over `/connection/websocket`: order, resume, presence, slow readers, links."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import QUICK, frame
from room_world import PASS, World, world

from forebay.broker.local import Settings
from forebay.core.kinds import KINDS, Kind
from forebay.gateway.keys import create
from forebay.gateway.rooms import RoomOptions


async def test_a_display_sees_what_is_said_from_then_on(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.post(text="before")
        display = await w.display()
        said = display.subscribed
        assert said["offset"] == 1 and said["recoverable"] and not said["recovered"]
        await w.post(text="one")
        await w.post(text="typing", is_preview=True)
        await w.post(text="two")
        pubs = [await display.pub() for _ in range(3)]
        assert [p["data"]["text"] for p in pubs] == ["one", "typing", "two"]
        assert [p.get("offset") for p in pubs] == [2, None, 3]


async def test_a_display_may_begin_with_the_window_and_wait_for_its_room(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        early = await w.display(data={"history": True})
        await w.post(text="one")
        assert await early.texts(1) == ["one"]
        late = await w.display(data={"history": True})
        assert late.subscribed["offset"] == 0
        await w.post(text="two")
        assert await late.texts(2) == ["one", "two"]
        assert await early.texts(1) == ["two"]


async def test_a_display_that_comes_back_gets_exactly_what_it_missed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        first = await w.display()
        epoch = first.subscribed["epoch"]
        for n in range(300):
            await w.post(text=str(n), user_name=f"u{n}")
        again = await w.display(recover=True, offset=7, epoch=epoch)
        said = again.subscribed
        assert (said["recovered"], said["was_recovering"], said["offset"]) == (True, True, 7)
        await w.post(text="live")
        assert await again.texts(294) == [*(str(n) for n in range(7, 300)), "live"]
        other = await w.display(recover=True, offset=7, epoch="another")
        assert (other.subscribed["recovered"], other.subscribed["offset"]) == (False, 0)
        assert await other.texts(1) == ["0"]
        ahead = await w.display(recover=True, offset=9999, epoch=epoch)
        assert not ahead.subscribed["recovered"]


async def test_publishing_presence_and_history_over_the_socket(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        a = await w.connect("talk", {"data": {"user": "Ada"}}, data={"passphrase": PASS})
        b = await w.connect("talk", {"data": {"user": "Bob", "role": "console"}})
        done = await a.ask("publish", channel="talk", data={"user_name": "Ada", "text": "hi"})
        assert done == {"result": "appended", "offset": 1}
        assert await b.texts(1) == ["hi"]
        refused = await b.ask("publish", channel="talk", data={"user_name": "B", "text": "x"})
        assert refused["code"] == 107
        wrong = {"user_name": "B", "text": "x", "passphrase": "no"}
        assert (await b.ask("publish", channel="talk", data=wrong))["code"] == 101
        there = (await a.ask("presence", channel="talk"))["presence"]
        assert sorted(one["user"] for one in there.values()) == ["Ada", "Bob"]
        assert await a.ask("presence_stats", channel="talk") == {"num_clients": 2, "num_users": 2}
        for n in range(4):
            await w.post(text=str(n))
        page = await a.ask("history", channel="talk", limit=2)
        assert [p["data"]["text"] for p in page["publications"]] == ["hi", "0"]
        since = {"offset": page["publications"][-1]["offset"], "epoch": page["epoch"]}
        page = await a.ask("history", channel="talk", limit=-1, since=since)
        assert [p["data"]["text"] for p in page["publications"]] == ["1", "2", "3"]
        page = await a.ask("history", channel="talk", limit=2, reverse=True)
        assert [p["data"]["text"] for p in page["publications"]] == ["3", "2"]
        assert (await a.ask("history", channel="talk"))["offset"] == 5
        old = {"offset": 1, "epoch": "other"}
        assert (await a.ask("history", channel="talk", limit=1, since=old))["code"] == 112
        await b.socket.close()
        async with asyncio.timeout(60):
            while (await a.ask("presence_stats", channel="talk"))["num_clients"] != 1:
                continue
        assert await a.ask("unsubscribe", channel="talk") == {}
        assert (await a.ask("presence_stats", channel="talk"))["num_clients"] == 0
        assert (await a.ask("rpc", data={}))["code"] == 104
        assert await a.ask("ping") == {}


async def test_a_frame_may_carry_several_commands_and_nonsense_ends_the_connection(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        ws = await w.http.ws_connect(w.main + "/connection/websocket")
        lines = [{"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "talk"}}, {}]
        await ws.send_str("\n".join(json.dumps(line) for line in lines))
        assert (await ws.receive_json())["id"] == 1
        assert (await ws.receive_json())["id"] == 2
        for bad in ("{", "[]", '{"id":"x"}', '{"id":1}\n' * 40):
            ws = await w.http.ws_connect(w.main + "/connection/websocket")
            await ws.send_str(bad)
            await ws.receive()
            assert ws.close_code == 3501
        ws = await w.http.ws_connect(w.main + "/connection/websocket")
        await ws.send_str('{"id":1,"subscribe":{"channel":"talk"}}')
        await ws.receive()
        assert ws.close_code == 3501


async def test_subscribing_is_bounded_and_refused_by_number(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        display = await w.display()
        assert (await display.ask("subscribe", channel="talk"))["code"] == 107
        assert (await display.ask("subscribe", channel=""))["code"] == 107
        assert (await display.ask("subscribe", channel="no spaces"))["code"] == 107
        assert (await display.ask("history", channel="none"))["code"] == 102
        for n in range(31):
            await display.ask("subscribe", channel=f"c{n}")
        assert (await display.ask("subscribe", channel="more"))["code"] == 111
        loose = await w.connect("有空格 的房间", {}, at=w.captions)
        assert loose.subscribed["recoverable"]


async def test_a_room_that_is_dropped_is_subscribed_anew(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.post(text="one")
        display = await w.display()
        await w.post("/api/rooms/talk/drop")
        push = await display.push()
        assert push["unsubscribe"]["code"] == 2500
        again = await display.ask("subscribe", channel="talk", data={"history": True})
        assert again["offset"] == 0
        await w.post(text="new")
        assert await display.texts(1) == ["new"]


async def test_a_gateway_that_leaves_tells_its_displays_to_come_back(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        display = await w.display()
        w.stop.set()
        with pytest.raises(EOFError):
            await display.push()
        assert display.socket.close_code == 3001


def slow_rows(slow_s: float) -> Settings:
    rows = dict(KINDS)
    rows[Kind.ROOM] = replace(rows[Kind.ROOM], slow_reader_s=slow_s)
    return Settings(rows=rows)


async def stalled(w: World, takes: int = 4096) -> socket.socket:
    """A display that subscribes and then never reads."""
    port = int(w.main.rpartition(":")[2])
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, takes)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", port))
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    await loop.sock_sendall(
        sock,
        b"GET /connection/websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
        + key.encode()
        + b"\r\n\r\n",
    )
    await loop.sock_recv(sock, 4096)
    hello = b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"talk"}}'
    await loop.sock_sendall(sock, frame(1, hello))
    got = b""
    while b'"subscribe":' not in got:
        got += await loop.sock_recv(sock, 4096)
    return sock


async def numbers(w: World) -> dict[str, float]:
    _, text = await w.get("/metrics")
    lines = [line.split(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line for line in lines if len(line) == 2)}


async def test_a_display_that_reads_nothing_harms_nobody_and_is_cut_in_time(
    tmp_path: Path,
) -> None:
    options = replace(QUICK, sndbuf_bytes=4096)
    facts: Any = {"broker": slow_rows(1.0), "rooms": RoomOptions(per_s=1000, burst=1000)}
    async with world(tmp_path, options=options, **facts) as w:
        await w.post(text="first")
        sock = await stalled(w)
        good = await w.display()
        async with asyncio.timeout(60):
            while (await numbers(w))["forebay_displays"] != 2:
                continue
        reading = asyncio.ensure_future(good.texts(100))
        for n in range(100):
            messages = [{"text": "x" * 1900}, {"text": "p" * 1900, "is_preview": True}]
            await w.post(text=None, messages=messages, user_name=f"u{n}")
            if n % 20 == 0:
                await asyncio.sleep(0.02)
        seen = await reading
        assert len(seen) == 100
        found = await numbers(w)
        assert found["forebay_previews_dropped_total"] > 10
        async with asyncio.timeout(60):
            while not (await numbers(w))["forebay_displays_cut_total"]:
                continue
        sock.close()


async def test_a_display_that_was_slow_for_a_while_misses_no_final(tmp_path: Path) -> None:
    options = replace(QUICK, sndbuf_bytes=4096)
    facts: Any = {"rooms": RoomOptions(per_s=1000, burst=1000)}
    async with world(tmp_path, options=options, **facts) as w:
        await w.post(text="first")
        sock = await stalled(w, 65536)
        for n in range(100):
            await w.post(text=f"{n:03} " + "x" * 1900, user_name=f"u{n}")
        got, loop = b"", asyncio.get_running_loop()
        async with asyncio.timeout(60):
            while got.count(b'"offset":') < 100:
                got += await loop.sock_recv(sock, 65536)
        places = [got.index(f'"text":"{n:03} '.encode()) for n in range(100)]
        assert places == sorted(places)
        await w.post(text="at the end")
        async with asyncio.timeout(60):
            while b"at the end" not in got:
                got += await loop.sock_recv(sock, 65536)
        assert (await numbers(w))["forebay_displays_cut_total"] == 0
        sock.close()


async def test_where_keys_are_demanded_a_link_lets_its_holder_read_and_nothing_else(
    tmp_path: Path,
) -> None:
    keys = tmp_path / "keys.json"
    _, writer = create(keys, now=0.0, scopes=("room:publish",), tenant="acme")
    _, viewer = create(keys, now=0.0, scopes=("room:view",), tenant="acme")
    _, other = create(keys, now=0.0, scopes=("room:view", "room:publish"), tenant="other")
    options = replace(QUICK, keys_file=str(keys), require_key=True)
    async with world(tmp_path, options=options) as w:
        assert (await w.post())[0] == 401
        w.http.headers["authorization"] = f"Bearer {viewer}"
        assert (await w.post())[0] == 403
        w.http.headers["authorization"] = f"Bearer {writer}"
        assert (await w.post(text="secret"))[0] == 200
        assert (await w.get("/api/list?room=talk"))[0] == 403
        _, made = await w.post("/api/rooms/talk/ticket")
        ticket = made["ticket"]
        w.http.headers["authorization"] = f"Bearer {viewer}"
        assert await w.texts() == ["secret"]
        w.http.headers["authorization"] = f"Bearer {other}"
        assert await w.texts() == []
        del w.http.headers["authorization"]
        assert (await w.get("/api/list?room=talk"))[0] == 401
        _, body = await w.get(f"/api/list?room=talk&view={ticket}")
        assert body["transcriptions"][0]["text"] == "secret"
        for bad in (ticket[:-1] + "0", "v1.acme.ffffffff.00", "x", ticket.replace("acme", "other")):
            if bad != ticket:
                assert (await w.get(f"/api/list?room=talk&view={bad}"))[0] == 401
        assert (await w.get(f"/api/list?room=another&view={ticket}"))[0] == 401
        display = await w.connect("talk", {"data": {"history": True}}, token=ticket)
        assert await display.texts(1) == ["secret"]
        mine = {"user_name": "x", "text": "y", "passphrase": PASS}
        assert (await display.ask("publish", channel="talk", data=mine))["code"] == 101
        nobody = await w.connect("talk", {})
        assert nobody.subscribed["code"] == 101
        keyed = await w.connect("talk", {}, token=viewer)
        assert keyed.subscribed["recoverable"]

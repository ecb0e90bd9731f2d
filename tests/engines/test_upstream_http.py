"""The model server's connection: what is kept, what is waited for, what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from forebay.engines.openai_http import AHEAD_BYTES, HEAD_BYTES, HttpPeer, Posted
from forebay.errors import ConfigError, UpstreamFailed, UpstreamTimeout

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=x\r\nContent-Length: 2\r\n\r\nhi"


class Server:
    """Plays ``script`` for every request it has read; counts requests and connections."""

    def __init__(self, script: Play) -> None:
        self.script = script
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.url = ""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head)
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                self.bodies.append(await reader.readexactly(length))
                await self.script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def serving(script: Play, **options: Any) -> AsyncIterator[tuple[Server, HttpPeer]]:
    server = Server(script)
    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    settings: dict[str, Any] = {"limit": 4, "keepalive_s": 30.0, "connect_timeout_s": 5.0}
    key = options.pop("key", "")
    peer = HttpPeer(f"http://127.0.0.1:{port}/v1", key, **{**settings, **options})
    try:
        yield server, peer
    finally:
        peer.close()
        listening.close()


def says(*parts: bytes) -> Play:
    async def play(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.005)

    return play


def until(seconds: float = 20.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def post(peer: HttpPeer, body: bytes = b"{}", seconds: float = 20.0) -> Posted:
    return await peer.post("/chat/completions", body, until(seconds))


async def rest(answer: Posted) -> bytes:
    parts = []
    while data := await answer.read():
        parts.append(data)
    answer.close()
    return b"".join(parts)


async def eventually(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("did not come about in 20 s")


async def test_a_request_is_one_head_and_its_body_and_the_answer_is_read_whole() -> None:
    async with serving(says(WHOLE), key="secret") as (server, peer):
        answer = await post(peer, b'{"a":1}')
        assert (answer.status, answer.content_type) == (200, "text/plain")
        assert answer.header(b"content-length") == "2" and answer.header(b"nope") is None
        assert await rest(answer) == b"hi"
    lines = server.heads[0].decode().split("\r\n")
    assert lines[0] == "POST /v1/chat/completions HTTP/1.1"
    assert "Authorization: Bearer secret" in lines and "Content-Length: 7" in lines
    assert server.bodies == [b'{"a":1}']


async def test_a_connection_that_was_read_to_its_end_is_used_again() -> None:
    chunks = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n", b"one\r\n0\r\n\r\n")
    async with serving(says(*chunks)) as (server, peer):
        for _ in range(3):
            assert await rest(await post(peer)) == b"one"
            assert peer.idle == 1
    assert (server.connections, len(server.heads)) == (1, 3)


@pytest.mark.parametrize(
    "parts",
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",),
        (WHOLE + b"more",),
        (WHOLE, b"HTTP/1.1 200 OK\r\n\r\n"),
    ],
)
async def test_a_connection_is_not_kept_when_its_server_closes_or_says_too_much(
    parts: tuple[bytes, ...],
) -> None:
    async with serving(says(*parts)) as (server, peer):
        for _ in range(2):
            assert await rest(await post(peer)) == b"hi"
            await asyncio.sleep(0.05)
            assert peer.idle == 0
    assert server.connections == 2


async def test_an_answer_that_ends_with_its_connection_is_read_to_there() -> None:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        writer.close()

    async with serving(close) as (_, peer):
        assert await rest(await post(peer)) == b"all of it"
        assert peer.idle == 0


async def test_who_stops_listening_ends_the_connection() -> None:
    ended = asyncio.Event()

    async def forever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        assert await reader.read() == b""
        ended.set()

    async with serving(forever) as (_, peer):
        answer = await post(peer)
        assert await answer.read() == b"one"
        answer.close()
        answer.close()  # twice is once
        async with asyncio.timeout(20):
            await ended.wait()
        assert await answer.read() == b""


async def test_an_interim_answer_is_passed_over() -> None:
    interim = b"HTTP/1.1 100 Continue\r\nX-Early: yes\r\n\r\n"
    async with serving(says(interim, WHOLE)) as (_, peer):
        answer = await post(peer)
        assert answer.header(b"x-early") is None
        assert await rest(answer) == b"hi"


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * (HEAD_BYTES + 10),
    ],
)
async def test_what_is_no_http_answer_is_named(said: bytes) -> None:
    async with serving(says(said)) as (_, peer):
        with pytest.raises(UpstreamFailed) as caught:
            await post(peer)
    assert caught.value.details["reason"] == "garbage"


async def test_a_body_that_turns_into_garbage_ends_what_is_read() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(says(head + b"3\r\none\r\n", b"no length\r\n")) as (_, peer):
        assert await rest(await post(peer)) == b"one"
        assert peer.idle == 0


async def test_a_status_that_does_not_come_in_time_is_a_timeout() -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as (_, peer):
        with pytest.raises(UpstreamTimeout, match="sent no status"):
            await post(peer, seconds=0.05)
        await asyncio.sleep(0.05)
        assert (peer.idle, peer.open) == (0, 0)


async def test_over_the_limit_requests_wait_their_turn_and_one_that_gives_up_costs_nobody() -> None:
    go_on = asyncio.Event()

    async def held(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        writer.write(WHOLE)

    async def whole(number: int) -> bytes:
        return await rest(await post(peer, b"%d" % number))

    async with serving(held, limit=1) as (server, peer):
        first, gives_up, third = (asyncio.create_task(whole(n)) for n in range(3))
        await eventually(lambda: bool(server.heads))
        with pytest.raises(UpstreamTimeout, match="1 connections and none came free"):
            await post(peer, seconds=0.01)
        gives_up.cancel()
        go_on.set()
        assert await first == await third == b"hi"
        await asyncio.gather(gives_up, return_exceptions=True)
    assert server.connections == 1
    assert server.bodies == [b"0", b"2"]


async def test_one_that_was_woken_and_cancelled_hands_its_turn_on() -> None:
    async with serving(says(WHOLE), limit=1) as (server, peer):
        answer = await post(peer)
        waiting = [asyncio.create_task(post(peer)) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert await answer.read() == b"hi"
        answer.close()  # wakes the first, which is cancelled before it has its turn
        waiting[0].cancel()
        async with asyncio.timeout(20):
            assert await rest(await waiting[1]) == b"hi"
        assert waiting[0].cancelled()
    assert server.connections == 1


async def test_who_reads_slowly_holds_the_server_up_and_loses_nothing() -> None:
    size, sent = 16 * AHEAD_BYTES, 0

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * 65_536)
            await writer.drain()
            sent += 65_536

    async with serving(flood) as (_, peer):
        answer = await post(peer)
        await asyncio.sleep(0.2)
        assert answer.ahead <= 2 * AHEAD_BYTES
        assert len(await rest(answer)) == size
        assert peer.idle == 1


async def test_idle_connections_are_ended_after_their_time() -> None:
    async with serving(says(WHOLE), keepalive_s=0.05) as (server, peer):
        assert await rest(await post(peer)) == b"hi"
        assert peer.idle == 1
        await eventually(lambda: not peer.open)
        assert peer.idle == 0
        assert await rest(await post(peer)) == b"hi"
    assert server.connections == 2


async def test_addresses_and_keys_are_said_as_http_wants_them() -> None:
    limits: dict[str, Any] = {"limit": 1, "keepalive_s": 1.0, "connect_timeout_s": 5.0}
    with pytest.raises(ConfigError, match="no header can have"):
        HttpPeer("http://127.0.0.1:1/v1", "a\r\nX-Other: b", **limits)
    async with serving(says(WHOLE)) as (server, peer):
        port = peer.address[1]
        other = HttpPeer(f"http://me:p%40ss@127.0.0.1:{port}/a b/v1", "", **limits)
        assert await rest(await post(other)) == b"hi"
        other.close()
    head = server.heads[0].decode()
    assert head.startswith("POST /a%20b/v1/chat/completions HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{port}\r\n" in head
    assert "Authorization: Basic bWU6cEBzcw==\r\n" in head


async def test_a_server_that_speaks_no_tls_or_has_no_address_is_named() -> None:
    def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ready\r\n")
        writer.close()

    listening = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    limits: dict[str, Any] = {"limit": 1, "keepalive_s": 1.0, "connect_timeout_s": 20.0}
    for base, reason in (
        (f"https://127.0.0.1:{port}/v1", "tls"),
        ("http://no-such-host.invalid:1/v1", "no_address"),
    ):
        broken = HttpPeer(base, "", **limits)
        with pytest.raises(UpstreamFailed) as caught:
            await post(broken)
        assert caught.value.details["reason"] == reason
        assert broken.open == 0
    listening.close()

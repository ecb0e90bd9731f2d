"""Wires: what is written arrives whole and in order, and the backlog tells the truth."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any

import pytest
from gateway_harness import HANG_S, QUICK, close_code, read_frame, serving

from forebay.gateway.wire import LOW_WATER_BYTES
from forebay.gateway.wires import AsgiWire, asgi_wire, frame_header, short_reason


async def test_text_and_bytes_leave_as_one_frame_each() -> None:
    async with serving() as served:
        reader, _ = await served.websocket()
        wire = served.probe.wires[0]
        wire.send("naïve")
        wire.send(b"\x00\x01")
        wire.send("")
        wire.send("x" * 70_000)
        assert await read_frame(reader) == (1, "naïve".encode())
        assert await read_frame(reader) == (2, b"\x00\x01")
        assert await read_frame(reader) == (1, b"")
        assert await read_frame(reader) == (1, b"x" * 70_000)


async def test_a_lone_surrogate_cannot_break_the_stream() -> None:
    async with serving() as served:
        reader, _ = await served.websocket()
        served.probe.wires[0].send("a\ud800b")
        assert await read_frame(reader) == (1, b"a?b")


async def test_close_leaves_after_everything_sent_and_nothing_after_it() -> None:
    async with serving() as served:
        reader, _ = await served.websocket()
        wire = served.probe.wires[0]
        wire.send("last words")
        wire.close(4408, "too slow")
        assert wire.closed
        wire.send("never")
        wire.close(1000)
        assert await read_frame(reader) == (1, b"last words")
        assert await close_code(reader) == 4408
        await served.until(lambda: served.probe.ends)
        assert served.probe.ends == [
            {"type": "websocket.disconnect", "code": 4408, "reason": "too slow"}
        ]


async def test_a_corked_wire_keeps_the_order_and_ends_with_the_close() -> None:
    async with serving() as served:
        reader, _ = await served.websocket()
        wire = served.probe.wires[0]
        wire.cork()
        wire.send("one")
        wire.cork()  # as if it were one
        wire.send(b"x" * 70_000)
        assert wire.backlog() > 70_000
        wire.uncork()
        wire.send("two")
        wire.cork()
        wire.send("three")
        assert wire.offer(wire.framed("four"), 100_000, 0.0)
        wire.cork()
        wire.send("five")
        wire.close(1000)
        wire.uncork()
        for words in (b"one", b"x" * 70_000, b"two", b"three", b"four", b"five"):
            assert (await read_frame(reader))[1] == words
        assert await close_code(reader) == 1000


async def test_a_wire_is_closed_once_its_peer_has_gone() -> None:
    async with serving() as served:
        _, writer = await served.websocket()
        wire = served.probe.wires[0]
        writer.transport.abort()
        await served.until(lambda: wire.closed)
        wire.send("into the void")
        assert wire.backlog() == 0


async def test_a_stalled_reader_is_seen_in_the_backlog_and_drain_is_called_once() -> None:
    async with serving() as served:
        reader, writer = await served.websocket()
        writer.transport.pause_reading()
        wire = served.probe.wires[0]
        sent = 0
        while wire.backlog() <= 200_000:
            wire.send(b"x" * 16_000)
            sent += 1
            await asyncio.sleep(0)
        drains: list[int] = []
        wire.on_drain(lambda: drains.append(-1))
        wire.on_drain(lambda: drains.append(wire.backlog()))  # replaces the first
        await asyncio.sleep(0.05)
        assert drains == []
        writer.transport.resume_reading()
        for _ in range(sent):
            assert len((await read_frame(reader))[1]) == 16_000
        await served.until(lambda: drains)
        assert len(drains) == 1
        assert 0 <= drains[0] <= LOW_WATER_BYTES


async def test_drain_of_an_empty_wire_comes_soon_but_not_at_once() -> None:
    async with serving() as served:
        await served.websocket()
        wire, called = served.probe.wires[0], []
        wire.on_drain(lambda: called.append(True))
        assert called == []
        await served.until(lambda: called)


async def test_the_kernel_holds_little_for_a_client_that_never_reads() -> None:
    async with serving() as served:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", served.port))
        await loop.sock_sendall(
            client,
            b"GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Sec-WebSocket-Version: 13\r\n\r\n",
        )
        await served.until(lambda: served.probe.wires)
        await asyncio.sleep(0.05)
        wire, sent = served.probe.wires[0], 0
        while wire.backlog() <= LOW_WATER_BYTES:
            wire.send(b"x" * 4000)
            sent += 4000
            await asyncio.sleep(0.001)
        assert sent < 256 * 1024, f"{sent} bytes went out before the client was seen to stall"
        client.close()


async def test_a_write_that_never_moves_is_cut_at_the_stall_deadline() -> None:
    async with serving(replace(QUICK, write_stall_s=0.3)) as served:
        _, writer = await served.websocket()
        writer.transport.pause_reading()
        wire = served.probe.wires[0]
        while wire.backlog() <= 200_000:
            wire.send(b"x" * 65_536)
            await asyncio.sleep(0)
        await served.until(lambda: served.probe.ends)
        assert served.metrics.deadlines["write"] == 1
        await served.until(lambda: served.server.gate.open == 0)


async def test_accepted_sockets_have_nodelay_and_the_small_buffer() -> None:
    async with serving() as served:
        await served.websocket()
        connection: Any = next(iter(served.server.state.connections))
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * 65536


# ---------------------------------------------------------------------------- http


async def streaming(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    wire = scope["forebay.wire"]
    for number in range(3):
        wire.send(f"data: {number}\n\n")
    wire.send(b"")  # an empty chunk would end the body
    wire.send(b"data: bytes\n\n")
    if scope["path"] == "/cut":
        wire.cut()
    wire.close()
    assert wire.closed
    wire.send("never")


ASK = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def test_an_http_wire_writes_chunks_and_the_connection_lives_on() -> None:
    async with serving(app=streaming) as served:
        reader, writer = await served.open()
        for _ in range(2):
            writer.write(ASK % b"/")
            out = await reader.readuntil(b"0\r\n\r\n")
            assert b"transfer-encoding: chunked" in out
            assert out.endswith(b"d\r\ndata: bytes\n\n\r\n0\r\n\r\n")
            assert out.count(b"data: ") == 4


class Writes:
    """A transport that counts what it is given to write."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.sizes: list[int] = []

    def write(self, data: bytes) -> None:
        self.sizes.append(len(data))
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def corked(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    wire = scope["forebay.wire"]
    wire._p.transport = scope["writes"] = writes = Writes(wire._p.transport)
    wire.cork()
    wire.send("one")
    wire.cork()  # as if it were one
    wire.send("two")
    assert writes.sizes == []
    assert wire.backlog() == len(b"3\r\none\r\n3\r\ntwo\r\n")
    if scope["path"] == "/uncork":
        wire.uncork()
        wire.uncork()
        assert len(writes.sizes) == 1
    (wire.cut if scope["path"] == "/cut" else wire.close)()
    assert len(writes.sizes) == (2 if scope["path"] == "/uncork" else 1)
    wire._p.transport = writes._transport


@pytest.mark.parametrize("path", [b"/", b"/uncork", b"/cut"])
async def test_a_corked_wire_writes_once_and_loses_nothing(path: bytes) -> None:
    async with serving(app=corked) as served:
        reader, writer = await served.open()
        writer.write(ASK % path)
        out = await (reader.read() if path == b"/cut" else reader.readuntil(b"0\r\n\r\n"))
        assert b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n" in out
        assert out.endswith(b"0\r\n\r\n") == (path != b"/cut")


async def test_a_cut_body_does_not_look_whole() -> None:
    async with serving(app=streaming) as served:
        out, closed = await served.ask(ASK % b"/cut")
        assert closed
        assert not out.endswith(b"0\r\n\r\n")


async def test_pipelined_requests_are_answered_in_order_through_their_own_wires() -> None:
    async with serving(app=streaming) as served:
        reader, writer = await served.open()
        writer.write(ASK % b"/" * 3)
        for _ in range(3):
            out = await reader.readuntil(b"0\r\n\r\n")
            assert out.startswith(b"HTTP/1.1 200 ")
            assert out.count(b"data: ") == 4


async def test_too_many_pipelined_requests_are_refused() -> None:
    async with serving(replace(QUICK, pipelined_requests=4)) as served:
        reader, writer = await served.open()
        writer.write(ASK % b"/hold" + ASK % b"/" * 20)
        await served.until(lambda: served.probe.paths)
        await served.until(lambda: served.connection._phase == "done")
        # The first is still being answered: its answer alone will go out.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(1)
        assert len(served.probe.paths) == 1
        served.probe.hold.set()
        async with asyncio.timeout(HANG_S):
            out = await reader.read()
        assert out.count(b"HTTP/1.1 ") == 1 and out.startswith(b"HTTP/1.1 200 ")


async def test_a_reader_that_leaves_closes_the_http_wire() -> None:
    async with serving() as served:
        _, writer = await served.open()
        writer.write(ASK % b"/stream")
        await served.until(lambda: served.probe.wires)
        writer.transport.abort()
        await served.until(lambda: served.probe.ends)
        assert served.probe.wires[0].closed


# ---------------------------------------------------------------------- plain asgi


async def test_the_stock_protocols_serve_the_same_application() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert "forebay.wire" not in scope
        await receive()
        await send({"type": "websocket.accept"})
        async with asgi_wire(send, websocket=True, bound_bytes=1000) as wire:
            wire.send("text")
            wire.send(b"bytes")
            wire.close(4400, "done")

    async with serving(app=app, stock=True) as served:
        reader, _ = await served.websocket()
        assert await read_frame(reader) == (1, b"text")
        assert await read_frame(reader) == (2, b"bytes")
        assert (await read_frame(reader))[1][:2] == (4400).to_bytes(2)


async def test_a_queue_past_its_bound_ends_the_connection_by_name() -> None:
    sent: list[Any] = []
    gate = asyncio.Event()

    async def send(message: Any) -> None:
        await gate.wait()
        sent.append(message)

    async with asgi_wire(send, websocket=True, bound_bytes=1000) as wire:
        wire.send("x" * 600)
        assert wire.backlog() == 600
        wire.send("x" * 600)
        assert wire.closed
        wire.send("never")
        gate.set()
    assert [message["type"] for message in sent] == ["websocket.send", "websocket.close"]
    assert sent[1]["code"] == 1013


async def test_a_queue_tells_when_it_has_drained() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    called: list[int] = []
    async with asgi_wire(send, websocket=False, bound_bytes=200_000) as wire:
        wire.send(b"x" * 100_000)
        wire.on_drain(lambda: called.append(wire.backlog()))
        assert called == []
        wire.close()
    assert called == [0]
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_server_whose_client_left_closes_the_queue() -> None:
    async def send(message: Any) -> None:
        raise OSError("gone")

    wire = AsgiWire(send, websocket=True, bound_bytes=1000)
    wire.send("x")
    await asyncio.wait_for(wire.run(), 60)
    assert wire.closed
    assert wire.backlog() == 0


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65535, b"\x81\x7e\xff\xff"),
        (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_frame_headers(size: int, header: bytes) -> None:
    assert frame_header(0x81, size) == header


def test_a_close_reason_is_cut_at_a_whole_character() -> None:
    assert short_reason("é" * 100) == "é" * 61
    assert short_reason("short") == "short"


async def test_a_corked_http_wire_holds_the_head_too_and_sends_all_in_one_write() -> None:
    async def together(scope: Any, receive: Any, send: Any) -> None:
        wire = scope["forebay.wire"]
        wire._p.transport = writes = Writes(wire._p.transport)
        wire.cork()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        wire.send("one")
        held.append(len(writes.sizes))
        wire.uncork()
        held.append(len(writes.sizes))
        wire.close()

    held: list[int] = []
    async with serving(app=together) as served:
        reader, writer = await served.open()
        writer.write(ASK % b"/")
        out = await reader.readuntil(b"0\r\n\r\n")
    assert out.startswith(b"HTTP/1.1 200 OK") and b"3\r\none\r\n" in out
    assert held == [0, 1]


async def test_an_http_wire_tells_once_that_its_client_has_gone_and_not_after_the_end() -> None:
    told: list[str] = []

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        wire = scope["forebay.wire"]
        wire.on_gone(lambda: told.append(scope["path"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        wire.send("here")
        if scope["path"] == "/whole":
            wire.close()
        else:
            await asyncio.sleep(0.2)
            wire.on_gone(lambda: told.append("late"))  # it has gone: told at once

    async with serving(app=waiting) as served:
        reader, writer = await served.open()
        writer.write(ASK % b"/whole")
        await reader.readuntil(b"0\r\n\r\n")
        writer.write(ASK % b"/cut")
        await reader.readuntil(b"here")
        writer.close()
        await served.until(lambda: len(told) == 2)
    assert told == ["/cut", "late"]

"""What arrives on a WebSocket: right, malformed, too large, too fast, from peers that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from gateway_harness import QUICK, Served, close_code, frame, read_frame, serving

LIMIT = 256 * 1024


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(replace(QUICK, close_s=0.3)) as running:
        yield running


MALFORMED = {
    "rsv1": (frame(1, b"x", rsv=4), 1002),
    "rsv2": (frame(1, b"x", rsv=2), 1002),
    "rsv3": (frame(1, b"x", rsv=1), 1002),
    "rsv on a ping": (frame(9, b"x", rsv=4), 1002),
    "data opcode 3": (frame(3, b"x"), 1002),
    "data opcode 7": (frame(7, b"x"), 1002),
    "control opcode 11": (frame(11, b"x"), 1002),
    "control opcode 15": (frame(15, b"x"), 1002),
    "unmasked": (frame(1, b"x", mask=False), 1002),
    "unmasked ping": (frame(9, b"", mask=False), 1002),
    "fragmented ping": (frame(9, b"x", fin=False), 1002),
    "ping of 126 bytes": (frame(9, b"x" * 126), 1002),
    "close of 126 bytes": (frame(8, b"\x03\xe8" + b"x" * 124), 1002),
    "close of one byte": (frame(8, b"\x03"), 1002),
    "close 999": (frame(8, (999).to_bytes(2)), 1002),
    "close 1005": (frame(8, (1005).to_bytes(2)), 1002),
    "close 1006": (frame(8, (1006).to_bytes(2)), 1002),
    "close 5000": (frame(8, (5000).to_bytes(2)), 1002),
    "close reason not utf-8": (frame(8, (1000).to_bytes(2) + b"\xff"), 1007),
    "continuation of nothing": (frame(0, b"x"), 1002),
    "text inside a fragmented text": (frame(1, b"a", fin=False) + frame(1, b"b"), 1002),
    "text not utf-8": (frame(1, b"\xff\xfe"), 1007),
    "text with a surrogate": (frame(1, b"\xed\xa0\x80"), 1007),
    "text overlong": (frame(1, b"\xc0\xaf"), 1007),
    "text cut inside a character": (frame(1, "é".encode()[:1]), 1007),
    "fragments that end inside a character": (
        frame(1, b"\xe2", fin=False) + frame(0, b"\x82"),
        1007,
    ),
    "one byte too large": (frame(2, b"x" * (LIMIT + 1)), 1009),
    "claims 2^62 bytes": (frame(2, b"", claim=2**62), 1009),
    "claims 2^63 bytes": (frame(2, b"", claim=2**63), 1009),
    "fragments too large together": (
        frame(2, b"x" * (LIMIT - 1), fin=False) + frame(0, b"xx"),
        1009,
    ),
}


@pytest.mark.parametrize(("data", "code"), list(MALFORMED.values()), ids=list(MALFORMED))
async def test_malformed_frames_end_that_connection_by_name(
    served: Served, data: bytes, code: int
) -> None:
    other_reader, other_writer = await served.websocket()
    reader, writer = await served.websocket()
    writer.write(data)
    assert await close_code(reader) == code
    await served.until(lambda: served.probe.ends)
    assert served.probe.ends[0]["code"] == code
    assert served.probe.heard == []
    other_writer.write(frame(1, b"unharmed"))
    assert await read_frame(other_reader) == (1, b"unharmed")
    for each in (writer, other_writer):
        each.close()


async def test_what_came_before_an_error_in_the_same_packet_is_delivered(served: Served) -> None:
    reader, writer = await served.websocket()
    writer.write(frame(1, b"first") + frame(1, b"second") + frame(3, b""))
    await served.until(lambda: served.probe.ends)
    assert served.probe.heard == ["first", "second"]
    writer.close()


async def test_fragments_become_one_message_with_controls_between(served: Served) -> None:
    reader, writer = await served.websocket()
    euro = "€".encode()
    writer.write(
        frame(1, b"a" + euro[:1], fin=False)
        + frame(9, b"are you there")
        + frame(0, b"", fin=False)
        + frame(0, euro[1:] + b"b")
    )
    assert await read_frame(reader) == (10, b"are you there")
    assert await read_frame(reader) == (1, b"a" + euro + b"b")
    writer.close()


async def test_messages_of_every_length_class_go_both_ways(served: Served) -> None:
    reader, writer = await served.websocket()
    for size in (0, 1, 125, 126, 127, 65535, 65536, LIMIT):
        writer.write(frame(2, b"x" * size))
        assert await read_frame(reader) == (2, b"x" * size)
    writer.write(frame(1, "grüße, 世界".encode()))
    assert await read_frame(reader) == (1, "grüße, 世界".encode())
    writer.close()


async def test_thousands_of_empty_fragments_are_kept_as_nothing(served: Served) -> None:
    reader, writer = await served.websocket()
    writer.write(frame(2, b"x", fin=False) + frame(0, b"", fin=False) * 20_000)
    await writer.drain()
    protocol: Any = next(iter(served.server.state.connections))
    writer.write(frame(0, b"y"))
    assert await read_frame(reader) == (2, b"xy")
    assert protocol.frames == []
    writer.close()


async def test_a_burst_of_tiny_messages_is_decoded_as_it_is_read(served: Served) -> None:
    reader, writer = await served.websocket("/deaf")
    writer.write(frame(1, b"x") * 30_000)
    await asyncio.sleep(0.2)
    protocol = next(iter(served.server.state.connections))
    assert len(protocol.inbox) < 1500  # type: ignore[attr-defined]
    served.probe.hold.set()
    await served.until(lambda: len(served.probe.heard) == 30_000)
    writer.close()


async def test_what_was_read_is_delivered_before_the_end_is(served: Served) -> None:
    reader, writer = await served.websocket("/deaf")
    writer.write(frame(1, b"x") * 2000)
    await writer.drain()
    await asyncio.sleep(0.1)
    served.probe.hold.set()
    writer.write(frame(8, (1000).to_bytes(2)))
    await served.until(lambda: served.probe.ends)
    assert len(served.probe.heard) == 2000
    assert served.probe.ends[0]["code"] == 1000
    writer.close()


async def test_pings_of_a_peer_that_never_reads_do_not_pile_up(served: Served) -> None:
    reader, writer = await served.websocket("/deaf")
    await served.until(lambda: served.probe.wires)
    wire = served.probe.wires[0]
    while wire.backlog() < 100_000:  # stop the peer's reading by filling every buffer
        wire.send(b"x" * 65536)
        await asyncio.sleep(0)
    before = wire.backlog()
    for _ in range(50):
        writer.write(frame(9, b"x" * 125) * 100)
        await writer.drain()
    await asyncio.sleep(0.2)
    assert wire.backlog() <= before + 200
    writer.transport.abort()


async def test_a_peer_that_closes_is_answered_with_its_own_code(served: Served) -> None:
    reader, writer = await served.websocket()
    writer.write(frame(8, (3001).to_bytes(2) + b"bye"))
    assert await close_code(reader) == 3001
    await served.until(lambda: served.probe.ends)
    assert served.probe.ends[0] == {"type": "websocket.disconnect", "code": 3001, "reason": "bye"}
    writer.close()


async def test_a_peer_that_vanishes_is_1006_and_told_once(served: Served) -> None:
    reader, writer = await served.websocket()
    writer.transport.abort()
    await served.until(lambda: served.probe.ends)
    assert [end["code"] for end in served.probe.ends] == [1006]
    await served.until(lambda: served.server.gate.open == 0)


async def test_a_crash_of_the_application_closes_1011(served: Served) -> None:
    reader, writer = await served.websocket("/crash")
    assert await close_code(reader) == 1011
    writer.close()


async def test_deflate_is_offered_in_vain(served: Served) -> None:
    reader, writer = await served.open()
    writer.write(
        b"GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
    )
    out = await reader.readuntil(b"\r\n\r\n")
    assert out.startswith(b"HTTP/1.1 101 ")
    assert b"extensions" not in out.lower()


async def test_frames_before_our_101_cut_the_connection(served: Served) -> None:
    reader, writer = await served.open()
    writer.write(
        b"GET /never HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    await served.until(lambda: served.probe.paths)
    writer.write(frame(9, b"x"))
    assert await reader.read() == b""
    writer.close()

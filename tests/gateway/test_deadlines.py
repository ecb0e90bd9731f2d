"""Connections that keep us waiting are closed; those that are merely slow are not."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from gateway_harness import KEY, QUICK, frame, read_frame, serving

SHORT = replace(QUICK, head_s=0.3, body_s=0.3, keep_alive_s=0.3, body_min_bytes_s=100)
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def timed(wait: object) -> tuple[object, float]:
    began = time.monotonic()
    return await wait, time.monotonic() - began  # type: ignore[misc]


async def test_a_silent_connection_is_closed_without_an_answer() -> None:
    async with serving(SHORT) as served:
        ((out, closed), took_s) = await timed(served.ask(b""))
        assert (out, closed) == (b"", True)
        assert 0.25 < took_s < 1.0
        assert served.metrics.deadlines["head"] == 1


async def test_dripped_headers_are_answered_408_at_the_deadline() -> None:
    async with serving(SHORT) as served:
        reader, writer = await served.open()
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n")

        async def drip() -> None:
            while True:
                writer.write(b"X: y\r\n")
                await asyncio.sleep(0.05)

        dripping = asyncio.ensure_future(drip())
        out, took_s = await timed(reader.read())
        dripping.cancel()
        assert out.startswith(b"HTTP/1.1 408 ")
        assert 0.25 < took_s < 1.0
        writer.close()


async def test_half_a_websocket_handshake_is_closed() -> None:
    async with serving(SHORT) as served:
        head = b"GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        (out, closed), took_s = await timed(served.ask(head))
        assert out.startswith(b"HTTP/1.1 408 ")
        assert closed
        assert took_s < 1.0


async def test_a_dripped_body_is_disconnected_and_answered_408() -> None:
    async with serving(SHORT) as served:
        reader, writer = await served.open()
        writer.write(b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")

        async def drip() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.05)

        dripping = asyncio.ensure_future(drip())
        out, took_s = await timed(reader.read())
        dripping.cancel()
        assert out.startswith(b"HTTP/1.1 408 ")
        assert took_s < 1.2
        await served.until(lambda: served.probe.ends)
        assert served.probe.bodies == []
        writer.close()


async def test_a_slow_body_above_the_least_rate_is_read_to_its_end() -> None:
    async with serving(SHORT) as served:  # at least 100 bytes a second after 0.3 s
        reader, writer = await served.open()
        writer.write(b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200\r\n\r\n")
        for _ in range(10):
            await asyncio.sleep(0.08)
            writer.write(b"x" * 20)
        out = await reader.readuntil(b"ok")
        assert out.startswith(b"HTTP/1.1 200 ")
        assert served.probe.bodies == [b"x" * 200]
        writer.close()


async def test_a_body_nobody_reads_yet_is_not_late() -> None:
    async with serving(SHORT) as served:
        reader, writer = await served.open()
        size = 500_000  # more than is buffered for an application that does not read
        head = f"POST /hold HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
        writer.write(head.encode() + b"x" * size)
        await asyncio.sleep(0.8)
        assert served.metrics.deadlines["body"] == 0
        served.probe.hold.set()
        out = await reader.readuntil(b"ok")
        assert out.startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_an_idle_kept_connection_is_closed() -> None:
    async with serving(SHORT) as served:
        (out, closed), took_s = await timed(served.ask(GET))
        assert out.endswith(b"ok")
        assert closed
        assert 0.25 < took_s < 1.0
        assert served.metrics.deadlines["keep_alive"] == 1


async def test_a_kept_connection_serves_on_and_each_head_has_its_own_deadline() -> None:
    async with serving(SHORT) as served:
        reader, writer = await served.open()
        for _ in range(6):  # longer in all than any one deadline
            await asyncio.sleep(0.1)
            writer.write(GET)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
        writer.write(b"GET / HT")
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_a_long_answer_is_no_idle_connection() -> None:
    async with serving(SHORT) as served:
        reader, writer = await served.open()
        writer.write(GET.replace(b" / ", b" /hold "))
        await asyncio.sleep(0.8)
        served.probe.hold.set()
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_handshake_the_application_never_answers_is_cut() -> None:
    async with serving(replace(QUICK, handshake_s=0.3)) as served:
        head = (
            f"GET /never HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade"
            f"\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        (out, closed), took_s = await timed(served.ask(head.encode()))
        assert (out, closed) == (b"", True)
        assert took_s < 1.0


async def test_a_silent_websocket_is_pinged_and_then_given_up() -> None:
    async with serving(replace(QUICK, ping_s=0.2, pong_s=0.2)) as served:
        reader, writer = await served.websocket()
        assert await read_frame(reader) == (9, b"forebay")
        opcode, payload = await read_frame(reader)
        assert (opcode, payload[:2]) == (8, (1011).to_bytes(2))
        assert await reader.read() == b""
        await served.until(lambda: served.probe.ends)
        assert served.metrics.deadlines["pong"] == 1
        writer.close()


async def test_half_a_frame_does_not_keep_a_dead_peer_alive() -> None:
    async with serving(replace(QUICK, ping_s=0.2, pong_s=0.2)) as served:
        reader, writer = await served.websocket()
        writer.write(frame(1, b"hel", claim=100))
        _, took_s = await timed(reader.read())
        assert took_s < 1.5
        assert served.probe.heard == []
        writer.close()


async def test_a_peer_that_answers_pings_or_talks_stays() -> None:
    async with serving(replace(QUICK, ping_s=0.15, pong_s=0.15)) as served:
        reader, writer = await served.websocket()
        for _ in range(4):
            assert await read_frame(reader) == (9, b"forebay")
            writer.write(frame(10, b"forebay"))
        for _ in range(5):
            writer.write(frame(1, b"still here"))
            await asyncio.sleep(0.1)
        assert not served.probe.ends
        assert served.metrics.deadlines["pong"] == 0
        writer.close()


async def test_a_websocket_we_do_not_read_from_is_not_taken_for_dead() -> None:
    async with serving(replace(QUICK, ping_s=0.1, pong_s=0.1)) as served:
        reader, writer = await served.websocket("/deaf")
        writer.write(frame(1, b"x") * 50)
        await asyncio.sleep(0.6)
        assert served.metrics.deadlines["pong"] == 0
        served.probe.hold.set()
        await served.until(lambda: len(served.probe.heard) == 50)
        writer.close()


async def test_the_peers_half_of_a_close_is_not_waited_for_for_ever() -> None:
    async with serving(replace(QUICK, close_s=0.2)) as served:
        reader, writer = await served.websocket()
        await served.until(lambda: served.probe.wires)
        served.probe.wires[0].close(4409, "superseded")
        assert await read_frame(reader) == (8, (4409).to_bytes(2) + b"superseded")
        out, took_s = await timed(reader.read())
        assert out == b""
        assert took_s < 1.0
        writer.close()


async def test_hundreds_of_loris_connections_leave_good_requests_alone() -> None:
    async with serving(replace(QUICK, head_s=1.0)) as served:
        lorises = [await served.open() for _ in range(250)]
        for _, writer in lorises:
            writer.write(b"GET / HTTP/1.1\r\nX")
        for _ in range(20):
            out, _ = await served.ask(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert out.startswith(b"HTTP/1.1 200 ")
        for reader, writer in lorises:
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
            writer.close()
        await served.until(lambda: served.server.gate.open == 0)

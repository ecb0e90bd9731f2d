"""Connections that keep us waiting are closed; those that are merely slow are not.

The server's time is moved by hand: what is late here is late by its clock, and a busy
machine changes nothing. `test_sweep` has the sweep itself in real time.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import replace

from gateway_harness import HANG_S, KEY, QUICK, Served, frame, read_frame, serving

SHORT = replace(QUICK, head_s=0.3, body_s=0.3, keep_alive_s=0.3, body_min_bytes_s=100)
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
ALMOST_S = 0.28
"""Of 0.3 s; the clock's grain is 0.02 s."""


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What comes up to the end of the connection."""
    async with asyncio.timeout(HANG_S):
        return await reader.read()


async def answer(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(HANG_S):
        return await reader.readuntil(b"ok")


async def test_a_silent_connection_is_closed_without_an_answer() -> None:
    async with serving(SHORT, by_hand=True) as served:
        reader, _ = await served.heard(b"")
        await served.passes(ALMOST_S)
        assert served.metrics.deadlines["head"] == 0
        await served.passes(0.04)
        assert await rest(reader) == b""
        assert served.metrics.deadlines["head"] == 1


async def test_a_silent_connection_is_closed_in_real_time_and_not_early() -> None:
    async with serving(SHORT) as served:
        began = time.monotonic()
        assert await served.ask(b"") == (b"", True)
        assert time.monotonic() - began > 0.25


async def test_dripped_headers_are_answered_408_at_the_deadline() -> None:
    async with serving(SHORT, by_hand=True) as served:
        reader, writer = await served.heard(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        connection = served.connection
        for _ in range(5):
            await served.passes(0.05)
            read = connection._head_bytes
            writer.write(b"X: y\r\n")
            await served.until(lambda read=read: connection._head_bytes > read)
        assert served.metrics.deadlines["head"] == 0
        await served.passes(0.07)
        assert (await rest(reader)).startswith(b"HTTP/1.1 408 ")


async def test_half_a_websocket_handshake_is_closed() -> None:
    async with serving(SHORT, by_hand=True) as served:
        head = b"GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        reader, _ = await served.heard(head)
        await served.passes(0.32)
        assert (await rest(reader)).startswith(b"HTTP/1.1 408 ")


async def test_a_dripped_body_is_disconnected_and_answered_408() -> None:
    async with serving(SHORT, by_hand=True) as served:
        reader, writer = await served.heard(POST % (b"/body", 1000))
        await drip(served, writer, b"x", times=8, each_s=0.05)
        assert (await rest(reader)).startswith(b"HTTP/1.1 408 ")
        await served.until(lambda: served.probe.ends)
        assert served.probe.bodies == []


async def drip(
    served: Served, writer: asyncio.StreamWriter, part: bytes, *, times: int, each_s: float
) -> None:
    """Time passes, a part is read; the last may fall behind the deadline."""
    connection = served.connection
    for _ in range(times):
        await served.passes(each_s)
        read = connection._body_bytes
        writer.write(part)
        await served.until(
            lambda read=read: connection._body_bytes > read or connection._phase != "body"
        )
    await served.passes(each_s)


async def test_a_slow_body_above_the_least_rate_is_read_to_its_end() -> None:
    async with serving(SHORT, by_hand=True) as served:  # at least 100 bytes/s after 0.3 s
        reader, writer = await served.heard(POST % (b"/body", 200))
        await drip(served, writer, b"x" * 20, times=10, each_s=0.08)
        out = await answer(reader)
        assert out.startswith(b"HTTP/1.1 200 ")
        assert served.probe.bodies == [b"x" * 200]


async def test_a_body_nobody_reads_yet_is_not_late() -> None:
    async with serving(SHORT, by_hand=True) as served:
        size = 500_000  # more than is buffered for an application that does not read
        reader, writer = await served.heard(POST % (b"/hold", size))
        writer.write(b"x" * size)
        await served.until(lambda: served.connection.flow.read_paused)
        for _ in range(4):
            await served.passes(0.2)
        assert served.metrics.deadlines["body"] == 0
        served.probe.hold.set()
        out = await answer(reader)
        assert out.startswith(b"HTTP/1.1 200 ")


async def test_an_idle_kept_connection_is_closed() -> None:
    async with serving(SHORT, by_hand=True) as served:
        reader, _ = await served.heard(GET)
        assert (await answer(reader)).startswith(b"HTTP/1.1 200 ")
        await served.passes(ALMOST_S)
        assert served.metrics.deadlines["keep_alive"] == 0
        await served.passes(0.04)
        assert await rest(reader) == b""
        assert served.metrics.deadlines["keep_alive"] == 1


async def test_a_kept_connection_serves_on_and_each_head_has_its_own_deadline() -> None:
    async with serving(SHORT, by_hand=True) as served:
        reader, writer = await served.heard(b"")
        for _ in range(6):  # longer in all than any one deadline
            await served.passes(0.1)
            writer.write(GET)
            assert (await answer(reader)).startswith(b"HTTP/1.1 200 ")
        writer.write(b"GET / HT")
        await served.until(lambda: served.connection._phase == "head")
        await served.passes(ALMOST_S)
        assert served.metrics.deadlines["head"] == 0
        await served.passes(0.04)
        assert (await rest(reader)).startswith(b"HTTP/1.1 408 ")


async def test_a_long_answer_is_no_idle_connection() -> None:
    async with serving(SHORT, by_hand=True) as served:
        reader, _ = await served.heard(GET.replace(b" / ", b" /hold "))
        for _ in range(4):
            await served.passes(0.2)
        served.probe.hold.set()
        assert (await answer(reader)).startswith(b"HTTP/1.1 200 ")


async def test_a_handshake_the_application_never_answers_is_cut() -> None:
    async with serving(replace(QUICK, handshake_s=0.3), by_hand=True) as served:
        head = (
            f"GET /never HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade"
            f"\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        asked = asyncio.ensure_future(served.ask(head.encode()))
        await served.until(lambda: served.probe.paths == ["/never"])
        await served.passes(0.32)
        assert await asked == (b"", True)
        assert served.metrics.deadlines["handshake"] == 1


async def test_a_silent_websocket_is_pinged_and_then_given_up() -> None:
    async with serving(replace(QUICK, ping_s=0.2, pong_s=0.2), by_hand=True) as served:
        reader, _ = await served.websocket()
        await served.passes(0.22)
        assert await read_frame(reader) == (9, b"forebay")
        assert served.metrics.deadlines["pong"] == 0
        await served.passes(0.22)
        opcode, payload = await read_frame(reader)
        assert (opcode, payload[:2]) == (8, (1011).to_bytes(2))
        assert await rest(reader) == b""
        await served.until(lambda: served.probe.ends)
        assert served.metrics.deadlines["pong"] == 1


async def test_half_a_frame_does_not_keep_a_dead_peer_alive() -> None:
    async with serving(replace(QUICK, ping_s=0.2, pong_s=0.2), by_hand=True) as served:
        reader, writer = await served.websocket()
        await served.passes(0.01)
        writer.write(frame(1, b"hel", claim=100))
        await served.until(lambda: served.connection._heard == served.clock.now)
        await served.passes(0.22)
        await served.passes(0.22)
        await rest(reader)
        assert served.metrics.deadlines["pong"] == 1
        assert served.probe.heard == []


async def test_a_peer_that_answers_pings_or_talks_stays() -> None:
    async with serving(replace(QUICK, ping_s=0.15, pong_s=0.15), by_hand=True) as served:
        reader, writer = await served.websocket()
        for _ in range(4):
            await served.passes(0.16)
            assert await read_frame(reader) == (9, b"forebay")
            writer.write(frame(10, b"forebay"))
            await served.until(lambda: served.connection._pinged is None)
        for n in range(5):
            writer.write(frame(1, b"still here"))
            await served.until(lambda n=n: len(served.probe.heard) > n)
            await served.passes(0.1)
        assert not served.probe.ends
        assert served.metrics.deadlines["pong"] == 0


async def test_a_websocket_we_do_not_read_from_is_not_taken_for_dead() -> None:
    async with serving(replace(QUICK, ping_s=0.1, pong_s=0.1), by_hand=True) as served:
        _, writer = await served.websocket("/deaf")
        writer.write(frame(1, b"x") * 50)
        await served.until(lambda: served.connection.read_paused)
        for _ in range(6):
            await served.passes(0.1)
        assert served.metrics.deadlines["pong"] == 0
        served.probe.hold.set()
        await served.until(lambda: len(served.probe.heard) == 50)


async def test_the_peers_half_of_a_close_is_not_waited_for_for_ever() -> None:
    async with serving(replace(QUICK, close_s=0.2), by_hand=True) as served:
        reader, _ = await served.websocket()
        await served.until(lambda: served.probe.wires)
        served.probe.wires[0].close(4409, "superseded")
        assert await read_frame(reader) == (8, (4409).to_bytes(2) + b"superseded")
        await served.passes(0.22)
        await served.passes(0.22)
        assert await rest(reader) == b""


async def test_hundreds_of_loris_connections_leave_good_requests_alone() -> None:
    async with serving(replace(QUICK, head_s=1.0), by_hand=True) as served:
        lorises = [await served.heard(b"GET / HTTP/1.1\r\nX") for _ in range(250)]
        for _ in range(20):
            out, _ = await served.ask(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert out.startswith(b"HTTP/1.1 200 ")
        await served.passes(1.02)
        for reader, writer in lorises:
            assert (await rest(reader)).startswith(b"HTTP/1.1 408 ")
            writer.close()
        await served.until(lambda: served.server.gate.open == 0)


# What follows has a loop that stood still: what came in time counts as having come in time.


async def test_a_request_that_came_while_the_server_stood_still_is_answered() -> None:
    async with serving(SHORT, by_hand=True) as served:
        reader, _ = await served.heard(b"")
        await stand_still(served, 1.0, meanwhile=GET)
        assert (await answer(reader)).startswith(b"HTTP/1.1 200 ")


async def test_part_of_a_request_that_came_while_the_server_stood_still_is_answered_408() -> None:
    async with serving(SHORT, by_hand=True) as served:
        reader, _ = await served.heard(b"")
        await stand_still(served, 1.0, meanwhile=b"GET / HTTP/1.1\r\n")
        assert (await rest(reader)).startswith(b"HTTP/1.1 408 ")


async def test_a_peer_that_answered_while_the_server_stood_still_stays() -> None:
    async with serving(replace(QUICK, ping_s=0.2, pong_s=0.2), by_hand=True) as served:
        reader, _ = await served.websocket()
        await served.passes(0.22)
        assert await read_frame(reader) == (9, b"forebay")
        await stand_still(served, 1.0, meanwhile=frame(10, b"forebay"))
        await served.swept()
        assert served.metrics.deadlines["pong"] == 0


async def test_a_peer_never_asked_has_its_whole_time_to_answer() -> None:
    async with serving(replace(QUICK, ping_s=0.2, pong_s=0.2), by_hand=True) as served:
        reader, _ = await served.websocket()
        await served.passes(60.0)  # the process was stopped, and goes on
        assert await read_frame(reader) == (9, b"forebay")
        await served.passes(0.18)
        assert served.metrics.deadlines["pong"] == 0
        await served.passes(0.04)
        assert served.metrics.deadlines["pong"] == 1


async def stand_still(served: Served, seconds: float, *, meanwhile: bytes) -> None:
    """The loop is held up while it reads another socket: ``meanwhile`` lies unread in the
    server's socket, and every timer is due when the loop goes on."""
    ours, theirs = socket.socketpair()
    done = asyncio.Event()

    def hold_up() -> None:
        loop.remove_reader(ours)
        os.write(served.clients[-1].get_extra_info("socket").fileno(), meanwhile)
        served.clock.now += seconds
        time.sleep(5 * QUICK.sweep_s)
        done.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(ours, hold_up)
    theirs.send(b"x")
    await done.wait()
    ours.close()
    theirs.close()

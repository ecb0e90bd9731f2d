"""The fault proxy: what each fault does to bytes, and that it can be undone while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import pytest

from forebay.lab.fault_proxy import FaultProxy, obey


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """A server that answers with what it hears; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, proxy: FaultProxy) -> Client:
        return cls(*await asyncio.open_connection(proxy.host, proxy.port))

    async def ask(self, data: bytes, limit_s: float = 5.0) -> float:
        """Seconds until all of ``data`` has come back."""
        began = time.monotonic()
        self.writer.write(data)
        async with asyncio.timeout(limit_s):
            assert await self.reader.readexactly(len(data)) == data
        return time.monotonic() - began

    def close(self) -> None:
        self.writer.close()


async def test_without_a_fault_everything_passes_unchanged(echo: int) -> None:
    async with await FaultProxy().start("127.0.0.1", echo) as proxy:
        client = await Client.of(proxy)
        await client.ask(bytes(range(256)) * 4096)
        assert proxy.bytes_up == proxy.bytes_down == 1 << 20
        assert (proxy.accepted, proxy.connections) == (1, 1)
        client.close()


async def test_latency_is_per_direction_and_costs_no_throughput(echo: int) -> None:
    async with await FaultProxy().start("127.0.0.1", echo, latency_s=0.5) as proxy:
        client = await Client.of(proxy)
        assert await client.ask(b"x") >= 1.0
        began = time.monotonic()
        client.writer.write(b"y" * 20)
        for _ in range(20):
            client.writer.write(b"y")
            await asyncio.sleep(0.005)
        await client.reader.readexactly(40)
        assert time.monotonic() - began < 10.0  # not twenty times the latency
        proxy.set(latency_s=0.0)
        assert min([await client.ask(b"z") for _ in range(9)]) < 0.5
        client.close()


async def test_the_order_stays_under_jitter_loss_and_slicing(echo: int) -> None:
    proxy = FaultProxy(seed=3)
    await proxy.start("127.0.0.1", echo, jitter_s=0.01, loss=0.05, slice_bytes=7)
    async with proxy:
        client = await Client.of(proxy)
        data = b"".join(b"%05d" % n for n in range(400))
        for at in range(0, len(data), 100):
            client.writer.write(data[at : at + 100])
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            assert await client.reader.readexactly(len(data)) == data
        client.close()


async def test_a_rate_holds_bytes_back(echo: int) -> None:
    async with await FaultProxy().start("127.0.0.1", echo) as proxy:
        proxy.down.set(rate_bytes_s=10_000)
        client = await Client.of(proxy)
        took_s = [await client.ask(b"x" * 5_000) for _ in range(3)]
        assert 0.3 <= min(took_s) <= 1.5
        client.close()


async def test_a_blackhole_holds_everything_until_it_heals(echo: int) -> None:
    async with await FaultProxy().start("127.0.0.1", echo) as proxy:
        client = await Client.of(proxy)
        await client.ask(b"before")
        proxy.blackhole()
        client.writer.write(b"held")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.reader.read(1)
        proxy.heal()
        async with asyncio.timeout(60):
            assert await client.reader.readexactly(4) == b"held"
        client.close()


async def test_one_direction_may_be_dead_alone(echo: int) -> None:
    async with await FaultProxy().start("127.0.0.1", echo) as proxy:
        client = await Client.of(proxy)
        await client.ask(b"x")
        proxy.blackhole(up=False)
        client.writer.write(b"12345")
        await asyncio.sleep(0.1)
        assert proxy.bytes_up == 6
        assert proxy.bytes_down == 1
        client.close()


async def test_a_reset_ends_both_sides_and_a_new_connection_is_served(echo: int) -> None:
    async with await FaultProxy().start("127.0.0.1", echo) as proxy:
        client = await Client.of(proxy)
        await client.ask(b"x")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(60):
                await client.reader.readexactly(1)
        again = await Client.of(proxy)
        await again.ask(b"y")
        again.close()


async def test_who_is_refused_sees_a_reset(echo: int) -> None:
    async with await FaultProxy().start("127.0.0.1", echo) as proxy:
        proxy.refuse()
        client = await Client.of(proxy)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await client.reader.readexactly(1)
        proxy.heal()
        again = await Client.of(proxy)
        await again.ask(b"y")
        again.close()


async def test_the_end_of_a_stream_goes_through(echo: int) -> None:
    async with await FaultProxy().start("127.0.0.1", echo, latency_s=0.02) as proxy:
        client = await Client.of(proxy)
        client.writer.write(b"last words")
        client.writer.write_eof()
        async with asyncio.timeout(60):
            assert await client.reader.read() == b"last words"
        client.close()


async def test_a_target_that_is_not_there_is_a_reset() -> None:
    async with await FaultProxy().start("127.0.0.1", 1) as proxy:
        client = await Client.of(proxy)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            async with asyncio.timeout(60):
                await client.reader.readexactly(1)
        client.close()


async def test_commands_are_obeyed_or_answered_with_an_error() -> None:
    proxy = FaultProxy()
    assert obey(proxy, "set latency_s=0.1")["done"] == "set"
    assert (proxy.up.latency_s, proxy.down.latency_s) == (0.1, 0.1)
    obey(proxy, "down rate_bytes_s=1000")
    assert (proxy.up.rate_bytes_s, proxy.down.rate_bytes_s) == (None, 1000)
    obey(proxy, "blackhole up")
    assert (proxy.up.blackholed, proxy.down.blackholed) == (True, False)
    obey(proxy, "heal")
    assert not proxy.up.blackholed
    assert proxy.up.latency_s == 0.0
    assert "no fault" in obey(proxy, "set lateness=1")["error"]
    assert "no command" in obey(proxy, "explode")["error"]


def test_as_a_program_it_says_where_it_listens_and_stops_when_told() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "forebay.lab.fault_proxy", "--target", "127.0.0.1:1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert json.loads(program.stdout.readline())["listening"].startswith("127.0.0.1:")
        program.stdin.write("stats\nstop\n")
        program.stdin.flush()
        assert json.loads(program.stdout.readline())["connections"] == 0
        assert program.wait(10) == 0

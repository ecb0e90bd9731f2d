"""Who may come in: limits of the process and of an address, and what the refused hear."""

from __future__ import annotations

import asyncio
import resource
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from gateway_harness import QUICK, serving

from forebay.errors import ConfigError
from forebay.gateway.gate import Bucket, Gate
from forebay.gateway.metrics import GatewayMetrics
from forebay.gateway.options import GatewayOptions

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def gate(**facts: object) -> Gate:
    return Gate(GatewayOptions(**facts), GatewayMetrics())  # type: ignore[arg-type]


def test_on_loopback_one_address_may_fill_the_process() -> None:
    doors = gate(max_connections=3000)
    assert all(doors.enter("127.0.0.1", 0.0, loopback=True) is None for _ in range(2000))
    assert doors.open == 2000


def test_off_loopback_an_address_has_its_own_limit() -> None:
    doors = gate()
    said = [doors.enter("10.0.0.1", 0.0, loopback=False) for _ in range(51)]
    assert said[:50] == [None] * 50
    assert said[50] is not None and said[50].http_status == 503
    assert said[50].details["limit_of"] == "address"
    assert doors.enter("10.0.0.2", 0.0, loopback=False) is None


def test_a_trusted_proxy_is_not_one_client() -> None:
    doors = gate(trusted_proxies=("10.0.0.1",))
    assert all(doors.enter("10.0.0.1", 0.0, loopback=False) is None for _ in range(200))


def test_a_network_of_proxies_is_many_clients_and_its_neighbours_are_not() -> None:
    doors = gate(trusted_proxies=("172.16.0.0/12", "fd00::/8"))
    for near in ("172.18.0.5", "::ffff:172.18.0.5", "fd00::1"):
        assert all(doors.enter(near, 0.0, loopback=False) is None for _ in range(200))
    for other in ("172.32.0.5", "fe80::1%eth0"):
        said = [doors.enter(other, 0.0, loopback=False) for _ in range(51)]
        assert said[-1] is not None and said[-1].details["limit_of"] == "address"


def test_a_proxy_that_is_no_address_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="server.trusted_proxies"):
        gate(trusted_proxies=("proxy.example",))


def test_opening_too_fast_is_refused_and_forgiven_with_time() -> None:
    doors = gate(max_per_address=50, handshakes_per_address_s=20)
    for _ in range(50):
        assert doors.enter("10.0.0.1", 0.0, loopback=False) is None
        doors.leave("10.0.0.1")
    refused = doors.enter("10.0.0.1", 0.0, loopback=False)
    assert refused is not None and refused.details["limit_of"] == "address_rate"
    doors.leave("10.0.0.1")
    assert doors.enter("10.0.0.1", 0.06, loopback=False) is None


def test_the_process_has_a_limit_everywhere() -> None:
    doors = gate(max_connections=2)
    assert [doors.enter("127.0.0.1", 0.0, loopback=True) is None for _ in range(3)] == [
        True,
        True,
        False,
    ]
    doors.leave("127.0.0.1")
    doors.leave("127.0.0.1")
    assert doors.enter("127.0.0.1", 0.0, loopback=True) is None


def test_addresses_are_forgotten() -> None:
    doors = gate()
    for number in range(30_000):
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        doors.enter(address, number * 0.01, loopback=False)
        doors.leave(address)
    assert len(doors._by_address) == 0
    assert len(doors._rates) <= 20_000


def test_a_bucket_refills_at_its_rate_up_to_its_burst() -> None:
    bucket = Bucket(rate=2, burst=3, now=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(0.5), bucket.take(0.5)] == [True, False]
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]


async def test_the_refused_are_told_503_with_retry_after_and_others_go_on() -> None:
    async with serving(replace(QUICK, max_connections=2)) as served:
        holders = [await served.open() for _ in range(2)]
        await served.until(lambda: served.server.gate.open == 2)
        out, closed = await served.ask(GET)
        assert out.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in out
        assert b'"code":"too_many_connections"' in out
        assert closed
        assert served.metrics.refused["process"] == 1
        reader, writer = holders[0]
        writer.write(GET)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        await served.until(lambda: served.server.gate.open == 1)
        out, _ = await served.ask(GET)
        assert out.startswith(b"HTTP/1.1 200 ")


async def test_a_websocket_is_refused_with_the_same_503() -> None:
    async with serving(replace(QUICK, max_connections=1)) as served:
        await served.open()
        await served.until(lambda: served.server.gate.open == 1)
        out, _ = await served.ask(
            b"GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Sec-WebSocket-Version: 13\r\n\r\n"
        )
        assert out.startswith(b"HTTP/1.1 503 ")
        assert served.probe.paths == []


async def test_far_past_the_limit_connections_are_cut_unheard() -> None:
    async with serving(replace(QUICK, max_connections=1, reserve_fds=8)) as served:
        everyone = [await served.open() for _ in range(30)]
        await asyncio.sleep(0.1)
        assert served.server.gate.open <= 1 + 8 + 1
        assert everyone


async def test_addresses_count_off_loopback_listeners_only() -> None:
    options = replace(QUICK, max_per_address=2)
    async with serving(options, host="0.0.0.0") as served:
        for _ in range(2):
            await served.open()
        await served.until(lambda: served.server.gate.open == 2)
        out, _ = await served.ask(GET)
        assert out.startswith(b"HTTP/1.1 503 ")
    async with serving(options) as served:
        for _ in range(4):
            await served.open()
        out, _ = await served.ask(GET)
        assert out.startswith(b"HTTP/1.1 200 ")


STARVED = """
import asyncio, resource, socket, structlog, sys, time, uvloop
structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # stdout is the test's
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
sys.path.insert(0, {here!r})
from dataclasses import replace
from gateway_harness import QUICK, Probe, GatewayServer, GatewayMetrics, MAIN, bind
from forebay.gateway.gate import raise_fd_limit

async def main():
    options = replace(QUICK, head_s=30.0, reserve_fds=0)  # nothing kept: run dry on purpose
    metrics = GatewayMetrics()
    server = GatewayServer(Probe(), options, metrics)
    sock = bind("127.0.0.1", 0)
    print(sock.getsockname()[1], flush=True)
    server.gate.limit = 10_000
    await server.start([(sock, MAIN)])
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.readline)
    used = time.process_time()
    await asyncio.sleep(1)
    print(time.process_time() - used, flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    await server.close()

uvloop.run(main())
"""


def _try(port: int) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as good:
            good.sendall(GET)
            return good.recv(100)
    except OSError as error:
        return str(error).encode()


def test_running_out_of_descriptors_does_not_spin_and_passes() -> None:
    script = textwrap.dedent(STARVED).format(here=str(Path(__file__).parent))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        port = int(process.stdout.readline())
        crowd = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(100)]
        process.stdin.write("\n")
        process.stdin.flush()
        busy_s = float(process.stdout.readline())
        assert busy_s < 0.5, f"{busy_s} s of processor time in a second without descriptors"
        for one in crowd:
            one.close()
        until = time.monotonic() + 60
        while not (answer := _try(port)).startswith(b"HTTP/1.1 200 "):
            assert time.monotonic() < until, answer
            time.sleep(0.02)
        process.stdin.write("\n")
        process.stdin.close()


def test_the_descriptor_limit_decides_how_many_fit() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 256));"
        "from forebay.gateway.gate import raise_fd_limit;"
        "from forebay.gateway.options import GatewayOptions;"
        "print(raise_fd_limit(GatewayOptions()), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert out.split() == ["192", "256", "256"]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0

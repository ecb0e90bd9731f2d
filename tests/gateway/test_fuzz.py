"""Whatever arrives, in whatever slices, no exception leaves a protocol and no limit is passed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from gateway_harness import KEY, QUICK, Probe, Served, corpus, frame, serving
from hypothesis import given
from hypothesis import strategies as st

from forebay.errors import Forbidden
from forebay.gateway.access import check_host, check_origin, split_host, split_origin
from forebay.gateway.head_rules import Broken, Head, check_head
from forebay.gateway.http_protocol import HttpProtocol
from forebay.gateway.metrics import GatewayMetrics
from forebay.gateway.options import GatewayOptions
from forebay.gateway.personality import MAIN, PERSONALITIES, Port
from forebay.gateway.server import GatewayServer, Listener

SMALL = [case for case in corpus("malformed.txt") if len(case[2]) < 600]
LEGAL = [data for _, _, data in corpus("legal.txt")]


class Pipe(asyncio.Transport):
    """A transport in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.out = b""
        self.closed = self.ended = False
        self.protocol: Any = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def write(self, data: Any) -> None:
        self.out += bytes(data)

    def writelines(self, parts: Any) -> None:
        self.out += b"".join(parts)

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: Any = None, low: Any = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


async def feed(parts: list[bytes]) -> tuple[Pipe, Probe]:
    """Give ``parts`` to a new connection, with turns of the loop between."""
    from forebay.gateway.bind import bind

    probe = Probe()
    server = GatewayServer(probe, QUICK, GatewayMetrics())
    with bind("127.0.0.1", 0) as sock:
        listener = Listener(server, sock, MAIN)
    pipe = Pipe()
    pipe.protocol = HttpProtocol(listener, server.loop)
    pipe.protocol.connection_made(pipe)
    for part in parts:
        if pipe.closed:
            break
        pipe.protocol.data_received(part)
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    pipe.closed = True
    pipe.protocol.connection_lost(None)
    probe.hold.set()
    while server.state.tasks:
        await asyncio.wait(set(server.state.tasks), timeout=60)
    server.sweep.close()
    assert server.gate.open == 0
    assert server.gate.websockets == 0
    return pipe, probe


def sliced(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in zip(places, places[1:], strict=False)]


cuts = st.lists(st.integers(0, 10_000), max_size=8)


@given(st.binary(max_size=3000), cuts)
def test_arbitrary_bytes(data: bytes, where: list[int]) -> None:
    pipe, _ = asyncio.run(feed(sliced(data, where)))
    assert pipe.out == b"" or pipe.out.startswith(b"HTTP/1.1 ")


@given(st.sampled_from(LEGAL), st.data(), cuts)
def test_requests_with_a_few_bytes_changed(
    data: bytes, draw: st.DataObject, where: list[int]
) -> None:
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, min(len(changed), 400) - 1))
        changed[at : at + draw.draw(st.integers(0, 2))] = draw.draw(st.binary(max_size=3))
    pipe, _ = asyncio.run(feed(sliced(bytes(changed), where)))
    assert pipe.out == b"" or pipe.out.startswith(b"HTTP/1.1 ")


frames = st.one_of(
    st.binary(max_size=40),
    st.builds(
        frame,
        st.integers(0, 15),
        st.binary(max_size=200),
        fin=st.booleans(),
        rsv=st.sampled_from([0, 0, 0, 1, 4]),
        mask=st.sampled_from([True, True, True, False]),
    ),
)


@given(st.lists(frames, max_size=20), cuts)
def test_arbitrary_frames(parts: list[bytes], where: list[int]) -> None:
    head = (
        f"GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    pipe, probe = asyncio.run(feed([head, *sliced(b"".join(parts), where)]))
    assert pipe.out.startswith(b"HTTP/1.1 101 ")
    assert len(probe.ends) == 1, "the application hears of the end exactly once"


words = st.one_of(st.text(max_size=60), st.sampled_from(["localhost", "[::1]:80", "a:99999"]))


@given(words, words)
def test_hosts_and_origins_are_judged_without_surprises(host: str, origin: str) -> None:
    raw = [(b"host", host.encode("latin-1", "replace")), (b"origin", origin.encode("latin-1", "replace"))]  # fmt: skip
    scope: Any = {"headers": raw}
    split_host(host)
    split_origin(origin)
    for loopback in (True, False):
        for personality in (MAIN, PERSONALITIES["voice"]):
            port = Port(personality, loopback)
            for check in (
                lambda p=port: check_host(scope, p, GatewayOptions(), keyed=False),
                lambda p=port: check_origin(scope, p, GatewayOptions()),
            ):
                try:
                    check()
                except Forbidden as refusal:
                    assert refusal.http_status == 403


@given(
    st.sampled_from(["GET", "POST", "CONNECT"]),
    st.sampled_from(["1.0", "1.1", "2.0"]),
    st.binary(max_size=200),
    st.lists(st.tuples(st.sampled_from([b"host", b"x", b"content-length", b"transfer-encoding"]),
                       st.binary(max_size=20)), max_size=6),
    st.booleans(),
)  # fmt: skip
def test_heads_are_judged_without_surprises(
    method: str, version: str, url: bytes, headers: list[tuple[bytes, bytes]], upgrade: bool
) -> None:
    try:
        check_head(Head(method, version, url, headers, upgrade), GatewayOptions())
    except Broken as broken:
        assert 400 <= broken.status < 600


@pytest.mark.parametrize(("statuses", "data"), [c[1:] for c in SMALL], ids=[c[0] for c in SMALL])
async def test_the_corpus_is_refused_in_small_slices_too(statuses: list[str], data: bytes) -> None:
    async with serving() as served:
        reader, writer = await served.open()
        for at in range(0, len(data), 7):
            writer.write(data[at : at + 7])
            await asyncio.sleep(0)
        out = await asyncio.wait_for(_all(reader), 60)
        assert out.split(b" ")[1].decode() in statuses, out[:100]
        assert out.count(b"HTTP/1.1 ") == 1
        _check(served)


async def _all(reader: asyncio.StreamReader) -> bytes:
    out = b""
    try:
        while part := await reader.read(65536):
            out += part
    except ConnectionResetError:
        pass
    return out


def _check(served: Served) -> None:
    assert "/smuggled" not in served.probe.paths

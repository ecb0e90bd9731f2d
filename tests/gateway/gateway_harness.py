"""A real server on a free port, with an application made for poking at transports."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forebay.gateway.bind import bind
from forebay.gateway.metrics import GatewayMetrics
from forebay.gateway.options import GatewayOptions
from forebay.gateway.personality import MAIN, Personality
from forebay.gateway.server import GatewayServer
from forebay.gateway.sweep import Sweep

CORPUS = Path(__file__).parent / "corpus"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
QUICK = GatewayOptions(sweep_s=0.02, close_s=0.5, linger_s=0.05, drain_s=1.0)
HANG_S = 30.0
"""Nothing here takes nearly as long; what does has hung."""


class HandClock:
    """The running loop with a clock that only a test moves: a deadline passes when the test
    says so, however slow the machine is. Timers still fire, in real time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = 1000.0
        self.ticks = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[..., Any], *args: Any) -> asyncio.TimerHandle:
        self.ticks += 1
        return self._loop.call_later(max(0.0, when - self.now), call, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


@dataclass
class Probe:
    """The application. It notes what reached it."""

    paths: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    heard: list[str | bytes] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    wires: list[Any] = field(default_factory=list)
    hold: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        self.wires.append(scope.get("forebay.wire"))
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._websocket(scope, receive, send)

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/body":
            body, more = b"", True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.ends.append(message)
                    return
                body += message["body"]
                more = message["more_body"]
            self.bodies.append(body)
        if scope["path"] == "/hold":
            await self.hold.wait()
        if scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while (await receive())["type"] != "http.disconnect":
                pass
            self.ends.append({"type": "http.disconnect"})
            return
        length = (b"content-length", b"2")
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def _websocket(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        if scope["path"] == "/never":
            await self.hold.wait()
        await send({"type": "websocket.accept"})
        if scope["path"] == "/crash":
            raise LookupError("a bug")
        if scope["path"] == "/deaf":
            await self.hold.wait()
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.ends.append(message)
                return
            text = message.get("text")
            self.heard.append(message["bytes"] if text is None else text)
            if scope["path"] == "/echo":
                scope["forebay.wire"].send(self.heard[-1])


@dataclass
class Served:
    server: GatewayServer
    metrics: GatewayMetrics
    probe: Any
    port: int
    clients: list[asyncio.StreamWriter] = field(default_factory=list)
    clock: HandClock | None = None

    @property
    def connection(self) -> Any:
        """The server's side of the one connection there is."""
        (connection,) = self.server.state.connections
        return connection

    async def heard(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection whose first bytes, ``data``, the server has read."""
        before = set(self.server.state.connections)
        reader, writer = await self.open()
        if data:
            writer.write(data)
        await self.until(lambda: len(self.server.state.connections) > len(before))
        (new,) = set(self.server.state.connections) - before
        await self.until(lambda: new._head_bytes >= len(data))
        return reader, writer

    async def passes(self, seconds: float) -> None:
        """So much time goes by (with ``clock`` only), and the sweep has looked since."""
        assert self.clock is not None
        self.clock.now += seconds
        await self.swept()

    async def swept(self) -> None:
        """The sweep has looked at everything that was due when this was called."""
        clock = self.clock
        assert clock is not None
        seen = clock.ticks
        await self.until(lambda: clock.ticks >= seen + 2 or self.server.sweep._timer is None)

    async def ask(self, data: bytes, wait_s: float = HANG_S) -> tuple[bytes, bool]:
        """Send ``data``; everything that came back, and whether the server closed."""
        reader, writer = await self.open()
        writer.write(data)
        out = b""
        try:
            async with asyncio.timeout(wait_s):
                while part := await reader.read(65536):
                    out += part
            closed = True
        except TimeoutError:
            closed = False
        except ConnectionResetError:
            closed = True
        writer.close()
        return out, closed

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.clients.append(writer)
        return reader, writer

    async def hang_up(self) -> None:
        """End every client, whatever state a test left it in."""
        for writer in self.clients:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def websocket(
        self, path: str = "/echo"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A raw WebSocket past its handshake."""
        reader, writer = await self.open()
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        return reader, writer

    async def until(self, true: Any, wait_s: float = HANG_S) -> None:
        """Wait for a condition of the server's own state."""
        async with asyncio.timeout(wait_s):
            while not true():  # noqa: ASYNC110 - the server is watched from outside
                await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(
    options: GatewayOptions = QUICK,
    app: Any = None,
    personality: Personality = MAIN,
    *,
    host: str = "127.0.0.1",
    stock: bool = False,
    by_hand: bool = False,
) -> AsyncIterator[Served]:
    """``by_hand``: the server's time stands still but for `Served.passes`."""
    probe = app if app is not None else Probe()
    metrics = GatewayMetrics()
    server = GatewayServer(probe, options, metrics, stock=stock)
    clock: Any = HandClock() if by_hand else None
    if by_hand:
        server.loop = clock
        server.sweep = Sweep(clock, options.sweep_s)
    sock = bind(host, 0, sndbuf_bytes=options.sndbuf_bytes)
    port = sock.getsockname()[1]
    await server.start([(sock, personality)])
    served = Served(server, metrics, probe, port, clock=clock)
    try:
        yield served
    finally:
        await served.hang_up()
        if isinstance(probe, Probe):
            probe.hold.set()
        server.loop = asyncio.get_running_loop()
        await server.close()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True,
          claim: int | None = None) -> bytes:  # fmt: skip
    """One client frame. ``claim``: the length it says it has."""
    size = len(payload) if claim is None else claim
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    bit = 0x80 if mask else 0
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65536:
        head = bytes((first, bit | 126)) + size.to_bytes(2)
    else:
        head = bytes((first, bit | 127)) + size.to_bytes(8)
    return head + (b"\0\0\0\0" if mask else b"") + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Opcode and payload of one server frame, which must be final and unmasked."""
    first, second = await reader.readexactly(2)
    assert first & 0xF0 == 0x80, "server frames are final, without reserved bits"
    assert second < 0x80, "server frames are unmasked"
    size = second
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2))
    elif size == 127:
        size = int.from_bytes(await reader.readexactly(8))
    return first & 15, await reader.readexactly(size)


async def close_code(reader: asyncio.StreamReader) -> int | None:
    """Read to the close frame and the end; its code, 1005 for none in it, None without one."""
    code = None
    try:
        while True:
            opcode, payload = await read_frame(reader)
            if opcode == 8:
                code = int.from_bytes(payload[:2]) if payload else 1005
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return code


def corpus(name: str) -> Iterator[tuple[str, list[str], bytes]]:
    """Name, allowed statuses and bytes of every case of a corpus file."""
    for block in (CORPUS / name).read_text().split("\n== ")[1:]:
        title, _, body = block.partition("\n")
        case, _, statuses = title.rpartition(":")
        yield case, statuses.split(), _bytes(body.replace("\n", ""))


def _bytes(text: str) -> bytes:
    while (inner := re.search(r"\{([^{}]*)\*(\d+)\}", text)) is not None:
        text = text[: inner.start()] + inner[1] * int(inner[2]) + text[inner.end() :]
    return text.encode("ascii").decode("unicode_escape").encode("latin-1")

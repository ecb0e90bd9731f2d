"""`FaultProxy`: a TCP proxy that makes a good network bad, and good again, while it runs.

::

    proxy = FaultProxy()
    await proxy.start("127.0.0.1", 6379, latency_s=0.02)
    client = connect(proxy.host, proxy.port)
    proxy.set(latency_s=0.2, jitter_s=0.1)  # both directions; proxy.up / proxy.down: one
    proxy.blackhole()                        # nothing arrives, nothing is refused
    proxy.heal()                             # what was held arrives, as TCP would repeat it
    proxy.reset()                            # every connection ends with RST
    await proxy.close()

``up`` is from the client to the target, ``down`` the way back. A blackholed direction holds
its bytes and its end of stream: TCP loses nothing, it repeats until the network heals. A lost
packet is played likewise, as the wait for its repetition.

Also a program, for scripts: ``python -m forebay.lab.fault_proxy --target HOST:PORT``. It
prints one JSON line that says where it listens and then takes one command a line:
``set latency_s=0.1``, ``up rate_bytes_s=1000``, ``down loss=0.05``, ``blackhole [up|down]``,
``heal``, ``reset``, ``refuse``, ``accept``, ``stats``, ``stop``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["FaultProxy", "Way", "main"]

READ_BYTES = 64 * 1024
REPEAT_S = 0.2
"""What TCP waits before it sends a lost packet again, at least."""
_RST = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: close sends RST


@dataclass(slots=True)
class Way:
    """What one direction does to bytes; all of it may be changed while it runs.

    ``rate_bytes_s``: per connection. ``slice_bytes``: the most that is written at once.
    ``loss``: share of reads that arrive `REPEAT_S` late, and all behind them.
    ``buffer_bytes``: held per connection before the proxy stops reading.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    rate_bytes_s: float | None = None
    slice_bytes: int | None = None
    loss: float = 0.0
    blackholed: bool = False
    buffer_bytes: int = 1 << 20

    def set(self, **faults: Any) -> None:
        """Raises `AttributeError` for a name that is no fault."""
        known = {field.name for field in fields(self)}
        for name, value in faults.items():
            if name not in known:
                raise AttributeError(f"{name!r} is no fault, expected one of {sorted(known)}")
            setattr(self, name, value)

    def delay_s(self, rng: random.Random) -> float:
        late = self.latency_s + (rng.random() * self.jitter_s if self.jitter_s else 0.0)
        return late + (REPEAT_S if self.loss and rng.random() < self.loss else 0.0)


class FaultProxy:
    """One listening socket, one target, any number of connections between them.

    ``host`` and ``port`` say where it listens once `start` has returned. ``accepted``,
    ``bytes_up`` and ``bytes_down`` count since the start.
    """

    def __init__(self, seed: int = 1) -> None:
        self.up = Way()
        self.down = Way()
        self.host = "127.0.0.1"
        self.port = 0
        self.accepted = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.rng = random.Random(seed)
        self.healed = asyncio.Event()
        self.healed.set()
        self._target = ("127.0.0.1", 0)
        self._refusing = False
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()

    @property
    def connections(self) -> int:
        return len(self._links)

    async def start(
        self,
        target_host: str,
        target_port: int,
        *,
        listen_host: str = "127.0.0.1",
        listen_port: int = 0,
        **faults: Any,
    ) -> FaultProxy:
        """Listen, and connect each client to the target. ``faults``: as `Way` names them."""
        self._target = (target_host, target_port)
        self.set(**faults)
        self._server = await asyncio.start_server(
            self._accept, listen_host, listen_port, limit=READ_BYTES
        )
        self.host, self.port = self._server.sockets[0].getsockname()[:2]
        return self

    async def __aenter__(self) -> FaultProxy:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def retarget(self, host: str, port: int) -> None:
        """New connections go there; those that exist stay."""
        self._target = (host, port)

    def set(self, **faults: Any) -> None:
        """The same in both directions, from the next bytes on."""
        self.up.set(**faults)
        self.down.set(**faults)

    def blackhole(self, *, up: bool = True, down: bool = True) -> None:
        """Hold everything that goes that way until `heal`. New connections are accepted, as
        by a kernel whose program is frozen, and reach nobody."""
        self.up.blackholed |= up
        self.down.blackholed |= down
        self.healed.clear()

    def heal(self) -> None:
        """No fault any more; what was held goes on."""
        for way in (self.up, self.down):
            way.set(**{f.name: f.default for f in fields(way) if f.name != "buffer_bytes"})
        self._refusing = False
        self.healed.set()

    def reset(self) -> None:
        """End every connection with RST to both sides. New ones are accepted."""
        for link in tuple(self._links):
            link.reset()

    def refuse(self, refusing: bool = True) -> None:
        """Answer every new connection with RST, as where nobody listens any more."""
        self._refusing = refusing

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.healed.set()
        self.reset()
        await asyncio.gather(*(link.done for link in self._links), return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._refusing:
            _reset(writer)
            return
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            await link.run(*self._target)
        finally:
            self._links.discard(link)
            link.done.set_result(None)


class _Link:
    """One client's connection and ours to the target."""

    def __init__(
        self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._client = (reader, writer)
        self._target: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._tasks: list[asyncio.Future[None]] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reset = False

    async def run(self, host: str, port: int) -> None:
        reader, writer = self._client
        try:
            self._target = await asyncio.open_connection(host, port, limit=READ_BYTES)
        except OSError:
            _reset(writer)
            return
        there, back = self._target
        self._tasks = [
            asyncio.ensure_future(_Flow(self._proxy, self._proxy.up, reader, back).run()),
            asyncio.ensure_future(_Flow(self._proxy, self._proxy.down, there, writer).run()),
        ]
        try:
            await asyncio.gather(*self._tasks)
        except (OSError, asyncio.CancelledError):
            self.reset()  # one side broke off, or we were told to: so the other learns of it
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for end in (writer, back):
                end.close()

    def reset(self) -> None:
        for _, writer in filter(None, (self._client, self._target)):
            _reset(writer)
        for task in self._tasks:
            task.cancel()


class _Flow:
    """Bytes of one direction of one connection: read with the time they are due, written
    when it has come. Latency costs no throughput."""

    def __init__(
        self,
        proxy: FaultProxy,
        way: Way,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._way = way
        self._up = way is proxy.up
        self._reader = reader
        self._writer = writer
        self._held: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._changed = asyncio.Event()
        self._free_at = 0.0  # when the rate allows the next byte
        self._due_at = 0.0  # order is kept: nothing overtakes
        line = writer.get_extra_info("socket")
        if line is not None and line.family in (socket.AF_INET, socket.AF_INET6):
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def run(self) -> None:
        reading = asyncio.ensure_future(self._read())
        try:
            await self._write()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(READ_BYTES):
                self._hold(data)
                while self._held_bytes >= self._way.buffer_bytes:
                    self._changed.clear()
                    await self._changed.wait()
        finally:
            self._hold(b"")  # the end is late as everything is

    def _hold(self, data: bytes) -> None:
        due_at = time.monotonic() + self._way.delay_s(self._proxy.rng)
        self._due_at = max(self._due_at, due_at)
        self._held.append((self._due_at, data))
        self._held_bytes += len(data)
        self._changed.set()

    async def _write(self) -> None:
        while True:
            while not self._held:
                self._changed.clear()
                await self._changed.wait()
            due_at, data = self._held[0]
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))
            await self._open()
            if not data:
                if self._writer.can_write_eof() and not self._writer.is_closing():
                    self._writer.write_eof()
                return
            await self._send(data)
            self._held.popleft()
            self._held_bytes -= len(data)
            self._changed.set()

    async def _open(self) -> None:
        while self._way.blackholed:
            await self._proxy.healed.wait()
            if self._way.blackholed:  # the other direction was healed, or a new fault came
                await asyncio.sleep(0.01)

    async def _send(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            await self._open()
            size = self._way.slice_bytes or len(data)
            rate = self._way.rate_bytes_s
            if rate is not None:
                size = max(1, min(size, int(rate / 20)))  # twenty drops a second, not one gulp
                await asyncio.sleep(max(0.0, self._free_at - time.monotonic()))
                self._free_at = max(self._free_at, time.monotonic()) + size / rate
            piece = data[at : at + size]
            self._writer.write(piece)
            await self._writer.drain()
            at += len(piece)
            self._count(len(piece))
            if self._way.slice_bytes:
                await asyncio.sleep(0)

    def _count(self, size: int) -> None:
        if self._up:
            self._proxy.bytes_up += size
        else:
            self._proxy.bytes_down += size


def _reset(writer: asyncio.StreamWriter) -> None:
    line = writer.get_extra_info("socket")
    if line is not None and not writer.transport.is_closing():
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    writer.transport.abort()


# -------------------------------------------------------------------------- a program


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m forebay.lab.fault_proxy")
    parser.add_argument("--target", required=True, metavar="HOST:PORT")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--jitter-s", type=float, default=0.0)
    parser.add_argument("--rate-bytes-s", type=float, default=None)
    parser.add_argument("--slice-bytes", type=int, default=None)
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    return parser


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]") or "127.0.0.1", int(port)


def obey(proxy: FaultProxy, line: str) -> dict[str, Any]:
    """Carry out one command line; the answer to print. A command that is none changes
    nothing and is answered with ``error``."""
    word, *rest = line.split()
    try:
        match word:
            case "set" | "up" | "down":
                faults = {k: json.loads(v) for k, _, v in (pair.partition("=") for pair in rest)}
                {"set": proxy.set, "up": proxy.up.set, "down": proxy.down.set}[word](**faults)
            case "blackhole":
                proxy.blackhole(up="down" not in rest, down="up" not in rest)
            case "heal":
                proxy.heal()
            case "reset":
                proxy.reset()
            case "refuse" | "accept":
                proxy.refuse(word == "refuse")
            case "stats":
                pass
            case _:
                return {"error": f"{word!r} is no command"}
    except (AttributeError, ValueError) as exc:
        return {"error": str(exc)}
    return {
        "done": word,
        "connections": proxy.connections,
        "accepted": proxy.accepted,
        "bytes_up": proxy.bytes_up,
        "bytes_down": proxy.bytes_down,
    }


async def _serve(options: argparse.Namespace) -> None:
    proxy = FaultProxy(options.seed)
    host, port = _place(options.listen)
    await proxy.start(
        *_place(options.target),
        listen_host=host,
        listen_port=port,
        latency_s=options.latency_s,
        jitter_s=options.jitter_s,
        rate_bytes_s=options.rate_bytes_s,
        slice_bytes=options.slice_bytes,
        loss=options.loss,
    )
    _say({"listening": f"{proxy.host}:{proxy.port}"})
    loop = asyncio.get_running_loop()
    try:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            if line.strip() == "stop":
                break
            if line.strip():
                _say(obey(proxy, line))
    finally:
        await proxy.close()


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    """Run the proxy until ``stop`` or the end of standard input; the exit status."""
    asyncio.run(_serve(_arguments().parse_args(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

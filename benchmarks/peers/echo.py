"""The floor for `/ws/asr`: a bare WebSocket server that answers each chunk from memory.

No sessions, no streams and no JSON read: it finds the chunk's number in the frame and answers.
With ``--engine`` the chunk goes to another process first, which answers from memory too: the
least that any gateway with an engine of its own process does. What Forebay adds to network and
engine is measured against this.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import os
import re
import socket
import struct
from typing import cast

import uvloop

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_INDEX = re.compile(rb'"chunk_index":(\d+)')
_HEAD = struct.Struct("<II")  # connection, bytes that follow; back: connection, chunk


def _frame(payload: bytes) -> bytes:
    return bytes((0x81, len(payload))) + payload


def _engine(sock: socket.socket) -> None:
    """The other process: a chunk in, its number out, until the server is gone."""
    with sock.makefile("rb") as chunks:
        while head := chunks.read(_HEAD.size):
            connection, size = _HEAD.unpack(head)
            found = _INDEX.search(chunks.read(size))
            sock.sendall(_HEAD.pack(connection, int(found[1]) if found is not None else 0))


class Engine(asyncio.Protocol):
    """The server's end of the line to the engine."""

    def __init__(self) -> None:
        self.connections: list[Echo] = []
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, connection: int, chunk: bytes) -> None:
        self._transport.write(_HEAD.pack(connection, len(chunk)) + chunk)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        whole = len(data) // _HEAD.size * _HEAD.size
        for connection, index in _HEAD.iter_unpack(data[:whole]):
            self.connections[connection].answer(b"%d" % index)
        self._buffer = data[whole:]


class Echo(asyncio.Protocol):
    """One connection. The load tool masks with zeros, so payloads are read as they come."""

    def __init__(self, engine: Engine | None = None) -> None:
        self._buffer = b""
        self._up = False
        self._engine = engine
        if engine is not None:
            self._number = len(engine.connections)
            engine.connections.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        at = 0 if self._up else self._greet(data)
        while len(data) - at >= 6:
            length, body = data[at + 1] & 0x7F, at + 6
            if length >= 126:
                wide = 2 if length == 126 else 8
                if len(data) < at + 2 + wide:
                    break
                length = int.from_bytes(data[at + 2 : at + 2 + wide], "big")
                body = at + 6 + wide
            if len(data) < body + length:
                break
            found = _INDEX.search(data, body, body + length)
            if found is not None and self._engine is not None:
                self._engine.ask(self._number, data[body : body + length])
            elif found is not None:
                self.answer(found[1])
            at = body + length
        self._buffer = data[at:]

    def answer(self, index: bytes) -> None:
        frame = _frame(b'{"type":"chunk_result","chunk_index":%s,"text":""}' % index)
        if not self._transport.is_closing():
            self._transport.write(frame)

    def _greet(self, data: bytes) -> int:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return 0
        key = re.search(rb"(?i)sec-websocket-key: *(\S+)", data)
        accept = base64.b64encode(hashlib.sha1((key[1] if key else b"") + _GUID).digest())  # noqa: S324 - the protocol's own
        self._transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        self._up = True
        return end + 4


async def serve(port: int, line: socket.socket | None) -> None:
    loop = asyncio.get_running_loop()
    engine: Engine | None = None
    if line is not None:
        _, engine = await loop.create_connection(Engine, sock=line)
    server = await loop.create_server(lambda: Echo(engine), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", action="store_true")
    wanted = parser.parse_args()
    line: socket.socket | None = None
    if wanted.engine:
        line, other = socket.socketpair()
        if not os.fork():
            line.close()
            _engine(other)
            os._exit(0)
        other.close()
    uvloop.run(serve(wanted.port, line))


if __name__ == "__main__":
    main()

"""The floor for `/ws/asr`: a bare WebSocket server that answers each chunk from memory.

No sessions, no streams, no worker, no engine, and no JSON read: it finds the chunk's number in
the frame and answers. What Forebay adds to the network is measured against this.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import re
from typing import cast

import uvloop

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_INDEX = re.compile(rb'"chunk_index":(\d+)')


def _frame(payload: bytes) -> bytes:
    return bytes((0x81, len(payload))) + payload


class Echo(asyncio.Protocol):
    """One connection. The load tool masks with zeros, so payloads are read as they come."""

    def __init__(self) -> None:
        self._buffer = b""
        self._up = False

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
            if found is not None:
                self._transport.write(
                    _frame(b'{"type":"chunk_result","chunk_index":%s,"text":""}' % found[1])
                )
            at = body + length
        self._buffer = data[at:]

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


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", parser.parse_args().port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())

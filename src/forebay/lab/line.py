"""A WebSocket client for load tests: a callback for each text, one write for each frame.

The load shares its machine with what it measures, so it must cost next to nothing: no task,
no queue and no copy for a message. Masks are zero, which a server cannot tell from others.
Only what load tools need: text one way and the other, ping, close; no fragments.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import struct
from collections.abc import Callable, Mapping
from typing import cast
from urllib.parse import urlsplit

__all__ = ["Line", "TurnedAway", "text_frame"]

HEAD_BYTES = 64 * 1024
CONNECT_S = 60.0
_NO_MASK = bytes(4)


class TurnedAway(ConnectionError):
    """The handshake was answered with something else. ``headers``: names in lower case."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(f"handshake was answered with status {status}")
        self.status = status
        self.headers = headers


def text_frame(*parts: bytes) -> bytes:
    """One text frame of a client."""
    size = sum(map(len, parts))
    return b"".join((_head(0x81, size), _NO_MASK, *parts))


def _head(first: int, size: int) -> bytes:
    if size < 126:
        return bytes((first, 0x80 | size))
    if size < 65536:
        return struct.pack("!BBH", first, 0x80 | 126, size)
    return struct.pack("!BBQ", first, 0x80 | 127, size)


def _nothing() -> None:
    """Heard by nobody."""


def _no_text(data: bytes) -> None:
    """Likewise."""


class Line(asyncio.Protocol):
    """One connection. ``on_text`` hears each message, ``on_gone`` the end, once; both are
    plain functions. ``code``: what the server closed with, None where it did not."""

    def __init__(self, on_text: Callable[[bytes], None], on_gone: Callable[[], None]) -> None:
        self._on_text = on_text
        self._on_gone = on_gone
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._up = asyncio.get_running_loop().create_future()
        self.closed = False
        self.code: int | None = None

    @classmethod
    async def open(
        cls,
        url: str,
        on_text: Callable[[bytes], None],
        on_gone: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> Line:
        """Raises `TurnedAway`, OSError or TimeoutError."""
        where = urlsplit(url)
        secure = where.scheme == "wss"
        loop = asyncio.get_running_loop()
        line = cls(on_text, on_gone)
        async with asyncio.timeout(CONNECT_S):
            await loop.create_connection(
                lambda: line,
                where.hostname or "127.0.0.1",
                where.port or (443 if secure else 80),
                ssl=ssl.create_default_context() if secure else None,
            )
            line._hail(
                where.path + (f"?{where.query}" if where.query else ""), where.netloc, headers
            )
            try:
                await line._up
            except BaseException:
                line.cut()
                raise
        return line

    def _hail(self, path: str, host: str, headers: Mapping[str, str] | None) -> None:
        assert self._transport is not None  # noqa: S101 - it is connected
        lines = [
            f"GET {path or '/'} HTTP/1.1",
            f"Host: {host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
        ]
        self._transport.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    # ------------------------------------------------------------------------ saying

    def send(self, frame: bytes) -> bool:
        """Write a frame that `text_frame` made; False where the line is closed."""
        if self.closed or self._transport is None:
            return False
        self._transport.write(frame)
        return True

    def cut(self) -> None:
        """Lose the line as a dead network does: no close frame."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Say goodbye; nothing is heard any more."""
        self._on_gone, self._on_text = _nothing, _no_text
        if self._transport is not None and not self.closed:
            self._transport.write(_head(0x88, 2) + _NO_MASK + struct.pack("!H", 1000))
            self._transport.close()

    # ----------------------------------------------------------------------- hearing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transports have no asyncio base class.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        at = 0
        if not self._up.done():
            end = data.find(b"\r\n\r\n")
            if end < 0 and len(data) < HEAD_BYTES:
                self._buffer = data
                return
            self._greeted(data[: max(0, end)])
            at = end + 4
        size = len(data)
        while size - at >= 2:
            length, body = data[at + 1], at + 2
            if length >= 126:
                wide = 2 if length == 126 else 8
                if size < body + wide:
                    break
                length, body = int.from_bytes(data[body : body + wide], "big"), body + wide
            if size < body + length:
                break
            first, payload, at = data[at], data[body : body + length], body + length
            if first == 0x81:
                self._on_text(payload)
            else:
                self._control(first, payload)
        self._buffer = data[at:]

    def _greeted(self, head: bytes) -> None:
        first, *rest = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
        if status == 101:
            self._up.set_result(None)
            return
        pairs = (line.partition(":") for line in rest)
        self._up.set_exception(
            TurnedAway(status, {n.strip().lower(): v.strip() for n, _, v in pairs})
        )

    def _control(self, first: int, payload: bytes) -> None:
        assert self._transport is not None  # noqa: S101 - it is connected
        if first == 0x89:
            self._transport.write(_head(0x8A, len(payload)) + _NO_MASK + payload)
        elif first == 0x88:
            self.code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._up.done():
            self._on_gone()
        else:
            self._up.set_exception(ConnectionResetError("closed during the handshake"))

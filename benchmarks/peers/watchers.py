"""Many WebSocket readers in one process, as cheap as they can be: bytes are searched for the
numbers of messages, nothing is parsed. The same reader for every server that is compared."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import cast

__all__ = ["Crowd", "frame"]

_NUMBER = re.compile(rb"#(\d+)#")


def frame(text: str) -> bytes:
    """One masked client text frame (RFC 6455), the mask all zero."""
    data = text.encode()
    if len(data) < 126:
        head = bytes([0x81, 0x80 | len(data)])
    else:
        head = bytes([0x81, 0xFE]) + len(data).to_bytes(2, "big")
    return head + b"\0\0\0\0" + data


class _Watcher(asyncio.Protocol):
    def __init__(self, crowd: Crowd, path: str, host: str) -> None:
        self.crowd = crowd
        self.request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        self.stage = 0
        self.ready = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.stage == len(self.crowd.steps):
            now = time.monotonic()
            for number in _NUMBER.findall(data):
                self.crowd.arrived(int(number), now)
            return
        expected, answer = self.crowd.steps[self.stage]
        if expected in data:
            self.stage += 1
            if answer and self.transport is not None:
                self.transport.write(frame(answer))
            if self.stage == len(self.crowd.steps):
                self.ready.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.crowd.lost += 1
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(f"refused at step {self.stage}"))


class Crowd:
    """``steps``: what a reader waits for, and what it then says; after the last it counts.
    Messages carry ``#number#``."""

    def __init__(self, steps: Sequence[tuple[bytes, str]]) -> None:
        self.steps = list(steps)
        self.count: dict[int, int] = defaultdict(int)
        self.last: dict[int, float] = {}
        self.lost = 0
        self._watchers: list[_Watcher] = []

    def arrived(self, number: int, now: float) -> None:
        self.count[number] += 1
        self.last[number] = now

    async def join(self, port: int, path: str, readers: int) -> None:
        loop = asyncio.get_running_loop()
        make: Callable[[], _Watcher] = lambda: _Watcher(self, path, f"127.0.0.1:{port}")  # noqa: E731
        for start in range(0, readers, 50):
            pairs = [
                await loop.create_connection(make, "127.0.0.1", port)
                for _ in range(start, min(start + 50, readers))
            ]
            await asyncio.wait_for(asyncio.gather(*(w.ready for _, w in pairs)), 20)
            self._watchers += [watcher for _, watcher in pairs]

    def leave(self) -> None:
        for watcher in self._watchers:
            if watcher.transport is not None:
                watcher.transport.abort()

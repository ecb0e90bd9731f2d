"""A whole gateway in this process, and clients of its rooms."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from gateway_harness import QUICK

from forebay.gateway.bind import bind
from forebay.gateway.main import GatewaySpec, SocketSpec, run_gateway

PASS = "open sesame"


@dataclass
class World:
    """``main`` and ``captions``: the ports' addresses."""

    main: str
    captions: str
    http: aiohttp.ClientSession
    stop: asyncio.Event
    sockets: list[aiohttp.ClientWebSocketResponse] = field(default_factory=list)

    async def post(self, path: str = "/api/send", *, at: str = "", **fields: Any) -> Any:
        """Status and JSON of one post of ``fields``, None left out."""
        body = {"room": "talk", "passphrase": PASS, "user_name": "Ada", "text": "hello", **fields}
        body = {name: value for name, value in body.items() if value is not None}
        async with self.http.post((at or self.main) + path, json=body) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str, *, at: str = "") -> Any:
        async with self.http.get((at or self.main) + path) as answer:
            text = await answer.text()
            try:
                return answer.status, json.loads(text)
            except ValueError:
                return answer.status, text

    async def texts(self, room: str = "talk") -> list[str]:
        _, body = await self.get(f"/api/list?room={room}")
        return [one["text"] for one in body["transcriptions"]]

    async def display(self, room: str = "talk", **subscribe: Any) -> Display:
        return await self.connect(room, subscribe)

    async def connect(
        self, room: str | None, subscribe: dict[str, Any], *, at: str = "", **connect: Any
    ) -> Display:
        socket = await self.http.ws_connect((at or self.main) + "/connection/websocket")
        self.sockets.append(socket)
        display = Display(socket)
        await display.ask("connect", **connect)
        if room is not None:
            display.subscribed = await display.ask("subscribe", channel=room, **subscribe)
        return display


class Display:
    """One client of the Centrifuge protocol, by hand."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.subscribed: Any = None
        self._id = 0
        self._lines: list[Any] = []

    async def _next(self) -> Any:
        while not self._lines:
            message = await asyncio.wait_for(self.socket.receive(), 60)
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise EOFError(f"closed {self.socket.close_code}")
            self._lines = [json.loads(line) for line in message.data.splitlines()]
        return self._lines.pop(0)

    async def ask(self, method: str, **params: Any) -> Any:
        """The answer's result, or its error."""
        self._id += 1
        await self.socket.send_str(json.dumps({"id": self._id, method: params}))
        kept = []
        while True:
            said = await self._next()
            if said.get("id") == self._id:
                self._lines = [*kept, *self._lines]
                return said.get("error") or said[method]
            kept.append(said)

    async def push(self) -> Any:
        """The next push, pings passed over."""
        while True:
            said = await self._next()
            if "push" in said:
                return said["push"]

    async def pub(self) -> Any:
        return (await self.push())["pub"]

    async def texts(self, count: int) -> list[str]:
        return [(await self.pub())["data"]["text"] for _ in range(count)]


@asynccontextmanager
async def world(folder: Path, **facts: Any) -> AsyncIterator[World]:
    socks = [(bind("127.0.0.1", 0), name) for name in ("main", "captions")]
    urls = [f"http://127.0.0.1:{sock.getsockname()[1]}" for sock, _ in socks]
    stop = asyncio.Event()
    ready = asyncio.Event()
    base: dict[str, Any] = {
        "sockets": [SocketSpec(os.dup(sock.fileno()), name) for sock, name in socks],
        "link_path": str(folder / "l.sock"),
        "options": QUICK,
    }
    spec = GatewaySpec(**{**base, **facts})
    task = asyncio.ensure_future(run_gateway(spec, stop=stop, on_ready=ready.set))
    waiting = asyncio.ensure_future(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        async with aiohttp.ClientSession() as http:
            made = World(*urls, http=http, stop=stop)
            yield made
            for socket in made.sockets:
                await socket.close()
    finally:
        stop.set()
        await asyncio.wait_for(task, 60)
        for sock, _ in socks:
            sock.close()

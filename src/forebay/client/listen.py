"""`ListenSession`: sound in, words out, over a connection that may drop.

::

    async with ListenSession("ws://127.0.0.1:8600/v1/listen") as ear:
        for piece in microphone():          # s16le mono
            await ear.say(piece)
        await ear.end()
        async for news in ear:
            if isinstance(news, Transcript) and news.final:
                print(news.text, end="")

Usually one task says and another iterates. What cancelling loses: cancelling a pending step
of ``async for`` loses nothing; leaving the block ends the session on this side only (the
server keeps it for its time to live), `cancel` ends it on both.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from forebay.client.listen_state import ListenState, Queued, Transcript
from forebay.errors import ForebayError, Refused, UpstreamFailed

__all__ = ["ListenSession"]


class ListenSession:
    """One recording. ``attempts``: connections tried in a row before giving up;
    ``backoff_s``: first wait between them, doubled each time up to 5 s, with full jitter.
    ``hold_s``: seconds of sound kept for a server that has not acknowledged it; `say` waits
    beyond. Other keywords go into `start`: ``language``, ``model``, ``partials``, ``queue``."""

    def __init__(
        self,
        url: str,
        *,
        sample_rate: int = 16_000,
        key: str | None = None,
        attempts: int = 10,
        backoff_s: float = 0.1,
        hold_s: float = 60.0,
        **extra: Any,
    ) -> None:
        self.url = url
        self.state = ListenState(secrets.token_hex(16), sample_rate, extra)
        self.resumed = 0
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._attempts = attempts
        self._backoff_s = backoff_s
        self._hold_s = hold_s
        self._http: aiohttp.ClientSession | None = None
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._sending = asyncio.Lock()
        self._room = asyncio.Event()
        self._room.set()

    async def __aenter__(self) -> ListenSession:
        """Connect. Raises `Refused` (with ``retry_after_s``) where the server is full."""
        self._http = aiohttp.ClientSession(headers=self._headers)
        try:
            await self._connect()
        except BaseException:
            await self._http.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ws is not None:
            await self._ws.close()
        if self._http is not None:
            await self._http.close()

    # ------------------------------------------------------------------- saying

    async def say(self, sound: bytes) -> None:
        """Send s16le mono samples. Returns once they are handed to the connection, or kept
        for the next one; waits while ``hold_s`` of sound is not acknowledged, which needs
        somebody to iterate. Raises `BadRequest` for half a sample."""
        while self.state.held_s > self._hold_s and not self.state.over:
            self._room.clear()
            await self._room.wait()
        async with self._sending:
            for frame in self.state.say(sound):
                await self._send(frame)

    async def end(self) -> None:
        """No more sound will come. Words go on until everything is heard."""
        async with self._sending:
            await self._send(self.state.end())

    async def cancel(self) -> None:
        """Stop recognising. Iteration ends."""
        async with self._sending:
            await self._send(self.state.cancel())

    async def _send(self, what: dict[str, Any] | bytes) -> None:
        """Hand it to the connection, if there is one; `ListenState` has it in any case."""
        if self._ws is None or self._ws.closed:
            return
        try:
            if isinstance(what, bytes):
                await self._ws.send_bytes(what)
            else:
                await self._ws.send_str(msgspec.json.encode(what).decode())
        except (ConnectionError, aiohttp.ClientError):
            await self._ws.close()

    # ------------------------------------------------------------------ hearing

    def __aiter__(self) -> ListenSession:
        return self

    async def __anext__(self) -> Transcript | Queued:
        """The next transcript, each once, in order, or news of the queue. Raises the server's
        named error, or `UpstreamFailed` when no connection could be made."""
        while not self.state.over:
            message = await self._receive()
            if message is None:
                await self._come_back()
                continue
            try:
                found = self.state.read(message)
            finally:
                if self.state.held_s <= self._hold_s or self.state.over:
                    self._room.set()
            if found is not None:
                return found
        raise StopAsyncIteration

    async def _receive(self) -> dict[str, Any] | None:
        if self._ws is None or self._ws.closed:
            return None
        message = await self._ws.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            return None
        found: dict[str, Any] = msgspec.json.decode(message.data)
        return found

    # --------------------------------------------------------------- connecting

    async def _connect(self) -> None:
        if self._http is None:
            raise ForebayError("the session is not open, use it in an async with block")
        try:
            self._ws = await self._http.ws_connect(
                self.url,
                compress=0,
                max_msg_size=1 << 20,
                headers={"X-Forebay-Session": self.state.session_id},
            )
        except aiohttp.WSServerHandshakeError as exc:
            raise _refusal(exc) from exc
        await self._send(self.state.start())
        started = await self._receive()
        if started is not None and started.get("type") == "error":
            raise self.state.error(started)
        if started is None or started.get("type") != "started":
            raise UpstreamFailed("the connection ended before start was answered")
        for what in self.state.comeback(started):
            await self._send(what)

    async def _come_back(self) -> None:
        wait_s = self._backoff_s
        last: Exception | None = None
        for _ in range(self._attempts):
            await asyncio.sleep(random.uniform(0, wait_s))  # full jitter: no herd
            wait_s = min(wait_s * 2, 5.0)
            async with self._sending:
                try:
                    await self._connect()
                except Refused as exc:
                    last, wait_s = exc, max(wait_s, exc.retry_after_s or 0)
                    continue
                except (OSError, aiohttp.ClientError, UpstreamFailed) as exc:
                    last = exc
                    continue
            self.resumed += 1
            return
        raise UpstreamFailed(
            f"no connection after {self._attempts} attempts", attempts=self._attempts
        ) from last


def _refusal(error: aiohttp.WSServerHandshakeError) -> ForebayError:
    """A handshake that was refused, as the error it is."""
    after = error.headers.get("Retry-After") if error.headers else None
    if error.status in (429, 503):
        return Refused(
            f"the server refused with status {error.status}",
            retry_after_s=float(after) if after is not None else None,
        )
    return UpstreamFailed(f"the server answered {error.status} to the handshake")

"""`SpeechSession`: text in, audio out, over a connection that may drop.

::

    async with SpeechSession("ws://127.0.0.1:8600/tts") as voice:
        await voice.say("Hello there. ")
        await voice.end()
        async for chunk in voice:
            play(chunk.audio)

What cancelling loses: cancelling a pending ``async for`` step loses nothing, the next step
goes on; leaving the ``async with`` block ends the session on the client's side only (the
server keeps it for its detach time), `cancel` ends it on both.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from forebay.client.s1 import Chunk, SpeechState
from forebay.errors import ForebayError, ResumeNotAvailable, StateLost, UpstreamFailed

__all__ = ["SpeechSession"]


class SpeechSession:
    """One utterance. ``attempts``: connections tried in a row before giving up;
    ``backoff_s``: first wait between them, doubled each time up to 5 s, with full jitter."""

    def __init__(
        self,
        url: str,
        *,
        sample_rate: int = 24000,
        channels: int = 1,
        key: str | None = None,
        attempts: int = 8,
        backoff_s: float = 0.1,
        **extra: Any,
    ) -> None:
        self.url = url
        self.state = SpeechState(secrets.token_hex(16), sample_rate, channels, extra)
        self.resumed = 0
        self.end_message: dict[str, Any] | None = None
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._attempts = attempts
        self._backoff_s = backoff_s
        self._http: aiohttp.ClientSession | None = None
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._known = False  # whether the server has seen this session id before
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> SpeechSession:
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

    async def say(self, text: str) -> None:
        """Send more text. Returns once it is handed to the connection, or remembered for
        the next one; empty text is ignored."""
        if not text:
            return
        async with self._lock:
            if self._live():
                await self._send(self.state.delta(text))
            else:
                self.state.remember(text)

    async def end(self) -> None:
        """No more text will come. Audio goes on until everything is spoken."""
        async with self._lock:
            message = self.state.end()
            if self._live():
                await self._send(message)

    async def cancel(self) -> None:
        """Stop speaking. Iteration ends with the server's `tts_end`."""
        async with self._lock:
            message = self.state.cancel()
            if self._live():
                await self._send(message)

    def __aiter__(self) -> SpeechSession:
        return self

    async def __anext__(self) -> Chunk:
        """The next piece of audio, each unit once, in order. Raises the server's named error,
        or `UpstreamFailed` when no connection could be made in ``attempts`` tries."""
        while not self.state.over:
            message = await self._receive()
            if message is None:
                await self._come_back()
                continue
            chunk = await self._read(message)
            if chunk is not None:
                return chunk
        raise StopAsyncIteration

    # ------------------------------------------------------------------- inside

    async def _read(self, message: dict[str, Any]) -> Chunk | None:
        match message.get("type"):
            case "audio_chunk":
                return self.state.chunk(message)
            case "tts_end":
                self.state.over = True
                self.end_message = message
            case "error":
                error = self.state.error(message)
                if isinstance(error, ResumeNotAvailable | StateLost):
                    await self._restart()
                else:
                    self.state.over = True
                    raise error
        return None

    def _live(self) -> bool:
        return self._ws is not None and not self._ws.closed

    async def _send(self, message: dict[str, Any]) -> None:
        if self._ws is None:
            return
        try:
            await self._ws.send_str(msgspec.json.encode(message).decode())
        except (ConnectionError, aiohttp.ClientError):
            # The text is in `state`: the next connection sends what was not heard.
            await self._ws.close()

    async def _receive(self) -> dict[str, Any] | None:
        if self._ws is None or self._ws.closed:
            return None
        message = await self._ws.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            return None
        found: dict[str, Any] = msgspec.json.decode(message.data)
        return found

    async def _connect(self) -> None:
        if self._http is None:
            raise ForebayError("the session is not open, use it in an async with block")
        self._ws = await self._http.ws_connect(
            self.url, compress=0, max_msg_size=1 << 20, autoping=True
        )
        await self._send(self.state.start())
        ack = await self._receive()
        if ack is None or ack.get("type") != "start_ack":
            if ack is not None and ack.get("type") == "error":
                raise self.state.error(ack)
            raise UpstreamFailed("the connection ended before start was answered")
        first = not self._known
        self._known = True
        for pending in self.state.resent(ack) if first else self.state.comeback(ack):
            await self._send(pending)

    async def _come_back(self) -> None:
        wait_s = self._backoff_s
        last: Exception | None = None
        for _ in range(self._attempts):
            await asyncio.sleep(random.uniform(0, wait_s))  # full jitter: no herd
            wait_s = min(wait_s * 2, 5.0)
            async with self._lock:
                try:
                    await self._connect()
                except (OSError, aiohttp.ClientError, UpstreamFailed) as exc:
                    last = exc
                    continue
            self.resumed += 1
            return
        raise UpstreamFailed(
            f"no connection after {self._attempts} attempts", attempts=self._attempts
        ) from last

    async def _restart(self) -> None:
        async with self._lock:
            if self._ws is not None:
                await self._ws.close()
            self.state.restart(secrets.token_hex(16))
            self._known = False
            await self._connect()

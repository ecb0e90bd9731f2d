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

import secrets
from collections.abc import Sequence
from typing import Any

from forebay.client.reconnect import Reconnecting
from forebay.client.s1 import Chunk, SpeechState
from forebay.errors import ResumeNotAvailable, StateLost, UpstreamFailed

__all__ = ["SpeechSession"]


class SpeechSession(Reconnecting):
    """One utterance. ``attempts``: connections tried in a row before giving up;
    ``backoff_s``: first wait between them, doubled each time up to 5 s, with full jitter."""

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        sample_rate: int = 24000,
        channels: int = 1,
        key: str | None = None,
        attempts: int = 8,
        backoff_s: float = 0.1,
        **extra: Any,
    ) -> None:
        super().__init__(url, key=key, attempts=attempts, backoff_s=backoff_s)
        self.state = SpeechState(secrets.token_hex(16), sample_rate, channels, extra)
        self.end_message: dict[str, Any] | None = None
        self._known = False  # whether the server has seen this session id before

    async def say(self, text: str) -> None:
        """Send more text. Returns once it is handed to the connection, or remembered for
        the next one; empty text is ignored."""
        if not text:
            return
        async with self._sending:
            if self._live():
                await self._send(self.state.delta(text))
            else:
                self.state.remember(text)

    async def end(self) -> None:
        """No more text will come. Audio goes on until everything is spoken."""
        async with self._sending:
            await self._send(self.state.end())

    async def cancel(self) -> None:
        """Stop speaking. Iteration ends with the server's `tts_end`."""
        async with self._sending:
            await self._send(self.state.cancel())

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

    async def _connect(self) -> None:
        await self._dial()
        for first in self.state.opening(known=self._known):
            await self._send(first)
        ack = await self._receive()
        if ack is None or ack.get("type") != "start_ack":
            if ack is not None and ack.get("type") == "error":
                raise self.state.error(ack)
            raise UpstreamFailed("the connection ended before start was answered")
        self._known = True
        for pending in self.state.resent(ack):
            await self._send(pending)

    async def _restart(self) -> None:
        """Go on in a new session; the next receive finds no connection and makes one."""
        async with self._sending:
            if self._ws is not None:
                await self._ws.close()
            self.state.restart(secrets.token_hex(16))
            self._known = False

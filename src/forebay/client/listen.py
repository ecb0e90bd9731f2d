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
import secrets
from collections.abc import Sequence
from typing import Any

import aiohttp

from forebay.client.listen_state import ListenState, Queued, Transcript
from forebay.client.reconnect import Reconnecting
from forebay.errors import ForebayError, Refused, UpstreamFailed

__all__ = ["ListenSession"]


class ListenSession(Reconnecting):
    """One recording. ``attempts``: connections tried in a row before giving up;
    ``backoff_s``: first wait between them, doubled each time up to 5 s, with full jitter.
    ``hold_s``: seconds of sound kept for a server that has not acknowledged it; `say` waits
    beyond. Other keywords go into `start`: ``language``, ``model``, ``partials``, ``queue``.
    A server that is full when the line comes back is asked again, after the wait it named."""

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        sample_rate: int = 16_000,
        key: str | None = None,
        attempts: int = 10,
        backoff_s: float = 0.1,
        hold_s: float = 60.0,
        **extra: Any,
    ) -> None:
        super().__init__(url, key=key, attempts=attempts, backoff_s=backoff_s)
        self.state = ListenState(secrets.token_hex(16), sample_rate, extra)
        self._hold_s = hold_s
        self._room = asyncio.Event()
        self._room.set()

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

    # --------------------------------------------------------------- connecting

    async def _connect(self) -> None:
        try:
            await self._dial({"X-Forebay-Session": self.state.session_id})
        except aiohttp.WSServerHandshakeError as exc:
            raise _refusal(exc) from exc
        await self._send(self.state.start())
        started = await self._receive()
        if started is not None and started.get("type") == "error":
            self.state.over = True
            raise self.state.error(started)
        if started is None or started.get("type") != "started":
            raise UpstreamFailed("the connection ended before start was answered")
        for what in self.state.comeback(started):
            await self._send(what)


def _refusal(error: aiohttp.WSServerHandshakeError) -> ForebayError:
    """A handshake that was refused, as the error it is."""
    after = error.headers.get("Retry-After") if error.headers else None
    if error.status in (429, 503):
        return Refused(
            f"the server refused with status {error.status}",
            retry_after_s=float(after) if after is not None else None,
        )
    return UpstreamFailed(f"the server answered {error.status} to the handshake")

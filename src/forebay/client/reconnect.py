"""`Reconnecting`: what every session of the SDK does about a connection that may drop.

The session's state says what to send again; here is only the line itself: opened on entering
the ``async with`` block, given up quietly when it is lost, found again with full jitter.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, ClassVar, Self

import aiohttp
import msgspec

from forebay.errors import ForebayError, Refused, UpstreamFailed

__all__ = ["Reconnecting"]

MAX_BACKOFF_S = 5.0
MAX_MESSAGE_BYTES = 1 << 20


class Reconnecting(ABC):
    """One session over as many connections as it takes. ``attempts``: connections tried in a
    row before giving up; ``backoff_s``: first wait between them, doubled each time up to 5 s,
    with full jitter. Whoever sends holds `_sending`; `_connect` is called with it held, but
    for the first time, when nobody else can send yet."""

    _worth_a_retry: ClassVar[tuple[type[Exception], ...]] = (
        OSError,
        aiohttp.ClientError,
        UpstreamFailed,
    )

    def __init__(self, url: str, *, key: str | None, attempts: int, backoff_s: float) -> None:
        self.url = url
        self.resumed = 0
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._attempts = attempts
        self._backoff_s = backoff_s
        self._http: aiohttp.ClientSession | None = None
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._sending = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Connect, once. Raises the error the server answered (`Refused`, with
        ``retry_after_s``, where it is full), and aiohttp's where it cannot be reached."""
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

    @abstractmethod
    async def _connect(self) -> None:
        """`_dial`, say who we are, and send again what the server lacks."""

    async def _dial(self, headers: Mapping[str, str] | None = None) -> None:
        """Open a connection in place of the last one."""
        if self._http is None:
            raise ForebayError("the session is not open, use it in an async with block")
        self._ws = await self._http.ws_connect(
            self.url, compress=0, max_msg_size=MAX_MESSAGE_BYTES, headers=headers
        )

    def _live(self) -> bool:
        return self._ws is not None and not self._ws.closed

    async def _send(self, what: dict[str, Any] | bytes) -> None:
        """Hand it to the connection, if there is one. The session's state has it in any case:
        the next connection sends what the server did not get."""
        if self._ws is None or self._ws.closed:
            return
        try:
            if isinstance(what, bytes):
                await self._ws.send_bytes(what)
            else:
                await self._ws.send_str(msgspec.json.encode(what).decode())
        except (ConnectionError, aiohttp.ClientError):
            await self._ws.close()

    async def _receive(self) -> dict[str, Any] | None:
        """The next message, or None when the connection is over."""
        if self._ws is None or self._ws.closed:
            return None
        message = await self._ws.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            return None
        found: dict[str, Any] = msgspec.json.decode(message.data)
        return found

    async def _come_back(self) -> None:
        """Connect again. Raises `UpstreamFailed` after ``attempts`` tries in a row."""
        wait_s = self._backoff_s
        last: Exception | None = None
        for _ in range(self._attempts):
            await asyncio.sleep(random.uniform(0, wait_s))  # full jitter: no herd
            wait_s = min(wait_s * 2, MAX_BACKOFF_S)
            async with self._sending:
                try:
                    await self._connect()
                except self._worth_a_retry as exc:
                    last = exc
                    if isinstance(exc, Refused):
                        wait_s = max(wait_s, exc.retry_after_s or 0)
                    continue
            self.resumed += 1
            return
        raise UpstreamFailed(
            f"no connection after {self._attempts} attempts", attempts=self._attempts
        ) from last

"""`Reconnecting`: what every session of the SDK does about a connection that may drop.

The session's state says what to send again; here is only the line itself: opened on entering
the ``async with`` block, given up quietly when it is lost, found again with full jitter. A
server that is leaving says when to come back (`going_away`, or the close's reason): then that
is when. With several URLs each try goes to the next one; a name is looked up for every try,
so that one that stands for several gateways leads to whichever is there.
"""

from __future__ import annotations

import asyncio
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

import aiohttp
import msgspec

from forebay.errors import ForebayError, Refused, UpstreamFailed

__all__ = ["Reconnecting"]

MAX_BACKOFF_S = 5.0
MAX_MESSAGE_BYTES = 1 << 20
_RETRY_AFTER = re.compile(r"retry_after_ms=(\d{1,6})")


class Reconnecting(ABC):
    """One session over as many connections as it takes. ``url``: one, or several that lead to
    the same sessions. ``attempts``: connections tried in a row before giving up; ``backoff_s``: first wait between them, doubled each time up to 5 s,
    with full jitter. Whoever sends holds `_sending`; `_connect` is called with it held, but
    for the first time, when nobody else can send yet."""

    _worth_a_retry: ClassVar[tuple[type[Exception], ...]] = (
        OSError,
        aiohttp.ClientError,
        Refused,  # on coming back: wait as long as it says, and ask again
        UpstreamFailed,
    )

    def __init__(
        self, url: str | Sequence[str], *, key: str | None, attempts: int, backoff_s: float
    ) -> None:
        self.urls = [url] if isinstance(url, str) else list(url)
        if not self.urls:
            raise ForebayError("a session needs at least one url")
        self.url = random.choice(self.urls)
        self.resumed = 0
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._attempts = attempts
        self._backoff_s = backoff_s
        self._http: aiohttp.ClientSession | None = None
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._sending = asyncio.Lock()
        self._told_wait_s: float | None = None

    async def __aenter__(self) -> Self:
        """Connect, once. Raises the error the server answered (`Refused`, with
        ``retry_after_s``, where it is full), and aiohttp's where it cannot be reached."""
        self._http = aiohttp.ClientSession(
            headers=self._headers, connector=aiohttp.TCPConnector(use_dns_cache=False)
        )
        try:
            await self._enter()
        except BaseException:
            await self._http.close()
            raise
        return self

    async def _enter(self) -> None:
        """Connect, at the first of the URLs that answers at all."""
        for left in range(len(self.urls) - 1, -1, -1):
            try:
                await self._connect()
            except (OSError, aiohttp.ClientConnectionError):
                if not left:
                    raise
                self._next_url()
            else:
                return

    def _next_url(self) -> None:
        self.url = self.urls[(self.urls.index(self.url) + 1) % len(self.urls)]

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
            said = _RETRY_AFTER.search(message.extra or "") if message.extra else None
            if said is not None:
                self._told_wait_s = int(said[1]) / 1000
            return None
        found: dict[str, Any] = msgspec.json.decode(message.data)
        return found

    async def _come_back(self) -> None:
        """Connect again. Raises `UpstreamFailed` after ``attempts`` tries in a row."""
        wait_s = self._backoff_s
        told_s, self._told_wait_s = self._told_wait_s, None
        last: Exception | None = None
        for attempt in range(self._attempts):
            if attempt == 0 and told_s is not None:
                await asyncio.sleep(told_s)  # the server has spread us already
            else:
                await asyncio.sleep(random.uniform(0, wait_s))  # full jitter: no herd
                wait_s = min(wait_s * 2, MAX_BACKOFF_S)
            self._next_url()
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

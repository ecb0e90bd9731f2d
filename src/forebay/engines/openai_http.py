"""Streamed POSTs to one server over kept-alive HTTP/1.1 connections: httptools on a protocol.

A gateway asks its model server once for every answer, and what a general client does for one
request (cookies, redirects, proxies, traces, encodings, a task and timers of its own) costs
as much as the rest of the worker's work. This one can post a body and read a stream. Head,
length and body leave as one write; what arrives is handed to the reader with no copy.

Whatever breaks before the status is an `UpstreamFailed` that says how. After it, reading
ends: the event stream itself says whether it was whole.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections import deque
from typing import cast
from urllib.parse import quote, unquote, urlsplit

import httptools

from forebay.engines import openai_errors as errors
from forebay.errors import ConfigError, UpstreamFailed, UpstreamTimeout

__all__ = ["HttpPeer", "Posted"]

HEAD_BYTES = 64 * 1024
"""A longer head of an answer is garbage."""
AHEAD_BYTES = 256 * 1024
"""Read ahead of whoever reads an answer; over it the connection is not read."""
NO_STATUS = "model server sent no status before the first-token timeout"
_SAFE = "/%:@!$&'()*+,;=~-._"


class Posted(asyncio.Protocol):
    """One connection and, while one is under way, the answer on it.

    `read` until it gives b"" or `at_end`, then `close`, which keeps the connection if the
    answer was read to its end and ends it otherwise: so a server learns that nobody listens.
    """

    def __init__(self, peer: HttpPeer) -> None:
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._asked = False
        self._lost = False
        self._reusable = True
        self.idle_s = 0.0  # when it was last given back
        self.counted = False  # by its peer, as open
        self.gone = False
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._parts: list[bytes] = []
        self.ahead = 0  # bytes that nobody has read yet
        self._paused = False
        self._whole = False
        self._failure: UpstreamFailed | None = None

    # ----------------------------------------------------------------- for its user

    async def ask(self, request: bytes, deadline: float) -> None:
        """Send ``request``; returns when the status is here. Raises `UpstreamFailed`."""
        self._begin()
        self._asked = True
        if self._transport is None or self._transport.is_closing():
            raise errors.unreachable("closed without an answer", "empty_reply")
        self._transport.write(request)
        timer = self._loop.call_at(deadline, self._late)
        try:
            while not self.status:
                if self._failure is not None:
                    raise self._failure
                await self._wait()
        finally:
            timer.cancel()

    async def read(self) -> bytes:
        """What has arrived, at least one byte; b"" at the end, clean or broken off."""
        while not self._parts:
            if self.at_end:
                return b""
            await self._wait()
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self.ahead = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    @property
    def at_end(self) -> bool:
        """Whether nothing more will arrive."""
        return self._whole or self._lost

    @property
    def content_type(self) -> str:
        said = self.header(b"content-type") or "application/octet-stream"
        return said.partition(";")[0].strip().lower()

    def header(self, name: bytes) -> str | None:
        """The first header of that name (lower case)."""
        return next((v.decode("latin-1") for n, v in self._headers if n.lower() == name), None)

    def close(self) -> None:
        """The answer is not needed any more. Idempotent."""
        if not self._asked:
            return
        self._asked = False
        kept = self._whole and self._reusable and not self._lost and not self._parts
        if not kept:
            self.abort()
        self._peer.back(self, kept=kept)

    def abort(self) -> None:
        self._lost = True
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    @property
    def usable(self) -> bool:
        transport = self._transport
        return not self._lost and transport is not None and not transport.is_closing()

    async def _wait(self) -> None:
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _late(self) -> None:
        self._fail(UpstreamTimeout(NO_STATUS, reason="no_answer"))

    def _fail(self, error: UpstreamFailed) -> None:
        self._failure = self._failure or error
        self.abort()

    # ------------------------------------------------------------------ the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._asked or self._whole:
            self.abort()  # said without being asked: it cannot be told from the next answer
            return
        if not self.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._garbled()
            return
        if not self.status and self._head_bytes > HEAD_BYTES:
            self._garbled()
            return
        if self.ahead > AHEAD_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def _garbled(self) -> None:
        self._fail(errors.unreachable("answered something that is not HTTP", "garbage"))

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            failure = errors.unreachable("closed without an answer", "empty_reply")
        else:
            failure = errors.unreachable("broke the connection", "connection_lost")
        self._failure = self._failure or failure
        self._lost = self.gone = True
        self._wake()
        self._peer.lost(self)

    # --------------------------------------------------------------------- the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status
            self._reusable = self._parser.should_keep_alive()
        else:  # 100 Continue and its like: the answer comes after it
            self._headers.clear()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self.ahead += len(body)

    def on_message_begin(self) -> None:
        if self._whole:
            self._reusable = False  # more than was asked for

    def on_message_complete(self) -> None:
        self._whole = self.status != 0


class HttpPeer:
    """A bounded pool of connections to one server. ``base``: as `openai_client.normal_base`
    makes it. ``open``: connections there are. Raises `ConfigError` for a key that cannot stand
    in a header."""

    def __init__(
        self, base: str, key: str, *, limit: int, keepalive_s: float, connect_timeout_s: float
    ) -> None:
        parts = urlsplit(base)
        self._tls = parts.scheme == "https"
        self.address = (parts.hostname or "", parts.port or (443 if self._tls else 80))
        self._path = parts.path
        self._heads: dict[str, bytes] = {}  # by path below the base: of few, named in the code
        self._head = _head(parts.netloc.rpartition("@")[2], _credentials(parts.netloc, key))
        self._limit = limit
        self._keepalive_s = keepalive_s
        self._connect_timeout_s = connect_timeout_s
        self._context: ssl.SSLContext | None = None
        self._idle: deque[Posted] = deque()
        self.open = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self.closed = False

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    async def post(self, path: str, body: bytes, deadline: float) -> Posted:
        """Send ``body``, JSON, to ``path`` below the base; the answer once its status is here.
        The caller closes it.

        ``deadline`` (loop time) bounds the wait. Raises `UpstreamTimeout` at it, otherwise
        `UpstreamFailed`. Cancelling loses nothing but the request."""
        head = self._heads.get(path)
        if head is None:
            asked = quote(self._path + path, safe=_SAFE)
            head = self._heads[path] = f"POST {asked}".encode() + self._head
        connection = await self._connection(deadline)
        try:
            await connection.ask(b"%b%d\r\n\r\n%b" % (head, len(body), body), deadline)
        except BaseException:
            connection.abort()
            connection.close()
            raise
        return connection

    async def _connection(self, deadline: float) -> Posted:
        """An idle connection, or a new one as soon as there may be one more."""
        loop = asyncio.get_running_loop()
        while True:
            while self._idle:
                connection = self._idle.pop()
                if connection.usable:
                    return connection
            if self.open < self._limit:
                return await self._connect(deadline)
            free = loop.create_future()
            self._waiting.append(free)
            try:
                async with asyncio.timeout_at(deadline):
                    await free
            except BaseException as exc:
                if free in self._waiting:
                    self._waiting.remove(free)
                elif not free.cancelled():
                    self._hand_on()  # woken, and will not take it
                if isinstance(exc, TimeoutError):
                    why = f"has {self.open} connections and none came free in time"
                    raise UpstreamTimeout(f"model server {why}", reason="no_answer") from exc
                raise

    def _hand_on(self) -> None:
        """Wake one who waits, if there is something to have."""
        if not self._waiting or (not self._idle and self.open >= self._limit):
            return
        free = self._waiting.popleft()
        if not free.done():
            free.set_result(None)

    async def _connect(self, deadline: float) -> Posted:
        loop = asyncio.get_running_loop()
        self.open += 1
        until = min(deadline, loop.time() + self._connect_timeout_s)
        try:
            async with asyncio.timeout_at(until):
                _, connection = await loop.create_connection(
                    lambda: Posted(self), *self.address, ssl=self._tls_context()
                )
        except BaseException as exc:
            self.open -= 1
            self._hand_on()
            if isinstance(exc, TimeoutError) and loop.time() >= deadline:
                raise UpstreamTimeout(NO_STATUS, reason="no_answer") from exc
            if isinstance(exc, OSError):  # TimeoutError and ssl.SSLError are two of them
                raise _unconnected(exc) from exc
            raise
        connection.counted = True
        if connection.gone:  # before this task had its turn
            self.lost(connection)
        return connection

    def _tls_context(self) -> ssl.SSLContext | None:
        if self._tls and self._context is None:
            self._context = ssl.create_default_context()
            self._context.set_alpn_protocols(("http/1.1",))
        return self._context

    # ------------------------------------------------------------- for its connections

    def back(self, connection: Posted, *, kept: bool) -> None:
        """An answer is done with."""
        if not kept:
            return  # `lost` follows
        if self.closed:
            connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.idle_s = loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(self._keepalive_s, self._swept)
        self._hand_on()

    def lost(self, connection: Posted) -> None:
        """A connection is gone."""
        if not connection.counted:
            return
        connection.counted = False
        self.open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        self._hand_on()

    def _swept(self) -> None:
        """End what was idle too long; the one that is used least is the leftmost."""
        self._sweep = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._idle and self._idle[0].idle_s + self._keepalive_s <= now:
            self._idle.popleft().abort()
        if self._idle:
            self._sweep = loop.call_at(self._idle[0].idle_s + self._keepalive_s, self._swept)

    def close(self) -> None:
        """End every idle connection; those in use end with their answers."""
        self.closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        while self._idle:
            self._idle.pop().abort()


def _credentials(netloc: str, key: str) -> str:
    """The value of ``Authorization``; a key wins over a name in the address."""
    if key:
        return f"Bearer {key}"
    user, at, _ = netloc.rpartition("@")
    return "Basic " + base64.b64encode(unquote(user).encode()).decode() if at else ""


def _head(netloc: str, credentials: str) -> bytes:
    """What of a request's head never changes: from the version to the length."""
    if not netloc.isascii():
        host, colon, port = netloc.partition(":")
        netloc = host.encode("idna").decode() + colon + port
    lines = ["", f"Host: {netloc}", "Accept: */*", "Accept-Encoding: identity"]
    lines += ["User-Agent: forebay", "Content-Type: application/json"]
    if credentials:
        if not credentials.isprintable():
            raise ConfigError("api_key has characters that no header can have", option="api_key")
        lines.append(f"Authorization: {credentials}")
    return (" HTTP/1.1" + "\r\n".join(lines) + "\r\nContent-Length: ").encode()


def _unconnected(exc: OSError) -> UpstreamFailed:
    if isinstance(exc, TimeoutError):
        return errors.unreachable("did not accept the connection in time", "connect_timeout")
    if isinstance(exc, socket.gaierror):
        return errors.unreachable("has no known address", "no_address")
    if isinstance(exc, ssl.SSLCertVerificationError):
        return errors.unreachable("has no trusted certificate", "tls")
    if isinstance(exc, ssl.SSLError):
        return errors.unreachable("did not complete the TLS handshake", "tls")
    return errors.unreachable("refused the connection", "connection_refused")

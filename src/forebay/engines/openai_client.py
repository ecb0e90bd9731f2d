"""One OpenAI-compatible server as an HTTP peer: connections, retries, circuit breaker.

Answers are streamed over `openai_http`; what is asked once in a while (health, models) over
aiohttp, all of whose exceptions are translated here.

What is asked again: a request to which no status line came back, ``connect_retries`` times.
Once a status has arrived nothing is repeated. After five requests in a row found nobody,
further ones are refused at once for a while (`core.upstreams.Breaker`), and one request at a
time tries whether the server is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import msgspec

from forebay.core.upstreams import Breaker
from forebay.engines import openai_errors as errors
from forebay.engines.openai_http import HttpPeer, Posted
from forebay.errors import ConfigError, ForebayError, UpstreamFailed, UpstreamTimeout

__all__ = ["Upstream", "Watch", "normal_base", "read_key"]

ERROR_BYTES = 64 * 1024  # read of an error body
JSON_BYTES = 4 * 1024 * 1024  # read of /v1/models
RETRY_FIRST_S = 0.1
STREAM_TYPES = frozenset({"text/event-stream", "application/octet-stream", "text/plain"})
DRAIN_S = 0.05  # an answer's last chunk comes with its last event, or is not waited for


class Watch:
    """Reads one answer and ends the waiting when it falls silent.

    One timer that moves with the deadline, instead of one for each read: a read is the hot
    path of every token. The time in which nobody reads does not count."""

    __slots__ = ("_deadline", "_fired", "_loop", "_reading", "_response", "_silence_s", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, response: Posted, deadline: float) -> None:
        self._loop = loop
        self._response = response
        self._silence_s = max(0.0, deadline - loop.time())
        self._deadline = deadline
        self._reading = False
        self._fired = False
        self._timer = loop.call_at(self._deadline, self._check)

    def heard(self, silence_s: float) -> None:
        """Something of meaning came: from now on silence is counted anew."""
        self._silence_s = silence_s
        self._deadline = self._loop.time() + silence_s

    def stop(self) -> None:
        self._timer.cancel()

    async def read(self, begun: bool) -> bytes:
        """What has arrived, at least one byte; b"" at the end, clean or broken off (the event
        stream itself says which). Raises `UpstreamTimeout` after the silence."""
        self._reading = True
        try:
            data = await self._response.read()
        finally:
            self._reading = False
        if data or not self._fired:
            return data
        if begun:
            raise _timeout(f"went silent for {self._silence_s:g} s inside its answer", "stall")
        raise _timeout("sent no token before the first-token timeout", "no_answer")

    async def drain(self) -> None:
        """Give the connection back to the pool if the server ends its answer promptly."""
        if self._response.at_end:
            return
        self._deadline = self._loop.time() + DRAIN_S
        self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._check)
        try:
            while not self._response.at_end:
                if not await self.read(True):
                    return
        except UpstreamTimeout:
            return  # the connection was closed instead

    def _check(self) -> None:
        now = self._loop.time()
        if self._reading and now >= self._deadline:
            self._fired = True
            self._response.abort()
            return
        again = self._deadline if now < self._deadline else now + min(1.0, self._silence_s)
        self._timer = self._loop.call_at(again, self._check)


class Upstream:
    """A bounded pool of kept-alive connections to one server.

    ``open`` before use, ``close`` after; both from the event loop that uses it.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        connect_timeout_s: float,
        connect_retries: int,
        pool: int,
        keepalive_s: float = 30.0,
    ) -> None:
        self.base = normal_base(base_url)
        self.address = urlsplit(self.base).netloc
        self.key_given = bool(api_key)
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "forebay"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._connect_timeout_s = connect_timeout_s
        self._retries = connect_retries
        self.peer = HttpPeer(
            self.base,
            api_key,
            limit=pool,
            keepalive_s=keepalive_s,
            connect_timeout_s=connect_timeout_s,
        )
        self._session: aiohttp.ClientSession | None = None
        self.breaker = Breaker()

    def open(self) -> None:
        if self._session is not None:
            return
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s),
            headers=self._headers,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self.peer.closed = False

    async def close(self) -> None:
        session, self._session = self._session, None
        self.peer.close()
        if session is not None:
            await session.close()

    def url(self, path: str) -> str:
        """An absolute URL: ``/health`` below the server's root, others below the base."""
        if path != "/health":
            return self.base + path
        root = self.base.rsplit("/", 1)[0] if self.base.endswith("/v1") else self.base
        return root + path

    @asynccontextmanager
    async def post(
        self, path: str, body: bytes, *, model: str, deadline: float
    ) -> AsyncIterator[Posted]:
        """POST and yield the response once its status is 200; closed on leaving unless read
        to its end, which the server sees as the client having gone.

        ``deadline`` (loop time) bounds the wait for the status, retries included. Raises what
        `openai_errors` names. Cancelling loses nothing but the request.
        """
        wait_s = self.breaker.refuse_s(asyncio.get_running_loop().time())
        if wait_s > 0:
            error = errors.unreachable("was not there just now", "breaker_open")
            error.retry_after_s = error.details["retry_after_s"] = round(wait_s, 2)
            raise error
        response = await self._first_status(path, body, deadline)
        try:
            if response.status != 200 or response.content_type not in STREAM_TYPES:
                raise await self._refusal(response, model)
            yield response
        finally:
            response.close()

    def watch(self, response: Posted, deadline: float) -> Watch:
        """Guard the answer's bytes: read them with `Watch.read`, then `Watch.stop`.

        ``deadline``: for the first of meaning, in the loop's time."""
        return Watch(asyncio.get_running_loop(), response, deadline)

    async def get_json(self, path: str, timeout_s: float) -> tuple[int, Any]:
        """Status and decoded body (None where it is no JSON). Raises `UpstreamFailed`."""
        session = self._opened()
        try:
            async with asyncio.timeout(timeout_s):
                async with session.get(self.url(path), allow_redirects=False) as response:
                    body = await _bounded(response, JSON_BYTES)
                    return response.status, _json(body)
        except TimeoutError as exc:
            raise _timeout(f"did not answer {path} within {timeout_s:g} s", "no_answer") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise _unreachable(exc) from exc

    async def _first_status(self, path: str, body: bytes, deadline: float) -> Posted:
        loop, pause_s = asyncio.get_running_loop(), RETRY_FIRST_S
        self._opened()
        for left in range(self._retries, -1, -1):
            try:
                response = await self.peer.post(path, body, deadline)
            except UpstreamTimeout:
                raise
            except UpstreamFailed:
                if not left or loop.time() + pause_s >= deadline:
                    self.breaker.bad(loop.time())
                    raise
            else:
                self.breaker.good()
                return response
            await asyncio.sleep(pause_s)
            pause_s *= 2
        raise AssertionError("unreachable")  # pragma: no cover - the last round returns or raises

    async def _refusal(self, response: Posted, model: str) -> ForebayError:
        body = b""
        try:
            async with asyncio.timeout(5):
                while len(body) < ERROR_BYTES and (piece := await response.read()):
                    body += piece
        except TimeoutError:
            body = b""
        return errors.refusal(
            response.status,
            body[:ERROR_BYTES],
            model=model,
            key_given=self.key_given,
            retry_after_s=errors.retry_after(response.header(b"retry-after")),
        )

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise UpstreamFailed("engine is not loaded, expected load before step")
        return self._session


def normal_base(url: str) -> str:
    """``url`` as what ``/chat/completions`` is appended to. Raises `ConfigError`.

    ``http://host:8082``, ``.../v1``, ``.../v1/`` and the whole endpoint are all accepted.
    """
    text = url.strip() if "://" in url else f"http://{url.strip()}"
    parts = urlsplit(text)
    try:
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise ConfigError(f"base_url is {url!r}, expected http://host:port", option="base_url")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return urlunsplit((parts.scheme, parts.netloc, path or "/v1", "", ""))


def read_key(api_key: str, api_key_file: str) -> str:
    """The key itself, or the first line of the file that holds it. Raises `ConfigError`."""
    if api_key or not api_key_file:
        return api_key.strip()
    try:
        lines = Path(api_key_file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"api_key_file {api_key_file!r} cannot be read", option="api_key_file"
        ) from exc
    return lines[0].strip() if lines else ""


def _unreachable(exc: Exception) -> UpstreamFailed:
    table: tuple[tuple[type[Exception], str, str], ...] = (
        (aiohttp.ClientConnectorDNSError, "has no known address", "no_address"),
        (aiohttp.ClientConnectorCertificateError, "has no trusted certificate", "tls"),
        (aiohttp.ClientSSLError, "did not complete the TLS handshake", "tls"),
        (aiohttp.ClientConnectorError, "refused the connection", "connection_refused"),
        (aiohttp.ServerTimeoutError, "did not accept the connection in time", "connect_timeout"),
        (aiohttp.ServerDisconnectedError, "closed without an answer", "empty_reply"),
        (aiohttp.ClientPayloadError, "closed inside its answer", "cut"),
        (aiohttp.ClientResponseError, "answered something that is not HTTP", "garbage"),
    )  # fmt: skip
    for kind, why, reason in table:
        if isinstance(exc, kind):
            return errors.unreachable(why, reason)
    return errors.unreachable("broke the connection", "connection_lost")


def _timeout(what: str, reason: str) -> UpstreamTimeout:
    return UpstreamTimeout(f"model server {what}", reason=reason)


async def _bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    body = b""
    async for piece in response.content.iter_any():
        body += piece
        if len(body) >= limit:
            break
    return body[:limit]


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None

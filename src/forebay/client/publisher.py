"""`CaptionPublisher`: captions out, from any thread, over a network that may be bad.

::

    with CaptionPublisher("http://127.0.0.1:3000", room="talk", passphrase="...",
                          user_name="Ann", outbox="~/captions.db") as publisher:
        publisher.send("Hello", preview=True)
        publisher.send("Hello everybody.")

`send` puts the caption into the outbox and returns. A thread of the publisher's own sends
what waits: to Forebay up to 64 in one request and several requests at once, numbered, so that
each arrives once and in order; to the original servers one message a request. Nothing that
can still be delivered is lost: what a dead server did not take is sent when it is back, also
by the next process that opens the same outbox.

What is lost, and when: captions past ``max_messages`` (the oldest are given up, counted as
``dropped``), captions the server refuses for good (too long), previews (always only the
newest counts), and, without ``outbox``, whatever waits when the process ends. Against the
original servers a request that timed out may have arrived: it is sent again and shows twice;
``order="parallel"`` is faster there and loses the order.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import aiohttp
import msgspec

from forebay.client.outbox import Outbox
from forebay.client.publish_state import Counters, Order, PublishState, Request
from forebay.client.reach import why
from forebay.errors import BadRequest, ConfigError, ForebayError

__all__ = ["CaptionPublisher", "PublisherStatus"]

State = Literal["idle", "ok", "retrying", "offline", "refused", "closed"]

CHECK_S = 5.0
"""Between two looks at the server, which also keep the connections open."""
SPACE_S = 0.001
"""Between the beginnings of two requests: making one keeps the interpreter to itself for half a
millisecond, and whoever speaks has a turn before the next."""
ANSWER_BYTES = 256 * 1024
MAX_TEXT_CHARS = 2000


@dataclass(frozen=True, slots=True)
class PublisherStatus:
    """``state``: ``ok`` the newest request was answered; ``retrying`` one failed; ``offline``
    none has been answered for a while; ``refused`` the passphrase is wrong, nothing is sent
    until `CaptionPublisher.retry`. ``reason``: of the last failure, for people."""

    state: State
    counters: Counters
    reason: str = ""


class CaptionPublisher:
    """One speaker in one room. ``url``: the server (``http://host:3000``), or the exact address
    of a PHP one (``.../server.php``). ``max_workers``: requests at once. ``timeout_s``: of one
    attempt. ``offline_s``: without an answer, while something waits, until ``on_status`` hears
    ``offline``. ``on_status`` is called in the publisher's thread, with every change of state.
    ``outbox``: a file; None keeps captions in memory only. ``order``: for servers that know
    no numbers. ``style``: colours and fonts of every caption. ``persist``: whether a room that
    this publisher makes survives its server."""

    def __init__(
        self,
        url: str,
        *,
        room: str,
        passphrase: str,
        user_name: str,
        outbox: str | Path | None = None,
        max_workers: int = 3,
        timeout_s: float = 2.0,
        offline_s: float = 1.5,
        max_messages: int = 10_000,
        order: Order = "strict",
        on_status: Callable[[PublisherStatus], None] | None = None,
        style: dict[str, str] | None = None,
        persist: bool | None = None,
        key: str | None = None,
    ) -> None:
        if max_workers < 1 or max_messages < 1:
            raise ConfigError(
                f"max_workers is {max_workers} and max_messages {max_messages}, expected at least 1"
            )
        self._post_url, self._check_url = _addresses(url)
        self._access: dict[str, Any] = {"room": room, "passphrase": passphrase}
        if persist is not None:
            self._access["persist"] = persist
        self._user = user_name
        self._style = dict(style or {})
        self._box = None if outbox is None else Outbox(Path(outbox).expanduser(), room)
        client_id = secrets.token_hex(16) if self._box is None else self._box.client_id
        self._state = PublishState(client_id, max_workers, order)
        if self._box is not None:
            box = self._box
            self._state.restore(box.load(), next_seq=box.next_seq, settled=box.settled)
        self._lock = threading.Lock()
        self._max_messages = max_messages
        self._timeout_s, self._offline_s = timeout_s, offline_s
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._on_status = on_status
        self._status = PublisherStatus("idle", Counters())
        self._closing: float | None = None  # monotonic time until which to go on sending
        self._refused = False
        self._unanswered_since: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._nudged = False  # the thread was told, and has not looked since
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, name="captions", daemon=True)
        self._thread.start()
        self._ready.result()

    # -------------------------------------------------------------- for any thread

    def send(self, text: str, *, preview: bool = False, **fields: Any) -> int:
        """Queue one caption and return at once: its number, 0 for a preview. ``fields``: ``timestamp``, ``user_name`` or style for
        this one. Raises `BadRequest` for text that is empty or over 2,000 characters, and
        `ForebayError` after `close`."""
        text = text.strip()
        if not text or len(text) > MAX_TEXT_CHARS:
            raise BadRequest(f"text has {len(text)} characters, expected 1 to {MAX_TEXT_CHARS}")
        if self._closing is not None:
            raise ForebayError("the publisher is closed")
        stamp = time.strftime("%H:%M:%S")
        body = {"user_name": self._user, "text": text, "timestamp": stamp, **self._style, **fields}
        with self._lock:
            if preview:
                self._state.preview(body, time.monotonic())
            seq = 0 if preview else self._queue(body)
            ready = self._state.ready(time.monotonic())
        if ready:  # else an answer, or the time to try again, comes first and wakes the thread
            self._nudge()
        return seq

    def _queue(self, body: dict[str, Any]) -> int:
        if self._state.counters.queued >= self._max_messages:
            dropped, gone = self._state.drop_oldest()
            if self._box is not None:
                if gone:
                    self._box.forget(gone, self._state.settled)
                if dropped is not None and dropped.seq not in gone:
                    self._box.put(dropped)
        message = self._state.final(body)
        if self._box is not None:
            self._box.put(message)
        return message.seq

    @property
    def status(self) -> PublisherStatus:
        with self._lock:
            return replace(self._status, counters=replace(self._state.counters))

    @property
    def client_id(self) -> str:
        """Who sends, as readers of a Forebay room see it: the same for the outbox's life."""
        return self._state.client_id

    def retry(self) -> None:
        """Try again now, also after ``refused``."""
        with self._lock:
            self._refused = False
            self._state.retry_at = 0.0
        self._nudge()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything was answered; False when ``timeout_s`` passed before."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            with self._lock:
                if self._state.idle:
                    return True
            time.sleep(0.005)
        return False

    def close(self, timeout_s: float = 5.0) -> PublisherStatus:
        """Send what can be sent within ``timeout_s``, keep the rest in the outbox, end the
        thread. Never waits longer than that and one second."""
        if self._closing is None:
            self._closing = time.monotonic() + timeout_s
            self._nudge()
            self._thread.join(timeout_s + 1.0)
            if self._box is not None and not self._thread.is_alive():
                self._box.close()
        return self.status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _nudge(self) -> None:
        loop, wake = self._loop, self._wake
        if self._nudged or loop is None or wake is None:
            return
        if not loop.is_closed():
            self._nudged = True
            loop.call_soon_threadsafe(wake.set)

    # ------------------------------------------------------- the publisher's thread

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as exc:
            if self._ready.done():
                raise
            self._ready.set_exception(exc)

    async def _run(self) -> None:
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        workers = self._state.max_workers
        async with aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=workers + 1, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
        ) as http:
            self._ready.set_result(None)
            async with asyncio.TaskGroup() as tasks:
                warm = tasks.create_task(self._keep_open(http, workers))
                await self._send_all(http, tasks)
                warm.cancel()
        self._tell("closed", self._status.reason)

    async def _send_all(self, http: aiohttp.ClientSession, tasks: asyncio.TaskGroup) -> None:
        assert self._wake is not None
        flying: set[asyncio.Task[None]] = set()
        while not self._over():
            self._wake.clear()
            self._nudged = False  # before looking: what comes from now on is told anew
            while (request := self._take()) is not None:
                task = tasks.create_task(self._post(http, request))
                flying.add(task)
                task.add_done_callback(flying.discard)
                await asyncio.sleep(SPACE_S)
            self._look()
            try:
                await asyncio.wait_for(self._wake.wait(), self._pause_s())
            except TimeoutError:
                continue
        for task in flying:
            task.cancel()

    def _take(self) -> Request | None:
        with self._lock:
            if self._refused:
                return None
            request = self._state.take(time.monotonic())
        if request is not None and self._unanswered_since is None:
            self._unanswered_since = time.monotonic()
        return request

    def _over(self) -> bool:
        if self._closing is None:
            return False
        with self._lock:
            return self._state.idle or self._refused or time.monotonic() >= self._closing

    def _pause_s(self) -> float:
        """Until the next thing to do that nobody will wake us for."""
        now = time.monotonic()
        ends = [now + CHECK_S]
        if self._closing is not None:
            ends.append(self._closing)
        if self._state.retry_at > now:
            ends.append(self._state.retry_at)
        if self._unanswered_since is not None:
            ends.append(self._unanswered_since + self._offline_s)
        return max(0.005, min(ends) - now)

    async def _keep_open(self, http: aiohttp.ClientSession, count: int) -> None:
        """Connections that are open before there is something to say."""
        await self._find_out(http)
        while True:
            await asyncio.gather(*(self._check(http) for _ in range(count)))
            if self._box is not None:
                self._box.tidy()
            await asyncio.sleep(CHECK_S)

    async def _find_out(self, http: aiohttp.ClientSession) -> None:
        """Whether the server knows Forebay's fields: its refusal of an empty list has a code.
        Where nobody answers, the first caption's answer will tell."""
        body = {**self._access, "messages": []}
        try:
            async with http.post(self._post_url, json=body) as answer:
                said = _object(await answer.content.read(ANSWER_BYTES))
        except (aiohttp.ClientError, OSError, TimeoutError):
            return
        with self._lock:
            if self._state.forebay is None and answer.status < 500:
                self._state.forebay = "code" in said

    async def _check(self, http: aiohttp.ClientSession) -> None:
        try:
            async with http.get(self._check_url) as answer:
                await answer.content.read(ANSWER_BYTES)
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            if self._state.idle:
                self._tell("offline", why(exc))
            return
        if self._status.state == "offline":
            self.retry()  # it is back: no need to sit out the wait
        if self._state.idle:
            self._tell("ok")

    # ---------------------------------------------------------------- one request

    async def _post(self, http: aiohttp.ClientSession, request: Request) -> None:
        body = msgspec.json.encode({**request.json, **self._access})
        try:
            async with http.post(
                self._post_url, data=body, headers={"Content-Type": "application/json"}
            ) as answer:
                said = _object(await answer.content.read(ANSWER_BYTES))
                retry = _seconds(said.get("retry_after_s") or answer.headers.get("Retry-After"))
            self._answered(request, answer.status, said, retry)
        except (aiohttp.ClientError, OSError, TimeoutError, BadRequest) as exc:
            self._failed(request, why(exc), None)
        if self._wake is not None:
            self._wake.set()

    def _answered(
        self, request: Request, status: int, said: dict[str, Any], retry_after_s: float | None
    ) -> None:
        if status in (408, 425, 429) or status >= 500:
            self._failed(request, f"the server answered {status}", retry_after_s)
            return
        if status in (401, 403):
            self._refused = True
            self._failed(request, str(said.get("error", f"the server answered {status}")), None)
            self._tell("refused", self._status.reason)
            return
        with self._lock:
            if status < 400:
                gone = self._state.answered(request, said, time.monotonic())
            else:
                gone = self._state.refused(request)
            settled = self._state.settled
            more = self._state.flying > 0
        if self._box is not None and gone:
            self._box.forget(gone, settled)
        self._unanswered_since = time.monotonic() if more else None
        self._tell("ok" if status < 400 else self._status.state)

    def _failed(self, request: Request, reason: str, retry_after_s: float | None) -> None:
        with self._lock:
            if self._state.has(request):
                self._state.failed(request, time.monotonic(), random.random(), retry_after_s)
        self._tell("offline" if self._is_late() else "retrying", reason)

    def _is_late(self) -> bool:
        since = self._unanswered_since
        return since is not None and time.monotonic() - since >= self._offline_s

    def _look(self) -> None:
        if self._is_late() and self._status.state != "refused":
            self._tell("offline", self._status.reason or "no answer")

    def _tell(self, state: State, reason: str = "") -> None:
        if (state, reason) == (self._status.state, self._status.reason):
            return
        changed = state != self._status.state
        self._status = PublisherStatus(state, self._status.counters, reason)
        if changed and self._on_status is not None:
            self._on_status(self.status)


def _addresses(url: str) -> tuple[str, str]:
    """Where to send, and what to look at. The original client chose by the address, too."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"url is {url!r}, expected http://host:port", option="url")
    base = url.rstrip("/")
    if "server.php" in parts.path:
        address = base.partition("?")[0]
        return f"{address}?action=send", address
    if parts.path.rstrip("/").endswith("/api/send"):
        return base, f"{parts.scheme}://{parts.netloc}/"
    return f"{base}/api/send", f"{parts.scheme}://{parts.netloc}/"


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None

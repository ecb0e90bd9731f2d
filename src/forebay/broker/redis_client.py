"""One connection to Redis for everything a process says and hears.

Calls and pushes share it, under RESP3: what a call published comes before its own answer, so
that whoever waited for the answer has seen the push. Everything written during one turn of the
loop leaves in one write. No command blocks the server, so nothing here waits behind one.

A call that is not answered within the deadline means that the connection is dead: it is closed,
what waited fails with `StoreDown`, and a new one is made. Only calls that may be made twice
(`again`) are carried over to it. redis-py does what is said once (start-up checks, Sentinel);
its clients wait and retry by rules of their own, which is not what live streams need.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

import hiredis
import msgspec
import structlog

from forebay.broker.redis_address import RedisUrl, find_master, tls_of
from forebay.broker.redis_library import FUNCTION
from forebay.errors import BadRequest, ForebayError, StoreDown, StoreFull, by_code

__all__ = ["DEADLINE_S", "Server", "Store"]

DEADLINE_S = 0.9
"""No call takes longer, whatever the server does. A client is promised its answer within a second
of asking: what is left of it is for reading the request and writing the refusal."""

LOOK_LEAST_S = 0.002
RETRY_FIRST_S, RETRY_MOST_S = 0.02, 0.5
COMPARE_AGAIN_S, COMPARE_TRIES = 0.02, 100
WAITING_MOST = 50_000
"""Calls that may wait for an answer at once."""

READS = frozenset(
    "status find read mark heads state room jobs letter control input rejoin tick room_view "
    "room_list room_load room_read room_members".split()
)
"""Calls that change nothing anybody relies on: they wait for no replica."""

_MORE = object()
_pack = cast("Callable[[tuple[Any, ...]], bytes]", hiredis.pack_command)
_encode = msgspec.msgpack.Encoder().encode

log = structlog.get_logger(__name__)

Done = Callable[[Any], None]
"""Takes the answer, or the exception that came instead."""


class Server(msgspec.Struct, frozen=True):
    """Which life of which server this is: another one may have lost what the last knew."""

    run_id: str = ""
    replid: str = ""

    @property
    def word(self) -> str:
        return f"{self.run_id}/{self.replid}"


class _Call:
    __slots__ = ("again", "done", "held", "kept", "packed", "sent", "since", "writes")

    def __init__(
        self,
        packed: bytes,
        done: Done,
        since: float,
        *,
        again: bool = False,
        kept: bool = False,
        writes: bool = False,
    ) -> None:
        self.writes = writes
        self.packed, self.done, self.since = packed, done, since
        self.again, self.kept = again, kept
        self.sent = since
        self.held: list[tuple[Done, Any]] | None = None  # answers that wait for a replica


class _Wire(asyncio.Protocol):
    """Bytes in and out of one connection; `Store` decides what they mean."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        store = self._store
        store.heard_s = time.monotonic()
        try:
            while (reply := self._reader.gets()) is not _MORE:
                if type(reply) is hiredis.PushNotification:
                    store.pushed(cast("list[Any]", reply))
                else:
                    store.answered(reply)
        except hiredis.ProtocolError as error:
            self.connection_lost(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is not None:
            self.transport.abort()
            self.transport = None
        self._store.lost(self)


class Store:
    """A connection that is kept, and the calls on it.

    ``on_push`` takes (channel, message). ``on_up(server)`` is awaited on every new connection
    before waiting calls go out. ``wait_replicas``:
    an answer counts when so many replicas have what was written (0: do not ask).
    """

    def __init__(
        self,
        url: RedisUrl,
        prefix: str,
        *,
        channels: Callable[[], list[str]],
        on_push: Callable[[bytes, bytes], None],
        on_up: Callable[[Server], Awaitable[None]],
        deadline_s: float = DEADLINE_S,
        wait_replicas: int = 0,
    ) -> None:
        self._url = url
        self._prefix = prefix
        self._channels = channels
        self._on_push = on_push
        self._on_up = on_up
        self._deadline_s = deadline_s
        self._wait = wait_replicas
        self._loop = asyncio.get_running_loop()
        self._wire: _Wire | None = None
        self._ready = False
        self._out: list[bytes] = []
        self._pending: deque[_Call] = deque()
        self._waiting: deque[_Call] = deque()  # for a connection
        self._flushing = False
        self._watch: asyncio.TimerHandle | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._empty = asyncio.Event()
        self._closed = False
        self.heard_s = 0.0  # when anything came last: a busy server is slow, a dead one silent
        self.server = Server()

    # ---------------------------------------------------------------------- calling

    def call(
        self, op: str, request: Any, *blobs: bytes | str, again: bool = False, first: bool = False
    ) -> asyncio.Future[Any]:
        """Call the function ``op``; the future has its answer or its error.

        ``again``: calling twice is calling once, so it may outlive a connection. ``first``:
        inside ``on_up`` only, before everything that waits for it."""
        future: asyncio.Future[Any] = self._loop.create_future()

        def done(answer: Any) -> None:
            if future.done():
                return
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        if first:
            command = ("FCALL", FUNCTION + op, 1, self._prefix, _encode(request), *blobs)
            self._write(_Call(_pack(command), done, time.monotonic()))
            self._watch_over()
        else:
            self.post(op, request, *blobs, done=done, again=again)
        return future

    def post(
        self,
        op: str,
        request: Any,
        *blobs: bytes | str,
        done: Done,
        again: bool = False,
        kept: bool = False,
    ) -> None:
        """The same without a future: ``done`` is called in the loop. ``kept``: what may be
        said twice and must be said; it waits for a connection however long that takes."""
        command = ("FCALL", FUNCTION + op, 1, self._prefix, _encode(request), *blobs)
        call = _Call(
            _pack(command),
            done,
            time.monotonic(),
            again=again or kept,
            kept=kept,
            writes=op not in READS,
        )
        self._send(call)

    def _send(self, call: _Call) -> None:
        if self._closed or len(self._pending) + len(self._waiting) >= WAITING_MOST:
            word = "is closed" if self._closed else f"owes {WAITING_MOST} answers"
            self._loop.call_soon(call.done, StoreDown(f"the store {word}", retry_after_s=1.0))
            return
        if self._ready:
            self._write(call)
        else:
            self._waiting.append(call)
        self._watch_over()

    def _write(self, call: _Call) -> None:
        call.sent = time.monotonic()
        self._out.append(call.packed)
        self._pending.append(call)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out, self._out = self._out, []
        if self._wire is None or self._wire.transport is None or not out:
            return
        if self._wait and self._ready:
            out += self._confirm(len(out))
        self._wire.transport.write(b"".join(out))

    def _confirm(self, count: int) -> list[bytes]:
        """Answers to writes among the newest ``count`` calls count when a replica has them: one
        WAIT for everything written in this turn."""
        held: list[tuple[Done, Any]] = []
        newest = (self._pending[-1 - index] for index in range(min(count, len(self._pending))))
        writes = [call for call in newest if call.writes]
        for call in writes:
            call.held = held
        if not writes:
            return []

        def confirmed(replicas: Any) -> None:
            enough = isinstance(replicas, int) and replicas >= self._wait
            error = StoreDown("no replica confirmed the write", retry_after_s=1.0)
            for done, answer in held:
                done(answer if enough or isinstance(answer, Exception) else error)

        packed = _pack(("WAIT", self._wait, int(self._deadline_s * 800)))
        self._pending.append(_Call(packed, confirmed, time.monotonic()))
        return [packed]

    # -------------------------------------------------------------------- answering

    def pushed(self, message: list[Any]) -> None:
        if message[0] == b"message":
            self._on_push(message[1], message[2])

    def answered(self, reply: Any) -> None:
        call = self._pending.popleft()
        if type(reply) is hiredis.ReplyError or isinstance(reply, hiredis.ReplyError):
            reply = _error(str(reply))
        if call.held is None:
            call.done(reply)
        else:
            call.held.append((call.done, reply))
        if not self._pending:
            self._empty.set()

    def _watch_over(self, after_s: float | None = None) -> None:
        """Look again after so long, and no later than is needed to notice silence early."""
        if self._watch is None and not self._closed:
            most_s = self._deadline_s / 8
            wait_s = most_s if after_s is None else min(most_s, max(LOOK_LEAST_S, after_s))
            # Two turns later: what has arrived is read before anybody is late. A loop that
            # stood still finds its timers due before its sockets are read.
            soon = self._loop.call_soon
            self._watch = self._loop.call_later(wait_s, soon, soon, self._overdue)

    def _overdue(self) -> None:
        """Fail what has waited too long; a server that does not answer is left."""
        self._watch = None
        limit = time.monotonic() - self._deadline_s
        waited = self._pending and self._pending[0].sent < limit and self.heard_s < limit
        if waited and self._wire is not None:
            log.warning("store.silent", deadline_s=self._deadline_s)
            self._wire.connection_lost(None)
        late = StoreDown(f"no answer within {self._deadline_s:g} s", retry_after_s=1.0)
        next_s: float | None = None  # until the oldest of the others is late: not a moment more
        for calls in (self._pending, self._waiting):
            for call in calls:
                if call.since >= limit:
                    next_s = min(call.since - limit, math.inf if next_s is None else next_s)
                    break
                if not call.kept:
                    done, call.done = call.done, _nobody
                    done(late)
        self._waiting = deque(call for call in self._waiting if call.done is not _nobody)
        if self._pending or self._waiting:
            self._watch_over(next_s)

    # ------------------------------------------------------------------- connecting

    async def open(self) -> None:
        """Connect. Raises `StoreDown` when that does not succeed within the deadline."""
        await self._connect()
        self._keeper = self._loop.create_task(self._keep(), name="redis-keeper")

    @property
    def up(self) -> bool:
        return self._ready

    def subscribe(self, channel: str) -> None:
        """Hear ``channel`` as well, from now on; it is in ``channels()`` already."""
        if self._ready and self._wire is not None and self._wire.transport is not None:
            self._out.append(_pack(("SUBSCRIBE", channel)))
            if not self._flushing:
                self._flushing = True
                self._loop.call_soon(self._flush)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                wire = await self._dial()
                self._wire = wire
                self.server = await self._greet()
        except (OSError, TimeoutError) as error:
            self._drop()
            raise StoreDown(
                f"no connection to {self._url} within {self._deadline_s:g} s", retry_after_s=1.0
            ) from error
        except ForebayError:
            self._drop()
            raise
        self._gone.clear()
        try:
            await self._on_up(self.server)
        except BaseException:
            self._drop()
            raise
        if self._wire is not wire:
            raise StoreDown("the connection ended at once", retry_after_s=1.0)
        self._ready = True
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            self._send(call)

    def _drop(self) -> None:
        self._ready = False
        wire, self._wire = self._wire, None
        if wire is not None and wire.transport is not None:
            wire.transport.abort()
            wire.transport = None
        pending, self._pending = self._pending, deque()
        self._out = []
        down = StoreDown("the connection to the store ended", retry_after_s=1.0)
        for call in pending:
            if not call.again:
                call.done(down)
        self._empty.set()
        # Who was told that no answer came counts on nothing more: it is not said again.
        kept = [call for call in pending if call.again and call.done is not _nobody]
        for call in kept:
            call.held = None
        self._waiting.extendleft(reversed(kept))

    async def _dial(self) -> _Wire:
        if self._url.path:
            _, wire = await self._loop.create_unix_connection(lambda: _Wire(self), self._url.path)
            return wire
        host, port = await find_master(self._url, self._deadline_s)
        tls = tls_of(self._url)
        _, wire = await self._loop.create_connection(lambda: _Wire(self), host, port, ssl=tls)
        return wire

    async def _greet(self) -> Server:
        hello: list[Any] = ["HELLO", 3]
        if self._url.password:
            hello += ["AUTH", self._url.username or "default", self._url.password]
        commands = [hello, ["INFO", "server"], ["INFO", "replication"]]
        if self._url.db:
            commands.insert(1, ["SELECT", self._url.db])
        for channel in self._channels():
            commands.append(["SUBSCRIBE", channel])
        answers = []
        for command in commands:
            future: asyncio.Future[Any] = self._loop.create_future()
            packed = _pack(tuple(command))
            if command[0] == "SUBSCRIBE":
                self._out.append(packed)  # is answered by a push
                continue
            answers.append(future)
            self._write(_Call(packed, _to(future), time.monotonic()))
        self._flush()
        replies = await asyncio.gather(*answers)
        role = _text(replies[0].get(b"role", b""))
        if role not in ("master", "primary"):
            raise StoreDown(f"{self._url} is a {role}, not a master", retry_after_s=1.0)
        facts = _facts(replies[-2]) | _facts(replies[-1])
        return Server(facts.get("run_id", ""), facts.get("master_replid", ""))

    def lost(self, wire: _Wire) -> None:
        if wire is not self._wire:
            return
        ready = self._ready
        self._drop()
        if self._waiting:
            self._watch_over()
        if ready:
            self._gone.set()

    async def _keep(self) -> None:
        """Connect again whenever the connection has ended."""
        while True:
            await self._gone.wait()
            wait_s = RETRY_FIRST_S
            while not self._ready:
                try:
                    await self._connect()
                except Exception as error:  # noqa: BLE001 - whatever it is, without this task
                    # there would never be a connection again.
                    ours = isinstance(error, ForebayError)
                    say = log.info if ours else log.error
                    say("store.unreachable", reason=str(error) if ours else repr(error))
                    # Everybody connects again after a restart: not all at once.
                    await asyncio.sleep(wait_s * (0.5 + random.random()))
                    wait_s = min(RETRY_MOST_S, 2 * wait_s)
            log.info("store.connected", store=str(self._url))

    async def compared(self, who: list[str]) -> None:
        """Inside ``on_up``: say that these have compared, and wait for the others, who have a
        second for it."""
        for _ in range(COMPARE_TRIES):
            if not await self.call("compared", {"who": who}, first=True):
                return
            await asyncio.sleep(COMPARE_AGAIN_S)

    async def flushed(self) -> None:
        """Return when every call made before has been answered."""
        while self._pending or self._waiting or self._out:
            self._empty.clear()
            await self._empty.wait()

    async def close(self) -> None:
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._drop()
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            call.done(StoreDown("the store is closed"))


def _nobody(answer: Any) -> None:
    """Its caller has been told that the answer did not come in time."""


def _to(future: asyncio.Future[Any]) -> Done:
    def done(answer: Any) -> None:
        if future.done():
            return
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    return done


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _facts(info: Any) -> dict[str, str]:
    text = _text(info).removeprefix("txt:")
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}


def _error(text: str) -> ForebayError:
    """An error reply as one of ours. The functions' own begin with ``FB code message``."""
    kind, _, rest = text.partition(" ")
    if kind == "FB":
        code, _, message = rest.partition(" ")
        if code == "settling":
            return StoreDown(message, retry_after_s=1.0)
        if code == "resume_not_available":
            reason, _, message = message.partition("|")
            return by_code(code, message, reason=reason)
        return by_code(code, message)
    if kind == "OOM":
        return StoreFull("the store's memory is at its limit", retry_after_s=5.0)
    if kind in ("NOAUTH", "WRONGPASS", "NOPERM"):
        return BadRequest(f"the store refuses us: {text}")
    return StoreDown(f"the store answered: {text}", retry_after_s=1.0)

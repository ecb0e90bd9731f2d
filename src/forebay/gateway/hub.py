"""Who is reading what in this gateway, and how far each of them is.

A `Reader` carries one job's output to one wire. It has one cursor, the last offset handed
to its wire, and is in one of two situations:

*live*         at the head, its wire below the low-water mark: a push is encoded and written
               inside the broker's callback, in the same turn of the loop, with no task.
*catching up*  anywhere else: it holds at most a few events, and when the wire drains or the
               pace allows, it sends those and pulls what follows from the broker. A gap in
               the pushes only makes a reader pull; it loses nothing. While its wire takes
               nothing and its hold is full it sleeps (`audience`): a push costs it nothing.

Nothing here remembers events beyond that small hold: a slow client costs its own window in
the broker and nothing else. Nothing polls: a reader waits on a push, a drain or a timer.

Open the hub with ``async with``: it owns the tasks that pull and report positions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from types import TracebackType
from typing import Any

import structlog

from forebay.broker import (
    FreedPush,
    GatewayBroker,
    GatewayPush,
    OutputPush,
    StatePush,
)
from forebay.core.events import Ended, OutputEvent
from forebay.core.kinds import Row
from forebay.errors import ForebayError
from forebay.gateway.audience import Audience
from forebay.gateway.reader import AudioPace, Encode, Frame, Pacing, ReadAfter, Reader
from forebay.gateway.wire import Wire

__all__ = ["DELIVERED_EVERY_S", "AudioPace", "Encode", "Frame", "Hub", "Pacing", "Reader"]

DELIVERED_EVERY_S = 0.25
"""Delivered positions are reported in one batch, at most this often, only when they moved."""

CLOSE_S = 1.0
"""What is under way when the hub closes (detaches, reports) may take so long."""

log = structlog.get_logger(__name__)

PushSink = Callable[[GatewayPush], None]
_NEWS = (StatePush, FreedPush)


class Hub:
    """The readers of one gateway process.

    ``clock`` must be the clock of the running loop (``loop.time`` or ``time.monotonic``):
    timers are set with `loop.call_at`.
    """

    def __init__(self, broker: GatewayBroker, gateway_id: str, clock: Callable[[], float]) -> None:
        self.broker = broker
        self.gateway_id = gateway_id
        self.clock = clock
        self._readers: dict[str, Audience] = {}
        self._listeners: dict[str, list[PushSink]] = {}
        # News of no job that is read here: who hears it, by its type.
        self._news: dict[type, list[Callable[[Any], None]]] = {StatePush: [], FreedPush: []}
        self._draining: dict[int, list[Reader]] = {}
        self._moved: dict[str, int] = {}
        self._reported_at = -DELIVERED_EVERY_S
        self._report_timer: asyncio.TimerHandle | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ lifetime

    async def __aenter__(self) -> Hub:
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self.broker.open(self.gateway_id, self.sink)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every reader. Tasks in flight have `CLOSE_S` to end, then are cancelled."""
        for readers in list(self._readers.values()):
            for reader in readers.everybody():
                reader.close()
        if self._report_timer is not None:
            self._report_timer.cancel()
        tasks, self._tasks = self._tasks, None
        if tasks is None:
            return
        if self._running:
            await asyncio.wait(self._running, timeout=CLOSE_S)
        for task in tuple(self._running):
            task.cancel()
        await tasks.__aexit__(None, None, None)  # an exception of the body is not the tasks'

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Run ``work`` in the hub's task group; None when the hub is closed. ``work`` must
        not raise: everything in the group would end with it."""
        if self._tasks is None:
            work.close()
            return None
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_at(when, callback)

    # ------------------------------------------------------------------- readers

    def open(
        self,
        job: str,
        *,
        epoch: str,
        after: int | None = None,
        mark: tuple[str, int] | None = None,
        encode: Encode,
        wire: Wire,
        row: Row,
        pace: Pacing | None = None,
        on_end: Callable[[Ended], None],
        on_slow: Callable[[Reader], None],
        on_reset: Callable[[ForebayError], None],
        on_push: PushSink | None = None,
        on_sent: Callable[[OutputEvent], None] | None = None,
        share: Hashable | None = None,
        read: ReadAfter | None = None,
    ) -> Reader:
        """Read ``job`` from here to its end.

        The caller has made this gateway watch the job and remains the one who detaches.

        after, mark: where to begin, one of the two (default: after offset 0). With ``mark``
            the first event may begin below it: ``encode`` trims it.
        encode: event -> frames for ``wire``, none or several. It must depend on the event
            and on constants only.
        share: readers with equal ``share`` produce equal frames, encoded once for all.
        read: how to read a stream that is no job's output, such as a room.
        on_end: the terminal event's frames have been handed to the wire; reader is closed.
        on_slow: the oldest event that could have left is ``row.slow_reader_s`` old; called
            once, reader is closed. What that means is ``row.slow``, the caller's to do.
        on_reset: reading cannot go on from here (`ResumeNotAvailable`, `StateLost`,
            `NotFound`); reader is closed.
        on_push: every push about the job that is not output, while the reader is open.
        on_sent: after each event's frames went to the wire.

        The callbacks are plain functions, called in the loop; they must not raise.
        """
        reader = Reader(
            self,
            job,
            epoch=epoch,
            after=0 if after is None and mark is None else after,
            mark=mark,
            encode=encode,
            wire=wire,
            row=row,
            pace=pace,
            on_end=on_end,
            on_slow=on_slow,
            on_reset=on_reset,
            on_push=on_push,
            on_sent=on_sent,
            share=share,
            read=read,
        )
        self._seat(reader)
        return reader

    def _seat(self, reader: Reader) -> None:
        readers = self._readers.get(reader.job)
        if readers is None:
            readers = self._readers[reader.job] = Audience(self.clock)
        readers.add(reader)
        reader.start()

    def drop(self, reader: Reader) -> None:
        """Forget a reader that has closed itself. Called by `Reader.close`."""
        readers = self._readers.get(reader.job)
        if readers is not None:
            readers.remove(reader)
            if not readers:
                del self._readers[reader.job]
        waiting = self._draining.get(id(reader.wire))
        if waiting is not None and reader in waiting:
            waiting.remove(reader)
            if not waiting:
                del self._draining[id(reader.wire)]

    def wait_drain(self, reader: Reader) -> None:
        """Wake ``reader`` when its wire has drained. A wire may carry several readers
        (`/chat`: text and speech); they are woken in the order they began to wait."""
        waiting = self._draining.setdefault(id(reader.wire), [])
        if reader in waiting:
            return
        waiting.append(reader)
        wire = reader.wire
        wire.on_drain(lambda: self._drained(wire))

    def _drained(self, wire: Wire) -> None:
        for reader in self._draining.pop(id(wire), []):
            reader.pump()

    def rest(self, reader: Reader) -> None:
        """``reader`` waits for its wire and can hold no more: spare it the pushes."""
        self._readers[reader.job].rest(reader)

    def wake(self, reader: Reader) -> None:
        """``reader`` sends again. Idempotent."""
        self._readers[reader.job].wake(reader)

    def readers(self, job: str) -> int:
        """How many readers of ``job`` are open here."""
        return len(self._readers.get(job, ()))

    # -------------------------------------------------------------------- pushes

    def listen(self, job: str, sink: PushSink) -> Callable[[], None]:
        """Hear every push about ``job``, output included, with or without a reader.

        Returns the call that ends it. ``sink`` is a plain function and must not raise."""
        self._listeners.setdefault(job, []).append(sink)

        def stop() -> None:
            sinks = self._listeners.get(job)
            if sinks is not None and sink in sinks:
                sinks.remove(sink)
                if not sinks:
                    del self._listeners[job]

        return stop

    def on_state(self, sink: Callable[[StatePush], None]) -> Callable[[], None]:
        """Hear that a pool or a worker changed. Returns the call that ends it."""
        self._news[StatePush].append(sink)
        return lambda: self._news[StatePush].remove(sink)

    def on_freed(self, sink: Callable[[FreedPush], None]) -> Callable[[], None]:
        """Hear when a cancelled job's slot is free. Returns the call that ends it."""
        self._news[FreedPush].append(sink)
        return lambda: self._news[FreedPush].remove(sink)

    def sink(self, push: GatewayPush) -> None:
        """Take one push of the broker. Given to `GatewayBroker.open`."""
        if isinstance(push, _NEWS):
            for tell in tuple(self._news[type(push)]):
                tell(push)
            return
        readers = self._readers.get(push.job)
        if readers is not None:
            if isinstance(push, OutputPush):
                readers.offer(push)
            else:
                readers.hear(push)
        for sink in tuple(self._listeners.get(push.job, ())):
            try:
                sink(push)
            except Exception as error:  # noqa: BLE001 - one listener's bug is not the broker's
                log.error("listener.failed", job=push.job, error=type(error).__name__)

    # --------------------------------------------------------- delivered positions

    def moved(self, reader: Reader) -> None:
        """A reader's cursor advanced. The furthest reader of a job counts."""
        job, cursor = reader.job, reader.cursor
        if cursor <= self._moved.get(job, -1):
            return
        self._moved[job] = cursor
        if self._report_timer is None and self._tasks is not None:
            when = max(self.clock(), self._reported_at + DELIVERED_EVERY_S)
            self._report_timer = self.call_at(when, self._report)

    def _report(self) -> None:
        self._report_timer = None
        self._reported_at = self.clock()
        self.spawn(self.flush_delivered())

    async def flush_delivered(self) -> None:
        """Report what moved now, as before a detach. Losing it to a cancel or an error
        costs only accuracy: the next report carries the newer position."""
        positions, self._moved = self._moved, {}
        if not positions:
            return
        try:
            await self.broker.delivered(self.gateway_id, positions)
        except ForebayError as error:
            log.warning("delivered.not_reported", code=error.code, jobs=len(positions))

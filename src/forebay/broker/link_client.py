"""The worker's and the supervisor's end of the Unix-socket link.

`LinkClient` is a `WorkerBroker`: whoever uses it never sees the connection. When the
connection ends, every lease it knows of is reported lost (`LeaseLost`), and it connects
again by itself, after a jittered and bounded wait, and says stage and registration again.

`SupervisorLink` does the same for the supervisor: it says who exited (kept until there is
somebody to say it to, at most `EXITS_KEPT`), and hears how the pools stand.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

from forebay.broker import HOLD_S, Assign, CancelJob, InputPush, LeaseLost, WorkerSink
from forebay.broker.link_keeper import Keeper
from forebay.broker.link_wire import (
    GREETING,
    Beat,
    Commit,
    Exited,
    Failure,
    FromBroker,
    FromWorker,
    Hello,
    Keeps,
    Park,
    Pools,
    Register,
    Stage,
    encode,
    frames,
)
from forebay.core.events import Consumed, Ended, OutputEvent
from forebay.core.spec import LoadStage, PoolView, WorkerInfo
from forebay.errors import ConfigError

__all__ = ["EXITS_KEPT", "LinkClient", "SupervisorLink", "path_of"]

BEAT_TIMEOUT_S = 0.5
EXITS_KEPT = 256


def path_of(url: str) -> str:
    """The socket path in ``unix:///path``; raises `ConfigError` for any other URL."""
    scheme, _, path = url.partition("://")
    if scheme != "unix" or not path.startswith("/"):
        raise ConfigError(f"broker url is {url!r}, expected unix:///absolute/path.sock")
    return path


class LinkClient(Keeper):
    """`WorkerBroker` over the Unix socket at ``path`` for the worker called ``worker``."""

    def __init__(self, path: str, worker: str) -> None:
        super().__init__(path, Hello("worker", worker))
        self._sink: WorkerSink | None = None
        self._leases: set[tuple[str, int]] = set()
        self._kept: set[str] = set()
        self._stage: Stage | None = None
        self._info: WorkerInfo | None = None
        self._beats: socket.socket | None = None

    async def connect(self, sink: WorkerSink) -> None:
        self._sink = sink
        await self.open()

    def _hail(self) -> None:
        if self._stage is not None:
            self._say(self._stage)
        if self._info is not None:
            self._say(Register(self._info))
        for affinity in self._kept:
            self._say(Keeps(affinity, held=True))

    def _down(self) -> None:
        lost, self._leases = self._leases, set()
        if self._sink is not None:
            for job, attempt in lost:
                self._sink(LeaseLost(job=job, attempt=attempt))

    def _message(self, message: FromBroker) -> None:
        if self._sink is None or isinstance(message, Pools | Failure):
            return
        if isinstance(message, InputPush):
            pass  # nearly all are, and nothing is to be noted
        elif isinstance(message, Assign):
            self._leases.add((message.lease.spec.id, message.lease.attempt))
        elif isinstance(message, LeaseLost | CancelJob):
            if (message.job, message.attempt) not in self._leases:
                # It crossed our own end of that lease on the way. The broker still waits for
                # an answer; giving a credit back twice changes nothing.
                self._say(Park(message.job, message.attempt))
                return
        self._sink(message)

    def _say(self, message: FromWorker) -> None:
        # Without a connection there are no leases, so nothing said now could matter later,
        # except stage and registration, which `_hail` says again.
        if self._wire is not None:
            self._wire.send(message)

    def stage(self, worker: str, pools: Sequence[str], stage: LoadStage) -> None:
        self._stage = Stage(worker, list(pools), stage)
        self._say(self._stage)

    def register(self, info: WorkerInfo) -> None:
        self._info = info
        self._say(Register(info))

    def commit(
        self,
        job: str,
        attempt: int,
        events: Sequence[OutputEvent],
        consumed: Consumed,
        *,
        model_s: float = 0.0,
    ) -> None:
        """See `WorkerBroker.commit`. Raises `TooLarge` over one frame (512 KiB)."""
        if (job, attempt) not in self._leases or self._wire is None:
            return
        self._wire.send(Commit(job, attempt, list(events), consumed, model_s))
        if events and isinstance(events[-1], Ended):
            self._leases.discard((job, attempt))

    def keeps(self, affinity: str, *, held: bool) -> None:
        if held:
            self._kept.add(affinity)
        else:
            self._kept.discard(affinity)
        self._say(Keeps(affinity, held))

    def park(self, job: str, attempt: int) -> None:
        if (job, attempt) in self._leases:
            self._leases.discard((job, attempt))
            self._say(Park(job, attempt))

    def hold(self, held: bool) -> None:
        """See `WorkerBroker.hold`. What is not read stays in the socket, and is read in one
        go."""
        if self._wire is None:
            return
        if held:
            self._wire.hold(HOLD_S)
        else:
            self._wire.release()

    def soon(self, work: Callable[..., None], *arguments: Any) -> None:
        """Beside `WorkerBroker`: as `loop.call_soon`, but within a read at its end, before what
        was said meanwhile is written (`Wire.soon`)."""
        if self._wire is None:
            asyncio.get_running_loop().call_soon(work, *arguments)
        else:
            self._wire.soon(work, *arguments)

    def beat(self, worker: str, load: Mapping[str, Any]) -> None:
        """See `WorkerBroker.beat`. Blocks at most `BEAT_TIMEOUT_S`; one calling thread only.

        A beat that cannot be sent is dropped: the next one connects again.
        """
        try:
            if self._beats is None:
                self._beats = _dial(self._path, worker)
            self._beats.sendall(b"".join(frames(encode(Beat(worker, dict(load))), control=True)))
        except OSError:
            if self._beats is not None:
                self._beats.close()
            self._beats = None

    async def close(self) -> None:
        self._leases.clear()
        await super().close()
        if self._beats is not None:
            self._beats.close()
            self._beats = None


def _dial(path: str, worker: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(BEAT_TIMEOUT_S)
        sock.connect(path)
        hello = frames(encode(Hello("beat", worker)), control=True)
        sock.sendall(GREETING + b"".join(hello))
    except OSError:
        sock.close()
        raise
    return sock


class SupervisorLink(Keeper):
    """`SupervisorBroker` over the link, and the pools as they stand."""

    def __init__(self, path: str) -> None:
        super().__init__(path, Hello("supervisor"))
        self._unsaid: deque[Exited] = deque(maxlen=EXITS_KEPT)
        self._views: list[PoolView] = []
        self._serial = 0
        self._news = asyncio.Event()

    def exited(
        self, worker: str, *, abnormal: bool, stepping: Iterable[tuple[str, int]], reason: str
    ) -> None:
        message = Exited(worker, abnormal, list(stepping), reason)
        if self._wire is not None:
            self._wire.send(message)
        else:
            self._unsaid.append(message)

    def _hail(self) -> None:
        assert self._wire is not None
        while self._unsaid:
            self._wire.send(self._unsaid.popleft())

    def _message(self, message: FromBroker) -> None:
        if isinstance(message, Pools):
            self._views = message.pools
            self._serial += 1
            self._news.set()
            self._news = asyncio.Event()

    async def pools(self) -> AsyncIterator[list[PoolView]]:
        """Every pool, now and after each change; a slow taker gets the newest only.

        Ends when cancelled; nothing is lost by that."""
        seen = 0
        while True:
            news = self._news
            if self._serial != seen:
                seen = self._serial
                yield self._views
            else:
                await news.wait()

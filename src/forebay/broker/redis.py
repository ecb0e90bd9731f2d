"""RedisBroker: the broker contract on Redis or Valkey, for many gateways and machines.

What is decided is decided inside Redis by the functions in ``lua/``; this class says what a
gateway wants, turns answers into the contract's words, hands pushes to the sinks, and lends the
store its sense of time: any gateway calls ``tick``, and for a moment one of them does it for all.

`open_gateway_broker` and `worker_broker` (in `redis_worker`) are what processes call.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import structlog

from forebay.broker import Attachment, GatewaySink, InputAck
from forebay.broker.affinity import What
from forebay.broker.keys import channel, prefix
from forebay.broker.local_base import Settings
from forebay.broker.redis_address import RedisUrl, parse_url
from forebay.broker.redis_books import RedisBooks
from forebay.broker.redis_checks import RedisOptions, prepare
from forebay.broker.redis_client import Server, Store
from forebay.broker.redis_follow import Follower
from forebay.broker.redis_rooms import RedisRooms
from forebay.broker.redis_trash import DropBlobs, Trash
from forebay.broker.redis_views import Picture
from forebay.broker.redis_wire import (
    Ack,
    Attached,
    Letter,
    PipeState,
    Refusal,
    ShardState,
    View,
    decoder,
    encode,
    feed_request,
    numbered,
    static_of,
    words_of,
)
from forebay.core.admission import JobFacts, refuse_job
from forebay.core.events import Ended, InputItem, OutputEvent, blobs_of
from forebay.core.job import remaining_input
from forebay.core.spec import JobSpec, JobView, PipeSpec, PoolView, QueuePlace, WorkerView
from forebay.errors import (
    BadRequest,
    ForebayError,
    ModelNotFound,
    NotFound,
    NoWorkers,
    ResumeNotAvailable,
    StateLost,
    StoreDown,
)

__all__ = ["RedisBroker", "RedisOptions", "open_gateway_broker"]

REFRESH_S = 1.0
TRASH_S = 1.0
COMPARE_PAGE = 500
LOST_KEPT = 10_000
ROOM_AGAIN_S = 1.0
"""A word that there is room again may be lost; then it is asked for."""

log = structlog.get_logger(__name__)

_view = decoder(View)
_maybe_view = decoder(View | bool)
_views = decoder(list[View])
_events = decoder(list[OutputEvent])
_ack = decoder(Ack)
_attached = decoder(Attached)
_pipe = decoder(PipeState)
_pipes = decoder(list[PipeState])
_refusal = decoder(Refusal)
_letter = decoder(Letter)
_state = decoder(ShardState)
_heads = decoder(list[Any])
_lost = decoder(list[bool])


async def open_gateway_broker(
    url: str,
    settings: Settings | None = None,
    *,
    options: RedisOptions | None = None,
    drop_blobs: DropBlobs | None = None,
) -> RedisBroker:
    """A gateway's broker on the Redis at ``url``, checked, connected and with its functions
    loaded. Raises `CannotBoot` with one line when that Redis cannot keep our promises, and
    `StoreDown` when it does not answer. Close it with `RedisBroker.close`."""
    where = parse_url(url)
    options = options or RedisOptions.of(where)
    broker = RedisBroker(where, settings or Settings(), options=options, drop_blobs=drop_blobs)
    await broker.start()
    return broker


class RedisBroker(RedisBooks):
    """`GatewayBroker` on Redis. Must be made inside the event loop.

    ``ids``: 128 random bits in hex; ``jitter``: 0..1. ``drop_blobs``: removes the files that
    cancelled and forgotten jobs named, of every gateway's; None: another gateway does.
    """

    def __init__(
        self,
        url: RedisUrl,
        settings: Settings,
        *,
        options: RedisOptions,
        ids: Callable[[], str] = lambda: secrets.token_hex(16),
        jitter: Callable[[], float] = random.random,
        drop_blobs: DropBlobs | None = None,
    ) -> None:
        self._url = url
        self._settings = settings
        self._options = options
        self._ids = ids
        self._jitter = jitter
        self._name = ids()
        self._picture = Picture()
        self._draining = False
        self._closed = False
        self._rooms: dict[str, list[asyncio.Future[None]]] = {}
        self._appends = 0
        self._lost: dict[str, None] = {}
        self._begun: set[str] = set()  # pools in which a job was begun from here
        self._fed: dict[str, int] = {}  # last input offset answered, of jobs fed from here
        self._tasks: list[asyncio.Task[None]] = []
        self._stale = asyncio.Event()
        self._follower = Follower(
            self._read_page,
            self._ask_heads,
            on_room=self._room,
            on_state=self._stale.set,
            on_lost=self._noticed,
        )
        self._store = Store(
            url,
            prefix(options.shard),
            channels=lambda: self._follower.channels,
            on_push=self._follower.take,
            on_up=self._up,
            deadline_s=options.deadline_s,
            wait_replicas=options.wait_replicas,
        )
        self._server = Server()
        self.rooms = RedisRooms(self._store, self._follower, settings.rooms, ids)
        self.trash = Trash(self._store, drop_blobs)

    # ---------------------------------------------------------------------- lifetime

    async def start(self) -> None:
        """Check, connect, and begin to keep time."""
        await prepare(self._url, self._options)
        await self._store.open()
        await self.refresh()
        if self._options.keep_time:
            loop = asyncio.get_running_loop()
            self._tasks += [
                loop.create_task(self._every(self.tick, None), name="redis-tick"),
                loop.create_task(self._every(self.look, 0.1), name="redis-look"),
                loop.create_task(self._refreshing(), name="redis-refresh"),
                loop.create_task(self._every(self.trash.empty, TRASH_S), name="redis-trash"),
            ]

    async def _up(self, server: Server) -> None:
        """A connection was made: another life of the server may have lost what we know."""
        again = self._server
        if again.run_id and again != server:
            await prepare(self._url, self._options)
        await self._store.call("arrive", {"server": server.word}, first=True)
        if again.run_id:
            if again != server:
                await self._expect_again()
            await self._compare(changed=again != server)
            for gateway in self._follower.names:
                await self._store.call("heads", {"gateway": gateway, "jobs": []}, first=True)
            self._stale.set()
            self._spawn(self._follower.look(everything=True))
        self._server = server  # only now: what was cut short is done again

    async def _expect_again(self) -> None:
        """A store that came back empty knows no pool. Those that it had are not unknown: their
        workers are about to register again, and who comes meanwhile may wait for them."""
        ms = round(self._settings.respawn_s * 1000)
        pools = sorted({*self._picture.names(), *self._begun})
        if pools:
            await self._store.call("expect", {"pools": pools, "ms": ms}, first=True)

    async def _compare(self, *, changed: bool) -> None:
        """What was followed here, held beside what is there now; then lost pushes."""
        if changed:
            cursors = self._follower.cursors()
            names = list(cursors)
            for start in range(0, len(names), COMPARE_PAGE):
                page = names[start : start + COMPARE_PAGE]
                streams = [
                    [job, cursors[job].epoch, cursors[job].offset, cursors[job].attempt]
                    for job in page
                ]
                answer = await self._store.call("compare", {"streams": streams}, first=True)
                for job, lost in zip(page, _lost(answer), strict=True):
                    if lost:
                        self._lose(job)
        await self._store.compared(self._follower.names)

    def _noticed(self, job: str) -> None:
        """A head below what was pushed, or none at all."""
        self._lost[job] = None
        while len(self._lost) > LOST_KEPT:
            del self._lost[next(iter(self._lost))]
        log.warning("stream.lost", job=job)

    def _lose(self, job: str) -> None:
        """The store lost this stream: who reads it is told now, who feeds it when it does."""
        self._noticed(job)
        self._follower.lost(job)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._quietly(work), name="redis-look")
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    @staticmethod
    async def _quietly(work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except ForebayError as error:
            log.debug("store.not_asked", what="look", reason=error.message)

    async def _every(self, do: Callable[[], Awaitable[float | None]], wait_s: float | None) -> None:
        while True:
            try:
                next_s = await do()
            except ForebayError as error:
                log.debug("store.not_asked", what=do.__name__, reason=error.message)
                next_s = 0.1
            await asyncio.sleep(wait_s if wait_s is not None else (next_s or 0.1))

    async def tick(self) -> float:
        """Do what is due, for everybody; returns when to ask again, in seconds."""
        request = {"gateway": self._name, "respawn": round(self._settings.respawn_s * 1000)}
        wait_ms, paused, *rooms = await self._store.call("tick", request)
        if paused:
            log.warning("broker.paused")
        for room in rooms:
            await self.rooms.release(room.decode())
        return max(0.002, int(wait_ms) / 1000)

    async def look(self) -> None:
        """Find lost pushes; says to the others that this gateway lives."""
        await self._follower.look()

    async def _refreshing(self) -> None:
        while True:
            try:
                self._stale.clear()
                await self.refresh()
            except ForebayError as error:
                log.debug("store.not_asked", what="refresh", reason=error.message)
            await asyncio.sleep(REFRESH_S / 10)
            try:
                async with asyncio.timeout(REFRESH_S):
                    await self._stale.wait()
            except TimeoutError:
                continue

    async def refresh(self) -> None:
        """Look at pools and workers now."""
        self._picture.update(_state(await self._store.call("state", {}, again=True)))

    @property
    def up(self) -> bool:
        """Whether the store answers."""
        return self._store.up

    async def settled(self) -> None:
        """Return when everything said so far has been answered, and everything that was
        pushed before that has been heard."""
        await self._store.call("room", {"job": ""}, again=True)
        await self._store.flushed()

    def open(self, gateway: str, sink: GatewaySink) -> None:
        where = channel(self._options.shard, gateway)
        self._follower.add(where, gateway, sink)
        self._store.subscribe(where)
        self._post("heads", {"gateway": gateway, "jobs": []})

    def expect(self, pools: Iterable[str]) -> None:
        """See `LocalBroker.expect`."""
        ms = round(self._settings.expect_s * 1000)
        self._post("expect", {"pools": list(pools), "ms": ms})

    def _post(self, op: str, request: Any) -> None:
        def done(answer: Any) -> None:
            if isinstance(answer, Exception):
                log.warning("store.not_told", what=op, reason=str(answer))

        self._store.post(op, request, done=done, again=True)

    # -------------------------------------------------------------------------- jobs

    async def submit(
        self,
        spec: JobSpec,
        items: Sequence[InputItem] = (),
        *,
        gateway: str = "",
        promised: bool = False,
    ) -> JobView:
        kind = spec.pool.partition("/")[0]
        if spec.kind != kind:
            raise BadRequest(f"pool {spec.pool} is of kind {kind}, not {spec.kind}")
        row = self._settings.rows[spec.kind]
        if self._draining:
            raise self._refused(spec, JobFacts(draining=True))
        request, blobs = feed_request(items)
        static = static_of(spec, row, self._settings.weights.get(spec.tenant, 1.0))
        limits = self._settings.limits
        request |= {
            "id": spec.id,
            "epoch": self._ids(),
            "gateway": gateway,
            "promised": promised,
            "items": bool(items),
            "st": static,
            "limits": {
                "store": self._settings.store_bytes,
                "live": limits.jobs,
                "queue": limits.queue,
                **({} if limits.tenant_jobs is None else {"mine": limits.tenant_jobs}),
            },
        }
        try:
            made, answer = await self._store.call(
                "submit", request, encode(spec), encode(static), *blobs, again=True
            )
        except ModelNotFound as error:
            raise ModelNotFound(error.message, pools=self._picture.names()) from None
        except StoreDown:
            self._take_back(spec)
            raise
        if not made:
            facts = _refusal(answer).facts(
                queue_s=static["queue"] / 1000,
                store_bytes=self._settings.store_bytes,
                promised=promised,
                will_wait=bool(items),
            )
            raise self._refused(spec, facts)
        self._begun.add(spec.pool)
        view: JobView = _view(answer).view()
        if gateway:
            self._follower.begin(gateway, view.spec.id, view.epoch, view.head)
        return view

    def _take_back(self, spec: JobSpec) -> None:
        """A submit without an answer may have landed, and nobody would ever ask for that job.
        One with a name is the client's, who comes back to it."""
        if not spec.name:
            ended = words_of(Ended(state="cancelled", message="its client was refused"))
            request = {"job": spec.id, "ended": ended}
            self._store.post("finish", request, b"", done=lambda answer: None, kept=True)

    def _refused(self, spec: JobSpec, facts: JobFacts) -> ForebayError:
        jitter = self._jitter()
        refusal = refuse_job(facts, self._settings.limits, jitter=jitter)
        # The store refused and we would not have: what it saw lies exactly at a limit.
        return refusal or NoWorkers(
            f"no worker of pool {spec.pool} takes another job now", retry_after_s=1 + jitter
        )

    async def find(self, tenant: str, dialect: str, name: str) -> JobView | None:
        request = {"tenant": tenant, "dialect": dialect, "name": name}
        answer = _maybe_view(await self._store.call("find", request, again=True))
        return answer.view() if isinstance(answer, View) else None

    async def status(self, job: str) -> JobView:
        view: JobView = _view(await self._store.call("status", {"job": job}, again=True)).view()
        return view

    async def cancel(self, job: str, *, reason: str = "") -> JobView:
        return await self._finish(job, Ended(state="cancelled", message=reason))

    async def control(
        self, pool: str, affinity: str, what: What, args: Mapping[str, Any] | None = None
    ) -> bool:
        request = {"pool": pool, "affinity": affinity, "what": what}
        return bool(await self._store.call("order", request, encode(dict(args or {}))))

    async def forget(self, job: str) -> None:
        await self._store.call("forget", {"job": job}, again=True)

    async def expire(self, job: str, ended: Ended) -> None:
        await self._finish(job, ended)

    async def _finish(self, job: str, ended: Ended) -> JobView:
        details = encode(ended.details) if ended.details else b""
        request = {"job": job, "ended": words_of(ended)}
        view: JobView = _view(await self._store.call("finish", request, details, again=True)).view()
        return view

    async def jobs(self, *, dead: bool = False, limit: int = 200) -> list[JobView]:
        request = {"dead": dead, "limit": limit}
        return [view.view() for view in _views(await self._store.call("jobs", request, again=True))]

    async def retry(self, job: str) -> JobView:
        letter = _letter(await self._store.call("letter", {"job": job}, again=True))
        items = remaining_input(numbered(letter.items, letter.start), letter.consumed)
        again = msgspec.structs.replace(letter.view.spec, id=self._ids(), name="")
        view = await self.submit(again, items)
        files = [name for item in items for name in blobs_of(item)]
        await self._store.call("unbury", {"job": job, "files": files}, again=True)
        return view

    # ------------------------------------------------------------------- attachments

    async def attach(self, job: str, *, gateway: str, write: bool) -> Attachment:
        request = {"job": job, "gateway": gateway, "write": write}
        answer = _attached(await self._store.call("attach", request))
        view = answer.view.view()
        if not view.ended_s:
            self._follower.begin(gateway, job, view.epoch, view.head)
        number = None if answer.number is False else int(answer.number)
        return Attachment(job=job, gateway=gateway, number=number, view=view)

    async def detach(self, attachment: Attachment) -> None:
        request: dict[str, Any] = {"job": attachment.job, "gateway": attachment.gateway}
        if attachment.number is not None:
            request["number"] = attachment.number
            self._fed.pop(attachment.job, None)
        await self._store.call("detach", request, again=attachment.number is not None)

    async def delivered(self, gateway: str, positions: Mapping[str, int]) -> None:
        if positions:
            await self._store.call("delivered", {"positions": dict(positions)}, again=True)

    # ------------------------------------------------------------------------- input

    async def append(
        self,
        job: str,
        items: Sequence[InputItem],
        *,
        attachment: int,
        client_pos: int | None = None,
        units: int | None = None,
    ) -> InputAck:
        request, blobs = feed_request(items)
        self._appends += 1
        request |= {"job": job, "number": attachment, "rid": f"{self._name}:{self._appends}"}
        request |= {"have": self._fed.get(job, 0)}
        request |= {} if client_pos is None else {"pos": client_pos}
        request |= {} if units is None else {"units": units}
        try:
            ack: InputAck = _ack(
                await self._store.call("append", request, *blobs, again=True)
            ).said()
            self._fed[job] = ack.offset
            return ack
        except NotFound:
            if job in self._lost:
                raise StateLost(f"the store lost job {job}") from None
            raise

    async def append_from_pipe(
        self, pipe: str, items: Sequence[InputItem], *, source_offset: int, ended: bool = False
    ) -> InputAck:
        request, blobs = feed_request(items)
        request |= {"pipe": pipe, "at": source_offset, "done": ended}
        ack: Ack = _ack(await self._store.call("copy", request, *blobs, again=True))
        return ack.said()

    async def input_room(self, job: str) -> None:
        while True:
            waiting = self._rooms.setdefault(job, [])
            # Before asking, so that a word between the answer and us is not missed.
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting.append(future)
            try:
                if not await self._store.call("room", {"job": job}, again=True):
                    return
                async with asyncio.timeout(ROOM_AGAIN_S):
                    await future
            except TimeoutError:
                continue
            finally:
                waiting.remove(future)
                if not waiting and self._rooms.get(job) is waiting:
                    del self._rooms[job]

    def _room(self, job: str) -> None:
        for future in self._rooms.get(job, ()):
            if not future.done():
                future.set_result(None)

    # ----------------------------------------------------------------------- reading

    async def read_after(
        self, job: str, offset: int, *, epoch: str | None = None, limit: int = 256
    ) -> list[OutputEvent]:
        request: dict[str, Any] = {"job": job, "offset": offset, "limit": limit}
        if epoch is not None:
            request["epoch"] = epoch
        return await self._reading(job, "read", request)

    async def read_after_mark(
        self, job: str, counter: str, value: int, *, limit: int = 256
    ) -> list[OutputEvent]:
        request = {"job": job, "counter": counter, "value": value, "limit": limit}
        return await self._reading(job, "mark", request)

    async def _reading(self, job: str, op: str, request: dict[str, Any]) -> list[OutputEvent]:
        try:
            events: list[OutputEvent] = _events(await self._store.call(op, request, again=True))
        except ResumeNotAvailable as error:
            unknown = error.details.get("reason") == "unknown"
            if unknown and (job in self._lost or self._follower.known(job)):
                # It was there and had not ended.
                self._lose(job)
                raise ResumeNotAvailable(
                    f"the store lost the stream of job {job}", reason="state_lost"
                ) from None
            raise
        return events

    async def _read_page(self, job: str, offset: int, limit: int) -> list[OutputEvent]:
        if job.startswith("room:"):
            return await self.rooms.read_room(job, offset, limit=limit)
        return await self.read_after(job, offset, limit=limit)

    async def _ask_heads(self, gateway: str, jobs: list[str]) -> list[Any]:
        request = {"gateway": gateway, "jobs": jobs}
        heads: list[Any] = _heads(await self._store.call("heads", request, again=True))
        return heads

    # ------------------------------------------------------------------------- pipes

    async def pipe(self, spec: PipeSpec, *, gateway: str = "") -> PipeSpec:
        request = {**msgspec.structs.asdict(spec), "gateway": gateway}
        made: PipeSpec = _pipe(await self._store.call("pipe", request, again=True)).spec()
        if gateway:
            view = await self.status(spec.source)
            if not view.ended_s:
                self._follower.begin(gateway, spec.source, view.epoch, view.head)
        return made

    async def pipes(self, gateway: str) -> list[PipeSpec]:
        answer = await self._store.call("pipes", {"gateway": gateway}, again=True)
        return [state.spec() for state in _pipes(answer)]

    # ----------------------------------------------------------------------- looking

    def pools(self, kind: str = "") -> list[PoolView]:
        return [view for view in self._picture.pools() if not kind or view.kind == kind]

    def workers(self) -> list[WorkerView]:
        return self._picture.workers()

    def place_for(self, pool: str, tenant: str, cost_s: float) -> QueuePlace:
        return self._picture.place_for(pool, tenant)

    async def drain(self) -> None:
        self._draining = True

    async def close(self) -> None:
        """Leave: what was attached here may be come back for elsewhere. Jobs go on."""
        if self._closed:
            return
        self._closed = self._draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for gateway in self._follower.names:
            try:
                await self._store.call("leave", {"gateway": gateway})
            except ForebayError as error:
                log.info("store.not_told", what="leave", reason=error.message)
        for waiting in self._rooms.values():
            for future in waiting:
                future.cancel()
        await self._store.close()

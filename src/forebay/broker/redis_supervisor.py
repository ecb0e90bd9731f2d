"""A supervisor's end of the Redis home: who exited, and the pools as they stand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import structlog

from forebay.broker.keys import prefix
from forebay.broker.redis_address import parse_url
from forebay.broker.redis_checks import RedisOptions
from forebay.broker.redis_client import Server, Store
from forebay.broker.redis_views import Picture
from forebay.broker.redis_wire import ShardState, decoder
from forebay.core.spec import PoolView
from forebay.errors import ForebayError

__all__ = ["RedisSupervisor"]

log = structlog.get_logger(__name__)

_state = decoder(ShardState)


class RedisSupervisor:
    """`SupervisorBroker` on Redis, and the pools as they stand."""

    def __init__(self, url: str, *, options: RedisOptions | None = None) -> None:
        self._url = parse_url(url)
        self._options = options or RedisOptions.of(self._url)
        self._store: Store | None = None

    async def open(self) -> None:
        self._store = Store(
            self._url,
            prefix(self._options.shard),
            channels=list,
            on_push=lambda where, message: None,
            on_up=self._up,
            deadline_s=self._options.deadline_s,
        )
        await self._store.open()

    async def _up(self, server: Server) -> None:
        assert self._store is not None
        await self._store.call("arrive", {"server": server.word}, first=True)

    def exited(
        self, worker: str, *, abnormal: bool, stepping: Iterable[tuple[str, int]], reason: str
    ) -> None:
        request = {
            "worker": worker,
            "abnormal": abnormal,
            "stepping": [f"{job}:{attempt}" for job, attempt in stepping],
        }
        if self._store is not None:
            self._store.post("exited", request, done=_told, kept=True)

    async def drained(self) -> None:
        if self._store is not None:
            await self._store.flushed()

    async def pools(self, every_s: float = 0.25) -> AsyncIterator[list[PoolView]]:
        """Every pool, now and about every ``every_s``. Ends when cancelled."""
        assert self._store is not None
        while True:
            try:
                picture = Picture()
                picture.update(_state(await self._store.call("state", {}, again=True)))
                yield picture.pools()
            except ForebayError as error:
                log.debug("store.not_asked", what="state", reason=error.message)
            await asyncio.sleep(every_s)

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()


def _told(answer: Any) -> None:
    if isinstance(answer, Exception):
        log.warning("store.not_told", what="exited", reason=str(answer))

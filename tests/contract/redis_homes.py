"""The Redis home of the contract, on real private servers.

Time is virtual here too: the functions are loaded with a key that holds the time, which the
harness sets. One server of each make is started per test process; every home has a shard of
its own on it.
"""

from __future__ import annotations

import atexit
import inspect
import itertools
import os
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pytest
import redis
from homes import Hand, Home

from forebay.broker.local import Settings
from forebay.broker.redis import RedisBroker, RedisOptions
from forebay.broker.redis_address import parse_url
from forebay.broker.redis_rooms import RedisRooms
from forebay.broker.redis_supervisor import RedisSupervisor
from forebay.broker.redis_worker import RedisWorker
from forebay.lab.redis_server import PrivateRedis, find_program

CLOCK = "fb:test:clock"
TICK_S = 0.1
_shards = itertools.count(1)


def program(make: str) -> str:
    """The server's program, or a skip; in CI both must be there."""
    found = find_program(make)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"no {make}-server here, and CI needs it")
        pytest.skip(f"no {make}-server here (scripts/system.sh installs it)")
    return found


@cache
def server(make: str) -> PrivateRedis:
    made = PrivateRedis(program(make))
    atexit.register(made.close)
    return made


class ServerTime:
    """The clock of the functions, set from here."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.now = 1_700_000_000.0
        self.fired = 0
        self.freeze(0)

    def freeze(self, seconds: float) -> None:
        """Time passes, but nobody gets to run."""
        self.now += seconds
        self._client.set(CLOCK, round(self.now * 1000))


class Settled:
    """A broker whose answers come when everything they caused has arrived."""

    def __init__(self, broker: RedisBroker | RedisRooms, settle: Callable[[], Any]) -> None:
        self._real, self._settle = broker, settle
        if isinstance(broker, RedisBroker):
            self.rooms = Settled(broker.rooms, settle)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not inspect.iscoroutinefunction(found) or name == "input_room":
            return found

        async def settled(*args: Any, **kwargs: Any) -> Any:
            try:
                return await found(*args, **kwargs)
            finally:
                if name != "close":
                    await self._settle()

        return settled


class RedisHome(Home):
    """RedisBroker on a real server, its workers and supervisor on connections of their own."""

    name = "redis"

    def __init__(self, settings: Settings | None = None, **kwargs: Any) -> None:
        if kwargs:
            pytest.skip("a journal is the local broker's")
        self.server = server(self.name)
        self.time: Any = ServerTime(self.server.client())
        self.options = RedisOptions(
            shard=f"t{next(_shards)}", keep_time=False, clock_key=CLOCK, deadline_s=5.0
        )
        self.settings = settings or Settings()
        self.dropped = []
        self.pushes = []
        self.hands = []
        self._ports: list[RedisWorker] = []
        self._others: list[RedisBroker] = []

    def clock(self) -> float:
        return time.monotonic()

    def _broker(self, ids: str) -> RedisBroker:
        numbers = itertools.count(1)
        return RedisBroker(
            parse_url(self.server.url),
            self.settings,
            options=self.options,
            ids=lambda: f"{ids}{next(numbers)}",
            jitter=lambda: 0.0,
            drop_blobs=self._drop,
        )

    async def elsewhere(self) -> RedisBroker:
        other = self._broker("other")
        self._others.append(other)
        await other.start()
        return other

    async def start(self) -> None:
        self.real = self._broker("id")
        await self.real.start()
        self.broker: Any = Settled(self.real, self.settle)
        self.broker.open("g1", self.pushes.append)
        self._supervisor = RedisSupervisor(self.server.url, options=self.options)
        await self._supervisor.open()
        await self.real.tick()

    async def close(self) -> None:
        for port in self._ports:
            await port.close()
        await self._supervisor.close()
        for other in self._others:
            await other.close()
        await self.real.close()
        self.time._client.close()

    async def _drop(self, names: Iterable[str]) -> None:
        self.dropped += names

    async def port(self, worker: str) -> Any:
        port = RedisWorker(parse_url(self.server.url), worker, options=self.options)
        self._ports.append(port)
        return port

    def exited(
        self, worker: str, *, abnormal: bool, stepping: Iterable[tuple[str, int]], reason: str
    ) -> None:
        self._supervisor.exited(worker, abnormal=abnormal, stepping=stepping, reason=reason)

    def _seen(self) -> tuple[int, ...]:
        return (len(self.pushes), *(len(hand.pushes) for hand in self.hands))

    async def settle(self) -> None:
        """Everybody has heard everything that was said before."""
        seen: tuple[int, ...] = ()
        while seen != self._seen():
            seen = self._seen()
            await self._supervisor.drained()
            for port in self._ports:
                await port.settled()
            await self.real.settled()
        await self.real.refresh()
        await self.real.trash.empty()

    async def _pass(self, seconds: float) -> None:
        wait_s = await self.real.tick()
        while seconds > 1e-9:
            step = min(wait_s, TICK_S, seconds)
            seconds -= step
            self.time.freeze(step)
            wait_s = await self.real.tick()
            if wait_s < 0.01:
                for hand in self.hands:
                    await hand.port.settled()

    async def advance(self, seconds: float) -> None:
        await self.settle()
        while seconds > 1e-9:
            step = min(0.6, seconds)
            seconds -= step
            for hand in self.hands:
                if hand.beating:
                    hand.port.beat(hand.id, {})
            await self.real.look()
            await self._pass(step)
        await self.settle()

    def used_bytes(self) -> int:
        key = f"fb:{{{self.options.shard}}}:meta"
        return int(self.time._client.hget(key, "used") or 0)


class ValkeyHome(RedisHome):
    name = "valkey"


__all__ = ["Hand", "RedisHome", "ValkeyHome", "program", "server"]

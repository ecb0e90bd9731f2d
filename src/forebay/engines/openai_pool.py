"""Several model servers behind one engine: who is asked, who takes over, what was answered before.

A request that fails before its first token goes to the next server; after the first token
nothing is ever asked again. Which one is next is `core.upstreams`' to say.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec

from forebay.core.cache import Cache
from forebay.core.events import OutputEvent, Usage, size_of
from forebay.core.upstreams import Balancer, parse_upstreams
from forebay.engines.openai_client import Upstream, read_key
from forebay.errors import ConfigError, PromptTooLong, UpstreamFailed

__all__ = ["Answers", "Member", "Pool"]

MiB = 1024 * 1024


@dataclass(slots=True)
class Member:
    """One server. ``model``: its own name of the model, "" for the pool's."""

    upstream: Upstream
    model: str
    weight: float


Attempt = Callable[[Member, float], AsyncGenerator[OutputEvent]]


class Pool:
    """The servers of one engine, from its options. Raises `ConfigError`.

    ``counts``: failovers, and answers per server, for the metrics."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        try:
            given = parse_upstreams(values["base_url"])
        except ValueError as exc:
            raise ConfigError(f"base_url: {exc}", option="base_url") from exc
        key = read_key(values["api_key"], values["api_key_file"])
        self.members = [
            Member(
                Upstream(
                    one.url,
                    key,
                    connect_timeout_s=values["connect_timeout_s"],
                    connect_retries=values["connect_retries"],
                    pool=values["pool"] or values["slots"] + 2,
                ),
                one.model,
                one.weight,
            )
            for one in given
        ]
        self.counts: Counter[str] = Counter()
        self._balancer = Balancer([one.weight for one in given])

    def open(self) -> None:
        for member in self.members:
            member.upstream.open()

    async def close(self) -> None:
        for member in self.members:
            await member.upstream.close()

    async def answer(self, attempt: Attempt, first_s: float) -> AsyncGenerator[OutputEvent]:
        """One answer from the first server that gives a first token. ``first_s``: for that,
        all tries together, of which each server gets an equal part of what is left."""
        loop = asyncio.get_running_loop()
        until = loop.time() + first_s
        order = self._balancer.order(loop.time())
        for turn, at in enumerate(order):
            left, now, begun = len(order) - turn, loop.time(), False
            self._balancer.began(at, now)
            try:
                events = attempt(self.members[at], now + (until - now) / left)
                async with aclosing(events):
                    async for event in events:
                        if not begun:
                            begun = True
                            self._balancer.good(at)
                            self.counts[f"upstream_{at + 1}"] += 1
                        yield event
                return
            except PromptTooLong:
                self._balancer.good(at)  # it is there, and would say so again
                raise
            except UpstreamFailed:
                if not begun:
                    self._balancer.bad(at, loop.time())
                if begun or left == 1 or loop.time() >= until:
                    raise
                self.counts["failovers"] += 1


class Answers:
    """Whole answers by exact request; nothing is kept where ``ttl_s`` is 0."""

    def __init__(self, ttl_s: float, limit_mib: int) -> None:
        self._cache: Cache[Sequence[OutputEvent]] | None = None
        if ttl_s:
            self._cache = Cache(ttl_s=ttl_s, limit_bytes=limit_mib * MiB)
        self.counts: Counter[str] = Counter()

    def key(self, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> bytes:
        """What identifies a request: all of it but what only its gateway reads. Empty where
        nothing is kept."""
        if self._cache is None:
            return b""
        own = {k: v for k, v in params.items() if k not in ("operation", "response")}
        return hashlib.sha256(msgspec.json.encode([messages, own], order="sorted")).digest()

    def find(self, key: bytes) -> Sequence[OutputEvent] | None:
        if self._cache is None:
            return None
        found = self._cache.get(key, asyncio.get_running_loop().time())
        self.counts["cache_misses" if found is None else "cache_hits"] += 1
        return found

    def recorder(self, key: bytes) -> Callable[[OutputEvent], None]:
        """Hears every event of an answer; keeps it at its end, which is its `Usage`."""
        cache = self._cache
        if cache is None:
            return lambda event: None
        heard: list[OutputEvent] = []

        def hear(event: OutputEvent) -> None:
            heard.append(event)
            if isinstance(event, Usage):
                size = sum(map(size_of, heard)) + len(key)
                cache.put(key, tuple(heard), size, asyncio.get_running_loop().time())

        return hear

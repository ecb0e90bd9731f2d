"""Beats to Redis from the worker's beating thread, on a blocking connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from forebay.broker.keys import prefix
from forebay.broker.redis_address import RedisUrl, find_master
from forebay.broker.redis_checks import RedisOptions
from forebay.broker.redis_library import FUNCTION
from forebay.broker.redis_wire import encode
from forebay.errors import ForebayError

__all__ = ["Beats"]

BEAT_TIMEOUT_S = 0.5
FULL_EVERY = 4
"""Every so many beats the answer also says how far the input of each lease is."""


class Beats:
    """A blocking connection of its own, for the thread that beats."""

    def __init__(self, url: RedisUrl, me: Mapping[str, str], options: RedisOptions) -> None:
        self._url, self._me, self._options = url, me, options
        self._client: Redis | None = None
        self._count = 0

    def say(self, load: Mapping[str, Any], cursor: int) -> bytes | None:
        """One beat; None when it could not be said: the next one connects again."""
        self._count += 1
        request = {
            **self._me,
            "cursor": cursor,
            "full": self._count % FULL_EVERY == 0,
        }
        try:
            if self._client is None:
                self._client = self._dial()
            answer: Any = self._client.fcall(
                FUNCTION + "beat",
                1,
                prefix(self._options.shard),
                encode(request),
                encode(dict(load)),
            )
        except (RedisError, OSError, ForebayError):
            self.close()
            return None
        return answer if isinstance(answer, bytes) else None

    def _dial(self) -> Redis:
        url = self._url
        where: dict[str, Any] = {"unix_socket_path": url.path}
        if not url.path:
            host, port = (
                asyncio.run(find_master(url, BEAT_TIMEOUT_S)) if url.service else (url.hosts[0])
            )
            where = {"host": host, "port": port, "ssl": url.tls}
        return Redis(
            **where,
            db=url.db,
            username=url.username or None,
            password=url.password or None,
            protocol=3,
            socket_timeout=BEAT_TIMEOUT_S,
            socket_connect_timeout=BEAT_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

"""What a Redis must be before anybody relies on it. Each refusal is one line with its remedy."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from forebay.broker.redis_address import RedisUrl, find_master
from forebay.broker.redis_client import DEADLINE_S
from forebay.broker.redis_library import load_library, source
from forebay.errors import CannotBoot, ConfigError, ForebayError, StoreDown

__all__ = ["RedisOptions", "prepare"]

CHECK_S = 5.0
"""Asking for versions and loading functions may take so long, once."""

log = structlog.get_logger(__name__)


class RedisOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may choose about the Redis home.

    ``shard``: everything of one deployment; two of them may share a server. ``wait_replicas``:
    answers count when so many replicas have the write (`durability = wait`). ``need_aof``,
    ``need_password``: what is refused at the start. ``keep_time``, ``clock_key``: tests drive
    time themselves.
    """

    shard: str = "main"
    deadline_s: float = DEADLINE_S
    wait_replicas: int = 0
    need_aof: bool = True
    need_password: bool = True
    keep_time: bool = True
    clock_key: str = ""

    @classmethod
    def of(cls, url: RedisUrl) -> RedisOptions:
        """The options in ``url``. Raises `ConfigError` for one that is none."""
        words = dict(url.options)
        known = {
            "shard": words.pop("shard", "main"),
            "wait_replicas": words.pop("wait_replicas", "0"),
            "need_aof": words.pop("need_aof", "true"),
            "need_password": words.pop("need_password", "true"),
        }
        if words:
            raise ConfigError(f"broker url has the option {min(words)!r}, which is none")
        if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", known["shard"]) is None:
            raise ConfigError(f"shard is {known['shard']!r}, expected letters, digits, - _ and .")
        try:
            return msgspec.convert(known, cls, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"broker url: {error}") from error


async def prepare(url: RedisUrl, options: RedisOptions) -> None:
    """Refuse a Redis that cannot keep our promises; load the functions where they are not.

    Raises `CannotBoot` for the first, `StoreDown` when it does not answer."""
    host, port = ("", 0) if url.path else await find_master(url, CHECK_S)
    where: dict[str, Any] = (
        {"unix_socket_path": url.path} if url.path else {"host": host, "port": port}
    )
    if url.tls:
        where["ssl"] = True
    client = Redis(
        **where,
        db=url.db,
        username=url.username or None,
        password=url.password or None,
        protocol=3,
        decode_responses=True,
        socket_timeout=CHECK_S,
        socket_connect_timeout=CHECK_S,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        await _check(client, url, options)
        if await load_library(client, source(options.clock_key)):
            log.info("store.functions_loaded", store=str(url))
    except ResponseError as error:
        raise CannotBoot(f"{url} refuses us: {error}", stage="broker") from error
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreDown(
            f"{url} does not answer: {type(error).__name__}: {error}", retry_after_s=1.0
        ) from error
    finally:
        await client.aclose()


async def _check(client: Any, url: RedisUrl, options: RedisOptions) -> None:
    server = await client.info("server")
    _check_version(server)
    if server.get("redis_mode") == "cluster":
        raise _refused("Redis Cluster is not supported", "use one server, or Sentinel")
    memory = await client.info("memory")
    policy = memory.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise _refused(
            f"maxmemory-policy is {policy}, which deletes queued jobs when memory is short",
            "set it to noeviction",
        )
    persistence = await client.info("persistence")
    if options.need_aof and not int(persistence.get("aof_enabled", 0)):
        raise _refused(
            "append-only persistence is off, so a restart loses every job",
            "set appendonly yes, or allow it with redis.need_aof = false",
        )
    if options.need_password and not (url.loopback or url.password):
        raise _refused(
            f"no password for {url}, which is not this machine",
            "put one into the url, or allow it with redis.need_password = false",
        )


def _check_version(server: dict[str, Any]) -> None:
    valkey = server.get("valkey_version")
    name, text, least = ("Valkey", valkey, 8) if valkey else ("Redis", server["redis_version"], 7)
    match = re.match(r"\d+", str(text))
    if match is None or int(match[0]) < least:
        raise _refused(f"{name} {text} is too old", f"use {name} {least}.0 or newer")


def _refused(fact: str, remedy: str) -> ForebayError:
    return CannotBoot(f"{fact}: {remedy}", stage="broker")

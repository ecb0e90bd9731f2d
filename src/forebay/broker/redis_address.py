"""Where Redis is: the URL of an operator, and through Sentinel the master of the moment."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from forebay.errors import ConfigError, StoreDown

__all__ = ["RedisUrl", "find_master", "parse_url"]

SCHEMES = ("redis", "rediss", "valkey", "valkeys", "redis+sentinel", "unix+redis")
PORT, SENTINEL_PORT = 6379, 26379


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisUrl:
    """What a URL says. ``hosts``: of the server, or of the Sentinels where ``service`` names
    what they watch. ``path``: of a Unix socket instead."""

    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    username: str = ""
    password: str = ""
    db: int = 0
    tls: bool = False
    options: tuple[tuple[str, str], ...] = ()

    @property
    def loopback(self) -> bool:
        """Nobody outside this machine can reach it under this address."""
        return bool(self.path) or all(_loopback(host) for host, _ in self.hosts)

    def __str__(self) -> str:
        """Without the password, for logs."""
        if self.path:
            return f"unix+redis://{self.path}"
        where = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"redis+sentinel://{where}/{self.service}" if self.service else f"redis://{where}"


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def parse_url(url: str) -> RedisUrl:
    """Read ``redis://[USER:PASSWORD@]HOST[:PORT][/DB]``, ``rediss://`` for TLS, ``valkey://``,
    ``redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST.../SERVICE[/DB]`` or
    ``unix+redis:///PATH[?db=N]``. What else stands behind ``?`` are options, which
    `RedisOptions.of` reads. Raises `ConfigError` for anything else."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f"broker url begins with {parts.scheme!r}, expected one of {', '.join(SCHEMES)}"
        )
    login, _, where = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    common: dict[str, Any] = {
        "username": unquote(username),
        "password": unquote(password),
        "tls": parts.scheme in ("rediss", "valkeys"),
    }
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    number = query.pop("db", "0")
    common["options"] = tuple(query.items())
    path = [part for part in parts.path.split("/") if part]
    if parts.scheme == "unix+redis":
        return RedisUrl(path=unquote(parts.path), db=_whole(number, "database"), **common)
    sentinel = parts.scheme == "redis+sentinel"
    if sentinel:
        if not path:
            raise ConfigError("broker url names no Sentinel service: expected HOSTS/SERVICE")
        common["service"] = unquote(path.pop(0))
    if len(path) > 1:
        raise ConfigError(f"broker url has {len(path)} path parts, expected one database number")
    default = SENTINEL_PORT if sentinel else PORT
    hosts = tuple(_host(text, default) for text in (where or "localhost").split(","))
    if not sentinel and len(hosts) > 1:
        raise ConfigError("several hosts need redis+sentinel:// and a service name")
    db = _whole(path[0] if path else number, "database")
    return RedisUrl(hosts=hosts, db=db, **common)


def _host(text: str, port: int) -> tuple[str, int]:
    host, colon, number = text.rpartition(":")
    if not colon or number.endswith("]"):
        return text.strip("[]"), port
    return host.strip("[]"), _whole(number, "port")


def _whole(text: str, what: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"broker url has the {what} {text!r}, expected a whole number")
    return int(text)


def tls_of(url: RedisUrl) -> ssl.SSLContext | None:
    return ssl.create_default_context() if url.tls else None


async def find_master(url: RedisUrl, limit_s: float) -> tuple[str, int]:
    """Host and port of the server to write to now. Raises `StoreDown` when no Sentinel
    knows."""
    if not url.service:
        return url.hosts[0]
    # Here and not above: every process reads a broker's URL, and few of them speak Redis.
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import Sentinel
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError

    never = Retry(NoBackoff(), 0)
    sentinel: Any = cast(Any, Sentinel)(
        list(url.hosts), socket_timeout=limit_s, socket_connect_timeout=limit_s, retry=never
    )
    try:
        async with asyncio.timeout(limit_s):
            host, port = await sentinel.discover_master(url.service)
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreDown(
            f"no Sentinel knows a master of {url.service!r}: {type(error).__name__}"
        ) from error
    finally:
        for client in sentinel.sentinels:
            await client.aclose()
    return str(host), int(port)

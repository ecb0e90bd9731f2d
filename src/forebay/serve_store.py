"""Which broker `forebay serve` and `forebay worker` speak to, as settled.

``local``: in the gateway's process. ``redis``: a private Valkey beside it. A URL: a server
that other machines share too.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from forebay.broker.redis_address import SCHEMES, parse_url
from forebay.config import Config, table, table_redis
from forebay.errors import ConfigError
from forebay.store import find_server, is_up, write_store
from forebay.supervisor import ProcessSpec

__all__ = ["BROKER_ENV", "PRIVATE", "Store", "is_shared", "masked", "open_store", "with_options"]

PRIVATE = ("redis", "valkey")
"""Words that ask for a server of one's own."""
BROKER_ENV = table.BROKER.env
"""Where children find the URL: it may hold a password, so it never stands on a command line."""


@dataclass(frozen=True, slots=True)
class Store:
    """``url``: of the shared broker, "" for the local one. ``private``: made for this start;
    ``process`` is then what runs it."""

    url: str = ""
    private: bool = False
    process: ProcessSpec | None = None

    @property
    def env(self) -> dict[str, str]:
        return {BROKER_ENV: self.url} if self.url else {}


def is_shared(url: str) -> bool:
    """Whether ``url`` names a broker that several gateways may share. Raises `ConfigError`
    for a scheme that is none."""
    if url == "local":
        return False
    if url in PRIVATE:
        return True
    if urlsplit(url).scheme in SCHEMES:
        parse_url(url)
        return True
    raise ConfigError(
        f"broker is {masked(url)!r}, expected local, redis (a private server), "
        f"or a URL with one of {', '.join(f'{s}://' for s in SCHEMES)}"
    )


def open_store(config: Config, data_dir: Path) -> Store:
    """The broker to use, with the process to run where it is a private one.

    Raises `ConfigError` for what cannot be meant, `CannotBoot` where no server program is
    installed."""
    url = config[table.BROKER]
    gateways = config[table.GATEWAYS]
    if not is_shared(url):
        if gateways > 1:
            raise ConfigError(
                f"gateways is {gateways}, and the local broker lives in one gateway: several "
                "need a shared one, --broker redis (a private server) or --broker redis://HOST"
            )
        return Store()
    if url not in PRIVATE:
        return Store(with_options(url, config))
    find_server()  # says what to install before anything is started
    files = write_store(data_dir / "store")
    return Store(
        files.url,
        private=True,
        process=ProcessSpec(
            name="store",
            argv=[sys.executable, "-m", "forebay", "_store", str(files.config),
                  "--parent", str(os.getpid())],
            role="store",
            probe=partial(is_up, files.port),
        ),
    )  # fmt: skip


def with_options(url: str, config: Config) -> str:
    """``url`` with what the settings say about Redis; what it says itself stands."""
    parts = urlsplit(url)
    said = dict(parse_qsl(parts.query, keep_blank_values=True))
    ours = {
        "shard": config[table_redis.SHARD],
        "wait_replicas": str(config[table_redis.DURABILITY_REPLICAS]),
        "need_aof": str(config[table_redis.NEED_AOF]).lower(),
        "need_password": str(config[table_redis.NEED_PASSWORD]).lower(),
    }
    return urlunsplit(parts._replace(query=urlencode({**ours, **said})))


def masked(url: str) -> str:
    """``url`` without its password, to be shown."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    return url.replace(f":{parts.password}@", ":***@", 1)

"""Settings of the broker on Redis or Valkey. Part of `config.table`."""

from __future__ import annotations

from forebay.config import declare

__all__ = ["DURABILITY_REPLICAS", "NEED_AOF", "NEED_PASSWORD", "SHARD"]

SHARD = declare.text(
    "redis.shard",
    "main",
    "Everything of one deployment: gateways and workers that are to meet name the same shard. "
    "Two deployments may share a server under different ones.",
)
DURABILITY_REPLICAS = declare.whole(
    "redis.durability_replicas",
    0,
    "An answer to a write counts when so many replicas have it (Redis `WAIT`): with 1, a "
    "failover loses nothing that was answered, and every write takes a round trip more. "
    "0: do not wait.",
    low=0,
    high=8,
)
NEED_AOF = declare.yes_no(
    "redis.need_aof",
    True,
    "Refuse a server without append-only persistence: its restart would lose every job.",
)
NEED_PASSWORD = declare.yes_no(
    "redis.need_password",
    True,
    "Refuse a server on another machine that is addressed without a password.",
)

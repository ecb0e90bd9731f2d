"""How many may come in: the connection limits of one process, per address and in all.

Consulted once for each connection, before a byte of it is read. Off loopback also the rate
at which connections may be opened. Everything is bounded: addresses are remembered only
while they have connections or an unsettled rate.
"""

from __future__ import annotations

import ipaddress
import resource
from collections import Counter
from collections.abc import Iterable

from forebay.errors import ConfigError, Refused, TooManyConnections
from forebay.gateway.metrics import GatewayMetrics
from forebay.gateway.options import GatewayOptions

__all__ = ["Bucket", "Gate", "raise_fd_limit"]

MAX_REMEMBERED = 20_000
RETRY_AFTER_S = 2.0


class Bucket:
    """A token bucket: ``rate`` a second, up to ``burst`` at once."""

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate, self.burst = rate, burst
        self._left, self._at = burst, now

    def take(self, now: float) -> bool:
        self._left = min(self.burst, self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def full(self, now: float) -> bool:
        return self._left + (now - self._at) * self.rate >= self.burst


class Gate:
    """Counts connections and says who may not come in, and why."""

    def __init__(self, options: GatewayOptions, metrics: GatewayMetrics) -> None:
        self.options = options
        self.metrics = metrics
        self.limit = options.max_connections
        self.open = 0
        self.websockets = 0
        self._by_address: Counter[str] = Counter()
        self._rates: dict[str, Bucket] = {}
        self._rate: Bucket | None = None
        self._proxies = _networks(options.trusted_proxies)

    @property
    def crowded(self) -> bool:
        """True where not even a polite refusal can be afforded: cut at once."""
        return self.open >= self.limit + max(8, self.options.reserve_fds // 2)

    def enter(self, address: str, now: float, *, loopback: bool) -> Refused | None:
        """Count a connection. The error, if any, is what to answer it with; it counts until
        `leave` either way."""
        self.open += 1
        refused = self._over_process()
        if refused is None and not loopback and not self._proxy(address):
            refused = self._over_address(address, now)
        self._by_address[address] += 1
        if refused is None:
            self.metrics.accepted += 1
        else:
            self.metrics.refuse(str(refused.details["limit_of"]))
        return refused

    def leave(self, address: str) -> None:
        """A connection counted by `enter` is gone."""
        self.open -= 1
        self._by_address[address] -= 1
        if self._by_address[address] <= 0:
            del self._by_address[address]

    def counts(self) -> dict[str, int]:
        return {"http": self.open - self.websockets, "websocket": self.websockets}

    def _proxy(self, address: str) -> bool:
        """Whether many clients come from there."""
        if not self._proxies:
            return False
        found = ipaddress.ip_address(address.partition("%")[0])
        found = getattr(found, "ipv4_mapped", None) or found
        return any(found in network for network in self._proxies)

    def _over_process(self) -> Refused | None:
        if self.open <= self.limit:
            return None
        return _refusal("process", f"{self.open} connections open", self.limit)

    def _over_address(self, address: str, now: float) -> Refused | None:
        options = self.options
        if self._by_address[address] >= options.max_per_address:
            held = self._by_address[address]
            return _refusal("address", f"{held} connections open here", options.max_per_address)
        if self._rate is None:
            self._rate = Bucket(options.handshakes_per_s, 2 * options.handshakes_per_s, now)
        if not self._rate.take(now):
            return _refusal("process_rate", "too many new connections", options.handshakes_per_s)
        bucket = self._rates.get(address)
        if bucket is None:
            self._make_room(now)
            bucket = Bucket(options.handshakes_per_address_s, options.max_per_address, now)
            self._rates[address] = bucket
        if not bucket.take(now):
            limit = options.handshakes_per_address_s
            return _refusal("address_rate", "too many new connections from here", limit)
        return None

    def _make_room(self, now: float) -> None:
        if len(self._rates) < MAX_REMEMBERED:
            return
        settled = [address for address, bucket in self._rates.items() if bucket.full(now)]
        for address in settled or list(self._rates)[: MAX_REMEMBERED // 10]:
            del self._rates[address]


def _networks(
    words: Iterable[str],
) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    try:
        return tuple(ipaddress.ip_network(word, strict=False) for word in words)
    except ValueError as error:
        raise ConfigError(
            f"server.trusted_proxies: {error}, expected addresses and networks such as 10.0.0.0/8"
        ) from error


def _refusal(limit_of: str, what: str, limit: float) -> Refused:
    return TooManyConnections(
        f"{what}, expected no more than {limit:g}",
        retry_after_s=RETRY_AFTER_S,
        limit_of=limit_of,
    )


def raise_fd_limit(options: GatewayOptions) -> int:
    """Raise this process's soft limit on open files as far as it may, and return how many
    connections fit under it, at most ``options.max_connections``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = options.max_connections + options.reserve_fds
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft == resource.RLIM_INFINITY:
        return options.max_connections
    return max(1, min(options.max_connections, soft - options.reserve_fds))

"""A bounded memory of whole answers, by exact request.

Oldest use leaves first when bytes are short, and everything leaves after its time. Times are
arguments, in seconds on one clock."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

__all__ = ["Cache"]

V = TypeVar("V")


class Cache(Generic[V]):
    """``ttl_s``: life of an entry. ``limit_bytes``: of all entries, as `put` was told."""

    def __init__(self, *, ttl_s: float, limit_bytes: int) -> None:
        self._ttl_s = ttl_s
        self._limit = limit_bytes
        self._entries: OrderedDict[bytes, tuple[float, int, V]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now: float) -> V | None:
        """What was kept under ``key``, if its time has not passed."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        until, _, value = entry
        if now >= until:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: bytes, value: V, size: int, now: float) -> bool:
        """Keep ``value``, which counts ``size`` bytes. False: it is larger than everything
        may be together."""
        if key in self._entries:
            self._drop(key)
        if size > self._limit:
            return False
        while self.bytes + size > self._limit:
            self._drop(next(iter(self._entries)))
        self._entries[key] = (now + self._ttl_s, size, value)
        self.bytes += size
        return True

    def _drop(self, key: bytes) -> None:
        self.bytes -= self._entries.pop(key)[1]

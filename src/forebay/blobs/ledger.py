"""How much is stored and whose it is: the limits that a blob's writer is held to.

The truth is what lies in the store, which other processes write to as well. So the sums are
taken anew from a listing now and then, and between two listings this process adds and takes
away what it does itself. A limit may therefore be passed by what other processes wrote since
the last look; it is never passed by more than that.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from forebay.blobs.names import owner_of
from forebay.errors import QuotaExceeded, StoreFull

__all__ = ["Ledger", "Limits", "Usage"]

LOOK_EVERY_S = 10.0
RETRY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bytes; None: no such limit. ``tenant_bytes`` holds for each tenant by itself."""

    total_bytes: int | None = None
    tenant_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """``coming``: announced by writers that are not done yet; it counts already."""

    total: int
    coming: int


class Ledger:
    """Thread-safe. ``look`` lists (name, bytes) of all there is; ``clock``: monotonic."""

    def __init__(
        self,
        limits: Limits,
        look: Callable[[], Iterable[tuple[str, int]]],
        clock: Callable[[], float],
    ) -> None:
        self.limits = limits
        self._look = look
        self._clock = clock
        self._looked_at: float | None = None
        self._stored: Counter[str] = Counter()
        self._coming: Counter[str] = Counter()
        self._lock = threading.Lock()

    def reserve(self, owner: str, size: int) -> None:
        """``size`` more bytes will be written. Raises `QuotaExceeded` for the tenant's own
        limit, `StoreFull` for the store's."""
        if self.limits.total_bytes is None and self.limits.tenant_bytes is None:
            return
        self._refresh()
        with self._lock:
            self._check(owner, size)
            self._coming[owner] += size

    def _check(self, owner: str, size: int) -> None:
        mine = self._stored[owner] + self._coming[owner] + size
        limit = self.limits.tenant_bytes
        if limit is not None and mine > limit:
            raise QuotaExceeded(
                f"this would make {mine} bytes of stored files, expected no more than {limit}",
                limit_bytes=limit,
                retry_after_s=RETRY_S,
            )
        total = self._stored.total() + self._coming.total() + size
        limit = self.limits.total_bytes
        if limit is not None and total > limit:
            raise StoreFull(
                f"this would make {total} bytes of stored files, expected no more than {limit}",
                limit_bytes=limit,
                retry_after_s=RETRY_S,
            )

    def release(self, owner: str, size: int) -> None:
        """What was reserved is written (`stored`) or will not be."""
        with self._lock:
            self._coming[owner] -= size
            if self._coming[owner] <= 0:
                del self._coming[owner]

    def stored(self, name: str, size: int) -> None:
        with self._lock:
            self._stored[owner_of(name)] += size

    def dropped(self, name: str, size: int) -> None:
        with self._lock:
            owner = owner_of(name)
            self._stored[owner] = max(0, self._stored[owner] - size)

    def usage(self) -> Usage:
        self._refresh()
        with self._lock:
            return Usage(self._stored.total(), self._coming.total())

    def _refresh(self) -> None:
        now = self._clock()
        with self._lock:
            if self._looked_at is not None and now - self._looked_at < LOOK_EVERY_S:
                return
            self._looked_at = now
        found: Counter[str] = Counter()
        for name, size in self._look():
            found[owner_of(name)] += size
        with self._lock:
            self._stored = found

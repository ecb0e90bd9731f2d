"""One-time tickets of a broker in this process: whom each stands for, for a little while."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["TicketShelf"]


class TicketShelf:
    """Tickets by their digest. Full, it gives up the oldest. ``now``: the broker's clock."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def keep(self, ticket: str, holder: str, *, until_s: float, limit: int, now: float) -> None:
        while self._held:
            oldest, (end_s, _) = next(iter(self._held.items()))
            if end_s > now and len(self._held) < limit:
                break
            del self._held[oldest]
        self._held[ticket] = (until_s, holder)

    def take(self, ticket: str, now: float) -> str | None:
        end_s, holder = self._held.pop(ticket, (now, ""))
        return holder if end_s > now else None

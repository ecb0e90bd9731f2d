"""What the gateways of one Redis keep together that belongs to no job: hours of audio, tickets."""

from __future__ import annotations

from collections.abc import Mapping

from forebay.broker.redis_client import Store
from forebay.core.audio_quota import Slots

__all__ = ["RedisBooks"]


class RedisBooks:
    """The part of `GatewayBroker` that keeps them."""

    _store: Store

    async def audio(self, tenant: str, totals: Mapping[str, float]) -> Slots:
        request = {"tenant": tenant, "totals": {j: round(1000 * s) for j, s in totals.items()}}
        slots = await self._store.call("audio", request, again=True)
        return [(age / 1000, ms / 1000) for age, ms in zip(slots[::2], slots[1::2], strict=True)]

    async def keep_ticket(self, ticket: str, holder: str, *, life_s: float, limit: int) -> None:
        request = {"ticket": ticket, "holder": holder, "ms": round(life_s * 1000), "limit": limit}
        await self._store.call("keep_ticket", request, again=True)

    async def take_ticket(self, ticket: str) -> str | None:
        """Not asked twice: who took it and did not hear the answer asks for another ticket."""
        holder = await self._store.call("take_ticket", {"ticket": ticket})
        return None if holder is None else holder.decode()

"""Audio at the gateway's door: what is let in, and what is counted of it.

One `AudioDoor` for all paths. A WebSocket session holds a `Meter`; a file, whose length
nobody knows before it is decoded, takes its allowance along as the job's parameter
``max_audio_s``, which the worker keeps to. `AudioDoor.ended` is told of every end.

A tenant's hour is one for all gateways: what comes in is told to the broker's book as it comes,
one call at a time for each tenant, and every answer says what came in elsewhere. A new session
or file asks before it is let in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

import structlog

from forebay.core.audio import SAMPLE_BYTES
from forebay.core.audio_quota import SMALLEST_S, AudioLedger, AudioLimits, Slots
from forebay.core.events import Ended, Heard, InputItem, OutputEvent, Sound
from forebay.core.spec import JobView
from forebay.errors import ForebayError, QuotaExceeded

__all__ = ["AudioDoor", "Meter"]

RATE = 16_000
"""Of positions in recognition's output."""
AGAIN_S = 1.0

Count = Callable[[str, Mapping[str, float]], Awaitable[Slots]]
"""`GatewayBroker.audio`."""
Spawn = Callable[[Coroutine[Any, Any, None]], Any]

log = structlog.get_logger(__name__)


class AudioDoor:
    """Quotas of audio on the listeners that have any. ``book``: what the gateways of one broker
    count in together, and who runs what tells it; without it this gateway is alone."""

    def __init__(
        self,
        limits: AudioLimits,
        clock: Callable[[], float],
        book: tuple[Count, Spawn] | None = None,
    ) -> None:
        self.ledger = AudioLedger(limits)
        self._clock = clock
        self._book = book if limits.tenant_s is not None else None
        self._telling: set[str] = set()

    def meter(self, tenant: str) -> Meter:
        """For one session of a limited listener."""
        return Meter(self, tenant)

    async def admit(self, tenant: str) -> None:
        """Raises `QuotaExceeded` for a tenant that has used up its hour, and `StoreDown`."""
        await self._ask(tenant)
        refusal = self.ledger.refuse_tenant(tenant, self._clock(), SMALLEST_S)
        if refusal is not None:
            raise refusal

    async def allowance(self, tenant: str) -> Mapping[str, Any]:
        """The parameters that hold a file to what its tenant has left. Raises as `admit`."""
        await self.admit(tenant)
        room_s = self.ledger.room_s(tenant, self._clock())
        return {} if room_s is None else {"max_audio_s": round(room_s, 3)}

    def begun(self, view: JobView) -> None:
        """A job with an allowance was made: its end will be counted."""
        if "max_audio_s" in view.spec.params:
            self.ledger.open(view.spec.id, view.spec.tenant)

    def count(self, job: str, total_s: float) -> None:
        self.ledger.count(job, total_s, self._clock())
        tenant = self.ledger.tenant_of(job)
        if tenant is not None:
            self._tell(tenant)

    # ---------------------------------------------------------------------- the book

    async def _ask(self, tenant: str) -> None:
        """Tell the book what it does not know, and learn what it knows."""
        if self._book is None:
            return
        totals = self.ledger.take(tenant)
        try:
            slots = await self._book[0](tenant, totals)
        except BaseException:
            self.ledger.back(tenant, totals)
            raise
        self.ledger.seen(tenant, slots, self._clock())

    def _tell(self, tenant: str) -> None:
        if self._book is not None and tenant not in self._telling and self.ledger.unsaid(tenant):
            self._telling.add(tenant)
            self._book[1](self._tell_all(tenant))

    async def _tell_all(self, tenant: str) -> None:
        try:
            while self.ledger.unsaid(tenant):
                try:
                    await self._ask(tenant)
                except ForebayError as error:
                    log.debug("audio.not_told", code=error.code)
                    await asyncio.sleep(AGAIN_S)
        finally:
            self._telling.discard(tenant)

    # ---------------------------------------------------------------------- sessions

    def more(self, job: str, tenant: str, more_s: float) -> QuotaExceeded | None:
        return self.ledger.refuse_more(job, tenant, more_s, self._clock())

    def ended(self, job: str, ended: Ended) -> None:
        """Whoever learns of a job's end says so. Idempotent; other jobs are nobody's."""
        self.count(job, float(ended.details.get("audio_s") or 0.0))
        self.ledger.close(job)


class Meter:
    """One session's audio, as one connection sees it."""

    __slots__ = ("_door", "_job", "_stored_s", "_tenant")

    def __init__(self, door: AudioDoor, tenant: str) -> None:
        self._door, self._tenant = door, tenant
        self._job = ""
        self._stored_s = 0.0  # headerless audio of this session in the store

    async def admit(self) -> None:
        """Raises `QuotaExceeded` for a new session of a tenant that has none left."""
        await self._door.admit(self._tenant)

    def attached(self, view: JobView) -> None:
        """What earlier connections brought was counted by them."""
        self._job = view.spec.id
        self._stored_s = view.units / int(view.spec.params.get("sample_rate", RATE))
        heard_s = view.marks.get("heard", 0) / RATE
        self._door.ledger.open(self._job, self._tenant, max(self._stored_s, heard_s))

    def ask(self, items: Sequence[InputItem]) -> None:
        """Raises `QuotaExceeded` for input that would be too much."""
        more_s = _seconds(items)
        if not more_s and any(isinstance(item, Sound) for item in items):
            more_s = SMALLEST_S
        refusal = self._door.more(self._job, self._tenant, more_s)
        if refusal is not None:
            raise refusal

    def stored(self, items: Sequence[InputItem]) -> None:
        self._stored_s += _seconds(items)
        self._door.count(self._job, self._stored_s)

    def hear(self, events: Sequence[OutputEvent]) -> QuotaExceeded | None:
        """Output of the session: what it tells of the length of files. What the session is
        ended with where that was too much."""
        for event in events:
            if isinstance(event, Heard):
                self._door.count(self._job, event.samples / RATE)
            elif isinstance(event, Ended):
                self._door.ended(self._job, event)
                return None
        return self._door.more(self._job, self._tenant, 0.0)


def _seconds(items: Sequence[InputItem]) -> float:
    """Of headerless audio; what a file holds is known when it is decoded."""
    return sum(
        len(item.data) / SAMPLE_BYTES / item.rate
        for item in items
        if isinstance(item, Sound) and item.form == "pcm16"
    )

"""Audio at the gateway's door: what is let in, and what is counted of it.

One `AudioDoor` for all paths. A WebSocket session holds a `Meter`; a file, whose length
nobody knows before it is decoded, takes its allowance along as the job's parameter
``max_audio_s``, which the worker keeps to. `AudioDoor.ended` is told of every end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from forebay.core.audio import SAMPLE_BYTES
from forebay.core.audio_quota import SMALLEST_S, AudioLedger, AudioLimits
from forebay.core.events import Ended, Heard, InputItem, OutputEvent, Sound
from forebay.core.spec import JobView
from forebay.errors import QuotaExceeded

__all__ = ["AudioDoor", "Meter"]

RATE = 16_000
"""Of positions in recognition's output."""


class AudioDoor:
    """Quotas of audio on the listeners that have any."""

    def __init__(self, limits: AudioLimits, clock: Callable[[], float]) -> None:
        self.ledger = AudioLedger(limits)
        self._clock = clock

    def meter(self, tenant: str) -> Meter:
        """For one session of a limited listener."""
        return Meter(self, tenant)

    def admit(self, tenant: str) -> None:
        """Raises `QuotaExceeded` for a tenant that has used up its hour."""
        refusal = self.ledger.refuse_tenant(tenant, self._clock(), SMALLEST_S)
        if refusal is not None:
            raise refusal

    def allowance(self, tenant: str) -> Mapping[str, Any]:
        """The parameters that hold a file to what its tenant has left. Raises as `admit`."""
        self.admit(tenant)
        room_s = self.ledger.room_s(tenant, self._clock())
        return {} if room_s is None else {"max_audio_s": round(room_s, 3)}

    def begun(self, view: JobView) -> None:
        """A job with an allowance was made: its end will be counted."""
        if "max_audio_s" in view.spec.params:
            self.ledger.open(view.spec.id, view.spec.tenant)

    def count(self, job: str, total_s: float) -> None:
        self.ledger.count(job, total_s, self._clock())

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

    def admit(self) -> None:
        """Raises `QuotaExceeded` for a new session of a tenant that has none left."""
        self._door.admit(self._tenant)

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

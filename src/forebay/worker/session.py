"""One leased job inside a worker: what has come, what was sent, what it may still use.

Plain state with its own arithmetic (byte credit, lead, model time); no tasks. `Runner` owns
every session and decides when it steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from forebay.blobs import Blobs
from forebay.core.events import Display, Ended, InputItem, OutputEvent
from forebay.core.flush import Lead
from forebay.core.kinds import Cut, Row
from forebay.core.spec import Lease
from forebay.core.stream import Stamper, tag_of
from forebay.engines import EngineInfo, Resume
from forebay.errors import ProtocolError
from forebay.worker.cut import Cutter, Work, make_cutter
from forebay.worker.handler import Handler, make_handler

if TYPE_CHECKING:
    from forebay.worker.listen import Ear, FindBlob
    from forebay.worker.speech import SpeechOut
    from forebay.worker.swift import Swift

__all__ = ["Fate", "ModelClock", "Session"]


class Fate(Enum):
    """What becomes of a session. Only a `LIVE` one may write."""

    LIVE = auto()
    ENDING = auto()  # its terminal event waits for byte credit
    ENDED = auto()  # its terminal event is written: the lease went with it
    FENCED = auto()  # cancelled or lost: answer with park once the engine has left
    HANDED = auto()  # parked or drained: give it back once the engine has left


class ModelClock:
    """Model time of one session: seconds inside open and step, waits for room excluded."""

    __slots__ = ("_since", "_unsaid", "left_s")

    def __init__(self, left_s: float | None) -> None:
        self.left_s = left_s
        self._since: float | None = None
        self._unsaid = 0.0

    def start(self, now: float) -> float | None:
        """Begin or go on; returns when the run deadline falls, if nothing pauses it."""
        self._since = now
        return None if self.left_s is None else now + max(0.0, self.left_s)

    def pause(self, now: float) -> None:
        if self._since is None:
            return
        used = max(0.0, now - self._since)
        self._since = None
        self._unsaid += used
        if self.left_s is not None:
            self.left_s -= used

    def take(self, now: float) -> float:
        """Seconds not reported yet; they count as reported from now on."""
        if self._since is not None:
            self.pause(now)
            self._since = now
        used, self._unsaid = self._unsaid, 0.0
        return used


class Session:
    """Everything the runner knows of one (job, attempt)."""

    def __init__(
        self,
        lease: Lease,
        row: Row,
        info: EngineInfo,
        now: float,
        find_blob: FindBlob | None = None,
        blobs: Blobs | None = None,
    ) -> None:
        spec = lease.spec
        self.lease = lease
        self.job = spec.id
        self.attempt = lease.attempt
        self.key = f"{spec.id}/{lease.attempt}"
        self.ear = _ear(row, lease, find_blob)
        self.cutter: Cutter = self.ear if self.ear is not None else make_cutter(row, lease)
        self.handler: Handler | None = make_handler(row, lease, info, blobs)
        self.told = lease.consumed  # the position in the newest commit
        self.replaceable = row.replaceable
        self.stamper = Stamper(lease.last_offset, lease.counts, lease.marks)
        self.clock = ModelClock(lease.run_left_s)
        self.speech = self._speech_out(row, info)
        rate = self.speech.rate if self.speech is not None else 1
        self.lead = Lead.of(row, rate=rate)
        self.delivered = lease.delivered
        self.attached = lease.attached
        self.credit = lease.credit_bytes
        self.room: asyncio.Event = asyncio.Event()  # set when credit has come
        self.fate = Fate.LIVE
        self.engine_session: Any = None
        self.opened = False
        self.stepping = False  # it has a slot, or runs beside
        self.swift: Swift | None = None  # steps without a task, where engine and kind allow
        self.task: asyncio.Task[None] | None = None
        self.began = False  # the task has run its first line
        self.stopped = False  # the task has been told to stop
        self.timer: asyncio.TimerHandle | None = None  # its model time runs out
        self.wake: asyncio.TimerHandle | None = None  # idle, it is to be looked at again
        self.wake_s = 0.0
        self.work: Work | None = None
        self.last_words: Ended | None = None  # waits for byte credit
        self.unsaid: list[OutputEvent] = []  # stamped, for the next commit
        self.flush_due = False
        self.idle_since = now
        self._heard = lease.consumed.offset
        self._begun = False

    @property
    def details(self) -> dict[str, Any]:
        """What its terminal event tells when it completes."""
        if self.handler is not None:
            return self.handler.details()
        return {} if self.ear is None else self.ear.details()

    def _speech_out(self, row: Row, info: EngineInfo) -> SpeechOut | None:
        if row.cut is not Cut.SEGMENTS:
            return None
        from forebay.worker.speech import SpeechOut  # numpy and soxr: for speech workers only

        units = self.lease.marks.get("units", 0)
        return SpeechOut(
            self.lease.spec.params,
            info.rate or 24_000,
            units=units,
            resumed=self.lease.last_offset > 0,
        )

    def feed(self, items: Sequence[InputItem], now: float) -> None:
        """Input in order; what was heard already is dropped. Raises `ProtocolError` on a gap
        and what the cutter raises."""
        if not self._begun:
            # A lease may carry its input from the beginning (kinds that continue).
            self._begun = True
            if items:
                self._heard = items[0].offset - 1
        elif len(items) == 1 and items[0].offset == self._heard + 1:
            self._heard += 1
            self.cutter.feed(items, now)
            self.idle_since = now
            return
        fresh = []
        for item in items:
            if item.offset <= self._heard:
                continue
            if item.offset != self._heard + 1:
                raise ProtocolError(f"input {item.offset} came, expected {self._heard + 1}")
            self._heard = item.offset
            fresh.append(item)
        if fresh:
            self.cutter.feed(fresh, now)
        self.idle_since = now

    @property
    def resume(self) -> Resume:
        lease = self.lease
        resume = Resume(
            attempt=lease.attempt,
            text=lease.text,
            tokens=lease.marks.get("tokens", 0),
            fine=lease.consumed.fine,
        )
        return resume if self.handler is None else self.handler.resume(resume)

    @property
    def may_lead(self) -> bool:
        """Whether the reader is near enough for another step."""
        if self.ear is not None:
            return True
        produced = self.stamper.marks.get("samples", 0)
        return self.lead.may_run(produced, self.delivered, attached=self.attached)

    def gives_way(self, event: OutputEvent) -> bool:
        """Whether another one surely follows that says what this one says. A progress line may
        be the last: its engine joins them instead."""
        return tag_of(event) == self.replaceable and not isinstance(event, Display)

    def close(self) -> None:
        """Let go of what is open beside the engine's own session."""
        for part in (self.ear, self.handler):
            if part is not None:
                part.close()

    def disarm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def sleep(self) -> None:
        """Nothing looks at it again by itself."""
        self.disarm()
        if self.wake is not None:
            self.wake.cancel()
            self.wake = None

    def leave_model(self, now: float) -> None:
        """A step is over: model time stands still."""
        self.clock.pause(now)
        if self.timer is not None:
            self.disarm()


def _ear(row: Row, lease: Lease, find_blob: FindBlob | None) -> Ear | None:
    if row.cut is not Cut.SPAN:
        return None
    from forebay.worker.listen import Ear  # numpy, soxr, libav: for recognition workers only

    return Ear(row, lease, find_blob)

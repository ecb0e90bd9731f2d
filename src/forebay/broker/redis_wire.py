"""What crosses the connection to Redis: requests, answers and pushes, as msgpack.

Whatever the functions need not understand (specs, events, counters) is encoded here once and
carried by them as it is; so the bytes that a worker wrote are the bytes that a gateway reads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from forebay.broker import InputAck
from forebay.broker.affinity import What
from forebay.broker.local_intake import HARD_BOUND
from forebay.core.admission import JobFacts, Service, forecast
from forebay.core.events import (
    Caption,
    Consumed,
    End,
    Ended,
    InputItem,
    OutputEvent,
    Prompt,
    Sound,
    Text,
    Tile,
    blobs_of,
    size_of,
)
from forebay.core.fairness import head_start_s
from forebay.core.job import _STATES, Phase
from forebay.core.kinds import Cut, Recovery, Row
from forebay.core.spec import JobSpec, JobView, LoadStage, PipeSpec, QueuePlace, WorkerInfo
from forebay.core.stream import Window

__all__ = [
    "GatewayFrame",
    "PoolState",
    "Stats",
    "View",
    "WorkerFrame",
    "encode",
    "feed_request",
    "numbered",
    "static_of",
    "words_of",
]

encode = msgspec.msgpack.Encoder().encode


class Stats(msgspec.Struct, array_like=True, frozen=True):
    """What a pool has measured, for forecasts."""

    hold_count: int
    hold_s: float
    hold_var: float
    credits: int
    work_count: int
    work_s: float
    work_var: float
    slots: int
    # Absent while a script that was loaded by an older gateway still answers.
    running: int = 0
    busy_s: float = math.inf

    def place(self, position: int) -> QueuePlace:
        hold = Service(count=self.hold_count, mean_s=self.hold_s, var_s2=self.hold_var)
        work = Service(count=self.work_count, mean_s=self.work_s, var_s2=self.work_var)
        return forecast(
            position,
            hold,
            self.credits,
            work,
            self.slots,
            running=self.running,
            busy_s=self.busy_s,
        )


class Place(msgspec.Struct, array_like=True, frozen=True):
    position: int
    stats: Stats


class View(msgspec.Struct, array_like=True, frozen=True):
    """A job as the functions tell it."""

    spec: JobSpec
    phase: str
    epoch: str
    head: int
    first: int
    delivered: int
    marks: dict[str, int]
    delivered_marks: dict[str, int]
    input_head: int
    client_pos: int  # one more than the position, 0 while none was recorded
    units: int
    input_ended: bool
    attempts: int
    strikes: int
    place: bool | Place
    code: str
    message: str
    created_s: float
    started_s: float
    ended_s: float
    model_s: float
    number: int
    now_s: float

    def view(self) -> JobView:
        """With its times on this process's monotonic clock: the store's is another machine's."""
        place, shift_s = self.place, time.monotonic() - self.now_s
        return JobView(
            spec=self.spec,
            state=_STATES[Phase(self.phase)],
            epoch=self.epoch,
            head=self.head,
            first=self.first,
            delivered=self.delivered,
            marks=self.marks,
            delivered_marks=self.delivered_marks,
            input_head=self.input_head,
            client_pos=max(0, self.client_pos - 1),
            units=self.units,
            input_ended=self.input_ended,
            attempts=self.attempts,
            strikes=self.strikes,
            place=place.stats.place(place.position) if isinstance(place, Place) else None,
            code=self.code,
            message=self.message,
            created_s=self.created_s + shift_s,
            started_s=self.started_s + shift_s if self.started_s else None,
            ended_s=self.ended_s + shift_s if self.ended_s else None,
            model_s=self.model_s,
        )


class Refusal(msgspec.Struct, array_like=True, frozen=True):
    """What the job gate saw when it refused."""

    workers: int
    live_jobs: int
    tenant_jobs: int
    queued: int
    free: int
    position: int
    used_bytes: int
    drain_rate: float
    stats: Stats

    def facts(
        self, *, queue_s: float, store_bytes: int, promised: bool, will_wait: bool
    ) -> JobFacts:
        return JobFacts(
            workers=self.workers,
            live_jobs=self.live_jobs,
            tenant_jobs=self.tenant_jobs,
            queued=self.queued,
            will_wait=will_wait,
            free=self.free,
            place=self.stats.place(self.position),
            queue_s=queue_s,
            store_used=self.used_bytes / store_bytes,
            drain_rate=self.drain_rate or None,
            promised=promised,
        )


class Ack(msgspec.Struct, array_like=True, frozen=True):
    offset: int
    client_pos: int
    units: int
    repeats: int
    over: bool

    def said(self) -> InputAck:
        return InputAck(
            offset=self.offset,
            client_pos=max(0, self.client_pos - 1),
            units=self.units,
            repeats=self.repeats,
            over=self.over,
        )


class Attached(msgspec.Struct, array_like=True, frozen=True):
    number: int | bool
    view: View


class Letter(msgspec.Struct, array_like=True, frozen=True):
    view: View
    consumed: Consumed
    start: int
    items: list[InputItem]


class PipeState(msgspec.Struct, array_like=True, frozen=True):
    id: str
    source: str
    target: str
    map: str
    copied: int

    def spec(self) -> PipeSpec:
        return PipeSpec(
            id=self.id, source=self.source, target=self.target, map=self.map, copied=self.copied
        )


class PoolState(msgspec.Struct, array_like=True, frozen=True):
    name: str
    workers: int
    active: int
    slots: int
    free: int
    queued: int
    running: int
    parked: int
    detached: int
    rtf: float | bool
    model_s: float | bool
    drain_rate: float | bool
    stats: Stats
    info: dict[str, Any]
    stages: list[Any]  # worker, stage, worker, stage...
    virtual_s: float
    expected: bool
    scores: list[float]  # of at most 64 waiting jobs, evenly spread over the queue
    fair: list[Any]  # tenant, tag, tenant, tag...


class WorkerState(msgspec.Struct, array_like=True, frozen=True):
    id: str
    pools: list[str]
    slots: int
    sessions: int
    held: int
    standby: bool
    silent: bool
    rtf: float | bool
    load: dict[str, Any]
    pid: int = 0


class ShardState(msgspec.Struct, array_like=True, frozen=True):
    pools: list[PoolState]
    workers: list[WorkerState]
    live: int


# ------------------------------------------------------------------ pushes to a gateway


class _Frame(msgspec.Struct, array_like=True, frozen=True):
    pass


class OutFrame(_Frame, tag="out", array_like=True, frozen=True):
    job: str
    epoch: str
    attempt: int
    events: list[OutputEvent]


class PlaceFrame(_Frame, tag="place", array_like=True, frozen=True):
    job: str
    position: int
    stats: Stats


class LeaseFrame(_Frame, tag="lease", array_like=True, frozen=True):
    job: str
    running: bool


class SupersededFrame(_Frame, tag="superseded", array_like=True, frozen=True):
    job: str
    number: int


class StateFrame(_Frame, tag="state", array_like=True, frozen=True):
    pool: str


class FreedFrame(_Frame, tag="freed", array_like=True, frozen=True):
    job: str
    pool: str
    after_s: float


class RoomFrame(_Frame, tag="room", array_like=True, frozen=True):
    job: str


class PreviewFrame(_Frame, tag="preview", array_like=True, frozen=True):
    job: str
    caption: Caption


class GoneFrame(_Frame, tag="gone", array_like=True, frozen=True):
    job: str
    epoch: str


GatewayFrame = (
    OutFrame
    | PreviewFrame
    | GoneFrame
    | PlaceFrame
    | LeaseFrame
    | SupersededFrame
    | StateFrame
    | FreedFrame
    | RoomFrame
)

# ------------------------------------------------------------------- pushes to a worker
# ``n``: number in the worker's control stream; 0 for a hint, which is not kept. ``inc``: the
# process it is for: another one may have taken its name.


class AssignFrame(_Frame, tag="assign", array_like=True, frozen=True):
    n: int
    inc: str
    spec: JobSpec
    attempt: int
    head: int
    counts: dict[str, int]
    marks: dict[str, int]
    consumed: Consumed
    start: int
    items: list[InputItem]
    input_head: int
    text: str
    tiles: list[Tile]
    exclusive: bool
    delivered: int
    attached: bool
    run_left_s: float | bool


class CancelFrame(_Frame, tag="cancel", array_like=True, frozen=True):
    n: int
    inc: str
    job: str
    attempt: int
    ended: Ended


class LostFrame(_Frame, tag="lost", array_like=True, frozen=True):
    n: int
    inc: str
    job: str
    attempt: int


class ControlFrame(_Frame, tag="control", array_like=True, frozen=True):
    n: int
    inc: str
    pool: str
    affinity: str
    what: What
    args: dict[str, Any]


class InputFrame(_Frame, tag="in", array_like=True, frozen=True):
    n: int
    job: str
    attempt: int
    first: int
    items: list[InputItem]


class DeliveredFrame(_Frame, tag="delivered", array_like=True, frozen=True):
    n: int
    job: str
    attempt: int
    delivered: int
    attached: bool


WorkerFrame = AssignFrame | CancelFrame | LostFrame | ControlFrame | InputFrame | DeliveredFrame


class Head(msgspec.Struct, array_like=True, frozen=True):
    """How a leased job stands, in the answer to a beat."""

    job: str
    attempt: int
    input_head: int
    delivered: int
    attached: bool


class BeatAnswer(msgspec.Struct, array_like=True, frozen=True):
    control: int
    heads: list[Head]


class MoreInput(msgspec.Struct, array_like=True, frozen=True):
    start: int
    items: list[InputItem]
    more: bool


# --------------------------------------------------------------------------- requests


def numbered(items: Sequence[InputItem], start: int) -> list[InputItem]:
    """``items``, just decoded and nobody else's yet, with the offsets after ``start``."""
    for offset, item in enumerate(items, start + 1):
        msgspec.structs.force_setattr(item, "offset", offset)
    return list(items)


def feed_request(items: Sequence[InputItem]) -> tuple[dict[str, Any], list[bytes]]:
    """What the store must know of ``items`` to append them, and their bytes."""
    prompts, units, seq = 0, 0, 0
    for item in items:
        if isinstance(item, Prompt):
            prompts += 1
        elif isinstance(item, Text):
            units = max(units, item.unit + len(item.text))
        if isinstance(item, Text | Sound | End):
            seq = max(seq, item.seq)
    sizes = [size_of(item) for item in items]
    files = [name for item in items for name in blobs_of(item)]
    request = {
        **({"files": files} if files else {}),
        "sizes": sizes,
        "bytes": sum(sizes),
        "biggest": max(sizes, default=0),
        "torn": any(isinstance(item, End) for item in items[:-1]),  # something follows the end
        "ended": bool(items) and isinstance(items[-1], End),
        "prompts": prompts,
        "tunits": units,
        "seq": seq,
    }
    return request, [encode(item) for item in items]


def words_of(ended: Ended) -> dict[str, Any]:
    """The terminal event as the functions read it; they write it down themselves."""
    words: dict[str, Any] = {"state": str(ended.state)}
    words |= {"code": ended.code} if ended.code else {}
    words |= {"message": ended.message} if ended.message else {}
    words |= {"retryable": True} if ended.retryable else {}
    words |= {"seq": ended.seq} if ended.seq else {}
    return words


_RECOVERY = {Recovery.CONTINUE: "c", Recovery.REPLAY: "r", Recovery.NONE: "n"}


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def static_of(spec: JobSpec, row: Row, weight: float) -> dict[str, Any]:
    """The numbers of the job's kind and of its spec that decide what happens to it."""
    rate = spec.params.get("sample_rate")
    window = Window.of(row, rate=rate if isinstance(rate, int) else 16_000)
    media_rate = row.media_rate or rate
    queue_s, run_s = spec.deadlines.queue_s, spec.deadlines.run_s
    facts = {
        "pool": spec.pool,
        "tenant": spec.tenant,
        "dialect": spec.dialect,
        "name": spec.name,
        "aff": spec.affinity,
        "beside": int(spec.beside),
        "cost": spec.cost_s,
        "weight": weight,
        "head_start": head_start_s(spec.priority),
        "queue": _ms(row.queue_s if queue_s is None else queue_s),
        "total": _ms(spec.deadlines.total_s),
        "run": row.run_s if run_s is None else run_s,
        "detach": _ms(spec.detach_s),
        "orphan": _ms(max(spec.detach_s, row.detach_s)),
        "after": _ms(row.after_end_s),
        "rec": _RECOVERY[row.recovery],
        "whole": int(row.cut is Cut.WHOLE),
        "item": row.item_limit_bytes,
        "in_bytes": row.input_bytes,
        "in_items": row.input_items,
        "hard": max(HARD_BOUND * row.input_bytes, row.input_bytes + row.item_limit_bytes),
        "behind": row.behind_bytes,
        "wbytes": window.max_bytes,
        "span": window.max_marks[1] if window.max_marks is not None else None,
        "wmark": window.max_marks[0] if window.max_marks is not None else None,
        "keepund": int(window.keep_undelivered),
        "media": row.media or None,
        "rate": media_rate if isinstance(media_rate, int) and media_rate > 0 else None,
        "rf": bool(spec.params.get("response_format")) or None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def stages_of(pairs: Sequence[Any]) -> dict[str, LoadStage]:
    return {
        worker: msgspec.convert(stage, LoadStage)
        for worker, stage in zip(pairs[::2], pairs[1::2], strict=True)
    }


def info_of(fields: Mapping[str, Any]) -> WorkerInfo | None:
    return msgspec.convert(fields, WorkerInfo) if fields else None


def decoder(kind: Any) -> Any:
    return cast(Any, msgspec.msgpack.Decoder(kind)).decode

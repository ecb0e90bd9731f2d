"""What is said about a job: the nouns that cross every process boundary.

`JobSpec` is what a gateway submits; `Lease` is what a worker is given; `JobView` is what
anyone who asks is told. All three are plain frozen data, so that LocalBroker, the link and
Redis carry the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from forebay.core.events import Consumed, InputItem, Tile
from forebay.core.kinds import Kind

__all__ = [
    "BY_CLIENT",
    "COUNT",
    "DELETED",
    "Deadlines",
    "JobSpec",
    "JobState",
    "JobView",
    "Lease",
    "LoadStage",
    "PipeSpec",
    "PoolView",
    "QueuePlace",
    "WorkerInfo",
    "WorkerView",
    "counts_of",
]

JobState = Literal["queued", "running", "completed", "failed", "cancelled", "expired"]


class Deadlines(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Seconds; None means no such deadline. See architecture, section 1."""

    queue_s: float | None = None
    run_s: float | None = None
    total_s: float | None = None


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One unit of work for one client.

    ``id``: 128 random bits, hex, made by the gateway; submitting it twice is submitting once.
    ``pool``: "kind/model". ``name``: the client's own word for it, unique within
    ``(tenant, dialect)``; how a client that comes back is recognised.
    ``cost_s``: estimated model seconds, what fairness counts.
    ``detach_s``: how long the job outlives its last connection; 0 cancels at once.
    ``params``: what the engine needs, in the words of `engines` (JSON-able).
    ``durable``: kept in the journal, so that it survives the gateway's process.
    ``affinity``: what its worker keeps for it (a notebook); such jobs go to one owner, one at a
    time. ``beside``: it may run beside another of its affinity, and needs no credit.
    """

    id: str
    kind: Kind
    pool: str
    params: dict[str, Any]
    tenant: str = "local"
    dialect: str = ""
    name: str = ""
    priority: int = 0
    cost_s: float = 1.0
    detach_s: float = 0.0
    deadlines: Deadlines = Deadlines()
    durable: bool = False
    affinity: str = ""
    beside: bool = False


class Lease(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who works on a job, on which attempt, and from where.

    ``attempt`` fences every write and is never shown to a client. ``last_offset``, ``counts``
    (ordinals per event tag) and ``marks`` (cumulative counters) say where stamping goes on.
    ``consumed`` and ``input`` say what to do: the items after ``consumed.offset``, of which
    what lies below ``consumed.fine`` is done. ``text`` is the committed output of a text job,
    for recovery by `continue`; ``tiles``: the committed tiles of a picture, which a new attempt
    does not make again. ``exclusive``: step nothing else while stepping this one.
    ``delivered``: cumulative media samples the furthest reader has been sent; ``attached``:
    whether anyone reads now. ``run_left_s``: model time left before the run deadline.
    """

    spec: JobSpec
    attempt: int
    last_offset: int = 0
    counts: dict[str, int] = {}
    marks: dict[str, int] = {}
    consumed: Consumed = Consumed()
    input: list[InputItem] = []
    text: str = ""
    tiles: list[Tile] = []
    exclusive: bool = False
    delivered: int = 0
    attached: bool = True
    run_left_s: float | None = None
    credit_bytes: int = 262_144


class QueuePlace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a waiting job stands. ``position`` is its rank, 1 = next.

    ``eta_s`` is None until a service time is known; ``low_s``, ``high_s`` bound it.
    ``each_s``: from one place to the next.
    """

    position: int
    eta_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    each_s: float | None = None


BY_CLIENT = "its client cancelled it"
"""The message of a job that ended so: nobody need be told."""
DELETED = "deleted"
"""The message of a job that was cancelled because its owner deleted it. Every gateway sees it
with the job, and shows and writes nothing of it any more."""


class JobView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a job. Times are the broker's own monotonic seconds."""

    spec: JobSpec
    state: JobState
    epoch: str
    head: int = 0  # last output offset
    first: int = 1  # oldest output offset still kept
    delivered: int = 0  # last output offset reported as sent to a reader
    marks: dict[str, int] = {}  # cumulative output counters at the head
    delivered_marks: dict[str, int] = {}
    input_head: int = 0  # last input offset
    client_pos: int = 0  # last client position recorded with input
    units: int = 0  # cumulative input units recorded
    input_ended: bool = False
    attempts: int = 0
    strikes: int = 0
    place: QueuePlace | None = None
    code: str = ""
    message: str = ""
    created_s: float = 0.0
    started_s: float | None = None
    ended_s: float | None = None
    model_s: float = 0.0  # model time used so far

    @property
    def deleted(self) -> bool:
        return self.state == "cancelled" and self.message == DELETED


class LoadStage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a worker's engine has come in loading.

    ``stage``: locate, fetch, weights, allocate, warm_up, ready, or failed. ``done``/``total``
    count weights files (n of m). ``memory_mb`` is the process's resident memory then.
    """

    stage: Literal["locate", "fetch", "weights", "allocate", "warm_up", "ready", "failed"]
    detail: str = ""
    done: int = 0
    total: int = 0
    memory_mb: float = 0.0
    elapsed_s: float = 0.0


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A worker as the broker knows it.

    ``slots``: concurrent steps; ``sessions``: open jobs it will hold. ``standby``: loaded and
    waiting, given work only when a regular worker of the pool is gone. ``supervised``: a
    supervisor will report its exit, with the steps it died in.
    """

    id: str
    pools: list[str]
    slots: int
    sessions: int
    engine: str = ""
    model: str = ""
    version: str = ""
    synthetic: bool = False
    capabilities: list[str] = []
    facts: dict[str, Any] = {}  # what faces show of the model, such as sample_rate or context
    pid: int = 0
    host: str = ""
    standby: bool = False
    supervised: bool = False


class PoolView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A pool as admission, `/readyz`, the console and `/v1/models` see it."""

    name: str
    kind: Kind
    workers: int = 0
    ready: int = 0
    slots: int = 0
    free_credits: int = 0
    queued: int = 0
    running: int = 0
    parked: int = 0
    detached: int = 0  # live jobs whose clients are away and may come back
    service_s: float | None = None  # mean model seconds a job
    rtf: float | None = None
    drain_rate: float | None = None  # jobs finished per second, lately
    synthetic: bool = False
    engine: str = ""
    model: str = ""
    facts: dict[str, Any] = {}
    stages: dict[str, LoadStage] = {}  # worker id -> how far it has come in loading


class WorkerView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A worker as `/metrics` shows it. What its beats carry is from the newest one.

    ``held``: sessions it has now, of ``sessions``. ``busy``: slots that step at this moment;
    ``busy_s``: slot seconds stepped in all. ``rtf``: measured over sessions that ended on it.
    ``counts``: what its engine counts, by name (`counts_of`).
    """

    id: str
    pools: list[str]
    slots: int
    sessions: int
    held: int = 0
    standby: bool = False
    silent: bool = False
    pid: int = 0
    busy: int = 0
    busy_s: float = 0.0
    cpu_s: float = 0.0
    resident_bytes: int = 0
    gpu_bytes: int = 0
    gpu_busy: float | None = None
    rtf: float | None = None
    counts: dict[str, float] = {}


class PipeSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The output of job ``source`` through the pure map ``map`` into the input of ``target``."""

    id: str
    source: str
    target: str
    map: str
    copied: int = 0  # last source offset wholly contained in what was appended


COUNT = "n:"
"""What a count's name begins with in a beat."""


def counts_of(load: Mapping[str, Any]) -> dict[str, float]:
    """The counts among what a beat carries."""
    return {name[len(COUNT) :]: float(n) for name, n in load.items() if name.startswith(COUNT)}

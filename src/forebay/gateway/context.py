"""What every connection of a gateway shares: handed to the endpoints, never global."""

from __future__ import annotations

import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from forebay.blobs import Blobs
from forebay.broker import GatewayBroker
from forebay.core.admission import GRACE
from forebay.core.audio_quota import AudioLimits
from forebay.core.kinds import KINDS, Kind, Row
from forebay.core.picture_head import MAX_MPX, MAX_SIDE
from forebay.core.spec import Deadlines, JobSpec, PoolView
from forebay.dialects.openai_models import pool_for
from forebay.errors import ModelNotFound
from forebay.gateway.audio_door import AudioDoor
from forebay.gateway.auth import Auth
from forebay.gateway.hub import Hub
from forebay.gateway.metrics import GatewayMetrics
from forebay.gateway.notebooks import Notebooks
from forebay.gateway.options import MODEL_ALIASES, GatewayOptions
from forebay.gateway.rooms import Rooms
from forebay.gateway.scribe import Scribe
from forebay.gateway.tickets import Tickets

__all__ = [
    "ChatOptions",
    "GatewayContext",
    "OperationOptions",
    "PhotoOptions",
    "RecognitionOptions",
]


LEAVE_SPREAD_MS = 2000
"""Clients of a gateway that leaves come back within so long, one a millisecond."""


def _new_id() -> str:
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """What `/chat` puts around a prompt. ``sampling``: text parameters in the words of
    `engines`, sent only where set. The two ``tts_flush`` values are echoed to clients of the
    original; where text is cut for speaking is the worker's to decide."""

    system_prompt: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tts_flush_min_chars: int = 12
    tts_flush_on_punct: bool = True
    greet_after_s: float = 0.3
    history_messages: int = 40
    prompt_chars: int = 20_000
    retrieval_url: str = ""
    retrieval_s: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecognitionOptions:
    """Limits and manners of the recognition paths. ``queue_notice_threshold``: jobs that must
    wait before clients of `/ws/asr` are told of the queue. ``max_connections`` and
    ``min_workers``: of the same path, refused before the upgrade. ``audio``: seconds of it,
    on listeners that have limits at all (`Auth.limits`)."""

    queue_notice_threshold: int = 0
    max_connections: int | None = 2000
    min_workers: int = 1
    audio: AudioLimits = AudioLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationOptions:
    """Manners of `/send_operation`. ``flush_interval_ms`` 0: text leaves at once; otherwise
    the older rule, with ``flush_items`` pieces and never more than ``flush_cap`` waiting.
    ``heartbeat_s``: silence after which a blank line is sent; 0: never. ``concurrency``:
    operations under way at once. ``compress``: of this and every other stream of text."""

    flush_interval_ms: float = 0.0
    flush_items: int = 15
    flush_cap: int = 20
    heartbeat_s: float = 15.0
    concurrency: int = 1000
    compress: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoOptions:
    """Limits of the photo paths. ``max_tasks``: photos waiting or worked on, None: what the
    queue takes. ``max_mpx``, ``max_side``: millions of pixels and pixels of one photo."""

    max_tasks: int | None = None
    max_mpx: float = MAX_MPX
    max_side: int = MAX_SIDE


@dataclass(slots=True, kw_only=True)
class GatewayContext:
    """The broker, the hub and the numbers of one gateway process."""

    broker: GatewayBroker
    hub: Hub
    gateway_id: str
    metrics: GatewayMetrics
    rows: Mapping[Kind, Row] = field(default_factory=lambda: dict(KINDS))
    chat: ChatOptions = ChatOptions()
    model_aliases: Mapping[str, str] = field(default_factory=lambda: dict(MODEL_ALIASES))
    clock: Callable[[], float] = time.monotonic
    new_id: Callable[[], str] = _new_id
    options: GatewayOptions = GatewayOptions()
    auth: Auth = field(default_factory=lambda: Auth(GatewayOptions()))
    version: str = ""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_s: float = field(default_factory=time.monotonic)
    ports: dict[str, int] = field(default_factory=dict)
    """Where this gateway listens: personality to port number."""
    expected: tuple[str, ...] = ()
    """Pools that this gateway was started for; ready means that each of them is."""
    queue_limit: int = 5000
    """Jobs that may wait per pool, as the broker was told."""
    recognition: RecognitionOptions = RecognitionOptions()
    photos: PhotoOptions = PhotoOptions()
    operations: OperationOptions = OperationOptions()
    notebooks: Notebooks = field(default_factory=Notebooks)
    """Notebooks whose cells this gateway remembers."""
    under_way: Counter[str] = field(default_factory=Counter)
    """Requests of the kinds whose number is limited, by the kind's name."""
    blobs: Blobs | None = None
    """Where files go that are too large for a stream; None: they are refused."""
    scribe: Scribe | None = None
    """The history's writer; None: nothing is kept."""
    rooms: Rooms | None = None
    """Rooms and who reads them here; None: there are none."""
    slow_stream_s: float = 0.0
    """First outputs and gaps longer than this are logged as `stream.slow`; 0: none is."""
    draining: bool = False
    """True from SIGTERM on: not ready any more, and open streams should come to an end."""
    refusing: bool = False
    """True once the drain takes no new work: those on their way at SIGTERM are served."""
    hands_over: bool = False
    """Whether sessions go on at another gateway when this one leaves."""
    store_up: Callable[[], bool] = lambda: True
    """Whether the store answers, where it is another process."""
    drain_watchers: list[Callable[[], None]] = field(default_factory=list)

    audio: AudioDoor = field(init=False)
    """Quotas of audio."""
    tickets: Tickets = field(init=False)
    """One-time tickets of the broker's gateways."""

    def __post_init__(self) -> None:
        self.tickets = Tickets(self.broker, self.options.ticket_s, self.options.max_tickets)
        shared = self.recognition.audio.tenant_s is not None
        book = (self.broker.audio, self.hub.spawn) if shared else None
        self.audio = AudioDoor(self.recognition.audio, self.clock, book)
        if self.scribe is not None:
            self.scribe.on_ended = self.audio.ended

    def on_drain(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` once, when `draining` becomes true and clients should be told.
        Returns the call that takes it back."""
        self.drain_watchers.append(callback)

        def stop() -> None:
            if callback in self.drain_watchers:
                self.drain_watchers.remove(callback)

        return stop

    def retry_after_ms(self) -> int:
        """When a client that is sent away should come back: the more there are, the wider
        they are spread, so that the others are not met by all of them at once."""
        return random.randrange(1 + min(LEAVE_SPREAD_MS, len(self.drain_watchers)))

    def pool(self, kind: Kind, model: str = "") -> str:
        """The pool that serves ``model``, under that name or an alias, or the kind's first.

        Raises `NoWorkers` when nothing of that kind is served, `ModelNotFound` for a model
        that is not."""
        return self.pool_view(kind, model).name

    def pool_view(self, kind: Kind, model: str = "") -> PoolView:
        """As `pool`, all that is known of it. The one place where names are looked up."""
        pools = self.broker.pools(kind)
        if not model and pools:
            return pools[0]
        try:
            return pool_for(pools, kind, model or None)
        except ModelNotFound:
            meant, _, served = self.model_aliases.get(model, "").partition("/")
            if meant != kind:
                raise
            return pool_for(pools, kind, served) if served else pools[0]

    def spec(
        self,
        kind: Kind,
        params: Mapping[str, Any],
        *,
        tenant: str,
        dialect: str,
        name: str = "",
        model: str = "",
        pool: str = "",
        detach_s: float | None = None,
        cost_s: float = 1.0,
        promised: bool = False,
    ) -> JobSpec:
        """A new job of this kind with its row's deadlines. ``pool``: that of ``model``, where
        it has been looked up. ``detach_s``: default the row's; 0 makes the client's leaving a
        cancel. ``promised``: a place in the queue, at the door. Raises as `pool`."""
        row = self.rows[kind]
        queue_s = row.queue_s * GRACE if promised else row.queue_s
        return JobSpec(
            id=self.new_id(),
            kind=kind,
            pool=pool or self.pool(kind, model),
            params=dict(params),
            tenant=tenant,
            dialect=dialect,
            name=name,
            cost_s=cost_s,
            detach_s=row.detach_s if detach_s is None else detach_s,
            deadlines=Deadlines(queue_s=queue_s, run_s=row.run_s),
        )

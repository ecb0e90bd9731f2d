"""The kind table: one row of numbers per kind, and no such numbers anywhere else.

A kind (text, speech, recognition, image, kernel, room) is an engine, a dialect and one
row of this table. Mechanisms (resume, failover, flow control, fairness) read the row;
none of them asks which kind it serves.

Where a number may be changed by the operator, `config.py` names the setting and hands an
altered row to whoever needs it (`dataclasses.replace`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["KINDS", "WHOLE_ITEM_BYTES", "Cut", "Kind", "Recovery", "Row", "SlowRule", "row"]

KiB = 1024
MiB = 1024 * 1024

WHOLE_ITEM_BYTES = 384 * KiB
"""The most one whole item (a prompt) may have: it must fit one frame of the link."""


class Kind(StrEnum):
    TEXT = "text"
    SPEECH = "speech"
    RECOGNITION = "recognition"
    IMAGE = "image"
    KERNEL = "kernel"
    ROOM = "room"


class Recovery(StrEnum):
    """What a new attempt is given (architecture, section 3)."""

    CONTINUE = "continue"  # the committed text, as a prefix; needs the capability `prefix`
    REPLAY = "replay"  # the input after the last consumed position, again
    NONE = "none"  # side effects must not run twice: the job fails by name


class Cut(StrEnum):
    """How the runner turns input items into one engine step."""

    WHOLE = "whole"  # one item, one step
    SEGMENTS = "segments"  # text cut into speakable segments, with a deadline
    SPAN = "span"  # everything that has arrived, up to a bound


class SlowRule(StrEnum):
    """What becomes of a reader that cannot keep up."""

    WAIT_THEN_CLOSE = "wait_then_close"  # engine waits; after slow_reader_s close 4408, resumable
    BACKPRESSURE = "backpressure"  # one error `backpressure`, the session ends
    COALESCE = "coalesce"  # replaceable events give way to newer ones
    DROP_PREVIEWS = "drop_previews"  # previews go first, then the reader is cut with its position


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Numbers of one kind. None means: no such bound for this kind."""

    kind: Kind
    cut: Cut
    recovery: Recovery
    slow: SlowRule
    counter: str  # the cumulative counter its clients resume by
    credits_per_slot: float  # open jobs a worker holds for each concurrent step
    input_bytes: int  # input not yet heard, per job; over it the gateway stops reading
    input_items: int | None  # the same, in items
    item_bytes: int = 64 * KiB  # one stream item; anything larger is a blob
    window_bytes: int | None  # replay window of the output while running
    window_s: float | None  # the same, in seconds of media (audio)
    after_end_s: float  # how long the output stays after the terminal event
    lead_s: float | None  # seconds an engine may run ahead of an attached reader
    lead_detached_s: float | None  # the same with nobody attached
    slow_reader_s: float  # age of the oldest unsent event at which the slow rule acts
    detach_s: float  # how long a resumable job outlives its last connection
    run_s: float | None  # model time since the lease, waiting for input excluded
    queue_s: float  # may not start later than this after it began to wait
    park_after_s: float | None  # idle time after which lease and credit are given back
    pace_s: float | None = None  # audio is sent at most this far ahead of playback
    media: str = ""  # the cumulative counter that measures its media, for the real-time factor
    media_rate: int | None = None  # of that counter, per second; None: the job's `sample_rate`
    replaceable: str = ""  # tag of the events that a newer one of the same tag replaces
    span_s: float | None = None  # most media that one step is given
    final_after_s: float | None = None  # media without a final after which one is forced
    handler: str = ""  # module of `worker` that stands between a job's streams and its engine
    behind_bytes: int | None = None  # unheard input with which a session has to catch up first

    @property
    def item_limit_bytes(self) -> int:
        """The largest input item. One that is a whole prompt may have what one frame of the
        link carries; what is cut into steps anyway is `item_bytes` at most."""
        if self.cut is Cut.WHOLE:
            return max(self.item_bytes, min(self.input_bytes, WHOLE_ITEM_BYTES))
        return self.item_bytes


KINDS: dict[Kind, Row] = {
    r.kind: r
    for r in (
        Row(
            kind=Kind.TEXT,
            cut=Cut.WHOLE,
            recovery=Recovery.CONTINUE,
            slow=SlowRule.WAIT_THEN_CLOSE,
            counter="chars",
            credits_per_slot=1,
            input_bytes=1 * MiB,
            input_items=1,
            window_bytes=1 * MiB,
            window_s=None,
            after_end_s=300,
            lead_s=None,
            lead_detached_s=None,
            slow_reader_s=30,
            detach_s=120,
            run_s=300,
            queue_s=60,
            park_after_s=None,
        ),
        Row(
            kind=Kind.SPEECH,
            cut=Cut.SEGMENTS,
            recovery=Recovery.REPLAY,
            slow=SlowRule.BACKPRESSURE,
            counter="units",
            credits_per_slot=100,
            input_bytes=100_000,
            input_items=None,
            item_bytes=256 * KiB,
            window_bytes=None,
            window_s=120,
            after_end_s=120,
            lead_s=10,
            lead_detached_s=30,
            slow_reader_s=30,
            detach_s=120,
            run_s=600,
            queue_s=60,
            park_after_s=2,
            pace_s=4,
            media="samples",
        ),
        Row(
            kind=Kind.RECOGNITION,
            cut=Cut.SPAN,
            recovery=Recovery.REPLAY,
            slow=SlowRule.COALESCE,
            counter="heard",
            credits_per_slot=0.9,  # divided by the engine's measured RTF, at least 1
            input_bytes=1 * MiB,
            input_items=None,
            item_bytes=256 * KiB,
            window_bytes=1 * MiB,
            window_s=None,
            after_end_s=300,
            lead_s=None,
            lead_detached_s=None,
            slow_reader_s=30,
            detach_s=120,
            run_s=None,
            queue_s=60,
            park_after_s=2,
            media="heard",
            media_rate=16_000,
            replaceable="partial",
            span_s=1,
            final_after_s=20,
            behind_bytes=64 * KiB,
        ),
        Row(
            kind=Kind.IMAGE,
            cut=Cut.WHOLE,
            recovery=Recovery.REPLAY,
            slow=SlowRule.COALESCE,
            counter="tiles",
            credits_per_slot=1,
            input_bytes=64 * KiB,
            input_items=1,
            window_bytes=None,
            window_s=None,
            after_end_s=24 * 3600,
            lead_s=None,
            lead_detached_s=None,
            slow_reader_s=30,
            detach_s=24 * 3600,
            run_s=300,
            queue_s=24 * 3600,
            park_after_s=None,
            replaceable="progress",
            handler="picture",
        ),
        Row(
            kind=Kind.KERNEL,
            cut=Cut.WHOLE,
            recovery=Recovery.NONE,
            slow=SlowRule.COALESCE,
            counter="bytes",
            credits_per_slot=1,
            input_bytes=1 * MiB,
            input_items=1,
            window_bytes=10 * MiB,
            window_s=None,
            after_end_s=3600,
            lead_s=None,
            lead_detached_s=None,
            slow_reader_s=30,
            detach_s=300,
            run_s=300,
            queue_s=300,
            park_after_s=None,
            replaceable="display",
            handler="cells",
        ),
        Row(
            kind=Kind.ROOM,
            cut=Cut.WHOLE,
            recovery=Recovery.NONE,
            slow=SlowRule.DROP_PREVIEWS,
            counter="items",
            credits_per_slot=0,
            input_bytes=64 * KiB,
            input_items=None,
            window_bytes=None,
            window_s=None,
            after_end_s=24 * 3600,
            lead_s=None,
            lead_detached_s=None,
            slow_reader_s=30,
            detach_s=24 * 3600,
            run_s=None,
            queue_s=0,
            park_after_s=None,
        ),
    )
}


def row(kind: Kind | str) -> Row:
    """The row of ``kind``; raises ValueError for a word that is no kind."""
    return KINDS[Kind(kind)]

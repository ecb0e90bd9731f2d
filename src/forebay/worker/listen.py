"""Recognition in a worker: input items cut into spans, and the account of two positions.

*heard* is what the engine has taken: it rises chunk by chunk. *consumed* is the end of the
last final: a new attempt reads again from there, skips what lies below it sample by sample,
and reports no chunk that was reported before. Both are kept here, because only this place
knows which samples of which input item went into which step.

The engine is given 16 kHz mono PCM and counts its own samples from 0; what it yields is
moved to the session's positions. A step that ends in `End` asks it to make final what is
open: at the end of a complete container and of the input, after `Row.final_after_s` without
a final, and when nothing has come for `Row.park_after_s`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import numpy as np

from forebay.core.events import (
    Consumed,
    End,
    Final,
    Heard,
    InputItem,
    Notice,
    OutputEvent,
    Partial,
    Sound,
)
from forebay.core.kinds import Row
from forebay.core.spec import Lease
from forebay.core.transcript import Transcript, joint
from forebay.errors import BadAudio, EngineFailed, ProtocolError, QuotaExceeded, Unsupported
from forebay.worker.cut import Work
from forebay.worker.decode import RATE, Decoder, check_rate, is_quick, open_sound
from forebay.worker.media import Frames, Resampler

__all__ = ["MAX_FILE_BYTES", "Ear", "FindBlob", "Span"]

MAX_FILE_BYTES = 64 * 1024 * 1024
"""A container that comes in parts may have so many bytes; larger ones are blobs."""

ENDED_BYTES = 200 * 1024
"""Text in the terminal event, as it is encoded: it must fit the byte credit of a lease."""

FindBlob = Callable[[str], Path]
T = TypeVar("T")
_NOTHING: Frames = np.zeros(0, np.int16)
_HEARD = (Sound, End)


@dataclass(slots=True)
class _Piece:
    """One input item on its way: what is left of its samples, or its unopened container."""

    item: Sound | End
    frames: Frames
    is_file: bool = False
    plain: bool = False  # 16 kHz samples, not looked at yet: `frames` is empty


@dataclass(slots=True)
class Span(Work):
    """One step's share. ``ends``: input items that end in it, each with its last sample's
    position. ``flush``: make final what is open. ``file``: its samples are still to be
    decoded, by `Ear.read`."""

    frames: Frames = field(default_factory=lambda: _NOTHING)
    ends: tuple[tuple[Sound | End, int], ...] = ()
    flush: bool = False
    file: Sound | None = None
    plain: tuple[Sound, ...] = ()  # all that the engine is given, as it came; no `frames` then


class Ear:
    """One recognition job on one attempt: its cutter, and its bookkeeping.

    Per step: `take`, `read` (or `give`, where there is no file), `event` for each event the
    engine yields, `finish`. Every event these return is to be written at once, with
    `consumed` as it stands then.
    """

    def __init__(self, row: Row, lease: Lease, find_blob: FindBlob | None = None) -> None:
        start = lease.consumed
        self.seq = 0
        self._span = round((row.span_s or 1.0) * RATE)
        self._force = round((row.final_after_s or 20.0) * RATE)
        self._idle_s = row.park_after_s
        self._find_blob = find_blob
        self._queue: deque[_Piece] = deque()
        self._parts: list[bytes] = []  # of a container that has not come to its end
        self._decoder: Decoder | None = None
        self._thread: asyncio.Future[Any] | None = None  # in `_decoder`, or opening it
        self._quick = False
        self._resampler: tuple[int, Resampler] | None = None
        self._ended = False
        self._fed_s = 0.0
        # Samples of the session: next to come in, given to the engine, made final.
        self._next = start.at
        self._given = self._base = self._fine = start.fine
        self._flushed = start.fine
        self._flushing = self._final_seen = False
        # Input offsets: heard by the engine, wholly done with.
        self._heard = max(start.heard, start.offset)
        self._told_heard = self._heard
        self._done = (start.offset, start.at)
        self._ends: deque[tuple[int, int]] = deque()
        # Text: everything, and what no `Heard` has carried yet.
        self._said = Transcript(lease.text, lease.marks.get("chars"))
        untold = self._said.chars - lease.marks.get("told", 0)
        self._untold: deque[tuple[int, str]] = deque()
        if untold > 0:
            self._untold.append((start.fine, lease.text[-untold:]))
        self._chunks = lease.counts.get("heard", 0)
        limit_s = lease.spec.params.get("max_audio_s")
        self._limit = None if limit_s is None else round(float(limit_s) * RATE)
        self._partials = lease.spec.params.get("partials") is not False
        # Of a session, a chunk that is no sound is told and passed over; a job that is one
        # file comes to nothing without it.
        self._one_file = lease.spec.params.get("file") is True
        self._bad: dict[int, BadAudio] = {}  # by input offset, until told
        self._partial = ""
        self._language = ""

    # ------------------------------------------------------------------ the cutter

    def feed(self, items: Sequence[InputItem], now: float) -> None:
        """Raises `BadAudio` where a job's only file is none, or a file is cut off between its
        parts, `ProtocolError` for other items."""
        self._fed_s = now
        for item in items:
            if not isinstance(item, _HEARD):
                raise ProtocolError(f"input item {type(item).__name__}, expected sound")
            if item.seq > self.seq:
                self.seq = item.seq
            if self._is_plain(item):
                self._queue.append(_Piece(item, _NOTHING, plain=True))
                continue
            piece = self._piece(item)
            if piece is not None:
                self._queue.append(piece)

    def _is_plain(self, item: Sound | End) -> bool:
        """Whether the engine could be given ``item`` as it is."""
        if not isinstance(item, Sound) or item.form != "pcm16" or item.rate != RATE:
            return False
        return not (self._parts or self._resampler is not None or len(item.data) % 2)

    def _piece(self, item: Sound | End) -> _Piece | None:
        """None for a part of a container of which more is to come."""
        if self._parts and (isinstance(item, End) or item.form != "file"):
            raise BadAudio(f"a file of which {len(self._parts)} parts came and not the last")
        if isinstance(item, End):
            self._ended = True
            return _Piece(item, self._tail())
        if item.form == "pcm16":
            try:
                return _Piece(item, self._plain(item))
            except BadAudio as error:
                return _Piece(item, self._passed_over(item, error))
        if item.more or self._parts:
            self._parts.append(item.data)
            size = sum(map(len, self._parts))
            if size > MAX_FILE_BYTES:
                raise BadAudio(f"a file of {size} bytes in parts, expected a blob")
            if item.more:
                return None
            item = msgspec.structs.replace(item, data=b"".join(self._parts))
            self._parts = []
        return _Piece(item, self._tail(), is_file=True)

    def _plain(self, item: Sound) -> Frames:
        if len(item.data) % 2:
            raise BadAudio(f"{len(item.data)} bytes of 16-bit samples, expected an even number")
        check_rate(item.rate)
        frames: Frames = np.frombuffer(item.data, dtype="<i2")
        before = _NOTHING
        if self._resampler is not None and self._resampler[0] != item.rate:
            before = self._tail()
        if item.rate != RATE:
            if self._resampler is None:
                self._resampler = (item.rate, Resampler(item.rate, RATE))
            frames = self._resampler[1].feed(frames)
        return np.concatenate([before, frames]) if len(before) else frames

    def _passed_over(self, item: Sound, error: BadAudio) -> Frames:
        """``item`` is told of by name once its turn comes, and counts as silence of no length.
        Raises ``error`` where there is nothing else to hear."""
        if self._one_file:
            raise error
        self._bad[item.offset] = error
        return _NOTHING

    def _tail(self) -> Frames:
        """What a change of rate still holds back."""
        if self._resampler is None:
            return _NOTHING
        resampler, self._resampler = self._resampler[1], None
        return resampler.feed(_NOTHING, last=True)

    def take(self, now: float) -> Span | None:
        if not self._queue:
            return self._idle(now)
        room = self._room
        front = self._queue[0]
        if self._decoder is not None or (front.is_file and not len(front.frames)):
            assert isinstance(front.item, Sound)
            return Span((), 0, file=front.item, flush=room <= 0)
        if front.plain and self._fine <= self._next:
            span = self._whole(room)
            if span is not None:
                return span
        return self._cut(room)

    def _whole(self, room: int) -> Span | None:
        """`_cut` for what nearly always comes: chunks that all fit, and nothing else."""
        left = room
        for piece in self._queue:
            samples = len(cast(Sound, piece.item).data) // 2 if piece.plain else 0
            left -= samples
            if not samples or left < 0:
                return None
        ends: list[tuple[Sound | End, int]] = []
        sounds: list[Sound] = []
        for piece in self._queue:
            sound = cast(Sound, piece.item)
            sounds.append(sound)
            self._next += len(sound.data) // 2
            ends.append(self._end_item(sound))
        self._queue.clear()
        self._given += room - left
        flush = left == 0 and self._room <= 0
        return Span((), 0, False, _NOTHING, tuple(ends), flush, None, tuple(sounds))

    @property
    def _room(self) -> int:
        """Samples that the next step may have; none or less: a final is to be forced."""
        return min(self._span, max(self._fine, self._flushed) + self._force - self._given)

    def _cut(self, room: int) -> Span:
        """As many samples as there are, up to ``room``, an end or a container."""
        parts: list[Frames] = []
        ends: list[tuple[Sound | End, int]] = []
        flush = room <= 0
        while self._queue and not flush:
            piece = self._queue[0]
            if piece.plain and isinstance(piece.item, Sound):
                piece.frames, piece.plain = np.frombuffer(piece.item.data, dtype="<i2"), False
            self._skip_done(piece)
            part, piece.frames = piece.frames[:room], piece.frames[room:]
            parts.append(part)
            room -= len(part)
            self._given += len(part)
            self._next += len(part)
            if len(piece.frames) or piece.is_file:
                break
            self._queue.popleft()
            ends.append(self._end_item(piece.item))
            flush = isinstance(piece.item, End)
            if room <= 0:
                break
        flush = flush or self._room <= 0
        frames = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else _NOTHING
        return Span((), 0, frames=frames, ends=tuple(ends), flush=flush)

    def _skip_done(self, piece: _Piece) -> None:
        """Drop the samples that an earlier attempt has made final."""
        skip = min(max(0, self._fine - self._next), len(piece.frames))
        if skip:
            piece.frames = piece.frames[skip:]
            self._next += skip

    def _idle(self, now: float) -> Span | None:
        when = self.deadline
        if when is None or now < when:
            return None
        return Span((), 0, idle=True, flush=True)

    def _end_item(self, item: Sound | End) -> tuple[Sound | End, int]:
        self._ends.append((item.offset, self._next))
        return item, self._next

    @property
    def deadline(self) -> float | None:
        """When what is open is made final because nothing more has come."""
        if self._queue or self._idle_s is None or self._given <= self._flushed:
            return None
        return self._fed_s + self._idle_s

    @property
    def unread(self) -> bool:
        return bool(self._queue)

    @property
    def quiet(self) -> bool:
        """All that came was taken, and more is to come."""
        return not self._queue and not self._ended

    @property
    def done(self) -> bool:
        return self._ended and not self._queue

    def consumed(self, units: int = 0) -> Consumed:
        """Where a new attempt would begin. An item is done with when all of it is final and
        its chunk has been reported."""
        while self._ends and self._ends[0][1] <= self._fine and self._ends[0][0] <= self._heard:
            self._done = self._ends.popleft()
        return Consumed(self._done[0], self._fine, self._heard, self._done[1])

    def finished(self, work: Work) -> Consumed:
        return self.consumed()

    # -------------------------------------------------------------------- one step

    async def read(self, span: Span) -> tuple[Span, list[InputItem]]:
        """The span as it is to be finished, and what the engine is given for it."""
        if span.file is not None:
            span = await self._decode(span)
        return span, self.give(span)

    def give(self, span: Span) -> list[InputItem]:
        """What the engine is given for a span that needs no decoding."""
        self._final_seen = False
        self._flushing = span.flush and self._given > self._flushed
        items: list[InputItem] = []
        if span.plain:
            items.extend(span.plain)
        elif len(span.frames):
            items.append(Sound(data=span.frames.tobytes()))
        if self._flushing:
            items.append(End())
        return items

    async def _decode(self, span: Span) -> Span:
        assert span.file is not None
        room = self._room
        frames = _NOTHING
        while room > 0 and not len(frames):
            try:
                block = await self._block(span.file, room)
            except BadAudio as error:
                block = self._passed_over(span.file, error)
            if not len(block):
                return self._file_ended(span.file)
            skip = min(max(0, self._fine - self._next), len(block))
            self._next += len(block)
            frames = block[skip:]
        self._given += len(frames)
        self._check_length()
        return Span((), 0, frames=frames, flush=self._room <= 0, file=span.file)

    async def _block(self, file: Sound, samples: int) -> Frames:
        if self._decoder is None:
            source = self._source(file)
            self._quick = is_quick(source)
            self._decoder = await self._call(open_sound, source)
        return await self._call(self._decoder.read, samples)

    def _check_length(self) -> None:
        if self._limit is not None and self._given > self._limit:
            raise QuotaExceeded(
                f"more than {self._limit / RATE:g} s of audio, expected no more",
                audio_s=round(self._given / RATE, 3),
            )

    async def _call(self, work: Callable[[Any], T], argument: Any) -> T:
        """In a thread, where it may take long. A thread cannot be cancelled: what it works
        on is let go of when it has left."""
        if self._quick:
            return work(argument)
        thread = asyncio.get_running_loop().run_in_executor(None, work, argument)
        self._thread = thread
        return await asyncio.shield(thread)

    def _source(self, item: Sound) -> bytes | Path:
        if not item.blob:
            return item.data
        if self._find_blob is None:
            raise Unsupported("this worker shares no folder with the gateway: files must be small")
        return self._find_blob(item.blob)

    def _file_ended(self, item: Sound) -> Span:
        self._close_decoder()
        self._queue.popleft()
        return Span((), 0, ends=(self._end_item(item),), flush=True, file=item)

    def event(self, event: OutputEvent) -> OutputEvent | None:
        """What is to be written for an event of the engine, if anything. Raises
        `EngineFailed` for one that is no transcript."""
        if isinstance(event, Final):
            return self._final(event)
        if not isinstance(event, Partial):
            raise EngineFailed(f"engine yielded {type(event).__name__}, expected transcripts")
        if not self._partials:
            return None
        text = joint(self._said.tail, event.text)
        if text == self._partial:
            return None
        self._partial = text
        start, end = self._at(event.start), self._at(event.end or self._given - self._base)
        return Partial(text=text, start=start, end=end)

    def _at(self, sample: int) -> int:
        """The session's position of the engine's ``sample``."""
        return min(max(self._base + sample, self._fine), self._given)

    def _final(self, event: Final) -> Final | None:
        start, end = self._at(event.start), self._at(event.end)
        self._fine = end
        self._final_seen = True
        text = joint(self._said.tail, event.text)
        self._partial = ""
        if not text:
            return None
        self._said.add(text)
        self._untold.append((end, text))
        self._language = event.language or self._language
        return Final(text=text, start=start, end=end, language=event.language)

    def heard(self, span: Span, events: Sequence[OutputEvent]) -> list[OutputEvent]:
        """`event` for each of ``events``, then `finish`."""
        if not events:
            return self.finish(span)
        found: list[OutputEvent] = []
        for event in events:
            out = event if isinstance(event, Notice) else self.event(event)
            if out is not None:
                found.append(out)
        found.extend(self.finish(span))
        return found

    def finish(self, span: Span) -> list[OutputEvent]:
        """The engine has taken the span: one event for each chunk that ends in it."""
        found: list[OutputEvent] = []
        if self._flushing:
            self._flushed = self._given
            if not self._final_seen:
                self._fine = self._given
        for index, (item, end) in enumerate(span.ends):
            bad = self._bad.pop(item.offset, None)
            if item.offset <= self._told_heard:
                continue
            self._heard = item.offset
            if bad is not None:
                found.append(Notice(code=bad.code, message=bad.message, details={"seq": item.seq}))
                continue
            if isinstance(item, End) or item.more:
                continue
            self._chunks += 1
            rest = span.flush and index == len(span.ends) - 1
            text = self._tell(None if rest else end) if self._untold else ""
            found.append(Heard(seq=item.seq, samples=end, text=text))
        return found

    def _tell(self, through: int | None) -> str:
        told = []
        while self._untold and (through is None or self._untold[0][0] <= through):
            told.append(self._untold.popleft()[1])
        return "".join(told)

    # --------------------------------------------------------------------- the end

    def details(self) -> dict[str, Any]:
        """What the terminal event of a completed job tells."""
        text = self._said.text
        while len(msgspec.json.encode(text)) > ENDED_BYTES:  # quotes count double there
            text = text[len(text) // 2 :]
        found: dict[str, Any] = {
            "text": text,
            "chunks": self._chunks,
            "audio_s": round(self._given / RATE, 3),
        }
        if self._said.chars > len(text):
            found["text_from"] = self._said.chars - len(text)
        if self._language:
            found["language"] = self._language
        return found

    def close(self) -> None:
        """Let go of an open container, as soon as no thread is inside it."""
        thread, self._thread = self._thread, None
        if thread is None or thread.done():
            self._close_decoder()
            return
        decoder, self._decoder = self._decoder, None
        thread.add_done_callback(partial(_left, decoder))

    def _close_decoder(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None


def _left(decoder: Decoder | None, thread: asyncio.Future[Any]) -> None:
    """A thread that nobody waits for any more has left: ``decoder``, or with a new one."""
    if decoder is None and not thread.cancelled() and thread.exception() is None:
        decoder = thread.result()
    if decoder is not None:
        decoder.close()

"""Audio from an engine into audio of the job: rate, channels, pieces, format.

The engine yields mono PCM at its own rate with the units it speaks. What leaves here is at
most a second a piece, in the job's format, and every unit of the segment is in exactly one
piece. A piece leaves before the engine has made the next, except for the share of its last
unit where the rate changes: a resampler holds a few milliseconds back, and they must not be
left without a unit to belong to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np

from forebay.core.audio import split_pieces
from forebay.core.events import Audio, OutputEvent, Text
from forebay.errors import EngineFailed
from forebay.worker.media import Encoder, Frames, Resampler, make_encoder

__all__ = ["SpeechOut"]


class SpeechOut:
    """One speech job on one attempt. Per segment: `begin`, `piece` for each event, `end`."""

    def __init__(
        self, params: Mapping[str, Any], engine_rate: int, *, units: int, resumed: bool
    ) -> None:
        self.rate = int(params.get("sample_rate") or engine_rate)
        self._engine_rate = engine_rate
        self._channels = int(params.get("channels") or 1)
        self._format = str(params.get("format") or "pcm16")
        self._resumed = resumed
        self._encoder: Encoder | None = None
        self._in_thread = self._format not in ("pcm16", "wav")
        self._unit = units  # next unit to leave
        self._segment = Text(text="", unit=units)
        self._heard = 0  # units of the segment that the engine has yielded
        self._resampler = Resampler(engine_rate, self.rate)
        self._frames: list[Frames] = []
        self._count = 0  # frames held in `_frames`

    def begin(self, segment: Text) -> None:
        self._segment = segment
        self._heard = 0
        self._resampler = Resampler(self._engine_rate, self.rate)
        self._frames, self._count = [], 0

    async def piece(self, event: OutputEvent) -> AsyncIterator[Audio]:
        """What may leave now of one engine event. Raises `EngineFailed` if it is wrong."""
        frames, units = self._check(event)
        self._heard += units
        self._hold(self._resampler.feed(frames))
        spoken = self._segment.unit + self._heard - self._unit
        if not self._resampler.delays:
            leave_units, leave_frames = spoken, self._count
        else:
            leave_units = spoken - 1
            share = len(frames) * self.rate // self._engine_rate // units
            leave_frames = max(0, self._count - share)
        async for out in self._leave(leave_units, leave_frames):
            yield out

    async def end(self) -> AsyncIterator[Audio]:
        """The rest of the segment. Raises `EngineFailed` if units were left out."""
        if self._heard != len(self._segment.text):
            raise EngineFailed(
                f"engine spoke {self._heard} of {len(self._segment.text)} units of a segment"
            )
        if self._resampler.delays:
            self._hold(self._resampler.feed(np.zeros(0, np.int16), last=True))
        left = self._segment.unit + self._heard - self._unit
        async for out in self._leave(left, self._count):
            yield out

    def flush(self) -> Audio | None:
        """What the format's encoder still holds; no units, as all have left already."""
        if self._encoder is None:
            return None
        data = self._encoder.flush()
        self._encoder = None
        self._resumed = True
        if not data:
            return None
        return Audio(data=data, text="", unit=self._unit, frames=0, seq=self._segment.seq)

    def _check(self, event: OutputEvent) -> tuple[Frames, int]:
        if not isinstance(event, Audio):
            raise EngineFailed(f"engine yielded {type(event).__name__}, expected Audio")
        at = self._heard
        units = len(event.text)
        if units == 0:
            raise EngineFailed("engine yielded audio that speaks no unit")
        if event.text != self._segment.text[at : at + units]:
            raise EngineFailed(f"engine's audio does not speak the segment from its unit {at}")
        if len(event.data) != 2 * event.frames:
            raise EngineFailed(f"engine yielded {len(event.data)} bytes for {event.frames} frames")
        return np.frombuffer(event.data, dtype="<i2"), units

    def _hold(self, frames: Frames) -> None:
        self._frames.append(frames)
        self._count += len(frames)

    async def _leave(self, units: int, count: int) -> AsyncIterator[Audio]:
        if units < 1:
            return
        frames = self._frames[0] if len(self._frames) == 1 else np.concatenate(self._frames)
        self._frames, self._count = [frames[count:]], len(frames) - count
        start = self._unit - self._segment.unit
        for first, last, unit_first, unit_last in split_pieces(count, self.rate, units):
            data = await self._encode(frames[first:last])
            text = self._segment.text[start + unit_first : start + unit_last]
            unit = self._unit
            self._unit += len(text)
            yield Audio(data=data, text=text, unit=unit, frames=last - first, seq=self._segment.seq)

    async def _encode(self, frames: Frames) -> bytes:
        if self._in_thread:  # a second of mp3 takes milliseconds, the first one's import more
            return await asyncio.to_thread(self._encode_now, frames)
        return self._encode_now(frames)

    def _encode_now(self, frames: Frames) -> bytes:
        if self._encoder is None:
            self._encoder = make_encoder(
                self._format, self.rate, self._channels, resumed=self._resumed
            )
        return self._encoder.encode(frames)

"""Arithmetic on PCM: the WAV header, cutting a segment's audio into pieces, trimming one.

All PCM here is signed 16 bit, little endian, interleaved. One frame is one sample per
channel.
"""

from __future__ import annotations

import struct
from math import ceil

import msgspec

from forebay.core.events import Audio
from forebay.errors import Unsupported

__all__ = ["SAMPLE_BYTES", "split_pieces", "trim_audio", "wav_header"]

SAMPLE_BYTES = 2
MAX_PIECE_S = 1.0


def wav_header(rate: int, channels: int, *, data_bytes: int = 0) -> bytes:
    """The 44 bytes before s16le PCM. ``data_bytes`` is 0 where the length is not known yet
    (a stream: RIFF size 36, data size 0, as voice clients expect it in `start_ack`)."""
    block = channels * SAMPLE_BYTES
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + data_bytes,
        b"WAVE",
        b"fmt ",
        16,
        1,
        channels,
        rate,
        rate * block,
        block,
        SAMPLE_BYTES * 8,
        b"data",
        data_bytes,
    )


def split_pieces(
    frames: int, rate: int, units: int, max_s: float = MAX_PIECE_S
) -> list[tuple[int, int, int, int]]:
    """Cut ``frames`` of audio that speak ``units`` into pieces of at most ``max_s`` seconds.

    Returns (frame_start, frame_end, unit_start, unit_end), ends exclusive, in order. Each
    frame and each unit is in exactly one piece and every piece has at least one unit, so a
    piece is longer than ``max_s`` only where there are fewer units than pieces needed.
    Units are spread evenly: no engine says at which sample a unit begins.
    """
    if units < 1:
        raise ValueError(f"got {units} units, expected at least 1")
    longest = max(1, int(rate * max_s))
    pieces = max(1, min(units, ceil(frames / longest)))
    return [
        (
            frames * i // pieces,
            frames * (i + 1) // pieces,
            units * i // pieces,
            units * (i + 1) // pieces,
        )
        for i in range(pieces)
    ]


def trim_audio(event: Audio, from_unit: int, channels: int) -> Audio:
    """``event`` without what a reader has already: the units below ``from_unit``.

    Offset, ordinal and cumulative counters stay, so the trimmed event is the same event.
    Raises `Unsupported` for data that is not PCM of ``channels``, which cannot be cut, and
    ValueError when nothing would be left (`StreamLog.after_mark` gives no such event).
    """
    if from_unit <= event.unit:
        return event
    skip = from_unit - event.unit
    if skip >= len(event.text):
        raise ValueError(f"the event ends at unit {event.unit + len(event.text)}, got {from_unit}")
    frame_bytes = channels * SAMPLE_BYTES
    if len(event.data) != event.frames * frame_bytes:
        raise Unsupported(
            f"read {len(event.data)} bytes, expected {event.frames * frame_bytes} of pcm to trim"
        )
    cut = event.frames * skip // len(event.text)
    return msgspec.structs.replace(
        event,
        data=event.data[cut * frame_bytes :],
        text=event.text[skip:],
        unit=from_unit,
        frames=event.frames - cut,
    )

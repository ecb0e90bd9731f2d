"""From a container somebody sent to 16 kHz mono, a little at a time, believing nothing.

The kind is told by the first bytes and nothing else is tried: libav can open playlists that
name other files, and those must never be reached. Lengths are those of the bytes that are
there, whatever a header says. Everything that is wrong raises `BadAudio`.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from forebay.errors import BadAudio
from forebay.worker.media import Frames, Resampler

__all__ = [
    "MAX_CHANNELS",
    "MAX_RATE",
    "MIN_RATE",
    "RATE",
    "Decoder",
    "check_rate",
    "is_quick",
    "open_sound",
]

RATE = 16_000
MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_CHANNELS = 32
MAX_AUDIO_S = 6 * 3600
"""The longest audio in one container: a megabyte of compressed silence is days."""
_BAD_PACKETS = 100  # damaged packets passed over in one file
_READ_FRAMES = 16_000
_WAV_CHUNKS = 1000


class Decoder(Protocol):
    def read(self, samples: int) -> Frames:
        """The next frames, at most ``samples``; none at the end. Blocks."""

    def close(self) -> None: ...


def check_rate(rate: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise BadAudio(f"sample rate {rate}, expected {MIN_RATE} to {MAX_RATE}", rate=rate)


def _check_channels(channels: int) -> None:
    if not 1 <= channels <= MAX_CHANNELS:
        raise BadAudio(f"{channels} channels, expected 1 to {MAX_CHANNELS}", channels=channels)


def open_sound(source: bytes | Path) -> Decoder:
    """A decoder of one complete container. Blocks. Raises `BadAudio`."""
    head = source[:64] if isinstance(source, bytes) else _head(source)
    kind = _kind(head)
    if kind == "wav":
        plain = _plain_wav(source)
        if plain is not None:
            return _Blocks(plain)
    return _Blocks(_libav(source, kind))


def is_quick(source: bytes | Path) -> bool:
    """Whether a second of it is read in well under a millisecond: 16-bit PCM, in memory."""
    if not isinstance(source, bytes) or source[:4] != b"RIFF" or source[12:16] != b"fmt ":
        return False
    return source[20:22] == b"\1\0" and source[34:36] == b"\x10\0"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


NAMES = {
    "wav": "WAV",
    "ogg": "Ogg",
    "matroska": "WebM/Matroska",
    "flac": "FLAC",
    "mp3": "MP3",
    "mov": "MP4/M4A",
    "aac": "AAC",
}
"""What people call what libav has other words for."""
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"OggS", "ogg"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"fLaC", "flac"),
    (0, b"ID3", "mp3"),
    (4, b"ftyp", "mov"),
)


def _kind(head: bytes) -> str:
    """The libav name of the container."""
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    for at, magic, kind in _MAGIC:
        if head[at : at + len(magic)] == magic:
            return kind
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return "mp3"
    raise BadAudio("no WAV, WebM, Ogg, mp3, m4a, aac or flac by its first bytes")


class _Blocks:
    """Blocks of any length, handed out by the number asked for."""

    def __init__(self, blocks: Iterator[Frames]) -> None:
        self._blocks = blocks
        self._held: Frames = np.zeros(0, np.int16)
        self._left = MAX_AUDIO_S * RATE

    def read(self, samples: int) -> Frames:
        parts, want = [], samples
        while want > 0:
            if not len(self._held):
                block = next(self._blocks, None)
                if block is None:
                    break
                self._held = block
            part, self._held = self._held[:want], self._held[want:]
            parts.append(part)
            want -= len(part)
        self._left -= samples - want
        if self._left < 0:
            raise BadAudio(f"more than {MAX_AUDIO_S} s of audio in one file", limit_s=MAX_AUDIO_S)
        return np.concatenate(parts) if parts else np.zeros(0, np.int16)

    def close(self) -> None:
        close = getattr(self._blocks, "close", None)
        if close is not None:
            close()


# ------------------------------------------------------------------------- plain WAV


def _plain_wav(source: bytes | Path) -> Iterator[Frames] | None:
    """16-bit PCM by hand: most of what comes, and the header that lies most often. None for
    what libav must read."""
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    try:
        found = _wav_header(file)
    except BadAudio:
        file.close()
        raise
    if found is None:
        file.close()
        return None
    channels, rate, limit = found
    return _wav_frames(file, channels, rate, limit)


def _wav_header(file: Any) -> tuple[int, int, int | None] | None:
    """(channels, rate, bytes of data or None for all that comes), with ``file`` at the data."""
    file.seek(12)
    format: tuple[int, int, int, int] | None = None
    for _ in range(_WAV_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            break
        name, size = head[:4], struct.unpack("<I", head[4:])[0]
        if name == b"data":
            return _wav_data(format, size)
        if name == b"fmt ":
            format = _wav_format(file.read(min(size, 64)))
            file.seek(max(0, size - 64) + (size & 1), 1)
        else:
            file.seek(size + (size & 1), 1)
    raise BadAudio("a WAV file without a data chunk")


def _wav_data(
    format: tuple[int, int, int, int] | None, size: int
) -> tuple[int, int, int | None] | None:
    if format is None:
        raise BadAudio("a WAV file without a format chunk before its data")
    code, channels, rate, bits = format
    _check_channels(channels)
    check_rate(rate)
    if code != 1 or bits != 16:
        return None
    return channels, rate, size if 0 < size < 0xFFFFFFF0 else None


def _wav_format(data: bytes) -> tuple[int, int, int, int]:
    """(format code, channels, rate, bits)."""
    if len(data) < 16:
        raise BadAudio(f"a WAV format chunk of {len(data)} bytes, expected at least 16")
    code, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data)
    if code == 0xFFFE and len(data) >= 26:
        code = struct.unpack_from("<H", data, 24)[0]
    return code, channels, rate, bits


def _wav_frames(file: Any, channels: int, rate: int, limit: int | None) -> Iterator[Frames]:
    resampler = Resampler(rate, RATE)
    width = 2 * channels
    with file:
        while limit is None or limit >= width:
            want = _READ_FRAMES * width if limit is None else min(_READ_FRAMES * width, limit)
            data = file.read(want)
            whole = len(data) // width * width  # what is no whole frame is no sound
            if not whole:
                break
            if limit is not None:
                limit -= len(data)
            yield resampler.feed(_mono(np.frombuffer(data[:whole], "<i2"), channels))
    if resampler.delays:
        yield resampler.feed(np.zeros(0, np.int16), last=True)


def _mono(frames: Frames, channels: int) -> Frames:
    if channels == 1:
        return frames
    mixed: Frames = frames.reshape(-1, channels).mean(axis=1).astype(np.int16)
    return mixed


# ------------------------------------------------------------------ everything else


def _libav(source: bytes | Path, kind: str) -> Iterator[Frames]:
    import av  # here: most workers never need it, and it takes 100 ms to import

    file: Any = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    name = NAMES[kind]
    try:
        with av.open(file, "r", format=kind) as container:
            if not container.streams.audio:
                raise BadAudio(f"there is no audio in the {name} file")
            stream: Any = container.streams.audio[0]
            codec: Any = stream.codec_context
            if codec is None:
                raise BadAudio(f"the sound in the {name} file has a codec that is not known here")
            _check_channels(int(codec.channels or 0))
            check_rate(int(codec.sample_rate or 0))
            yield from _frames(av, container, stream, name)
    except av.EOFError as exc:
        raise BadAudio(f"the {name} file cannot be read: it ends too early") from exc
    except (av.FFmpegError, ValueError, OSError, MemoryError) as exc:
        raise BadAudio(f"the {name} file cannot be read: it is damaged or cut off") from exc


def _frames(av: Any, container: Any, stream: Any, name: str) -> Iterator[Frames]:
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    bad = good = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError as exc:
            bad += 1
            if bad > _BAD_PACKETS:
                raise BadAudio(
                    f"the {name} file cannot be read: {bad} of its packets are damaged, expected "
                    f"no more than {_BAD_PACKETS}"
                ) from exc
            continue
        for frame in frames:
            good += 1
            yield from _plain(resampler.resample(frame))
    if bad and not good:
        raise BadAudio(f"the {name} file cannot be read: all of its {bad} packets are damaged")
    if good:
        yield from _plain(resampler.resample(None))


def _plain(frames: list[Any]) -> Iterator[Frames]:
    for frame in frames:
        block: Frames = frame.to_ndarray().reshape(-1)
        yield block

"""`python -m forebay.worker.rewind`: a session's recording, made of whatever it was sent.

Sessions that send containers (WebM, Ogg and the like) leave a reel on disk
(`forebay.core.reel`). Decoding what strangers sent is no work for a gateway: this process
does it, with a bound on its memory, and says with its exit code whether there is a recording.
What cannot be decoded is left out, as the recogniser left it out.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from forebay.core.audio import wav_header
from forebay.core.reel import HEAD_BYTES, PART, SAMPLES, read_head
from forebay.errors import BadAudio
from forebay.process import die_with_parent, limit_memory
from forebay.worker.decode import MAX_AUDIO_S, RATE, check_rate, open_sound
from forebay.worker.media import Frames, Resampler

__all__ = ["main", "rewind"]

MAX_FILE_BYTES = 64 * 1024 * 1024
MEMORY_MIB = 1024
NICE = 10
WAV_HEAD_BYTES = 44
_BLOCK_BYTES = 64 * 1024
_READ_FRAMES = 16_000


def rewind(plain: Path, reel: Path, target: Path, limit_s: float = MAX_AUDIO_S) -> float:
    """Write the 16 kHz mono WAV of ``plain`` (a recording that began without containers, if
    there is one) and ``reel`` to ``target``. The seconds written, ``limit_s`` at most; without
    any there is no file."""
    left = total = int(limit_s * RATE)
    with target.open("wb") as out:
        os.chmod(target, 0o600)
        out.write(wav_header(RATE, 1))
        for frames in _Player().play(plain, reel):
            part = frames[:left]
            out.write(part.tobytes())
            left -= len(part)
            if left <= 0:
                break
        size = 2 * (total - left)
        out.seek(4)
        out.write(struct.pack("<I", size + 36))
        out.seek(40)
        out.write(struct.pack("<I", size))
    if not size:
        target.unlink()
    return size / 2 / RATE


class _Player:
    """The frames of a reel, at one rate."""

    def __init__(self) -> None:
        self._resampler: tuple[int, Resampler] | None = None

    def play(self, plain: Path, reel: Path) -> Iterator[Frames]:
        if plain.is_file():
            with plain.open("rb") as file:
                head = file.read(WAV_HEAD_BYTES)
                if len(head) == WAV_HEAD_BYTES:
                    rate = struct.unpack_from("<I", head, 24)[0]
                    yield from self._samples(file, rate, plain.stat().st_size)
        with reel.open("rb") as file:
            yield from self._records(file)
        yield self._tail()

    def _records(self, file: BinaryIO) -> Iterator[Frames]:
        parts: list[bytes] = []
        while (found := read_head(file.read(HEAD_BYTES))) is not None:
            kind, rate, size = found
            if kind == SAMPLES:
                yield from self._samples(file, rate, size)
                continue
            room = MAX_FILE_BYTES - sum(map(len, parts))
            parts.append(file.read(min(size, room)))
            file.seek(size - min(size, room), os.SEEK_CUR)
            if kind == PART:
                continue
            yield self._tail()
            with contextlib.suppress(BadAudio):  # it was told so, and recognised no further
                yield from _container(b"".join(parts))
            parts = []

    def _samples(self, file: BinaryIO, rate: int, size: int) -> Iterator[Frames]:
        check_rate(rate)
        if self._resampler is not None and self._resampler[0] != rate:
            yield self._tail()
        while size > 0 and (data := file.read(min(size, _BLOCK_BYTES))):
            size -= len(data)
            frames: Frames = np.frombuffer(data[: len(data) // 2 * 2], "<i2")
            if rate != RATE:
                if self._resampler is None:
                    self._resampler = (rate, Resampler(rate, RATE))
                frames = self._resampler[1].feed(frames)
            yield frames

    def _tail(self) -> Frames:
        """What a change of rate still holds back."""
        if self._resampler is None:
            return np.zeros(0, np.int16)
        resampler, self._resampler = self._resampler[1], None
        return resampler.feed(np.zeros(0, np.int16), last=True)


def _container(data: bytes) -> Iterator[Frames]:
    with contextlib.closing(open_sound(data)) as decoder:
        while len(frames := decoder.read(_READ_FRAMES)):
            yield frames


def main() -> int:
    """Arguments: the process to live with, the plain part, the reel, the target."""
    parent, plain, reel, target = sys.argv[1:]
    die_with_parent(int(parent))
    limit_memory(MEMORY_MIB)
    os.nice(NICE)
    try:
        return 0 if rewind(Path(plain), Path(reel), Path(target)) else 1
    except (OSError, BadAudio, MemoryError) as error:
        sys.stderr.write(f"no recording: {type(error).__name__}\n")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())

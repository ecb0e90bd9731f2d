"""Recordings of live sessions, off the loop: what was heard goes to disk a second at a time.

What is due goes to the disk's thread together, a few times a second: a thread that is woken
for every session's second takes the loop's time with it.

Only what is plainly samples is recorded (headerless PCM and plain WAV, mono, of one rate):
anything else would have to be decoded, which is a worker's work. A disk that cannot keep up
costs recordings, never audio: past `MAX_WAITING_BYTES` a session's recording is given up.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from forebay.core.events import InputItem, Sound
from forebay.history import Recordings

__all__ = ["Tape", "plain_wav"]

BLOCK_BYTES = 32 * 1024
MAX_WAITING_BYTES = 64 * 1024 * 1024
TOGETHER_S = 0.25

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Reel:
    rate: int = 0
    data: bytearray = field(default_factory=bytearray)
    given_up: bool = False


class Tape:
    """The recordings that are under way. Close it with `close`."""

    def __init__(self, recordings: Recordings) -> None:
        self.recordings = recordings
        self._reels: dict[str, _Reel] = {}
        self._waiting_bytes = 0
        self._due: list[tuple[str, bytes, int]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tape")

    def hear(self, job: str, items: Sequence[InputItem]) -> None:
        """Record what was appended to ``job``. Never raises, never waits."""
        reel = self._reels.setdefault(job, _Reel())
        for item in items:
            if isinstance(item, Sound) and not reel.given_up:
                self._hear(job, reel, item)

    def _hear(self, job: str, reel: _Reel, item: Sound) -> None:
        found = (item.rate, item.data) if item.form == "pcm16" else plain_wav(item.data)
        if found is None or (reel.rate and reel.rate != found[0]):
            self._give_up(job, reel, "format")
            return
        reel.rate = found[0]
        reel.data += found[1]
        if len(reel.data) >= BLOCK_BYTES:
            self._turn(job, reel)

    def _turn(self, job: str, reel: _Reel) -> None:
        data, reel.data = bytes(reel.data), bytearray()
        if self._waiting_bytes + len(data) > MAX_WAITING_BYTES:
            self._give_up(job, reel, "disk")
            return
        self._waiting_bytes += len(data)
        self._due.append((job, data, reel.rate))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TOGETHER_S, self._write)

    def _write(self) -> None:
        """Give what is due to the disk, before anything else that it is asked to do."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due, self._due = self._due, []
        if not due:
            return
        size = sum(len(data) for _, data, _ in due)
        loop = asyncio.get_running_loop()
        written = loop.run_in_executor(self._disk, self.recordings.append_all, due)
        written.add_done_callback(lambda done: self._written(size, done))

    def _written(self, size: int, done: asyncio.Future[list[str]]) -> None:
        self._waiting_bytes -= size
        if done.cancelled():
            return
        for job in done.result():
            reel = self._reels.get(job)
            if reel is not None:
                self._give_up(job, reel, "disk")

    def _give_up(self, job: str, reel: _Reel, reason: str) -> None:
        if not reel.given_up:
            reel.given_up = True
            reel.data = bytearray()
            log.info("recording.given_up", job=job, reason=reason)

    async def finish(self, job: str, tenant: str, user: str) -> str:
        """End the recording of ``job``; its path, "" where there is none."""
        reel = self._reels.pop(job, None)
        if reel is None:
            return ""
        if reel.data:
            self._turn(job, reel)
        self._write()
        loop = asyncio.get_running_loop()
        try:
            if reel.given_up:
                await loop.run_in_executor(self._disk, self.recordings.discard, job)
                return ""
            return await loop.run_in_executor(self._disk, self.recordings.finish, job, tenant, user)
        except OSError as error:
            log.warning("recording.lost", job=job, error=type(error).__name__)
            return ""

    async def discard(self, job: str) -> None:
        """Forget the recording of ``job``."""
        if self._reels.pop(job, None) is not None:
            self._write()
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._disk, self.recordings.discard, job)

    async def remove(self, paths: Sequence[str]) -> None:
        """Remove finished recordings."""
        loop = asyncio.get_running_loop()
        for path in paths:
            await loop.run_in_executor(self._disk, self.recordings.remove, path)

    async def close(self) -> None:
        """Wait for the disk; what is unfinished is forgotten."""
        for job in list(self._reels):
            await self.discard(job)
        await asyncio.to_thread(self._disk.shutdown)


def plain_wav(data: bytes) -> tuple[int, bytes] | None:
    """(rate, samples) of a mono 16-bit WAV file, by the bytes that are there; None for
    anything else."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    at, rate = 12, 0
    while at + 8 <= len(data):
        name, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        body = data[at + 8 : at + 8 + size]
        if name == b"fmt " and len(body) >= 16:
            code, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
            if (code, channels, bits) != (1, 1, 16) or not 4000 <= rate <= 384_000:
                return None
        elif name == b"data":
            samples = body if size else data[at + 8 :]
            return (rate, samples[: len(samples) // 2 * 2]) if rate else None
        at += 8 + size + (size & 1)
    return None

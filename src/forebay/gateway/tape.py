"""Recordings of live sessions, off the loop: what was heard goes to disk a second at a time.

What is due goes to the disk's thread together, a few times a second: a thread that is woken
for every session's second takes the loop's time with it.

What is plainly samples (headerless PCM and plain WAV, mono, of one rate) is the recording. A
session that sends anything else, a container or another rate, is kept as it came from there
on, and decoded when it is over, by a process of its own (`forebay.worker.rewind`): one at a
time, at most `MAX_DECODING` waiting. A disk that cannot keep up costs recordings, never audio:
past `MAX_WAITING_BYTES` a session's recording is given up, and so is one of more than
`MAX_REEL_BYTES` of containers.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from forebay.core.events import InputItem, Sound
from forebay.core.reel import FILE, PART, SAMPLES
from forebay.history import Recordings, Take

__all__ = ["Tape", "plain_wav"]

BLOCK_BYTES = 32 * 1024
MAX_WAITING_BYTES = 64 * 1024 * 1024
MAX_REEL_BYTES = 512 * 1024 * 1024
TOGETHER_S = 0.25
MAX_DECODING = 64
DECODE_S = 300.0
CLOSE_S = 5.0
DECODER = "forebay.worker.rewind"
"""Run as a process: a gateway opens no container itself."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Reel:
    rate: int = 0
    pieces: list[bytes] = field(default_factory=list)  # samples that are not due yet
    size: int = 0  # of them
    given_up: bool = False
    wound: int = 0  # bytes of a reel; more than none: it is to be decoded
    parts: bool = False  # the last container goes on in the next item


class Tape:
    """The recordings that are under way. Close it with `close`."""

    def __init__(self, recordings: Recordings) -> None:
        self.recordings = recordings
        self._reels: dict[str, _Reel] = {}
        self._waiting_bytes = 0
        self._due: list[Take] = []
        self._timer: asyncio.TimerHandle | None = None
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tape")
        self._decoding: dict[str, asyncio.Task[None]] = {}
        self._turn_to_decode = asyncio.Lock()

    def hear(self, job: str, items: Sequence[InputItem]) -> None:
        """Record what was appended to ``job``. Never raises, never waits."""
        reel = self._reels.setdefault(job, _Reel())
        for item in items:
            if isinstance(item, Sound) and not reel.given_up:
                self._hear(job, reel, item)

    def _hear(self, job: str, reel: _Reel, item: Sound) -> None:
        found = (item.rate, item.data) if item.form == "pcm16" else None
        if found is None and not (item.more or reel.parts):
            found = plain_wav(item.data)
        if found is None or (reel.rate and reel.rate != found[0]):
            self._turn(job, reel)
            reel.wound = max(1, reel.wound)  # from here on the order is the reel's to keep
        if found is None:
            reel.parts = item.more
            self._give(job, reel, Take(job, item.data, 0, PART if item.more else FILE))
            return
        reel.rate = found[0]
        reel.pieces.append(found[1])
        reel.size += len(found[1])
        if reel.size >= BLOCK_BYTES:
            self._turn(job, reel)

    def _turn(self, job: str, reel: _Reel) -> None:
        """Give the disk the samples that came together."""
        if reel.size:
            data = b"".join(reel.pieces)
            reel.pieces, reel.size = [], 0
            self._give(job, reel, Take(job, data, reel.rate, SAMPLES if reel.wound else 0))

    def _give(self, job: str, reel: _Reel, take: Take) -> None:
        size = len(take.data)
        if reel.wound:
            reel.wound += size
        if reel.given_up or self._waiting_bytes + size > MAX_WAITING_BYTES:
            self._give_up(job, reel, "disk")
            return
        if reel.wound > MAX_REEL_BYTES:
            self._give_up(job, reel, "size")
            return
        self._waiting_bytes += size
        self._due.append(take)
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
        size = sum(len(take.data) for take in due)
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
            reel.pieces, reel.size = [], 0
            log.info("recording.given_up", job=job, reason=reason)

    async def finish(
        self, job: str, tenant: str, user: str, later: Callable[[str], None] | None = None
    ) -> str:
        """End the recording of ``job``; its path, "" where there is none. One that must be
        decoded first is told to ``later``."""
        reel = self._reels.pop(job, None)
        if reel is None:
            return ""
        self._turn(job, reel)
        self._write()
        loop = asyncio.get_running_loop()
        try:
            if reel.wound and not reel.given_up:
                if later is not None and len(self._decoding) < MAX_DECODING:
                    self._decode_later(job, tenant, user, later)
                    return ""
                self._give_up(job, reel, "decoding")
            if reel.given_up:
                await loop.run_in_executor(self._disk, self.recordings.discard, job)
                return ""
            return await loop.run_in_executor(self._disk, self.recordings.finish, job, tenant, user)
        except OSError as error:
            log.warning("recording.lost", job=job, error=type(error).__name__)
            return ""

    def _decode_later(self, job: str, tenant: str, user: str, later: Callable[[str], None]) -> None:
        async def decode() -> None:
            loop = asyncio.get_running_loop()
            path, reason = "", "format"
            try:
                async with self._turn_to_decode:
                    # Behind everything of this job that the disk has not taken yet.
                    sources = await loop.run_in_executor(self._disk, self.recordings.sources, job)
                    if await _decoded([str(source) for source in sources]):
                        path = await loop.run_in_executor(
                            self._disk, self.recordings.place, job, tenant, user
                        )
            except (OSError, TimeoutError) as error:
                reason = type(error).__name__
            finally:
                if self._decoding.get(job) is asyncio.current_task():
                    del self._decoding[job]
                if not path:  # cancelled too, and then the thread may just have placed it
                    self._disk.submit(self.recordings.discard, job)
                    named = self.recordings.named(job, tenant, user)
                    self._disk.submit(self.recordings.remove, named)
            if path:
                later(path)
            else:
                log.info("recording.given_up", job=job, reason=reason)

        self._decoding[job] = asyncio.create_task(decode())

    async def discard(self, job: str) -> None:
        """Forget the recording of ``job``."""
        decoding = self._decoding.pop(job, None)
        if decoding is not None:
            decoding.cancel()
            await asyncio.gather(decoding, return_exceptions=True)
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
        """Wait for the disk, and `CLOSE_S` for what is being decoded; what is unfinished then
        is forgotten."""
        if self._decoding:
            await asyncio.wait(self._decoding.values(), timeout=CLOSE_S)
        for job in [*self._reels, *self._decoding]:
            await self.discard(job)
        await asyncio.to_thread(self._disk.shutdown)


async def _decoded(paths: list[str]) -> bool:
    """Whether the process that decodes made a recording. It ends with this one, or when
    nobody waits for it any more."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", DECODER, str(os.getpid()), *paths,
        stdin=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(DECODE_S):
            return await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


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

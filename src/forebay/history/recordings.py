"""Recordings on disk: WAV files under names that the server made.

A session's audio is collected beside the finished ones, and gets its length and its name
when it ends. From its first container on it is collected in a reel instead, which another
process makes a WAV file of (`sources`, then `place`). Paths are below one folder and never
contain anything a client said. All calls block: give them to a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from forebay.core import reel
from forebay.core.audio import wav_header
from forebay.errors import NotFound, StoreFull

__all__ = ["Recordings", "Take"]

HEADER_BYTES = 44
LEFT_S = 3600.0
"""A recording that grew no longer was left behind by a process that is gone."""
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT
_PATH = re.compile(r"[0-9a-f]{16}/[0-9a-f]{32}\.[a-z0-9]{2,5}")
_JOB = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Take:
    """What a session was sent next. ``kind``: 0 for samples of a recording that is nothing
    but samples of one rate, else what it is in a reel."""

    job: str
    data: bytes
    rate: int
    kind: int = 0


class Recordings:
    """The folder of recordings, for its owner only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts = folder / "parts"

    def append(self, job: str, data: bytes, rate: int) -> None:
        """Add mono s16le samples to what was recorded of ``job``, all at one rate."""
        file = self._open(_checked(job))
        try:
            if os.fstat(file).st_size == 0:
                data = wav_header(rate, 1) + data
            _write(file, data)
        finally:
            os.close(file)

    def wind(self, take: Take) -> None:
        """Add to the reel of a job whose recording another process is to make."""
        file = self._open(f"{_checked(take.job)}.reel")
        try:
            _write(file, reel.head(take.kind, take.rate, len(take.data)))
            _write(file, take.data)
        finally:
            os.close(file)

    def _open(self, name: str) -> int:
        path = f"{self._parts}/{name}"
        try:
            return os.open(path, _APPEND, 0o600)
        except FileNotFoundError:
            self._parts.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(path, _APPEND, 0o600)

    def append_all(self, takes: Iterable[Take]) -> list[str]:
        """`append` or `wind` each; the jobs that the disk refused."""
        refused = []
        for take in takes:
            try:
                if take.kind:
                    self.wind(take)
                else:
                    self.append(take.job, take.data, take.rate)
            except (OSError, NotFound):
                refused.append(take.job)
        return refused

    def sources(self, job: str) -> tuple[Path, Path, Path]:
        """What `forebay.worker.rewind` reads and writes: samples that came before the first
        container, if any, the reel, and the WAV file it is to make."""
        part = self._parts / _checked(job)
        return part, part.with_suffix(".reel"), part.with_suffix(".wav")

    def place(self, job: str, tenant: str, user: str) -> str:
        """Give the WAV file made of ``sources`` its final name and forget these. The path
        below the folder."""
        part, wound, made = self.sources(job)
        path = self.named(job, tenant, user)
        self._place(made, path)
        part.unlink(missing_ok=True)
        wound.unlink(missing_ok=True)
        return path

    def finish(self, job: str, tenant: str, user: str) -> str:
        """Give the recording of ``job`` its final name and length. The path below the folder,
        "" if nothing was recorded."""
        part = self._parts / _checked(job)
        if not part.is_file():
            return ""
        size = part.stat().st_size - HEADER_BYTES
        with part.open("r+b") as file:
            file.seek(4)
            file.write(struct.pack("<I", min(size + 36, 0xFFFFFFFF)))
            file.seek(40)
            file.write(struct.pack("<I", min(size, 0xFFFFFFFF)))
        path = self.named(job, tenant, user)
        self._place(part, path)
        return path

    def named(self, job: str, tenant: str, user: str) -> str:
        """Where the recording of ``job`` is when it is finished, below the folder."""
        return f"{_owner(tenant, user)}/{_checked(job)}.wav"

    def store(self, data: bytes, job: str, tenant: str, suffix: str) -> str:
        """Keep a file that was sent whole, as it is. The path below the folder. Raises
        `StoreFull` when the disk refuses."""
        path = f"{_owner(tenant, '')}/{_checked(job)}.{suffix}"
        target = self.folder / path
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            target.write_bytes(data)
        except OSError as error:
            target.unlink(missing_ok=True)
            raise StoreFull(f"the file cannot be kept: {error.strerror}") from error
        return path

    def _place(self, part: Path, path: str) -> None:
        target = self.folder / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.replace(target)

    def discard(self, job: str) -> None:
        """Forget what was recorded of a job that is not kept."""
        for path in self.sources(job):
            path.unlink(missing_ok=True)

    def path(self, path: str) -> Path:
        """The file. Raises `NotFound` for a path that is none of ours or gone."""
        if _PATH.fullmatch(path) is None or not (self.folder / path).is_file():
            raise NotFound("no such recording")
        return self.folder / path

    def remove(self, path: str) -> None:
        if _PATH.fullmatch(path) is not None:
            (self.folder / path).unlink(missing_ok=True)

    def clear_parts(self, now: float) -> int:
        """Remove what nobody has added to for `LEFT_S`; how many. ``now``: time of day.

        Not what is newer: another gateway with this folder may be recording it."""
        gone = 0
        for part in self._parts.glob("*") if self._parts.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # another gateway was faster
                if part.stat().st_mtime < now - LEFT_S:
                    part.unlink()
                    gone += 1
        return gone

    def used_bytes(self) -> int:
        if not self.folder.is_dir():
            return 0
        total = 0
        for place, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # removed or moved meanwhile
                    total += os.stat(os.path.join(place, name)).st_size
        return total


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _checked(job: str) -> str:
    if _JOB.fullmatch(job) is None:
        raise NotFound("no such recording")
    return job


def _owner(tenant: str, user: str) -> str:
    """A folder's name for a user, from which nothing can be read back."""
    return hashlib.sha256(f"{tenant}\0{user}".encode("utf-8", "replace")).hexdigest()[:16]

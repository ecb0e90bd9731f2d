"""Blobs in a local folder: one file each, in one directory that only its owner may enter."""

from __future__ import annotations

import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from forebay.blobs.ledger import Ledger, Limits, Usage
from forebay.blobs.names import (
    DEFAULT_LIFE_S,
    RANDOM_BITS,
    expires_s,
    is_name,
    name_of,
    owner_of,
)
from forebay.errors import ForebayError, NotFound, StoreFull

__all__ = ["FOLDER", "FileWriter", "FolderWriting", "LocalBlobs", "part_files"]

FOLDER = "blobs"
"""Their folder in the data folder."""

PART_LIFE_S = 3600.0
"""A write that was never finished, nor aborted, is forgotten after so long."""


class FileWriter:
    """A `BlobWriter` into ``folder``. ``publish`` is given the finished file and its name."""

    def __init__(
        self,
        folder: Path,
        name: str,
        ledger: Ledger,
        expected_bytes: int,
        publish: Callable[[Path, str], None],
    ) -> None:
        self.size = 0
        self._name = name
        self._ledger = ledger
        self._owner = owner_of(name)
        self._reserved = 0
        self._publish = publish
        self._part = folder / f"{name}.part"
        self._file: IO[bytes] | None = None
        self._reserve(expected_bytes)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = self._part.open("xb")
        except OSError as error:
            self.abort()
            raise _full(error) from error

    def _reserve(self, size: int) -> None:
        self._ledger.reserve(self._owner, size)
        self._reserved += size

    def write(self, data: bytes) -> None:
        file = self._open_file()
        try:
            if self.size + len(data) > self._reserved:
                self._reserve(self.size + len(data) - self._reserved)
            file.write(data)
        except OSError as error:
            self.abort()
            raise _full(error) from error
        except ForebayError:
            self.abort()
            raise
        self.size += len(data)

    def _open_file(self) -> IO[bytes]:
        if self._file is None:
            raise StoreFull("the blob was given up before it was whole")
        return self._file

    def finish(self) -> str:
        file = self._open_file()
        try:
            file.close()
            self._publish(self._part, self._name)
        except OSError as error:
            self.abort()
            raise _full(error) from error
        self._file = None
        self._ledger.stored(self._name, self.size)
        self._release()
        return self._name

    def abort(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
            self._part.unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        reserved, self._reserved = self._reserved, 0
        if reserved:
            self._ledger.release(self._owner, reserved)


def _full(error: OSError) -> StoreFull:
    return StoreFull(f"a blob cannot be written: {error.strerror or type(error).__name__}")


def part_files(folder: Path, wall: float) -> Iterator[Path]:
    """Writes that nobody will finish."""
    for path in folder.glob("*.part"):
        try:
            if path.stat().st_mtime < wall - PART_LIFE_S:
                yield path
        except FileNotFoundError:
            continue


class FolderWriting(ABC):
    """How every store of blobs writes: to a file of its own in ``folder`` first, which is then
    published whole. A store sets the attributes and says how it publishes."""

    folder: Path
    _wall: Callable[[], float]
    _tenant: str
    _life_s: float
    _ledger: Ledger

    def writer(self, expected_bytes: int = 0) -> FileWriter:
        name = name_of(self._tenant, self._wall() + self._life_s, secrets.randbits(RANDOM_BITS))
        return FileWriter(self.folder, name, self._ledger, expected_bytes, self._publish)

    @abstractmethod
    def _publish(self, part: Path, name: str) -> None:
        """Put the finished ``part`` where readers find it under ``name``. Raises `OSError`."""

    def put(self, parts: Iterable[bytes]) -> str:
        writer = self.writer()
        try:
            for data in parts:
                writer.write(data)
            return writer.finish()
        finally:
            writer.abort()


class LocalBlobs(FolderWriting):
    """The folder, made on first use with access for its owner only; a `Blobs`."""

    def __init__(
        self,
        folder: Path,
        limits: Limits | None = None,
        *,
        wall: Callable[[], float] = time.time,
        ledger: Ledger | None = None,
        tenant: str = "",
        life_s: float = DEFAULT_LIFE_S,
    ) -> None:
        self.folder = folder
        self._wall = wall
        self._tenant = tenant
        self._life_s = life_s
        self._ledger = ledger or Ledger(limits or Limits(), self._sizes, time.monotonic)

    def of(self, tenant: str, life_s: float | None = None) -> LocalBlobs:
        return LocalBlobs(
            self.folder,
            wall=self._wall,
            ledger=self._ledger,
            tenant=tenant,
            life_s=self._life_s if life_s is None else life_s,
        )

    def _publish(self, part: Path, name: str) -> None:
        os.replace(part, self.folder / name)

    def path(self, name: str) -> Path:
        path = self.folder / name
        if not is_name(name) or not path.is_file():
            raise NotFound("no such blob")
        return path

    def drop(self, name: str) -> None:
        if not is_name(name):
            return
        path = self.folder / name
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return
        self._ledger.dropped(name, size)

    def sweep(self) -> int:
        wall, gone = self._wall(), 0
        for name, _ in list(self._sizes()):
            if expires_s(name) < wall:
                self.drop(name)
                gone += 1
        for path in list(part_files(self.folder, wall)):
            path.unlink(missing_ok=True)
            gone += 1
        return gone

    def usage(self) -> Usage:
        return self._ledger.usage()

    def _sizes(self) -> Iterator[tuple[str, int]]:
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if is_name(entry.name):
                        try:
                            yield entry.name, entry.stat().st_size
                        except FileNotFoundError:
                            continue
        except FileNotFoundError:
            return

"""A log file that several processes write and that turns over by size.

Each process opens it for appending and writes whole lines with one call, so lines never mix.
Whoever finds it full renames it, under a lock that all share; the others see that the name
means another file and open that one. Nothing is lost and nobody waits for a daemon.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

__all__ = ["Forgiving", "LogFile", "LogPlace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPlace:
    """``path`` empty: standard error. ``files``: older ones kept, as ``PATH.1`` and so on."""

    path: str = ""
    size_bytes: int = 20 << 20
    files: int = 5

    def open(self) -> TextIO | None:
        """The file to write to; None where standard error is meant. Raises `OSError`."""
        if not self.path:
            return None
        return cast("TextIO", LogFile(Path(self.path), self.size_bytes, self.files))


class LogFile:
    """What a logger needs of a text file: `write`, `flush`. One call is one line or several."""

    encoding = "utf-8"

    def __init__(self, path: Path, size_bytes: int, files: int) -> None:
        self._path = path.absolute()
        self._size_bytes = size_bytes
        self._files = files
        self._fd = self._open()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, text: str) -> int:
        """Raises `OSError` when the disk is full: see `Forgiving`."""
        data = text.encode("utf-8", "backslashreplace")
        self._turn(len(data))
        os.write(self._fd, data)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        os.close(self._fd)

    def _turn(self, more: int) -> None:
        """Go over to a new file where another process already has, or where this is full."""
        if self._moved():
            self._reopen()
        if not self._full(more):
            return
        with self._locked():
            if self._moved():
                self._reopen()
            if self._full(more):
                self._rename()
                self._reopen()

    def _full(self, more: int) -> bool:
        size = os.fstat(self._fd).st_size
        return size > 0 and size + more > self._size_bytes

    def _moved(self) -> bool:
        try:
            named = os.stat(self._path)
        except FileNotFoundError:
            return True
        mine = os.fstat(self._fd)
        return (named.st_ino, named.st_dev) != (mine.st_ino, mine.st_dev)

    def _reopen(self) -> None:
        fresh = self._open()
        os.close(self._fd)
        self._fd = fresh

    def _rename(self) -> None:
        for number in range(self._files, 0, -1):
            older = self._older(number - 1) if number > 1 else self._path
            with contextlib.suppress(FileNotFoundError):
                older.replace(self._older(number))
        if not self._files:
            self._path.unlink(missing_ok=True)

    def _older(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(
            self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600
        )
        try:
            if sys.platform != "win32":  # there the server itself does not run
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


class Forgiving:
    """``out`` for loggers, which nobody's work fails for: lines that it does not take (its disk
    is full, its reader is gone) are counted, and ``told`` of as a line once it takes some."""

    def __init__(self, out: TextIO, told: Callable[[int], str]) -> None:
        self._out = out
        self._told = told
        self._lost = 0

    def write(self, text: str) -> int:
        try:
            if self._lost:
                self._out.write(self._told(self._lost))
                self._lost = 0
            self._out.write(text)
        except OSError:
            self._lost += 1
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):  # the next line that does not go out is counted
            self._out.flush()

"""The steps table: what a worker was inside of, readable after it has died.

A small file, mapped by the worker and by its supervisor. The worker writes (job, attempt)
into a slot before it calls the engine's ``open`` or ``step`` and clears the slot after; a
process that dies by SIGKILL leaves the memory as it was. The head says whose child the
worker must be, whether it became ready, and why it could not boot.

Layout: head of 1024 bytes (magic, supervisor pid, ready, length and text of the boot
failure), then slots of 64 bytes (used, length of the id, attempt, id).
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from types import TracebackType

from forebay.errors import ConfigError, EngineFailed

__all__ = ["SLOTS", "StepsTable"]

SLOTS = 1024
_MAGIC = b"FBSTEP1\n"
_HEAD_BYTES = 1024
_SLOT_BYTES = 64
_ID_BYTES = 56
_PID_AT, _READY_AT, _WHY_AT = 8, 16, 32
_WHY_BYTES = _HEAD_BYTES - _WHY_AT - 2
_SLOT = struct.Struct("<BxHI")  # used, length of id, attempt; then the id
_WHOLE = struct.Struct(f"<BxHI{_ID_BYTES}s")


class _Inside:
    """One slot in use. A class and no generator: this is on the way of every step."""

    __slots__ = ("_attempt", "_index", "_job", "_table")

    def __init__(self, table: StepsTable, job: str, attempt: int) -> None:
        self._table = table
        self._job, self._attempt = job, attempt

    def __enter__(self) -> None:
        self._index = self._table.enter(self._job, self._attempt)

    def __exit__(self, *_: object) -> None:
        self._table.leave(self._index)


class StepsTable:
    """One worker's table. `create` is the supervisor's call, `open` the worker's."""

    def __init__(self, path: Path, table: mmap.mmap) -> None:
        self.path = path
        self._map = table
        self._free = list(range((len(table) - _HEAD_BYTES) // _SLOT_BYTES - 1, -1, -1))

    @classmethod
    def create(cls, path: Path) -> StepsTable:
        """A fresh table, mode 0600, marked with this process as the supervisor."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(fd, _HEAD_BYTES + SLOTS * _SLOT_BYTES)
            table = cls(path, mmap.mmap(fd, 0))
        finally:
            os.close(fd)
        struct.pack_into("<I", table._map, _PID_AT, os.getpid())
        table._map[: len(_MAGIC)] = _MAGIC
        return table

    @classmethod
    def open(cls, path: str | Path) -> StepsTable:
        """The table at ``path``. Raises `ConfigError` when that is no steps table."""
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError as exc:
            raise ConfigError(f"cannot open steps file {path}: {exc.strerror}") from exc
        try:
            if os.fstat(fd).st_size < _HEAD_BYTES + _SLOT_BYTES:
                raise ConfigError(f"{path} is no steps file")
            table = cls(Path(path), mmap.mmap(fd, 0))
        finally:
            os.close(fd)
        if table._map[: len(_MAGIC)] != _MAGIC:
            table.close()
            raise ConfigError(f"{path} is no steps file")
        return table

    # ------------------------------------------------------------------ the worker

    @property
    def supervisor_pid(self) -> int:
        return int(struct.unpack_from("<I", self._map, _PID_AT)[0])

    def inside(self, job: str, attempt: int) -> _Inside:
        """Mark (job, attempt) as being inside the engine for as long as the block runs."""
        return _Inside(self, job, attempt)

    def enter(self, job: str, attempt: int) -> int:
        """Mark (job, attempt) as being inside the engine; what is returned goes to `leave`."""
        if not self._free:
            raise EngineFailed(f"{SLOTS} steps at once, expected no more than {SLOTS}")
        index = self._free.pop()
        at = _HEAD_BYTES + index * _SLOT_BYTES
        name = job.encode()[:_ID_BYTES]
        table = self._map
        # The used byte goes last: a slot half written is a slot not used.
        _WHOLE.pack_into(table, at, 0, len(name), attempt, name)
        table[at] = 1
        return index

    def leave(self, index: int) -> None:
        self._map[_HEAD_BYTES + index * _SLOT_BYTES] = 0
        self._free.append(index)

    def mark_ready(self) -> None:
        self._map[_READY_AT] = 1

    def mark_failed(self, why: str) -> None:
        """Leave the reason of a boot failure for the supervisor (cut at about 1 KB)."""
        text = why.encode()[:_WHY_BYTES].decode(errors="ignore").encode()
        self._map[_WHY_AT + 2 : _WHY_AT + 2 + len(text)] = text
        struct.pack_into("<H", self._map, _WHY_AT, len(text))

    # -------------------------------------------------------------- the supervisor

    @property
    def ready(self) -> bool:
        return bool(self._map[_READY_AT])

    @property
    def failure(self) -> str:
        (length,) = struct.unpack_from("<H", self._map, _WHY_AT)
        return self._map[_WHY_AT + 2 : _WHY_AT + 2 + length].decode(errors="replace")

    def stepping(self) -> list[tuple[str, int]]:
        """(job, attempt) of every slot in use."""
        found = []
        for at in range(_HEAD_BYTES, len(self._map), _SLOT_BYTES):
            used, length, attempt = _SLOT.unpack_from(self._map, at)
            if used:
                name = self._map[at + _SLOT.size : at + _SLOT.size + length]
                found.append((name.decode(errors="replace"), int(attempt)))
        return found

    def close(self) -> None:
        self._map.close()

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> StepsTable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

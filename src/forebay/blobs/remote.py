"""Blobs wherever fsspec reaches: object stores and network folders, named by a URL.

A blob is written to a local file first and published whole by one upload; a reader gets a
local copy. Copies lie in a cache folder of this machine, under the blobs' own names, which
say for themselves when they may go.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec

from forebay.blobs.ledger import Ledger, Limits, Usage
from forebay.blobs.local import FolderWriting, part_files
from forebay.blobs.names import DEFAULT_LIFE_S, expires_s, is_name
from forebay.errors import ConfigError, NotFound, StoreFull

__all__ = ["RemoteBlobs", "cache_folder"]

CACHE_BYTES = 1024 * 1024 * 1024
"""More than this many bytes of copies are thinned out by `RemoteBlobs.sweep`."""
CACHE_REST_S = 600.0
"""A copy that was made or read so lately stays: somebody may be about to open it."""


def cache_folder(temporary: str) -> Path:
    """This user's folder of copies. Raises `ConfigError` when it is somebody else's."""
    folder = Path(temporary) / f"forebay-blobs-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o077 or folder.is_symlink():
        raise ConfigError(f"{folder} is not this user's own folder, expected mode 700")
    return folder


class RemoteBlobs(FolderWriting):
    """A `Blobs` at ``url``. Making one connects to nothing yet."""

    def __init__(
        self,
        url: str,
        cache: Path,
        limits: Limits | None = None,
        *,
        wall: Callable[[], float] = time.time,
        shared: tuple[Any, str, Ledger] | None = None,
        tenant: str = "",
        life_s: float = DEFAULT_LIFE_S,
    ) -> None:
        self.url = url
        self.folder = cache
        self._wall = wall
        self._tenant = tenant
        self._life_s = life_s
        if shared is None:
            fs, root = fsspec.core.url_to_fs(url)
            ledger = Ledger(limits or Limits(), self._sizes, time.monotonic)
            shared = (fs, str(root).rstrip("/"), ledger)
        self._fs, self._root, self._ledger = shared

    def of(self, tenant: str, life_s: float | None = None) -> RemoteBlobs:
        return RemoteBlobs(
            self.url,
            self.folder,
            wall=self._wall,
            shared=(self._fs, self._root, self._ledger),
            tenant=tenant,
            life_s=self._life_s if life_s is None else life_s,
        )

    def _publish(self, part: Path, name: str) -> None:
        try:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.put_file(str(part), self._at(name))
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - each store has errors of its own
            raise OSError(0, f"the blob store refused it ({type(error).__name__})") from error
        os.replace(part, self.folder / name)

    def path(self, name: str) -> Path:
        path = self.folder / name
        if not is_name(name):
            raise NotFound("no such blob")
        if path.is_file():
            os.utime(path)
            return path
        part = self.folder / f"{name}.{secrets.token_hex(4)}.part"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fs.get_file(self._at(name), str(part))
            os.replace(part, path)
        except FileNotFoundError as error:
            raise NotFound("no such blob") from error
        except Exception as error:
            raise StoreFull(
                f"the blob store cannot be read ({type(error).__name__})", retry_after_s=1.0
            ) from error
        finally:
            part.unlink(missing_ok=True)
        return path

    def drop(self, name: str) -> None:
        if not is_name(name):
            return
        (self.folder / name).unlink(missing_ok=True)
        try:
            size = int(self._fs.info(self._at(name))["size"] or 0)
            self._fs.rm_file(self._at(name))
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
        self._thin(wall)
        return gone

    def _thin(self, wall: float) -> None:
        """Copies past their time go, and the oldest ones while there are too many."""
        copies = []
        for path in self.folder.glob("*"):
            if is_name(path.name):
                with contextlib.suppress(FileNotFoundError):  # another gateway was faster
                    facts = path.stat()
                    copies.append((facts.st_mtime, facts.st_size, path))
        held = sum(size for _, size, _ in copies)
        for used_at, size, path in sorted(copies):
            old = expires_s(path.name) < wall
            if old or (held > CACHE_BYTES and used_at < wall - CACHE_REST_S):
                path.unlink(missing_ok=True)
                held -= size

    def usage(self) -> Usage:
        return self._ledger.usage()

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _sizes(self) -> Iterator[tuple[str, int]]:
        try:
            found = self._fs.ls(self._root, detail=True, refresh=True)
        except FileNotFoundError:
            return
        for entry in found:
            name = str(entry["name"]).rsplit("/", 1)[-1]
            if is_name(name):
                yield name, int(entry.get("size") or 0)

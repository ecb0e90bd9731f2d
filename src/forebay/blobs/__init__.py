"""Blobs: what is too large for a stream item, under an unguessable name of our making.

A blob is written whole or not at all and never changed. Its name says whose it is and how
long it is kept (`blobs.names`). One contract, two homes: a local folder, which the gateway
and the workers of one machine share, and any place that fsspec reaches by URL (S3, NFS,
HTTP stores), which those of several machines share. `open_blobs` gives one or the other.

All calls block and are thread-safe: call them in a thread where the loop must not wait.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from forebay.blobs.ledger import Limits, Usage
from forebay.blobs.local import FOLDER, LocalBlobs
from forebay.blobs.names import DEFAULT_LIFE_S
from forebay.errors import ConfigError, MissingEngine

__all__ = [
    "DEFAULT_LIFE_S",
    "FOLDER",
    "BlobWriter",
    "Blobs",
    "Limits",
    "LocalBlobs",
    "Usage",
    "open_blobs",
]


class BlobWriter(Protocol):
    """One blob under way. End it with `finish` or `abort`."""

    size: int

    def write(self, data: bytes) -> None:
        """Raises `QuotaExceeded`, `StoreFull`; the writer is then aborted."""

    def finish(self) -> str:
        """The blob's name; from now on it is there. Raises as `write`."""

    def abort(self) -> None:
        """Forget what was written. Idempotent; nothing happens after `finish`."""


class Blobs(Protocol):
    """A store of blobs, as one owner sees it."""

    def of(self, tenant: str, life_s: float | None = None) -> Blobs:
        """The same store for what is written on behalf of ``tenant``, to be kept so long, or
        for as long as here."""

    def writer(self, expected_bytes: int = 0) -> BlobWriter:
        """Begin a blob. ``expected_bytes`` are counted against the limits at once. Raises
        `QuotaExceeded`, `StoreFull`."""

    def put(self, parts: Iterable[bytes]) -> str:
        """Write one blob and return its name. Raises `QuotaExceeded`, `StoreFull`."""

    def path(self, name: str) -> Path:
        """A local file with its content, to be read only, and soon. Raises `NotFound` for an
        unknown or malformed name."""

    def drop(self, name: str) -> None:
        """Forget a blob. Nothing happens when it is gone already."""

    def sweep(self) -> int:
        """Remove what is past its time, unfinished writes too; how many went."""

    def usage(self) -> Usage:
        """How much is stored, of all owners."""


def open_blobs(place: str | Path, limits: Limits | None = None, cache: Path | None = None) -> Blobs:
    """The store at ``place``: a folder, or an fsspec URL such as ``s3://bucket/folder``.

    ``cache``: where copies of remote blobs lie; default a folder of this user's own under the
    system's temporary one. Raises `ConfigError` for a URL that nothing here understands and
    `MissingEngine` where its package is not installed."""
    if "://" not in str(place):
        return LocalBlobs(Path(place), limits or Limits())
    from forebay.blobs.remote import RemoteBlobs, cache_folder

    try:
        return RemoteBlobs(str(place), cache or cache_folder(tempfile.gettempdir()), limits)
    except ImportError as error:
        raise MissingEngine(
            f"blobs at {str(place).partition('://')[0]}:// need a package: {error}", stage="blobs"
        ) from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"blobs cannot be kept at {place}: {error}") from error

"""Blobs in a local folder: what is too large for a stream item, under an unguessable name.

A blob is written whole or not at all and never changed. Ids are made by whoever writes, 32
hex digits; anything else is refused, so an id is never a path. Gateway and workers of one
machine share the folder.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from forebay.errors import NotFound, StoreFull

__all__ = ["FOLDER", "LocalBlobs"]

FOLDER = "blobs"
"""Their folder in the data folder."""

_ID = re.compile(r"[0-9a-f]{32}")


class LocalBlobs:
    """The folder, made on first use with access for its owner only. All calls block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, parts: Iterable[bytes]) -> str:
        """Write one blob and return its id. Raises `StoreFull` when the disk refuses."""
        name = secrets.token_hex(16)
        part = self.folder / f"{name}.part"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with part.open("xb") as file:
                for data in parts:
                    file.write(data)
            os.replace(part, self.folder / name)
        except OSError as exc:
            part.unlink(missing_ok=True)
            raise StoreFull(f"a blob cannot be written: {exc.strerror}") from exc
        return name

    def path(self, name: str) -> Path:
        """Where the blob lies. Raises `NotFound` for an unknown or malformed id."""
        path = self.folder / name
        if _ID.fullmatch(name) is None or not path.is_file():
            raise NotFound("no such blob")
        return path

    def drop(self, name: str) -> None:
        """Forget a blob. Nothing happens when it is gone already."""
        if _ID.fullmatch(name) is not None:
            (self.folder / name).unlink(missing_ok=True)

    def sweep(self, older_than_s: float) -> int:
        """Remove what was written longer ago, unfinished writes too; how many went."""
        gone, limit = 0, time.time() - older_than_s
        for path in self.folder.glob("*") if self.folder.is_dir() else ():
            if path.is_file() and path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)
                gone += 1
        return gone

"""Several results as one zip, made while it is sent: no file on disk, nothing whole in memory."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from forebay.gateway.responses import Headers, Send

__all__ = ["ZipEntry", "send_zip", "unique_names", "zip_pieces"]

PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class ZipEntry:
    name: str
    path: Path


class _Outlet(io.RawIOBase):
    """A file that cannot seek; what was written is taken away with `take`."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self._pieces.append(piece)
        return len(piece)

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def unique_names(names: Sequence[str]) -> list[str]:
    """The same names, those that come again with a number."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        count = seen.get(name, 0)
        seen[name] = count + 1
        stem, dot, suffix = name.rpartition(".")
        found.append(f"{stem} ({count}){dot}{suffix}" if count else name)
    return found


def zip_pieces(entries: Sequence[ZipEntry]) -> Iterator[bytes]:
    """The archive, piece by piece. Pictures are packed already, so they are only stored."""
    outlet = _Outlet()
    with zipfile.ZipFile(outlet, "w", zipfile.ZIP_STORED) as archive:
        for entry in entries:
            with entry.path.open("rb") as file, archive.open(entry.name, "w") as packed:
                while data := file.read(PIECE_BYTES):
                    packed.write(data)
                    yield outlet.take()
    yield outlet.take()


async def send_zip(send: Send, entries: Sequence[ZipEntry], headers: Headers) -> None:
    """Answer with the archive of ``entries``."""
    start = [
        (b"content-type", b"application/zip"),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"private, no-store"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": 200, "headers": start})
    pieces = zip_pieces(entries)
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})

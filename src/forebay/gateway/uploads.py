"""Uploads on their way to the disk: many at once, none of them in memory.

Each file of a form goes straight into a blob under a name of ours; what a client calls it is
kept as text and never becomes a path. The store's limits hold for what is announced, so an
upload that will not fit is refused before its body is read. Disk is written in a thread.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from forebay.blobs import Blobs, BlobWriter
from forebay.errors import BadRequest, ForebayError, TooLarge, Unsupported
from forebay.gateway.access import header
from forebay.gateway.forms import FileSink, Form, FormReader
from forebay.gateway.responses import Receive, Scope

__all__ = ["FileLimits", "Stored", "Uploads", "read_uploads"]

HELD_BYTES = 256 * 1024
"""An upload has at most about so much in memory, and then waits for the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLimits:
    """``field``: the form field whose files are wanted; those of others are refused."""

    field: str
    files: int
    file_bytes: int
    also: tuple[str, ...] = ()  # other names that clients give the field


@dataclass(frozen=True, slots=True)
class Stored:
    """One file. ``name`` and ``type`` are the client's words."""

    name: str
    type: str
    blob: str
    size_bytes: int


class _Spool:
    """A `FileSink` into a blob."""

    def __init__(self, writer: BlobWriter, name: str, kind: str, limit: int) -> None:
        self.name = name
        self.type = kind
        self.size = 0
        self.whole = False
        self.held: list[bytes] = []
        self.held_bytes = 0
        self.writer = writer
        self._limit = limit

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._limit:
            raise TooLarge(
                f"the file has over {self._limit} bytes, expected no more",
                limit_bytes=self._limit,
            )
        self.held.append(data)
        self.held_bytes += len(data)

    def close(self) -> None:
        self.whole = True

    def flush(self) -> None:
        held, self.held, self.held_bytes = self.held, [], 0
        for data in held:
            self.writer.write(data)


class Uploads:
    """The files of one form under way. Leave with `abort` unless `finish` has returned."""

    def __init__(self, blobs: Blobs, limits: FileLimits, expected_bytes: int) -> None:
        self._blobs = blobs
        self._limits = limits
        self._spools: list[_Spool] = []
        # Announced as one: how it divides into files is known only when they are here.
        self._first: BlobWriter | None = blobs.writer(expected_bytes)

    def open(self, field: str, name: str, kind: str) -> FileSink:
        limits = self._limits
        if field != limits.field and field not in limits.also:
            raise BadRequest(f"a file is in another field than {limits.field}", param="file")
        if len(self._spools) >= limits.files:
            raise BadRequest(
                f"over {limits.files} files, expected no more",
                limit=limits.files,
                word=f"Maximum {limits.files} files allowed",
            )
        writer, self._first = self._first, None
        spool = _Spool(writer or self._blobs.writer(), name, kind, limits.file_bytes)
        self._spools.append(spool)
        return spool

    async def settle(self, at_least: int = HELD_BYTES) -> None:
        """Write what is held, where it is so much."""
        if sum(spool.held_bytes for spool in self._spools) >= max(1, at_least):
            await asyncio.to_thread(self._flush)

    def _flush(self) -> None:
        for spool in self._spools:
            if spool.held:
                spool.flush()

    async def finish(self) -> list[Stored]:
        """The files, in the order in which they came."""
        return await asyncio.to_thread(self._finish)

    def _finish(self) -> list[Stored]:
        self._flush()
        done: list[Stored] = []
        try:
            for spool in self._spools:
                blob = spool.writer.finish()
                done.append(Stored(spool.name, spool.type, blob, spool.size))
        except ForebayError:
            for stored in done:
                self._blobs.drop(stored.blob)
            raise
        finally:
            self._abort()
        return done

    async def abort(self) -> None:
        await asyncio.to_thread(self._abort)

    def _abort(self) -> None:
        first, self._first = self._first, None
        if first is not None:
            first.abort()
        for spool in self._spools:
            spool.writer.abort()
        self._spools = []


async def read_uploads(
    scope: Scope, receive: Receive, blobs: Blobs, limits: FileLimits
) -> tuple[Form, list[Stored]] | None:
    """The form's text fields, and its files as blobs; None when the client left inside it.

    Nothing is left behind where this raises: `Unsupported`, `BadRequest`, `TooLarge`,
    `QuotaExceeded`, `StoreFull`."""
    content_type = header(scope, b"content-type") or ""
    if not content_type.lower().startswith("multipart/form-data"):
        raise Unsupported("the body is no multipart/form-data")
    length = header(scope, b"content-length") or "0"
    uploads = await _begun(blobs, limits, int(length))
    try:
        reader = FormReader(content_type, uploads.open)
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            reader.feed(message.get("body", b""))
            if not message.get("more_body", False):
                break
            await uploads.settle()
        form = reader.finish()
        return form, await uploads.finish()
    finally:
        # In its own task: a connection that is cut leaves nothing behind either.
        await asyncio.shield(asyncio.ensure_future(uploads.abort()))


async def _begun(blobs: Blobs, limits: FileLimits, expected_bytes: int) -> Uploads:
    """Cancelling this gives back what was announced meanwhile."""
    begin = asyncio.ensure_future(asyncio.to_thread(Uploads, blobs, limits, expected_bytes))
    try:
        return await asyncio.shield(begin)
    except asyncio.CancelledError:
        await (await begin).abort()
        raise

"""A notebook's job between its streams and its kernel: what is large goes beside, as blobs.

Code and file content over the item bound come as blobs and are read here; outputs and file
content over it leave as blobs (`Display.blobs`, `Result.blob`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import msgspec

from forebay.blobs import Blobs
from forebay.core.events import (
    Cell,
    Display,
    FileOp,
    InputItem,
    Notice,
    OutputEvent,
    Result,
    size_of,
)
from forebay.core.spec import Lease
from forebay.engines import EngineInfo, Resume
from forebay.errors import EngineFailed, ForebayError, TooLarge
from forebay.worker.session import Fate

if TYPE_CHECKING:
    from forebay.worker.cut import Work
    from forebay.worker.runner import Runner
    from forebay.worker.session import Session

__all__ = ["Cells", "make"]

INLINE_BYTES = 48 * 1024
BLOB_BYTES = 64 * 1024 * 1024
LIFE_S = 24 * 3600.0


def make(lease: Lease, info: EngineInfo, blobs: Blobs | None) -> Cells:
    return Cells(lease, blobs)


class Cells:
    """One job of a notebook, cell or file operation."""

    def __init__(self, lease: Lease, blobs: Blobs | None) -> None:
        self._tenant = lease.spec.tenant
        self._blobs = blobs

    async def step(self, runner: Runner, session: Session, work: Work) -> None:
        items = [await self._whole(item) for item in work.items]
        events = runner.engine.step(session.engine_session, items)
        async with aclosing(cast(Any, events)):
            async for event in events:
                await runner.write(session, await self._sent(event))
                if session.fate is not Fate.LIVE:
                    return
        session.cutter.finished(work)

    def resume(self, resume: Resume) -> Resume:
        return resume

    def details(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Nothing is held: blobs are kept as long as the job is remembered."""

    # ---------------------------------------------------------------------- coming in

    async def _whole(self, item: InputItem) -> InputItem:
        if not isinstance(item, Cell | FileOp) or not item.blob:
            return item
        if self._blobs is None:
            raise EngineFailed("what is too large for a stream cannot be read here")
        path = await asyncio.to_thread(self._blobs.path, item.blob)
        data = await asyncio.to_thread(path.read_bytes)
        if isinstance(item, Cell):
            return Cell(code=data.decode("utf-8", "replace"), offset=item.offset)
        return FileOp(op=item.op, args={**item.args, "data": data}, offset=item.offset)

    # --------------------------------------------------------------------- going out

    async def _sent(self, event: OutputEvent) -> OutputEvent:
        """``event`` as it is sent. An engine yields only what a notebook may say."""
        match event:
            case Display():
                small = event.what == "stream" or size_of(event) <= INLINE_BYTES
                return event if small else await self._beside(event)
            case Result():
                return await self._result(event)
            case Notice():
                return event
        raise EngineFailed(f"engine yielded {type(event).__name__}, expected a cell's output")

    async def _result(self, event: Result) -> Result:
        data = event.value.get("data")
        if not isinstance(data, bytes):
            return await self._listing(event)
        if len(data) <= INLINE_BYTES:
            return event
        blob = await self._put(data)
        rest = {key: value for key, value in event.value.items() if key != "data"}
        return msgspec.structs.replace(event, value=rest, blob=blob, size_bytes=len(data))

    async def _listing(self, event: Result) -> Result:
        """A long list of files is JSON in a blob."""
        if size_of(event) <= INLINE_BYTES:
            return event
        data = msgspec.json.encode(event.value)
        return Result(blob=await self._put(data), type="application/json", size_bytes=len(data))

    async def _beside(self, event: Display) -> Display:
        """The large parts of ``event`` as blobs, largest first, until the rest is small."""
        data, blobs = dict(event.data), dict(event.blobs)
        for mime in sorted(data, key=lambda m: -_length(data[m])):
            if size_of(msgspec.structs.replace(event, data=data, blobs=blobs)) <= INLINE_BYTES:
                break
            try:
                blobs[mime] = await self._put(_bytes(mime, data[mime]))
            except ForebayError as error:
                data[mime] = f"[{mime}: not kept, {error.message}]"
                continue
            del data[mime]
        return msgspec.structs.replace(event, data=data, blobs=blobs)

    async def _put(self, data: bytes) -> str:
        if self._blobs is None:
            raise TooLarge(f"{len(data)} bytes, expected no more than {INLINE_BYTES}")
        if len(data) > BLOB_BYTES:
            raise TooLarge(f"{len(data)} bytes, expected no more than {BLOB_BYTES}")
        owned = self._blobs.of(self._tenant, LIFE_S)
        return await asyncio.to_thread(owned.put, [data])


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str) else len(msgspec.json.encode(value))


def _bytes(mime: str, value: Any) -> bytes:
    """The content as a browser wants it: Jupyter sends pictures as base64."""
    if not isinstance(value, str):
        return msgspec.json.encode(value)
    binary = mime.startswith(("image/", "audio/", "video/")) and mime != "image/svg+xml"
    if binary or mime == "application/pdf":
        try:
            return base64.b64decode(value, validate=False)
        except (binascii.Error, ValueError):
            pass  # not base64 after all: as it is
    return value.encode("utf-8", "replace")

"""Pictures in a worker: decode under limits, have the engine work, keep tiles, compose.

A tile is drawn into the canvas, written as a blob and then committed, in this order: what
a reader is told of is there. A new attempt has the committed tiles in its lease; the engine
leaves them out, and they are read back from their blobs when the result is composed.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
import numpy as np

from forebay.blobs import Blobs
from forebay.core.events import Notice, OutputEvent, Picture, Progress, Result, Tile
from forebay.core.spec import Lease
from forebay.engines import EngineInfo, Resume
from forebay.engines.pictures import Pixels
from forebay.errors import BadRequest, EngineFailed, NotFound, ProtocolError, TooLarge, Unsupported
from forebay.worker.pixels import (
    TILE_TYPE,
    Decoded,
    decode,
    draw_tile,
    encode,
    encode_tile,
    refuse_format,
)
from forebay.worker.session import Fate

if TYPE_CHECKING:
    from forebay.worker.cut import Work
    from forebay.worker.runner import Runner
    from forebay.worker.session import Session

__all__ = ["PictureWork", "make"]

MAX_MPX = 40.0
MAX_SIDE = 12_000
MAX_RESULT_MPX = 160.0
"""Half a gigabyte of canvas. Engines that say less in ``facts`` are held to that."""
TILES_FROM, TILES_TO = 0.02, 0.95
"""The shares of progress that are told before the first tile and after the last."""

T = TypeVar("T")


def make(lease: Lease, info: EngineInfo, blobs: Blobs | None) -> PictureWork:
    """Raises `BadRequest` for parameters that make no result and `Unsupported` where no
    folder is shared with the gateway."""
    if blobs is None:
        raise Unsupported("this worker shares no folder with the gateway, pictures need one")
    return PictureWork(lease, info, blobs)


class PictureWork:
    """One picture on one attempt; a `worker.handler.Handler`."""

    def __init__(self, lease: Lease, info: EngineInfo, blobs: Blobs) -> None:
        params, facts = lease.spec.params, info.facts
        self._blobs = blobs.of(lease.spec.tenant)
        self._format = str(params.get("format") or "jpeg")
        self._quality = _quality(params.get("quality"))
        refuse_format(self._format, 1, 1)
        self._max_px = round(float(facts.get("max_mpx", MAX_MPX)) * 1e6)
        self._max_side = int(facts.get("max_side", MAX_SIDE))
        self._max_result_px = round(float(facts.get("max_result_mpx", MAX_RESULT_MPX)) * 1e6)
        self._before = {tile.index: tile for tile in lease.tiles if self._has(tile)}
        self._told = lease.counts.get("notice", 0)  # notices that an earlier attempt has told
        self._canvas: Pixels | None = None
        self._made: set[int] = set()
        self._total = 0
        self._began = 0.0
        self._source = Decoded(0, 0, b"")

    def _has(self, tile: Tile) -> bool:
        try:
            self._blobs.path(tile.blob)
        except NotFound:
            return False
        return True

    def resume(self, resume: Resume) -> Resume:
        """Tiles whose blobs are gone are made again."""
        return Resume(attempt=resume.attempt, tiles=tuple(self._before.values()))

    # ---------------------------------------------------------------------- one step

    async def step(self, runner: Runner, session: Session, work: Work) -> None:
        picture = work.items[0]
        if not isinstance(picture, Picture):
            raise ProtocolError(f"input item {type(picture).__name__}, expected a picture")
        await runner.write(session, Progress(value=0.0, stage="decode"))
        self._source = source = await self._in_thread(lambda: self._decode(picture))
        given = msgspec.structs.replace(
            picture, width=source.width, height=source.height, data=source.data
        )
        for code, message in source.notes[self._told :]:
            await runner.write(session, Notice(code=code, message=message))
        self._told = max(0, self._told - len(source.notes))
        self._began = time.monotonic()
        events = runner.engine.step(session.engine_session, [given])
        async with aclosing(cast(Any, events)):
            async for event in events:
                await self._event(runner, session, event)
                if session.fate is not Fate.LIVE:
                    return
        await runner.write(session, Progress(value=TILES_TO, stage="encode"))
        await self._finish(runner, session, work)

    def _decode(self, picture: Picture) -> Decoded:
        path = self._blobs.path(picture.blob)
        return decode(path, picture, max_px=self._max_px, max_side=self._max_side)

    async def _event(self, runner: Runner, session: Session, event: OutputEvent) -> None:
        match event:
            case Result():
                self._begin(event.width, event.height)
                await runner.write(session, Progress(value=TILES_FROM, stage="tiles"))
            case Tile():
                await self._tile(runner, session, event)
            case Notice():
                if self._told:
                    self._told -= 1
                else:
                    await runner.write(session, event)
            case Progress():
                await runner.write(session, event)
            case _:
                raise EngineFailed(f"engine yielded {type(event).__name__}, expected tiles")

    def _begin(self, width: int, height: int) -> None:
        if self._canvas is not None or width < 1 or height < 1:
            raise EngineFailed(f"engine announced a picture of {width}x{height}")
        if width * height > self._max_result_px:
            raise TooLarge(
                f"the result would be {width}x{height} = {width * height} pixels, "
                f"expected no more than {self._max_result_px}",
                limit_px=self._max_result_px,
            )
        refuse_format(self._format, width, height)
        try:
            self._canvas = np.empty((height, width, 3), np.uint8)
        except MemoryError as exc:
            raise TooLarge(
                f"a result of {width}x{height} pixels needs more memory than this worker may have"
            ) from exc

    async def _tile(self, runner: Runner, session: Session, tile: Tile) -> None:
        canvas = self._checked(tile)
        pixels = np.frombuffer(tile.data, np.uint8).reshape(tile.height, tile.width, 3)
        canvas[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] = pixels
        self._made.add(tile.index)
        self._total = tile.total

        def put() -> str:
            return self._blobs.put([encode_tile(tile.width, tile.height, tile.data)])

        blob = await self._in_thread(put, str)
        out = msgspec.structs.replace(tile, data=b"", blob=blob, type=TILE_TYPE)
        await self._write(runner, session, out, blob)
        await runner.write(session, self._progress())

    def _checked(self, tile: Tile) -> Pixels:
        canvas = self._canvas
        if canvas is None:
            raise EngineFailed("engine yielded a tile before the size of its picture")
        height, width = canvas.shape[:2]
        inside = (
            0 <= tile.x <= tile.x + tile.width <= width
            and 0 <= tile.y <= tile.y + tile.height <= height
            and 0 <= tile.index < tile.total
        )
        if not inside or len(tile.data) != tile.width * tile.height * 3:
            raise EngineFailed(
                f"tile {tile.index} of {tile.total}: {tile.width}x{tile.height} at "
                f"{tile.x},{tile.y} with {len(tile.data)} bytes in {width}x{height}"
            )
        return canvas

    def _progress(self) -> Progress:
        done = len(self._made | self._before.keys())
        share = min(1.0, done / self._total)
        used_s = time.monotonic() - self._began
        eta_s = round(used_s / len(self._made) * max(0, self._total - done), 1)
        value = TILES_FROM + share * (TILES_TO - TILES_FROM)
        return Progress(value=round(value, 4), stage="tiles", eta_s=eta_s)

    # ----------------------------------------------------------------------- the end

    async def _finish(self, runner: Runner, session: Session, work: Work) -> None:
        canvas = self._canvas
        if canvas is None:
            raise EngineFailed("engine made no picture")

        def compose() -> tuple[str, int, str]:
            self._draw_earlier(canvas)
            try:
                data = encode(canvas, self._format, self._quality, self._source.icc)
            except MemoryError as exc:
                raise TooLarge("the result needs more memory than this worker may have") from exc
            return self._blobs.put([data]), len(data), hashlib.sha256(data).hexdigest()

        blob, size, digest = await self._in_thread(compose, lambda made: made[0])
        session.cutter.finished(work)  # what is committed from here on needs no input any more
        height, width = canvas.shape[:2]
        out = Result(
            blob=blob,
            type=f"image/{self._format}",
            size_bytes=size,
            sha256=digest,
            width=width,
            height=height,
        )
        await self._write(runner, session, out, blob)

    def _draw_earlier(self, canvas: Pixels) -> None:
        """What earlier attempts have made, and with it everything."""
        total = self._total or next((t.total for t in self._before.values()), 0)
        area = 0
        for index in range(total):
            if index not in self._made:
                tile = self._before.get(index)
                if tile is None or tile.total != total:
                    raise EngineFailed(f"engine left out tile {index} of {total}")
                draw_tile(self._blobs.path(tile.blob), canvas, tile.x, tile.y)
                area += tile.width * tile.height
        if total == 0 or (not self._made and area != canvas.shape[0] * canvas.shape[1]):
            raise EngineFailed("the tiles do not cover the picture")

    # ------------------------------------------------------------------------- blobs

    async def _in_thread(self, work: Callable[[], T], blob: Callable[[T], str] | None = None) -> T:
        """``work``, and being stopped meanwhile waits for its end: the slot is not free
        before. ``blob``: what it has written, dropped then, because nobody would name it."""
        task = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            (made,) = await asyncio.gather(task, return_exceptions=True)
            if blob is not None and not isinstance(made, BaseException):
                self._blobs.drop(blob(made))
            raise

    async def _write(self, runner: Runner, session: Session, out: OutputEvent, blob: str) -> None:
        """Commit the event that names ``blob``, or drop that where it cannot be any more."""
        head = session.stamper.last_offset
        try:
            await runner.write(session, out)
        finally:
            if session.stamper.last_offset == head:
                self._blobs.drop(blob)

    def details(self) -> dict[str, Any]:
        return {"tiles": self._total} if self._total else {}

    def close(self) -> None:
        self._canvas = None
        self._source = Decoded(0, 0, b"")


def _quality(given: Any) -> int:
    quality = 95 if given is None else int(given)
    if not 1 <= quality <= 100:
        raise BadRequest(f"quality is {quality}, expected 1 to 100")
    return quality

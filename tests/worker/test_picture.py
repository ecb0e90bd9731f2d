"""Pictures in a worker: decoded under limits, tiles kept, composed, gone on with after a death."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from listen_world import Near
from PIL import Image

from forebay.blobs import LocalBlobs
from forebay.broker import GatewayPush
from forebay.broker.local import LocalBroker, Settings
from forebay.core.events import (
    Ended,
    InputItem,
    Notice,
    OutputEvent,
    Picture,
    Progress,
    Result,
    Tile,
)
from forebay.core.kinds import KINDS, Kind
from forebay.core.spec import JobSpec, WorkerInfo
from forebay.engines.synthetic_photo import SyntheticPhoto
from forebay.worker.runner import Runner

POOL = "image/test"


class Counting(SyntheticPhoto):
    """Remembers what it was given and what it made."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"tile_ms": 0.0} | options))
        self.given: list[Picture] = []
        self.made: list[int] = []
        self.hold_after: int | None = None
        self.gate = asyncio.Event()

    async def step(self, session: Any, items: Sequence[InputItem]) -> AsyncIterator[OutputEvent]:
        self.given += [item for item in items if isinstance(item, Picture)]
        async for event in super().step(session, items):
            if isinstance(event, Tile):
                if self.hold_after is not None and len(self.made) >= self.hold_after:
                    await self.gate.wait()
                self.made.append(event.index)
            yield event


class World:
    """The real broker and real runners with blobs in one folder."""

    def __init__(self, folder: Path) -> None:
        self.blobs = LocalBlobs(folder)
        self.broker = LocalBroker(Settings())
        self.pushed: list[GatewayPush] = []
        self.broker.open("g", self.pushed.append)
        self.broker.expect([POOL])
        self._count = 0
        self._workers: dict[str, tuple[Near, asyncio.Task[None], asyncio.Task[None]]] = {}

    async def worker(self, engine: Any) -> str:
        self._count += 1
        name = f"w{self._count}"
        near = Near(self.broker, name)
        info = await engine.load(lambda stage: None)
        worker = WorkerInfo(id=name, pools=[POOL], slots=1, sessions=1)
        runner = Runner(near, engine, info, worker, KINDS[Kind.IMAGE], blobs=self.blobs)
        await near.connect(runner.sink)
        task = asyncio.create_task(runner.run())
        self._workers[name] = (near, task, asyncio.create_task(_beat(near, name)))
        await asyncio.sleep(0)
        return name

    async def kill(self, name: str) -> None:
        near, task, beat = self._workers.pop(name)
        near.dead = True
        for one in (task, beat):
            one.cancel()
        await asyncio.gather(task, beat, return_exceptions=True)
        self.broker.worker_gone(name, "killed")

    async def close(self) -> None:
        for name in list(self._workers):
            await self.kill(name)
        await self.broker.close()

    async def job(self, data: bytes, picture: Picture | None = None, **params: Any) -> str:
        blob = self.blobs.put([data])
        item = Picture(blob=blob) if picture is None else picture
        item = Picture(
            blob=blob, type=item.type, width=item.width, height=item.height, size_bytes=len(data)
        )
        self._count += 1
        spec = JobSpec(
            id=f"j{self._count}", kind=Kind.IMAGE, pool=POOL, params=params, detach_s=600
        )
        await self.broker.submit(spec, [item], gateway="g")
        return spec.id

    async def events(self, job: str) -> list[OutputEvent]:
        return list(await self.broker.read_after(job, 0, limit=10_000))

    async def until(self, job: str, kind: type[OutputEvent], count: int = 1) -> list[Any]:
        async with asyncio.timeout(60):
            while True:
                found = [e for e in await self.events(job) if isinstance(e, kind)]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.01)

    async def over(self, job: str) -> Ended:
        ended: Ended = (await self.until(job, Ended))[0]
        return ended

    def image(self, blob: str) -> Image.Image:
        return Image.open(io.BytesIO(self.blobs.path(blob).read_bytes()))


async def _beat(near: Near, name: str) -> None:
    while True:
        near.beat(name, {})
        await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    made = World(folder / "blobs")
    try:
        yield made
    finally:
        await made.close()


def photo(width: int = 120, height: int = 90, mode: str = "RGB", seed: int = 1) -> Image.Image:
    """Smooth shapes with some grain: a picture that compresses like one."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).integers(0, 12, (height, width))
    parts = [(np.sin(x / 17 + n) + np.cos(y / 13 - n)) * 60 + 120 + noise for n in range(3)]
    array = np.stack(parts, axis=2).clip(0, 255).astype(np.uint8)
    return Image.fromarray(array).convert(mode)


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def doubled(image: Image.Image) -> np.ndarray:
    size = (image.width * 2, image.height * 2)
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))


async def test_a_picture_comes_back_in_tiles_and_whole_with_its_hash(tmp_path: Path) -> None:
    image = photo()
    async with world(tmp_path) as w:
        await w.worker(Counting(tiles=6))
        job = await w.job(saved(image), format="png")
        assert (await w.over(job)).state == "completed"
        events = await w.events(job)
        tiles = [e for e in events if isinstance(e, Tile)]
        (result,) = (e for e in events if isinstance(e, Result))
        assert [(t.index, t.total, t.tiles, t.n) for t in tiles] == [
            (n, 6, n + 1, n + 1) for n in range(6)
        ]
        assert all(not t.data and t.type == "image/png" for t in tiles)
        pasted = Image.new("RGB", (240, 180))
        for t in tiles:
            pasted.paste(w.image(t.blob), (t.x, t.y))
        expected = doubled(image)
        assert np.array_equal(np.asarray(pasted), expected)
        data = w.blobs.path(result.blob).read_bytes()
        assert hashlib.sha256(data).hexdigest() == result.sha256
        assert (len(data), result.width, result.height) == (result.size_bytes, 240, 180)
        assert np.array_equal(np.asarray(w.image(result.blob)), expected)
        values = [e.value for e in events if isinstance(e, Progress)]
        assert values == sorted(values)
        assert 0 <= values[0] <= values[-1] <= 1


@pytest.mark.parametrize("format", ["jpeg", "webp", "png"])
async def test_the_result_has_the_format_that_was_asked_for(tmp_path: Path, format: str) -> None:
    async with world(tmp_path) as w:
        await w.worker(Counting())
        job = await w.job(saved(photo()), format=format, quality=90)
        assert (await w.over(job)).state == "completed"
        (result,) = await w.until(job, Result)
        assert result.type == f"image/{format}"
        image = w.image(result.blob)
        assert image.format == format.upper()
        error = np.abs(np.asarray(image.convert("RGB")).astype(int) - doubled(photo()))
        assert error.mean() < 6


async def test_a_killed_workers_tiles_are_not_made_again(tmp_path: Path) -> None:
    image = photo(200, 160)
    async with world(tmp_path) as w:
        first, second = Counting(tiles=8), Counting(tiles=8)
        first.hold_after = 3
        name = await w.worker(first)
        job = await w.job(saved(image), format="png")
        await w.until(job, Tile, 3)
        await w.kill(name)
        await w.worker(second)
        assert (await w.over(job)).state == "completed"
        assert (first.made, second.made) == ([0, 1, 2], [3, 4, 5, 6, 7])
        tiles = await w.until(job, Tile)
        assert [t.index for t in tiles] == list(range(8))
        (result,) = await w.until(job, Result)
        assert np.array_equal(np.asarray(w.image(result.blob)), doubled(image))


async def test_a_notice_is_told_once_over_two_attempts(tmp_path: Path) -> None:
    image = photo(100, 80, "RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    async with world(tmp_path) as w:
        first = Counting(tiles=2)
        first.hold_after = 1
        name = await w.worker(first)
        job = await w.job(saved(image))
        await w.until(job, Tile, 1)
        await w.kill(name)
        await w.worker(Counting(tiles=2))
        await w.over(job)
        assert [n.code for n in await w.until(job, Notice)] == ["alpha"]

"""Pictures in real worker processes, one of which is killed in the middle of its tiles."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from test_picture import doubled, photo, saved
from test_processes import House, house

from forebay.blobs import LocalBlobs
from forebay.core.events import Ended, Picture, Result, Tile
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec
from forebay.supervisor import ProcessSpec

TILE_S = 0.15


def worker(name: str, folder: Path, **more: bool) -> Callable[[House], ProcessSpec]:
    def make(home: House) -> ProcessSpec:
        engine = f"synthetic:tiles=8,tile_ms={TILE_S * 1000:g}"
        spec = home.spec(name, engine, kind="image", **more)
        return replace(spec, argv=[*spec.argv, "--blobs-dir", str(folder)])

    return make


async def submit(home: House, blobs: LocalBlobs, job: str, image: Image.Image) -> None:
    data = saved(image)
    item = Picture(blob=blobs.put([data]), type="image/png", width=image.width, height=image.height)
    spec = JobSpec(
        id=job, kind=Kind.IMAGE, pool="image/synthetic", params={"format": "png"}, detach_s=60.0
    )
    await home.broker.submit(spec, [item], gateway="g1")


def tiles(home: House, job: str) -> list[Tile]:
    return [e for e in home.out.get(job, []) if isinstance(e, Tile)]


async def test_a_killed_process_costs_no_finished_tile_and_little_time(tmp_path: Path) -> None:
    folder = tmp_path / "blobs"
    blobs, image = LocalBlobs(folder), photo(160, 120)
    async with house(tmp_path, worker("w1", folder), worker("w2", folder)) as home:
        await submit(home, blobs, "j", image)
        await home.until(lambda: len(tiles(home, "j")) == 3)
        [holder] = [w for w in home.broker.workers() if w.held]
        [other] = [w for w in home.broker.workers() if not w.held]
        os.kill(holder.pid, signal.SIGKILL)
        holders: set[int] = set()

        def over() -> bool:
            holders.update(w.pid for w in home.broker.workers() if w.held)
            return home.ended("j") is not None

        await home.until(over)
        assert holders - {holder.pid} <= {other.pid}, "somebody waited for a new process"
        events = home.out["j"]
        assert [e.offset for e in events] == list(range(1, len(events) + 1))
        assert [t.index for t in tiles(home, "j")] == list(range(8))
        assert [t.tiles for t in tiles(home, "j")] == list(range(1, 9))
        ended = events[-1]
        assert isinstance(ended, Ended)
        assert (ended.state, ended.details) == ("completed", {"tiles": 8})
        (result,) = (e for e in events if isinstance(e, Result))
        made = Image.open(io.BytesIO(blobs.path(result.blob).read_bytes()))
        assert np.array_equal(np.asarray(made), doubled(image))
        assert (await home.broker.status("j")).attempts == 2


async def test_two_processes_work_on_two_pictures_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "blobs"
    blobs = LocalBlobs(folder)
    async with house(tmp_path, worker("w1", folder), worker("w2", folder)) as home:
        for job in ("a", "b", "c"):
            await submit(home, blobs, job, photo(80, 60))
        await home.until(lambda: tiles(home, "a") and tiles(home, "b"))
        assert not home.ended("a")
        assert not home.ended("b")
        assert not tiles(home, "c")
        assert [w.held for w in home.broker.workers()] == [1, 1]
        await home.until(lambda: all(home.ended(job) for job in "abc"))

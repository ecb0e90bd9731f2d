"""Claim: what a photo costs, and what a second instance of the model brings on this machine.

Each instance is a process of its own with a model of its own. The same photos are enlarged by
one instance and by two at once. Where one instance's threads fill the cores already, a second
one brings nothing, or less; this says how much. Run it on an idle machine.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
import psutil

from benchmarks.harness import options, report, run
from forebay.core.events import Picture, Tile
from forebay.engines import Resume, create

Row = tuple[str, str, str, bool | None]


def photo(width: int, height: int) -> Picture:
    """Soft shapes with grain; what it shows does not change what the model computes."""
    y, x = np.mgrid[0:height, 0:width]
    grain = np.random.default_rng(1).integers(0, 12, (height, width))
    planes = [np.sin(x / 90 + n) * 60 + np.cos(y / 70 - n) * 60 + 120 + grain for n in range(3)]
    pixels = np.stack(planes, axis=2).clip(0, 255).astype(np.uint8)
    return Picture(width=width, height=height, data=pixels.tobytes())


async def work(
    engine_name: str, options: dict[str, Any], photos: int, picture: Picture, go: Barrier
) -> dict[str, float]:
    engine = create("image", engine_name, options)
    await engine.load(lambda stage: None)
    await asyncio.to_thread(go.wait)
    began, cpu = time.monotonic(), time.process_time()
    first = pixels = 0.0
    for _ in range(photos):
        session = await engine.open({}, Resume())
        async for event in engine.step(session, [picture]):
            if isinstance(event, Tile):
                first = first or time.monotonic() - began
                pixels += event.width * event.height
    return {
        "wall_s": time.monotonic() - began,
        "cpu_s": time.process_time() - cpu,
        "first_tile_s": first,
        "mpx": pixels / 1e6,
        "memory_mb": psutil.Process().memory_info().rss / 1e6,
    }


def child(
    engine: str,
    options: dict[str, Any],
    photos: int,
    size: tuple[int, int],
    go: Barrier,
    out: Any,
) -> None:
    out.put(asyncio.run(work(engine, options, photos, photo(*size), go)))


def measure(
    engine: str, instances: int, threads: int, photos: int, size: tuple[int, int]
) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    go, out = context.Barrier(instances), context.Queue()
    each = (engine, {"threads": threads}, photos // instances, size, go, out)
    processes = [context.Process(target=child, args=each) for _ in range(instances)]
    for process in processes:
        process.start()
    found = [out.get() for _ in processes]
    for process in processes:
        process.join()
    wall = max(one["wall_s"] for one in found)
    return {
        "engine": engine,
        "instances": instances,
        "threads": threads,
        "photo_s": wall * instances / photos,
        "first_tile_s": min(one["first_tile_s"] for one in found),
        "mpx_per_s": sum(one["mpx"] for one in found) / wall,
        "cpu_s_per_mpx": sum(one["cpu_s"] for one in found) / sum(one["mpx"] for one in found),
        "memory_mb": sum(one["memory_mb"] for one in found),
    }


async def main() -> int:
    args = options(__doc__.splitlines()[0], photos=2, width=1080, height=1440)
    size, cores = (args.width, args.height), psutil.cpu_count() or 1
    raw = [
        measure("waifu2x", instances, threads, args.photos, size)
        for instances, threads in ((1, cores), (1, 1), (2, 1))
    ]
    raw += [measure("realesrgan", n, t, 2, (96, 96)) for n, t in ((1, cores), (2, 1))]
    rows: list[Row] = [
        (
            f"{one['engine']}: {one['instances']} instance(s) of {one['threads']} thread(s)",
            f"{one['photo_s']:.2f} s a picture, first tile {one['first_tile_s']:.2f} s, "
            f"{one['mpx_per_s']:.3f} Mpx/s, {one['cpu_s_per_mpx']:.2f} processor s/Mpx, "
            f"{one['memory_mb']:.0f} MB",
            "",
            None,
        )
        for one in raw
    ]
    title = f"Image engines, {args.width}x{args.height} (realesrgan: 96x96)"
    return report(title, rows, args.output_json, measured=raw)


if __name__ == "__main__":
    run(main)

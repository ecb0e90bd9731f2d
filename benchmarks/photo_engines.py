"""Claim: what a photo costs, and what a second instance of the model brings on this machine.

Each instance is a process of its own with a model of its own. The same photos are enlarged by
one instance and by two at once. Where one instance's threads fill the cores already, a second
one brings nothing, or less; this says how much. Run it on an idle machine.

Cost is by the pixel, so photos of a quarter of 1080x1440 compare alike; ``--width 1080
--height 1440`` takes four times as long. Whoever is not done after ``--limit`` seconds is
ended, and its row says so.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import queue
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


def collected(processes: list[Any], out: Any, limit_s: float) -> list[dict[str, float]] | None:
    """What every process found, None where one died or took too long. None is left."""
    found: list[dict[str, float]] = []
    end = time.monotonic() + limit_s
    while len(found) < len(processes) and time.monotonic() < end:
        try:
            found.append(out.get(timeout=0.5))
        except queue.Empty:
            if any(process.exitcode for process in processes):
                break  # the others wait for it
    for process in processes:
        process.join(5.0 if len(found) == len(processes) else 0.0)
        process.kill()
    return found if len(found) == len(processes) else None


def measure(
    engine: str,
    instances: int,
    threads: int,
    photos: int,
    size: tuple[int, int],
    limit_s: float,
) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    go, out = context.Barrier(instances), context.Queue()
    each = (engine, {"threads": threads}, photos // instances, size, go, out)
    processes = [context.Process(target=child, args=each) for _ in range(instances)]
    for process in processes:
        process.start()
    found = collected(processes, out, limit_s)
    if found is None:
        return {"engine": engine, "instances": instances, "threads": threads, "photo_s": None}
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


def said(one: dict[str, Any], limit_s: float) -> str:
    if one["photo_s"] is None:
        return f"not done after {limit_s:g} s"
    return (
        f"{one['photo_s']:.2f} s a picture, first tile {one['first_tile_s']:.2f} s, "
        f"{one['mpx_per_s']:.3f} Mpx/s, {one['cpu_s_per_mpx']:.2f} processor s/Mpx, "
        f"{one['memory_mb']:.0f} MB"
    )


def gain(engine: str, one: dict[str, Any], two: dict[str, Any]) -> Row:
    """Two instances that share the cores over one that has them all."""
    seen = "not measured"
    if one["photo_s"] and two["photo_s"]:
        seen = f"{two['mpx_per_s'] / one['mpx_per_s']:.2f}x the pictures a second"
    return f"{engine}: two instances over one with all cores", seen, "", None


async def main() -> int:
    args = options(__doc__.splitlines()[0], photos=2, width=540, height=720, small=64, limit=45.0)
    size, cores = (args.width, args.height), psutil.cpu_count() or 1
    raw = [
        measure("waifu2x", instances, threads, args.photos, size, args.limit)
        for instances, threads in ((1, cores), (1, 1), (2, 1))
    ]
    small = (args.small, args.small)
    raw += [measure("realesrgan", n, t, 2, small, args.limit) for n, t in ((1, cores), (2, 1))]
    rows: list[Row] = [
        (
            f"{one['engine']}: {one['instances']} instance(s) of {one['threads']} thread(s)",
            said(one, args.limit),
            "",
            None,
        )
        for one in raw
    ]
    rows += [gain("waifu2x", raw[0], raw[2]), gain("realesrgan", raw[3], raw[4])]
    title = f"Image engines, {args.width}x{args.height} (realesrgan: {args.small}x{args.small})"
    return report(title, rows, args.output_json, measured=raw)


if __name__ == "__main__":
    run(main)

"""Claim: a worker killed in the middle of a photo costs under a second and no finished tile.

A client follows a photo over server-sent events; after a few tiles the worker that makes it
is killed with SIGKILL while a warm spare stands by. Counted: from the kill to the next tile,
and whether any tile was told or made twice.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import aiohttp

from benchmarks.harness import Server, options, report, run, serving
from forebay.client.photos import Photos
from forebay.lab.photos import a_photo
from forebay.lab.stats import percentile


async def one_kill(server: Server, photos: Photos, data: bytes, after: int) -> tuple[float, Counter[int]]:  # fmt: skip
    """Seconds from the kill to the next tile, and how often each tile was told."""
    task = await photos.upload("kill.jpg", data)
    told: Counter[int] = Counter()
    killed_at, next_at = None, None
    async for event in photos.events(task):
        if event["type"] == "error":
            raise RuntimeError(f"the photo failed: {event}")
        if event["type"] != "tile":
            continue
        told[event["index"]] += 1
        if killed_at is not None and next_at is None:
            next_at = time.monotonic()
        if killed_at is None and len(told) >= after:
            server.regular_worker("image").kill()
            killed_at = time.monotonic()
    if killed_at is None or next_at is None:
        raise RuntimeError("no tile followed the kill")
    await photos.download(task)
    return next_at - killed_at, told


async def main() -> int:
    wanted = options(__doc__ or "", kills=10, tile_ms=200, tiles=20)
    tile_s = wanted.tile_ms / 1000
    waits, twice, missing = [], 0, 0
    with serving(
        "--engine", f"image=synthetic:tile_ms={wanted.tile_ms},tiles={wanted.tiles}",
        "--workers", "text=0", "--workers", "speech=0",
    ) as server:  # fmt: skip
        data = a_photo(600, 480)
        async with aiohttp.ClientSession() as http:
            photos = Photos(http, server.http)
            for number in range(wanted.kills):
                await asyncio.to_thread(server.wait_spares)
                waited, told = await one_kill(server, photos, data, after=3 + number % 8)
                waits.append(waited)
                twice += sum(count - 1 for count in told.values())
                missing += wanted.tiles - len(told)
    limit = 1.0 + tile_s
    worst = max(waits)
    rows = [
        ("kill to next tile, median", f"{percentile(waits, 50):.2f} s", "", None),
        (
            "kill to next tile, longest",
            f"{worst:.2f} s",
            f"<= 1 s + a tile ({limit:.2f} s)",
            worst <= limit,
        ),  # fmt: skip
        ("tiles told twice", str(twice), "0", twice == 0),
        ("tiles never told", str(missing), "0", missing == 0),
    ]
    return report("photo_kill", rows, wanted.output_json, waits=waits)


if __name__ == "__main__":
    run(main)

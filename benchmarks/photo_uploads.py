"""Claim: a hundred uploads of ten megabytes at once take bounded memory and honest answers.

Everybody sends at once. The gateway's memory is watched; each answer is counted, and every
photo that was taken must end. A second round meets a store with room for a few only: the rest
are refused by name, with the time to wait, and nothing of them is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks.harness import Server, options, report, run, serving
from forebay.lab.photos import a_photo

RISE_MB = 200.0


def large(photo: bytes, size: int) -> bytes:
    """A photo of about ``size`` bytes: its header carries an application's own data."""
    pad, out = size - len(photo), [photo[:2]]
    while pad > 65_000:
        out.append(b"\xff\xef" + (65_002).to_bytes(2) + b"forebay " * 8125)
        pad -= 65_004
    return b"".join([*out, photo[2:]])


async def send(http: aiohttp.ClientSession, url: str, data: bytes) -> tuple[int, str, bool]:
    form = aiohttp.FormData()
    form.add_field("file", data, filename="large.jpg", content_type="image/jpeg")
    try:
        async with http.post(f"{url}/api/v1/enhance", data=form) as response:
            body = await response.json()
            said = str(body["task_id"] if response.status == 200 else body.get("code", ""))
            return response.status, said, "Retry-After" in response.headers
    except (aiohttp.ClientError, OSError) as error:
        return 0, type(error).__name__, False


async def watch(gateway: psutil.Process, seen: list[float]) -> None:
    while True:
        seen.append(gateway.memory_info().rss / 1e6)
        await asyncio.sleep(0.02)


async def everybody(server: Server, count: int, data: bytes) -> tuple[list[tuple[int, str, bool]], float]:  # fmt: skip
    """The answers, and how far the gateway's memory rose in MB."""
    seen: list[float] = []
    gateway = server.gateway()
    before = gateway.memory_info().rss / 1e6
    watcher = asyncio.create_task(watch(gateway, seen))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        answers = await asyncio.gather(*(send(http, server.http, data) for _ in range(count)))
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
        for status, task, _ in answers:
            if status == 200:
                await ended(http, server.http, task)
    return list(answers), max(seen, default=before) - before


async def ended(http: aiohttp.ClientSession, url: str, task: str) -> None:
    """Raises `RuntimeError` for a photo that was taken and not made."""
    async with asyncio.timeout(300):
        while True:
            async with http.get(f"{url}/api/v1/status/{task}") as response:
                found = await response.json()
            if found["status"] == "completed":
                return
            if found["status"] == "failed":
                raise RuntimeError(f"a photo that was taken failed: {found['error']}")
            await asyncio.sleep(0.2)


async def main() -> int:
    wanted = options(__doc__ or "", uploads=100, megabytes=10, limit=220.0)
    try:
        async with asyncio.timeout(wanted.limit):
            return await measured(wanted)
    except TimeoutError:
        late = ("everything", f"not done within {wanted.limit:g} s", "done", False)
        return report("photo_uploads", [late], wanted.output_json)


async def measured(wanted: Any) -> int:
    data = large(a_photo(400, 300), wanted.megabytes * 1_000_000)
    base = ("--engine", "image=synthetic:tile_ms=1", "--workers", "text=0", "--workers", "speech=0")
    with serving(*base) as server:
        answers, rise = await everybody(server, wanted.uploads, data)
        taken = Counter(status for status, _, _ in answers)
        others = dict(
            Counter(f"{status} {why}".strip() for status, why, _ in answers if status != 200)
        )
    room = 5 * (wanted.megabytes * 1_000_000 + 400_000)
    with serving(*base, env={**os.environ, "FOREBAY_BLOBS_TENANT_MIB": str(room >> 20)}) as server:
        refused, second = await everybody(server, wanted.uploads, data)
        counts = Counter(status for status, _, _ in refused)
        folder = Path(server.log).parent / "blobs"
        parts = len(list(folder.glob("*.part")))
    honest = sum(1 for status, _, retry in refused if status == 429 and retry)
    rows = [
        (
            "uploads taken and ended",
            f"{taken[200]} of {wanted.uploads}" + (f", else {others}" if others else ""),
            str(wanted.uploads),
            taken[200] == wanted.uploads,
        ),  # fmt: skip
        (
            "gateway memory above idle",
            f"{rise:.0f} MB",
            f"<= {RISE_MB:g} MB of {wanted.uploads * wanted.megabytes} sent",
            rise <= RISE_MB,
        ),  # fmt: skip
        ("with room for five: taken", str(counts[200]), "1 to 5", 1 <= counts[200] <= 5),
        (
            "refused by name, with a time",
            f"{honest} of {wanted.uploads - counts[200]}",
            "all",
            honest == wanted.uploads - counts[200],
        ),  # fmt: skip
        ("memory above idle, then", f"{second:.0f} MB", f"<= {RISE_MB:g} MB", second <= RISE_MB),
        ("unfinished files left", str(parts), "0", parts == 0),
    ]
    return report("photo_uploads", rows, wanted.output_json, answers=dict(taken), refused=dict(counts))  # fmt: skip


if __name__ == "__main__":
    run(main)

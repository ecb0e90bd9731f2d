"""`forebay bench photos`: photos sent by 1..N clients at once, or as one batch.

For each number of clients: the whole time, when the first result was there, the time of each
photo, and how many succeeded; and where every photo's time went (upload, queue, model, shown).
"""

from __future__ import annotations

import asyncio
import io
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

from forebay.client.photos import LAST, Photos
from forebay.errors import BadRequest, ForebayError
from forebay.lab import show
from forebay.lab.command import Conclusion, run_and_tell
from forebay.lab.stats import machine, percentile

__all__ = ["MODES", "Options", "Photo", "Result", "a_photo", "bench", "run"]

MODES = ("stream", "batch", "both")
POLL_S = 0.05
PROBE_S = 0.1
"""Between status calls: often enough for a p99, and next to no load beside a real model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``file``: what is sent; None: a made-up photo of ``width`` x ``height``. ``rounds``: how
    often every number of clients has its turn, and one client again before each; medians are
    told then. A machine whose speed drifts says little in one round."""

    url: str = "http://127.0.0.1:8600"
    mode: str = "both"
    concurrency: int = 5
    file: Path | None = None
    width: int = 1080
    height: int = 1440
    quality_level: str = "fast"
    rounds: int = 1
    key: str | None = None

    def check(self) -> None:
        """Raises `BadRequest`."""
        if self.mode not in MODES:
            raise BadRequest(f"mode is {self.mode!r}, expected one of {', '.join(MODES)}")
        if self.file is not None and not self.file.is_file():
            raise BadRequest(f"{self.file} is not a file")


@dataclass(slots=True)
class Photo:
    """One photo's moments, in seconds since its run began."""

    run: str
    begun: float = 0.0
    uploaded: float | None = None
    started: float | None = None
    first_tile: float | None = None
    done: float | None = None
    shown: float | None = None
    error: str = ""


@dataclass(slots=True)
class Result:
    """``photos``: of all runs. ``points``: (s into the run, latency in s)."""

    options: dict[str, Any]
    machine: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    points: list[tuple[float, float]] = field(default_factory=list)
    photos: list[Photo] = field(default_factory=list)


def a_photo(width: int, height: int, seed: int = 1) -> bytes:
    """A JPEG with detail in it, the same for the same numbers."""
    noise = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = np.sin(x / 23) * np.cos(y / 31) * 60 + (x / width + y / height) * 60
    pixels = np.stack([waves + 90, waves * 0.7 + 80, 160 - waves * 0.5], axis=-1)
    pixels += noise.normal(0, 9, pixels.shape).astype(np.float32)
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


# ------------------------------------------------------------------------------- one run


class _Clock:
    def __init__(self) -> None:
        self._begin = time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() - self._begin


async def _one(photos: Photos, data: bytes, level: str, photo: Photo, clock: _Clock) -> None:
    photo.begun = clock()
    try:
        task = await photos.upload("bench.jpg", data, quality_level=level)
        photo.uploaded = clock()
        async for event in photos.events(task):
            _note(photo, event, clock())
            if event["type"] == "error":
                photo.error = str(event.get("code", "failed"))
                return
        await photos.download(task)
        photo.shown = clock()
    except (ForebayError, aiohttp.ClientError, OSError) as error:
        photo.error = getattr(error, "code", type(error).__name__)


def _note(photo: Photo, event: dict[str, Any], now: float) -> None:
    kind = event["type"]
    if kind in ("processing", "progress") or event.get("status") == "processing":
        photo.started = photo.started or now
    if kind == "tile":
        photo.first_tile = photo.first_tile or now
    if kind in LAST:
        photo.done = now


async def _stream(photos: Photos, data: bytes, options: Options, count: int) -> list[Photo]:
    found = [Photo(run=f"stream {count}") for _ in range(count)]
    clock = _Clock()
    level = options.quality_level
    await asyncio.gather(*(_one(photos, data, level, photo, clock) for photo in found))
    return found


def _note_sub(photo: Photo, sub: dict[str, Any], now: float) -> None:
    if sub["status"] != "queued":
        photo.started = photo.started or now
    if sub["status"] == "failed":
        photo.error = sub["error"] or "failed"
    if sub["status"] in ("completed", "failed"):
        photo.done = photo.done or now


async def _batch(photos: Photos, data: bytes, options: Options, count: int) -> list[Photo]:
    """One batch; its results are there when the zip is, as its clients see it."""
    found = [Photo(run=f"batch {count}") for _ in range(count)]
    clock = _Clock()
    try:
        files = [(f"bench{n}.jpg", data) for n in range(count)]
        made = await photos.upload_batch(files, quality_level=options.quality_level)
        uploaded = clock()
        while True:
            status = await photos.status(made["batch_task_id"], batch=True)
            for photo, sub in zip(found, status["sub_tasks"], strict=True):
                photo.uploaded = uploaded
                _note_sub(photo, sub, clock())
            if status["status"] not in ("queued", "processing"):
                break
            await asyncio.sleep(POLL_S)
        if any(not photo.error for photo in found):
            await photos.download(made["batch_task_id"], batch=True)
        for photo in found:
            if not photo.error:
                photo.shown = clock()
    except (ForebayError, aiohttp.ClientError, OSError) as error:
        for photo in found:
            photo.error = photo.error or getattr(error, "code", type(error).__name__)
    return found


async def _probe(http: aiohttp.ClientSession, url: str, key: str | None, took: list[float]) -> None:
    """How long a status call takes while the model works."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    while True:
        begin = time.monotonic()
        async with http.get(f"{url}/api/v1/tasks", headers=headers) as response:
            await response.read()
        took.append(time.monotonic() - begin)
        await asyncio.sleep(PROBE_S)


def _figures(found: Sequence[Photo]) -> dict[str, Any]:
    done = sorted(photo.shown for photo in found if photo.shown is not None)
    each = [p.shown - p.begun for p in found if p.shown is not None]
    return {
        "total_s": round(done[-1], 3) if done else None,
        "first_s": round(done[0], 3) if done else None,
        "per_photo_s": round(done[-1] / len(done), 3) if done else None,
        "median_s": round(percentile(each, 50), 3),
        "success": f"{len(done)}/{len(found)}",
    }


def _middle(runs: Sequence[Sequence[Photo]]) -> dict[str, Any]:
    """The figures of several runs alike: medians, and the photos of all."""
    each = [_figures(found) for found in runs]
    told: dict[str, Any] = {}
    for name in ("total_s", "first_s", "per_photo_s", "median_s"):
        seen = [one[name] for one in each if one[name] is not None]
        told[name] = round(statistics.median(seen), 3) if seen else None
    photos = [photo for found in runs for photo in found]
    done = sum(photo.shown is not None for photo in photos)
    return {**told, "success": f"{done}/{len(photos)}", "runs": len(runs)}


def _turns(options: Options) -> Iterator[tuple[str, int]]:
    """(mode, number of clients) of every run. A batch has its turn in the first round only."""
    modes = ("stream", "batch") if options.mode == "both" else (options.mode,)
    for turn in range(options.rounds):
        for count in range(1, options.concurrency + 1):
            if options.rounds > 1 and count > 1:
                yield modes[0], 1
            for mode in modes:
                if mode == modes[0] or turn == 0:
                    yield mode, count


async def run(
    options: Options, progress: Callable[[Sequence[Photo], float], None] | None = None
) -> Result:
    """Every number of clients from 1 to the given one, in every mode asked for."""
    options.check()
    data = a_photo(options.width, options.height)
    if options.file is not None:
        data = await asyncio.to_thread(options.file.read_bytes)
    facts = {"photo_bytes": len(data), "level": options.quality_level}
    result = Result(options=facts, machine=machine())
    took: list[float] = []
    runs: dict[str, list[list[Photo]]] = {}
    async with aiohttp.ClientSession() as http:
        photos = Photos(http, options.url, key=options.key)
        await _stream(photos, data, options, 1)  # the models and the caches are warm from here
        probe = asyncio.create_task(_probe(http, options.url, options.key, took))
        try:
            for mode, count in _turns(options):
                work = _stream if mode == "stream" else _batch
                found = await work(photos, data, options, count)
                result.photos += found
                alike = runs.setdefault(f"{mode}_{count}", [])
                alike.append(found)
                result.figures[f"{mode}_{count}"] = _middle(alike)
                if progress is not None:
                    progress(result.photos, count)
        finally:
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)
    result.figures["status_call_p99_ms"] = round(percentile(took, 99) * 1000, 2)
    result.points = [(p.shown, p.shown - p.begun) for p in result.photos if p.shown is not None]
    return result


# ----------------------------------------------------------------------------------- face


def _conclude(result: Result) -> Conclusion:
    failed = [photo.error for photo in result.photos if photo.error]
    firsts = [
        result.figures[name]["first_s"]
        for name in result.figures
        if name.startswith("stream_") and result.figures[name]["first_s"] is not None
    ]
    said = f"{len(result.photos)} photos, {len(failed)} failed"
    if firsts:
        said += f"; first result {min(firsts):.2f} to {max(firsts):.2f} s whatever the clients"
    facts = {"timeline": [_row(photo) for photo in result.photos], "failures": failed}
    return Conclusion(
        said=said, style="red" if failed else "green", status=1 if failed else 0, facts=facts
    )


def _row(photo: Photo) -> dict[str, Any]:
    """Where a photo's time went, in seconds; None where it did not come so far."""
    marks = [photo.begun, photo.uploaded, photo.started, photo.done, photo.shown]
    names = ("upload_s", "queue_s", "process_s", "show_s")
    spans = {
        name: None if a is None or b is None else round(max(0.0, b - a), 3)
        for name, a, b in zip(names, marks, marks[1:], strict=False)
    }
    return {"run": photo.run, "begun_s": round(photo.begun, 3), **spans, "error": photo.error}


def bench(options: Options, output_json: Path | None, report: Path | None) -> int:
    """Run it with a live line; returns the process's exit status."""
    options.check()
    kept: list[Result] = []

    async def measured(progress: Callable[[Sequence[Photo], float], None]) -> Result:
        kept.append(await run(options, progress))
        return kept[0]

    status = run_and_tell(
        measured,
        lambda found, count: f"{len(found)} photos done, now {count:.0f} at once",
        _conclude,
        title="photos",
        output_json=output_json,
        report=None,
    )
    if report is not None and kept:
        result = kept[0]
        rows = [_row(photo) for photo in result.photos]
        verdict = _conclude(result).said
        more = show.timeline(rows, ("upload_s", "queue_s", "process_s", "show_s"))
        show.page(report, "photos", result, result.points, verdict, "time of a photo", more)
    return status

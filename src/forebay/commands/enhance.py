"""`forebay enhance FILE...`: photos through a running server, with bars, results beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from forebay.client.photos import Photos
from forebay.errors import BadRequest, ForebayError

__all__ = ["Wanted", "enhance", "target_of"]

SUFFIX = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """``uploads``: photos sent at once; how many are worked on is the server's to decide."""

    url: str
    key: str | None = None
    form: str = "jpeg"
    level: str = "high"
    mode: str = "photo"
    tile_size: int = 400
    uploads: int = 2
    force: bool = False


def target_of(path: Path, form: str) -> Path:
    """``<stem>_enhanced.<ext>`` beside the input."""
    return path.with_name(f"{path.stem}_enhanced{SUFFIX[form]}")


def enhance(files: Sequence[Path], wanted: Wanted, console: Console | None = None) -> int:
    """0 when every result was written, 1 otherwise. Raises `BadRequest` before anything is
    sent: a file is missing, or a result is there already."""
    if wanted.form not in SUFFIX:
        raise BadRequest(f"format is {wanted.form!r}, expected one of {', '.join(SUFFIX)}")
    for path in files:
        if not path.is_file():
            raise BadRequest(f"{path} is not a file")
        if target_of(path, wanted.form).exists() and not wanted.force:
            raise BadRequest(f"{target_of(path, wanted.form)} is there already, see --force")
    return asyncio.run(_all(files, wanted, console or Console()))


async def _all(files: Sequence[Path], wanted: Wanted, console: Console) -> int:
    slots = asyncio.Semaphore(max(1, wanted.uploads))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        async with aiohttp.ClientSession() as http:
            photos = Photos(http, wanted.url, key=wanted.key)
            made = await asyncio.gather(
                *(_one(photos, path, wanted, bars, slots) for path in files)
            )
    return 0 if all(made) else 1


async def _one(
    photos: Photos, path: Path, wanted: Wanted, bars: Progress, slots: asyncio.Semaphore
) -> bool:
    bar = bars.add_task(path.name, total=1.0, said="waiting")
    try:
        async with slots:
            bars.update(bar, said="uploading")
            data = await asyncio.to_thread(path.read_bytes)
            task = await photos.upload(
                path.name, data, quality_level=wanted.level, mode=wanted.mode,
                format=wanted.form, tile_size=wanted.tile_size,
            )  # fmt: skip
        error = await _follow(photos, task, bars, bar)
        if error:
            bars.update(bar, said=f"[red]failed: {error}[/]")
            return False
        target = target_of(path, wanted.form)
        result = await photos.download(task)
        await asyncio.to_thread(target.write_bytes, result)
        bars.update(bar, completed=1.0, said=f"[green]{target.name}[/]")
        return True
    except (ForebayError, aiohttp.ClientError, OSError) as error:
        bars.update(bar, said=f"[red]failed: {error}[/]")
        return False


async def _follow(photos: Photos, task: str, bars: Progress, bar: TaskID) -> str:
    """The error it ended with, empty when it is complete."""
    async for event in photos.events(task):
        if event["type"] == "error":
            return str(event.get("message") or event.get("code"))
        _show(bars, bar, event)
    return ""


def _show(bars: Progress, bar: TaskID, event: dict[str, Any]) -> None:
    match event["type"]:
        case "queued":
            eta = event.get("eta_s")
            about = "" if eta is None else f", about {eta:.0f} s"
            bars.update(bar, said=f"place {event['position']}{about}")
        case "progress":
            bars.update(bar, completed=event["progress"], said=f"{event['progress']:.0%}")
        case "recovering":
            bars.update(bar, said="a worker was lost, another goes on")

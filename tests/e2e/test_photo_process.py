"""Photos through real processes: a killed worker costs no tile, a killed gateway no task."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from benchmarks.harness import Server, serving

from forebay.client.photos import Photos
from forebay.lab.photos import a_photo

TILES = 12


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(
        "--engine", f"image=synthetic:tile_ms=150,tiles={TILES}",
        "--workers", "text=0", "--workers", "speech=0",
    ) as running:  # fmt: skip
        yield running


async def follow(server: Server, kill: Any) -> tuple[list[int], bytes, list[str]]:
    """The tiles a client was told, its result, and the types of all events; ``kill`` is
    called after the third tile."""
    told: list[int] = []
    types: list[str] = []
    async with aiohttp.ClientSession() as http:
        photos = Photos(http, server.http)
        task = await photos.upload("a.jpg", a_photo(240, 180))
        async for event in photos.events(task):
            types.append(event["type"])
            if event["type"] == "tile":
                told.append(event["index"])
                if len(told) == 3:
                    await asyncio.to_thread(kill)
        return told, await photos.download(task), types


async def test_a_worker_killed_inside_a_photo_costs_no_tile(server: Server) -> None:
    await asyncio.to_thread(server.wait_spares)
    told, result, types = await follow(server, lambda: server.regular_worker("image").kill())
    assert sorted(told) == list(range(TILES)), "each once"
    assert result[:3] == b"\xff\xd8\xff"
    assert "recovering" in types


async def test_a_gateway_killed_inside_a_photo_costs_no_task(server: Server) -> None:
    told, result, types = await follow(server, lambda: server.gateway().kill())
    assert sorted(told) == list(range(TILES)), "each once"
    assert result[:3] == b"\xff\xd8\xff"
    assert types[-1] == "completed"

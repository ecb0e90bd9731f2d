"""An image engine that is no model: it enlarges with Pillow's bicubic filter, tile by tile.

The result is exactly ``Image.resize`` of the whole picture, so a lost, doubled or misplaced
tile shows. It holds its slot by waiting ``tile_ms`` for each tile, as a model on an
accelerator does.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from forebay.core.events import InputItem, OutputEvent, Picture, Result
from forebay.core.kinds import Kind
from forebay.engines import EngineInfo, Report, Resume
from forebay.engines.chance import COMMON, Chance, Clock, ready, strike
from forebay.engines.options import Option, parse
from forebay.engines.pictures import (
    LIMITS,
    MODES,
    Box,
    PictureSession,
    grid,
    pixels_of,
    plan,
    todo,
    wish,
)

__all__ = ["SyntheticPhoto"]


class SyntheticPhoto:
    name = "synthetic"
    kind = Kind.IMAGE
    OPTIONS = (
        Option("tile_ms", float, 50.0, "wait for each tile", 0, 600_000),
        Option("rtf", float, 1.0, "multiplies tile_ms; 0 never waits", 0, 1000),
        Option("tiles", int, None, "tiles of every picture; absent: by its tile_size", 1, 10_000),
        Option("scale", int, 2, "how much larger the result is", 1, 8),
        Option("slots", int, 1, "steps at once", 1, 10_000),
        *LIMITS,
        *(option for option in COMMON if option.name != "slots"),
    )

    def __init__(self, **options: Any) -> None:
        values = parse(self.name, self.OPTIONS, options)
        self._tile_s: float = values["tile_ms"] / 1000 * values["rtf"]
        self._latency_s: float = values["latency_ms"] / 1000
        self._tiles: int | None = values["tiles"]
        self._scale: int = values["scale"]
        self._slots: int = values["slots"]
        self._limits = {"max_mpx": values["max_mpx"], "max_side": values["max_side"]}
        self._chance = Chance(values)

    async def load(self, report: Report) -> EngineInfo:
        ready(report)
        return EngineInfo(
            model="synthetic",
            version="1",
            slots=self._slots,
            synthetic=True,
            capabilities=frozenset({"abortable"}),
            facts={"scale": self._scale, "modes": list(MODES), **self._limits},
        )

    async def open(self, params: Mapping[str, Any], resume: Resume) -> PictureSession:
        return PictureSession(wish(params), resume.tiles)

    async def step(
        self, session: PictureSession, items: Sequence[InputItem]
    ) -> AsyncIterator[OutputEvent]:
        (picture,) = (item for item in items if isinstance(item, Picture))
        boxes = self._plan(picture, session.wish.tile)
        scale = self._scale
        yield Result(width=picture.width * scale, height=picture.height * scale)
        left = todo(boxes, session.done, scale)
        faults = self._chance.plan(len(left))
        clock = Clock()
        await clock.wait(self._chance.vary(self._latency_s))
        whole = await asyncio.to_thread(_resized, picture, scale)
        for count, (index, box) in enumerate(left):
            strike(count, faults)
            await clock.wait(self._chance.vary(self._tile_s))
            x, y = box.x * scale, box.y * scale
            part = whole[y : y + box.height * scale, x : x + box.width * scale]
            yield box.tile(index, len(boxes), scale, part)

    def _plan(self, picture: Picture, side: int) -> list[Box]:
        if self._tiles is None:
            return plan(picture.width, picture.height, side)
        columns = next(n for n in range(math.isqrt(self._tiles), 0, -1) if self._tiles % n == 0)
        columns = min(columns, picture.width)
        return grid(
            picture.width, picture.height, columns, min(self._tiles // columns, picture.height)
        )

    async def close(self, session: PictureSession) -> None:
        return None

    async def unload(self) -> None:
        return None


def _resized(picture: Picture, scale: int) -> Any:
    size = (picture.width * scale, picture.height * scale)
    image = Image.fromarray(pixels_of(picture))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))

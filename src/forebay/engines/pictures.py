"""What all image engines share: their limits, their tile plan, what a job asks of them.

The plan cuts a picture into nearly equal tiles, row by row; it is a function of the
picture's size and the side alone, so every attempt makes the same one and can leave out what
an earlier one has finished.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from forebay.core.events import Picture, Tile
from forebay.engines.options import Option
from forebay.errors import BadRequest, EngineFailed, TooLarge

__all__ = [
    "LIMITS",
    "MODES",
    "Box",
    "PictureSession",
    "Pixels",
    "Wish",
    "grid",
    "pixels_of",
    "plan",
    "refuse_large",
    "todo",
    "wish",
]

Pixels = npt.NDArray[np.uint8]
"""Height x width x 3, RGB."""

MODES = ("photo", "perceptual", "face")
TILE_CAPS = {"fast": 256, "medium": 400, "high": 512}
TILE_LOW, TILE_HIGH, TILE_DEFAULT = 256, 512, 400

LIMITS = (
    Option("max_mpx", float, 40.0, "largest picture taken, in millions of pixels", 0.01, 400),
    Option("max_side", int, 12_000, "longest side taken, in pixels", 16, 65_535),
)


@dataclass(frozen=True, slots=True)
class Box:
    """A part of the input picture."""

    x: int
    y: int
    width: int
    height: int

    def tile(self, index: int, total: int, scale: int, pixels: Pixels) -> Tile:
        """The finished tile. Raises `EngineFailed` for pixels of another size."""
        expected = (self.height * scale, self.width * scale, 3)
        if pixels.shape != expected:
            raise EngineFailed(f"the model made {pixels.shape}, expected {expected}")
        return Tile(
            index=index,
            total=total,
            x=self.x * scale,
            y=self.y * scale,
            width=self.width * scale,
            height=self.height * scale,
            data=pixels.tobytes(),
        )

    def is_place_of(self, tile: Tile, total: int, scale: int) -> bool:
        place = (tile.total, tile.x, tile.y, tile.width, tile.height)
        mine = (self.x, self.y, self.width, self.height)
        return place == (total, *(scale * n for n in mine))


@dataclass(frozen=True, slots=True)
class Wish:
    """What one job asks for. ``tile``: side in pixels of the input."""

    mode: str
    tile: int


@dataclass(frozen=True, slots=True)
class PictureSession:
    """One job in an image engine. ``done``: tiles an earlier attempt finished."""

    wish: Wish
    done: Sequence[Tile]


def wish(params: Mapping[str, Any]) -> Wish:
    """Raises `BadRequest` for words that are not ours."""
    mode = str(params.get("mode") or "photo")
    if mode not in MODES:
        raise BadRequest(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
    level = str(params.get("quality_level") or "high")
    if level not in TILE_CAPS:
        raise BadRequest(f"quality_level is {level!r}, expected one of {', '.join(TILE_CAPS)}")
    size = params.get("tile_size")
    side = TILE_DEFAULT if size is None else int(size)
    if not TILE_LOW <= side <= TILE_HIGH:
        raise BadRequest(f"tile_size is {side}, expected {TILE_LOW} to {TILE_HIGH}")
    return Wish(mode, min(side, TILE_CAPS[level]))


def plan(width: int, height: int, side: int) -> list[Box]:
    """Tiles of at most ``side`` pixels, as equal as they can be."""
    return grid(width, height, math.ceil(width / side), math.ceil(height / side))


def grid(width: int, height: int, columns: int, rows: int) -> list[Box]:
    """``columns`` x ``rows`` tiles, row by row."""
    xs = [width * n // columns for n in range(columns + 1)]
    ys = [height * n // rows for n in range(rows + 1)]
    return [
        Box(x, y, xs[column + 1] - x, ys[row + 1] - y)
        for row, y in enumerate(ys[:-1])
        for column, x in enumerate(xs[:-1])
    ]


def todo(boxes: Sequence[Box], done: Iterable[Tile], scale: int) -> list[tuple[int, Box]]:
    """The tiles that are still to be made. A finished one of another plan does not count."""
    total = len(boxes)
    finished = {
        tile.index
        for tile in done
        if tile.index < total and boxes[tile.index].is_place_of(tile, total, scale)
    }
    return [(index, box) for index, box in enumerate(boxes) if index not in finished]


def pixels_of(picture: Picture) -> Pixels:
    """The decoded picture. Raises `EngineFailed` where its bytes are not what it says."""
    expected = picture.width * picture.height * 3
    if len(picture.data) != expected or not expected:
        raise EngineFailed(f"a picture of {len(picture.data)} bytes, expected {expected}")
    array: Pixels = np.frombuffer(picture.data, np.uint8)
    return array.reshape(picture.height, picture.width, 3)


def refuse_large(picture: Picture, limit_px: int, mode: str) -> None:
    """Raises `TooLarge` for a picture that this mode would work on for too long."""
    count = picture.width * picture.height
    if count > limit_px:
        raise TooLarge(
            f"mode {mode!r} takes pictures of up to {limit_px} pixels, "
            f"this one is {picture.width}x{picture.height} = {count}",
            limit_px=limit_px,
            width=picture.width,
            height=picture.height,
        )

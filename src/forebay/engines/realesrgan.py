"""Real-ESRGAN x4plus on ncnn: four times as large, sharp, with texture that was not there.

Some fifty thousand pixels of result a second on one core: for small pictures. A larger one
is refused by name with the limit before anything is computed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from forebay.core.events import InputItem, OutputEvent, Picture, Result, Tile
from forebay.core.kinds import Kind
from forebay.engines import EngineInfo, Report, Resume, ThreadedEngine, weights
from forebay.engines.ncnn_net import COMMON, Net, Shape, Stopped, gpu_of
from forebay.engines.options import Option, parse
from forebay.engines.pictures import (
    LIMITS,
    PictureSession,
    Pixels,
    pixels_of,
    plan,
    refuse_large,
    todo,
    wish,
)
from forebay.engines.stages import Stages
from forebay.errors import Unsupported

__all__ = ["SHAPE", "PERCEPTUAL_PX", "RealEsrgan", "enlarged"]

WEIGHTS = "x4plus"
SHAPE = Shape(
    param="REALESRGAN_X4PLUS_UP4X.param",
    weights="REALESRGAN_X4PLUS_UP4X.bin",
    input="data",
    output="output",
    scale=4,
    pad=10,
    side=96,
)
PERCEPTUAL_PX = Option(
    "max_perceptual_px",
    int,
    384 * 384,
    "largest picture taken in mode perceptual, in pixels",
    64,
    100_000_000,
)


class RealEsrgan(ThreadedEngine):
    name = "realesrgan"
    kind = Kind.IMAGE
    model = "x4plus"
    ahead = 2
    OPTIONS = (*COMMON, *LIMITS, PERCEPTUAL_PX)

    def __init__(self, **options: Any) -> None:
        values = parse(self.name, self.OPTIONS, options)
        self._values = values
        self._folder = Path(values["models_dir"] or weights.default_dir(os.environ))
        self._limit_px: int = values["max_perceptual_px"]
        self._net: Net | None = None

    async def load(self, report: Report) -> EngineInfo:
        stages = Stages(report)
        folder = weights.require(WEIGHTS, self._folder)
        gpu = gpu_of(self._values["device"])
        self.start_threads(1)
        stages.at("weights", WEIGHTS, 0, 1)
        self._net = await asyncio.to_thread(
            Net, SHAPE, folder, threads=self._values["threads"], gpu=gpu
        )
        stages.at("warm_up")
        await asyncio.to_thread(self._net.warm_up)
        stages.at("ready", WEIGHTS)
        return EngineInfo(
            model=self.model,
            version="1.0.1",
            capabilities=frozenset({"abortable"}),
            facts={
                "scale": SHAPE.scale,
                "modes": ["perceptual"],
                "max_mpx": self._values["max_mpx"],
                "max_side": self._values["max_side"],
                "max_perceptual_px": self._limit_px,
                "device": "cpu" if gpu is None else f"gpu {gpu}",
                "licence": "BSD-3-Clause",
                "limits": "invents texture; no face prior",
            },
        )

    async def open(self, params: Mapping[str, Any], resume: Resume) -> PictureSession:
        asked = wish(params)
        if asked.mode == "face":
            raise Unsupported("mode 'face' is the engine waifu2x's, this one has 'perceptual'")
        return PictureSession(asked, resume.tiles)

    def run(
        self, session: PictureSession, items: Sequence[InputItem], stopped: Callable[[], bool]
    ) -> Iterator[OutputEvent]:
        (picture,) = (item for item in items if isinstance(item, Picture))
        refuse_large(picture, self._limit_px, "perceptual")
        assert self._net is not None
        yield from enlarged(self._net, pixels_of(picture), SHAPE.side, session.done, stopped)

    async def close(self, session: PictureSession) -> None:
        return None

    async def unload(self) -> None:
        self.stop_threads()
        self._net = None


def enlarged(
    net: Net, pixels: Pixels, side: int, done: Sequence[Tile], stopped: Callable[[], bool]
) -> Iterator[OutputEvent]:
    """A whole picture through one network, tile by tile."""
    height, width = pixels.shape[:2]
    scale = net.shape.scale
    boxes = plan(width, height, side)
    yield Result(width=width * scale, height=height * scale)
    try:
        yield from net.tiles(pixels, todo(boxes, done, scale), len(boxes), stopped)
    except Stopped:
        return

"""waifu2x for photos on ncnn: twice as large, compression and noise removed, nothing invented.

The modes ``perceptual`` (Real-ESRGAN for the whole of a small picture) and ``face`` (waifu2x,
and then every face that MTCNN finds anew, see `faces`) load their models when they are first
asked for; without those weights they are refused with the command that brings them.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from forebay.core.events import InputItem, Notice, OutputEvent, Picture, Progress, Result
from forebay.core.kinds import Kind
from forebay.engines import EngineInfo, Report, Resume, ThreadedEngine, realesrgan, weights
from forebay.engines.faces import FACES, FaceWork
from forebay.engines.ncnn_net import COMMON, Net, Shape, Stopped, gpu_of
from forebay.engines.options import parse
from forebay.engines.pictures import (
    LIMITS,
    MODES,
    PictureSession,
    Pixels,
    pixels_of,
    plan,
    refuse_large,
    todo,
    wish,
)
from forebay.engines.stages import Stages
from forebay.errors import MissingEngine, Unsupported

__all__ = ["SHAPE", "Waifu2x"]

WEIGHTS = "waifu2x-photo"
SHAPE = Shape(
    param="WAIFU2X_PHOTO_UP2X_DENOISE2X.param",
    weights="WAIFU2X_PHOTO_UP2X_DENOISE2X.bin",
    input="Input1",
    output="Eltwise4",
    scale=2,
    pad=7,
    side=256,
    lanes=4,
)
NO_PRIOR = (
    "no face prior: faces are enlarged like any picture, nothing of them is known or "
    "restored; a model of your own: face=NAME"
)


class Waifu2x(ThreadedEngine):
    name = "waifu2x"
    kind = Kind.IMAGE
    model = "waifu2x-photo"
    ahead = 2
    OPTIONS = (*COMMON, *LIMITS, realesrgan.PERCEPTUAL_PX, *FACES)

    def __init__(self, **options: Any) -> None:
        values = parse(self.name, self.OPTIONS, options)
        self._values = values
        self._folder = Path(values["models_dir"] or weights.default_dir(os.environ))
        self._limit_px: int = values["max_perceptual_px"]
        self._gpu: int | None = None
        self._net: Net | None = None
        self._lock = threading.Lock()  # around what is loaded on first use
        self._perceptual: Net | None = None
        self._faces: FaceWork | None = None

    async def load(self, report: Report) -> EngineInfo:
        stages = Stages(report)
        folder = weights.require(WEIGHTS, self._folder)
        self._gpu = gpu_of(self._values["device"])
        self.start_threads(1)
        stages.at("weights", WEIGHTS, 0, 1)
        self._net = await asyncio.to_thread(self._load_net, SHAPE, folder)
        if self._values["face"]:  # the operator's own: a fault of it is known now
            await asyncio.to_thread(self._face_work)
        stages.at("warm_up")
        await asyncio.to_thread(self._net.warm_up)
        stages.at("ready", WEIGHTS)
        return EngineInfo(
            model=self.model,
            version="1.0.1",
            capabilities=frozenset({"abortable"}),
            facts={
                "scale": SHAPE.scale,
                "modes": self._modes(),
                "max_mpx": self._values["max_mpx"],
                "max_side": self._values["max_side"],
                "max_perceptual_px": self._limit_px,
                "perceptual_scale": realesrgan.SHAPE.scale,
                "device": "cpu" if self._gpu is None else f"gpu {self._gpu}",
                "licence": "MIT",
                "limits": f"face model {self._values['face']}"
                if self._values["face"]
                else NO_PRIOR,
            },
        )

    def _modes(self) -> list[str]:
        found = {"photo": True, "perceptual": self._has(realesrgan.WEIGHTS)}
        found["face"] = self._has("mtcnn") and (found["perceptual"] or bool(self._values["face"]))
        return [mode for mode in MODES if found[mode]]

    def _has(self, name: str) -> bool:
        return weights.locate(name, self._folder) is not None

    def _load_net(self, shape: Shape, folder: Path) -> Net:
        return Net(shape, folder, threads=self._values["threads"], gpu=self._gpu)

    async def open(self, params: Mapping[str, Any], resume: Resume) -> PictureSession:
        asked = wish(params)
        if asked.mode not in self._modes():
            raise Unsupported(
                f"mode {asked.mode!r} needs weights that are not here, "
                "run: forebay models fetch photo",
                install="forebay models fetch photo",
            )
        return PictureSession(asked, resume.tiles)

    def run(
        self, session: PictureSession, items: Sequence[InputItem], stopped: Callable[[], bool]
    ) -> Iterator[OutputEvent]:
        (picture,) = (item for item in items if isinstance(item, Picture))
        assert self._net is not None
        if session.wish.mode == "perceptual":
            refuse_large(picture, self._limit_px, "perceptual")
            net, side = self._perceptual_net(), realesrgan.SHAPE.side
            yield from realesrgan.enlarged(net, pixels_of(picture), side, session.done, stopped)
        elif session.wish.mode == "face":
            yield from self._with_faces(session, pixels_of(picture), stopped)
        else:
            side = session.wish.tile
            yield from realesrgan.enlarged(
                self._net, pixels_of(picture), side, session.done, stopped
            )

    def _with_faces(
        self, session: PictureSession, pixels: Pixels, stopped: Callable[[], bool]
    ) -> Iterator[OutputEvent]:
        """As ``photo``, with faces worked on first, so that each tile is whole when told."""
        net, scale = self._net, SHAPE.scale
        assert net is not None
        height, width = pixels.shape[:2]
        boxes = plan(width, height, session.wish.tile)
        yield Result(width=width * scale, height=height * scale)
        left = todo(boxes, session.done, scale)
        yield Progress(value=0.02, stage="faces")
        work = self._face_work()
        try:
            found = work.find(pixels, scale, [box for _, box in left], stopped)
            for code, message in found.notes:
                yield Notice(code=code, message=message)
            with closing(net.parts(pixels, [box for _, box in left], stopped)) as parts:
                for (index, box), part in zip(left, parts, strict=True):
                    found.blend(part, box, scale)
                    yield box.tile(index, len(boxes), scale, part)
        except Stopped:
            return

    def _perceptual_net(self) -> Net:
        with self._lock:
            if self._perceptual is None:
                folder = weights.require(realesrgan.WEIGHTS, self._folder)
                self._perceptual = self._load_net(realesrgan.SHAPE, folder)
            return self._perceptual

    def _face_work(self) -> FaceWork:
        own = self._values["face"]
        net = None if own else self._perceptual_net()
        with self._lock:
            if self._faces is None:
                try:
                    detector = weights.require("mtcnn", self._folder)
                except MissingEngine as exc:
                    raise MissingEngine(exc.message, install="forebay models fetch photo") from exc
                self._faces = FaceWork.load(
                    detector,
                    net,
                    self._folder / "face" / own if own else None,
                    max_faces=self._values["max_faces"],
                    threads=self._values["threads"],
                )
            return self._faces

    async def close(self, session: PictureSession) -> None:
        return None

    async def unload(self) -> None:
        self.stop_threads()
        self._net = self._perceptual = self._faces = None

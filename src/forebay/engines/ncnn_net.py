"""One upscaling network on ncnn: a part of a picture in, the same part enlarged out.

A network without padding of its own sees ``pad`` pixels around what it enlarges; at the
picture's border they are mirrored, inside they are the true neighbours, so that tiles meet
without a seam. Parts larger than ``side`` are worked on in pieces, which bounds the memory
and is where a call can be stopped. One `Net` serves one call at a time or several: each has
an extractor of its own.

Threads that share one piece wait for each other after every layer, so whoever takes a moment
of one core stops all of them. Where the network allows it (`Shape.lanes`), each thread has a
piece of its own instead, and takes the next one, of the next tile too, when it is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from forebay.core.events import Tile
from forebay.engines.options import Option
from forebay.engines.pictures import Box, Pixels, grid, plan
from forebay.errors import CannotBoot, ConfigError, EngineFailed

__all__ = ["COMMON", "Net", "Shape", "Stopped", "gpu_of", "lanes_of"]

COMMON = (
    Option("threads", int, 0, "threads of the model; 0: one for each core", 0, 256),
    Option("device", str, "cpu", "cpu, auto, or cuda:N for the GPU with that number"),
    Option("memory_mb", int, None, "memory of the GPU that one instance needs", 1, 1_000_000),
    Option("models_dir", str, None, "folder of the weights"),
)


class Stopped(Exception):
    """The job was stopped between two pieces."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a network is: its blobs by name, its factor, its surroundings, its piece.

    ``lanes``: into how many parts a piece is cut, to be worked on at once, where there are
    threads for it. Each part has surroundings of its own, which are computed as well: more
    than 1 is for a small ``pad``.
    """

    param: str
    weights: str
    input: str
    output: str
    scale: int
    pad: int
    side: int
    lanes: int = 1


class Net:
    """Loaded weights. All calls block."""

    def __init__(self, shape: Shape, folder: Path, *, threads: int, gpu: int | None) -> None:
        import ncnn

        self.shape = shape
        self._scale = shape.scale
        self._ncnn = ncnn
        self._net: Any = ncnn.Net()
        count = threads or int(self._net.opt.num_threads)
        self._lanes = lanes_of(count, shape.lanes) if gpu is None else 1
        self._net.opt.num_threads = count // self._lanes
        if gpu is not None:
            self._net.opt.use_vulkan_compute = True
            self._net.set_vulkan_device(gpu)
        for load, name in (("load_param", shape.param), ("load_model", shape.weights)):
            path = folder / name
            status = getattr(self._net, load)(str(path))
            if status != 0:
                raise CannotBoot(f"ncnn cannot read {path} (status {status})", stage="weights")

    def warm_up(self) -> None:
        side = min(self.shape.side, 32)
        self._run(np.zeros((side + 2 * self.shape.pad, side + 2 * self.shape.pad, 3), np.uint8))

    def enlarge(self, picture: Pixels, box: Box, stopped: Callable[[], bool]) -> Pixels:
        """``box`` of ``picture``, `Shape.scale` times as large. Raises `Stopped`, and
        `EngineFailed` for what the network did not do."""
        (made,) = self.parts(picture, [box], stopped)
        return made

    def parts(
        self, picture: Pixels, boxes: Sequence[Box], stopped: Callable[[], bool]
    ) -> Generator[Pixels, None, None]:
        """Every box of ``boxes`` as `enlarge` would make it, in order. The network goes on
        with the next while one is taken, by a piece for each lane and one more. No thread is
        in the network any more when this has ended, however it ends."""
        work = ((n, piece) for n, box in enumerate(boxes) for piece in self._pieces(box))
        going: deque[tuple[int, Box, Future[Pixels]]] = deque()
        pool = ThreadPoolExecutor(self._lanes, thread_name_prefix="net")

        def piece_of(place: Box) -> Pixels:
            if stopped():
                raise Stopped
            return self._piece(picture, place)

        def more() -> None:
            number, place = next(work, (0, None))
            if place is not None:
                going.append((number, place, pool.submit(piece_of, place)))

        try:
            for _ in range(self._lanes + 1):
                more()
            for number, box in enumerate(boxes):
                out = np.empty((box.height * self._scale, box.width * self._scale, 3), np.uint8)
                while going and going[0][0] == number:
                    _, place, made = going.popleft()
                    pixels = made.result()
                    more()
                    y, x = (place.y - box.y) * self._scale, (place.x - box.x) * self._scale
                    out[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
                if stopped():
                    raise Stopped
                yield out
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _pieces(self, box: Box) -> Iterator[Box]:
        columns = 2 if self._lanes == 4 else 1
        for piece in plan(box.width, box.height, self.shape.side):
            for part in grid(
                piece.width,
                piece.height,
                min(columns, piece.width),
                min(self._lanes // columns, piece.height),
            ):
                x, y = box.x + piece.x + part.x, box.y + piece.y + part.y
                yield Box(x, y, part.width, part.height)

    def tiles(
        self,
        picture: Pixels,
        left: Sequence[tuple[int, Box]],
        total: int,
        stopped: Callable[[], bool],
    ) -> Iterator[Tile]:
        """The tiles of ``left``, as (index, place), out of ``total``. Raises as `enlarge`."""
        with closing(self.parts(picture, [box for _, box in left], stopped)) as parts:
            for (index, box), part in zip(left, parts, strict=True):
                yield box.tile(index, total, self._scale, part)

    def _piece(self, picture: Pixels, box: Box) -> Pixels:
        pad = self.shape.pad
        rows = _mirrored(box.y - pad, box.y + box.height + pad, picture.shape[0])
        columns = _mirrored(box.x - pad, box.x + box.width + pad, picture.shape[1])
        made = self._run(picture[rows[:, None], columns])
        scale = self.shape.scale
        height, width = box.height * scale, box.width * scale
        spare_y, spare_x = made.shape[0] - height, made.shape[1] - width
        if spare_y < 0 or spare_x < 0 or spare_y % 2 or spare_x % 2:
            raise EngineFailed(f"the network made {made.shape} for {width}x{height}")
        y, x = spare_y // 2, spare_x // 2
        return made[y : y + height, x : x + width]

    def _run(self, pixels: Pixels) -> Pixels:
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / 255.0
        extractor = self._net.create_extractor()
        extractor.input(self.shape.input, self._ncnn.Mat(planes))
        status, made = extractor.extract(self.shape.output)
        if status != 0:
            raise EngineFailed(f"ncnn ended with status {status}")
        values: npt.NDArray[np.float32] = np.array(made)
        np.clip(values, 0.0, 1.0, out=values)
        values *= 255.0
        np.rint(values, out=values)
        return values.astype(np.uint8).transpose(1, 2, 0)


def lanes_of(threads: int, wanted: int) -> int:
    """How many lanes, no more than ``wanted``, share ``threads`` without a rest."""
    return next(n for n in range(min(wanted, threads), 0, -1) if threads % n == 0)


def _mirrored(start: int, end: int, size: int) -> npt.NDArray[np.intp]:
    """Indexes from ``start`` to ``end``, those outside 0..size reflected about the border."""
    if size == 1:
        return np.zeros(end - start, np.intp)
    period = 2 * (size - 1)
    at = np.arange(start, end) % period
    return np.where(at < size, at, period - at).astype(np.intp)


def gpu_of(device: str) -> int | None:
    """The number of the GPU that ``device`` means, None for the processor.

    Raises `ConfigError` for a word that is no device and `CannotBoot` for a GPU that ncnn does
    not see: it uses Vulkan, which not every driver has.
    """
    if device == "cpu":
        return None
    name, _, number = device.partition(":")
    if device != "auto" and (name != "cuda" or not number.isdecimal()):
        raise ConfigError(f"device is {device!r}, expected cpu, auto or cuda:N")
    count = _gpus()
    if device == "auto":
        return 0 if count else None
    if int(number) >= count:
        raise CannotBoot(
            f"device is {device}, ncnn sees {count} GPUs through Vulkan", stage="allocate"
        )
    return int(number)


def _gpus() -> int:
    import ncnn

    try:
        return int(ncnn.get_gpu_count())
    except (AttributeError, RuntimeError):
        return 0

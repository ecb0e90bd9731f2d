"""Finding faces: MTCNN's three networks on onnxruntime.

The cascade follows K. Zhang et al., "Joint Face Detection and Alignment Using Multitask
Cascaded Convolutional Networks" (2016): a small network proposes windows on a pyramid of
sizes, a second one rejects most of them, a third one places the box and five points (eyes,
nose, corners of the mouth). The networks were trained on images with rows and columns
exchanged, which is why they are here.

Pictures are looked at with at most `LOOK_SIDE` pixels a side and faces of at least
`FACE_LOW` of those, and each stage goes on with at most `CANDIDATES` windows: the time is
bounded whatever the picture shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from forebay.engines.pictures import Pixels
from forebay.errors import CannotBoot

__all__ = ["Face", "FaceFinder", "open_network"]

LOOK_SIDE = 640
FACE_LOW = 20
FACTOR = 0.709
THRESHOLDS = (0.6, 0.7, 0.9)
CANDIDATES = 400

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Face:
    """In pixels of the picture. ``points``: both eyes, nose, both corners of the mouth."""

    x: float
    y: float
    width: float
    height: float
    score: float
    points: tuple[tuple[float, float], ...]


def open_network(path: Path, threads: int = 0) -> Any:
    """An onnxruntime session. Raises `CannotBoot` for a file that is none."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=onnxruntime.get_available_providers()
        )
    except Exception as exc:
        raise CannotBoot(f"{path} is no ONNX model: {type(exc).__name__}", stage="weights") from exc


class FaceFinder:
    """The three networks of ``folder``. `find` blocks."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self._nets = [open_network(folder / f"{n}net.onnx", threads) for n in ("p", "r", "o")]
        self._inputs = [net.get_inputs()[0].name for net in self._nets]

    def find(self, picture: Pixels) -> list[Face]:
        """Faces, the largest first."""
        import cv2

        height, width = picture.shape[:2]
        shrink = min(1.0, LOOK_SIDE / max(height, width))
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        image = picture if shrink == 1 else cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        boxes = self._propose(np.asarray(image))
        boxes = self._refine(np.asarray(image), boxes)
        faces = self._place(np.asarray(image), boxes)
        found = [
            Face(
                x=float(x1 / shrink),
                y=float(y1 / shrink),
                width=float((x2 - x1) / shrink),
                height=float((y2 - y1) / shrink),
                score=float(score),
                points=tuple((float(px / shrink), float(py / shrink)) for px, py in points),
            )
            for (x1, y1, x2, y2, score), points in faces
            if x2 > x1 and y2 > y1
        ]
        return sorted(found, key=lambda face: -face.width * face.height)

    def _run(self, stage: int, batch: Any) -> list[Any]:
        given = np.ascontiguousarray(batch, np.float32)
        made: list[Any] = self._nets[stage].run(None, {self._inputs[stage]: given})
        return made

    def _propose(self, image: Pixels) -> Numbers:
        found = [_empty()]
        for scale in _scales(*image.shape[:2]):
            small = _normal(_resized(image, scale)).transpose(1, 0, 2)
            moves, scores = self._run(0, small[None])
            score = scores[0, :, :, 1]
            xs, ys = np.where(score >= THRESHOLDS[0])
            corner = np.stack([xs, ys, xs, ys], axis=1) * 2.0
            boxes = np.fix((corner + (1, 1, 12, 12)) / scale)
            boxes = np.hstack([boxes, score[xs, ys, None], moves[0, xs, ys]])
            found.append(_thinned(boxes, 0.5))
        boxes = _thinned(np.vstack(found), 0.7)
        sides = boxes[:, 2:4] - boxes[:, 0:2]
        boxes[:, 0:4] += boxes[:, 5:9] * np.hstack([sides, sides])
        return _square(boxes[:, :5])

    def _refine(self, image: Pixels, boxes: Numbers) -> Numbers:
        if not len(boxes):
            return boxes
        moves, scores = self._run(1, _crops(image, boxes, 24))
        keep = scores[:, 1] > THRESHOLDS[1]
        boxes = np.hstack([boxes[keep, :4], scores[keep, 1:2], moves[keep]])
        boxes = _thinned(boxes, 0.7)
        return _square(_moved(boxes)[:, :5])

    def _place(self, image: Pixels, boxes: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
        if not len(boxes):
            return
        moves, points, scores = self._run(2, _crops(image, boxes, 48))
        keep = scores[:, 1] > THRESHOLDS[2]
        boxes = np.hstack([boxes[keep, :4], scores[keep, 1:2], moves[keep]])
        sides = boxes[:, 2:4] - boxes[:, 0:2] + 1
        xs = points[keep, 0:5] * sides[:, 0:1] + boxes[:, 0:1] - 1
        ys = points[keep, 5:10] * sides[:, 1:2] + boxes[:, 1:2] - 1
        boxes = _moved(boxes)
        for index in _picked(boxes, 0.7, smallest=True):
            yield boxes[index, :5], np.stack([xs[index], ys[index]], axis=1)


def _scales(height: int, width: int) -> Iterator[float]:
    scale = 12 / FACE_LOW
    while min(height, width) * scale >= 12:
        yield scale
        scale *= FACTOR


def _resized(image: Pixels, scale: float) -> Any:
    import cv2

    height, width = image.shape[:2]
    size = (math.ceil(width * scale), math.ceil(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _normal(pixels: Any) -> Any:
    return (np.asarray(pixels, np.float32) - 127.5) / 128


def _crops(image: Pixels, boxes: Numbers, side: int) -> Any:
    """What lies under the boxes, black outside the picture, as one batch."""
    import cv2

    height, width = image.shape[:2]
    batch = np.zeros((len(boxes), side, side, 3), np.float32)
    for index, (x1, y1, x2, y2) in enumerate(np.fix(boxes[:, :4]).astype(int)):
        part = np.zeros((max(1, y2 - y1 + 1), max(1, x2 - x1 + 1), 3), np.float32)
        left, top = max(0, x1 - 1), max(0, y1 - 1)
        inside = image[top : min(height, y2), left : min(width, x2)]
        y, x = top - (y1 - 1), left - (x1 - 1)
        part[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
        batch[index] = cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA)
    return _normal(batch).transpose(0, 2, 1, 3)


def _empty() -> Numbers:
    return np.empty((0, 9))


def _square(boxes: Numbers) -> Numbers:
    sides = boxes[:, 2:4] - boxes[:, 0:2]
    side = sides.max(axis=1, keepdims=True)
    boxes[:, 0:2] += sides / 2 - side / 2
    boxes[:, 2:4] = boxes[:, 0:2] + side
    return boxes


def _moved(boxes: Numbers) -> Numbers:
    """Boxes with columns 5 to 8 (shares of the side) applied."""
    sides = boxes[:, 2:4] - boxes[:, 0:2] + 1
    boxes[:, 0:4] += boxes[:, 5:9] * np.hstack([sides, sides])
    return boxes


def _thinned(boxes: Any, limit: float) -> Numbers:
    picked: Numbers = boxes[_picked(boxes, limit)][:CANDIDATES]
    return picked


def _picked(boxes: Numbers, limit: float, *, smallest: bool = False) -> list[int]:
    """The best of boxes that overlap by more than ``limit`` of their union, or of the
    smaller one."""
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    order = np.argsort(-boxes[:, 4])[: 8 * CANDIDATES]
    picked: list[int] = []
    while len(order):
        best, order = int(order[0]), order[1:]
        picked.append(best)
        low = np.maximum(boxes[best, 0:2], boxes[order, 0:2])
        high = np.minimum(boxes[best, 2:4], boxes[order, 2:4])
        both = np.maximum(0, high - low + 1).prod(axis=1)
        other = np.minimum(area[best], area[order])
        base = other if smallest else area[best] + area[order] - both
        order = order[both / base <= limit]
    return picked

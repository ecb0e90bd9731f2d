"""Mode ``face``: faces are found, worked on one by one, and blended into the picture.

By default a face is enlarged by Real-ESRGAN, as any small picture is: nothing here knows what
a face looks like, so nothing of it is restored. A model that does (GFPGAN and its like) can
be put beside the others as ``<models>/face/<name>/model.onnx`` with ``meta.json``::

    {"input": "input", "size": 512, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}

It is given each face turned and scaled to ``size`` x ``size`` (1 x 3 x size x size, RGB,
``(value / 255 - mean) / std``) and gives back the same shape; ``output`` names which, where
there are several.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from forebay.engines.face_finder import Face, FaceFinder, open_network
from forebay.engines.ncnn_net import Net, Stopped
from forebay.engines.options import Option
from forebay.engines.pictures import Box, Pixels
from forebay.errors import CannotBoot, EngineFailed

__all__ = ["FACES", "FaceWork", "Faces", "Restorer"]

FACES = (
    Option("face", str, None, "your own face restoration model: <models>/face/NAME"),
    Option("max_faces", int, 4, "faces worked on in mode face, the largest first", 1, 100),
)
AROUND = 1.3
"""A face's box, widened so that hair and chin are in it."""
CROP_SIDE = 192
"""Larger faces have their detail already; enlarging them like a texture would cost it."""
FEATHER = 8
"""The blend runs over this part of a face's side."""
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TEMPLATE = (
    (192.98138, 239.94708),
    (318.90277, 240.1936),
    (256.63416, 314.01935),
    (201.26117, 371.41043),
    (313.08905, 371.15118),
)
"""Where the five points lie in a 512 x 512 face of FFHQ, which such models are trained on
(as published with facexlib)."""

Alpha = npt.NDArray[np.float32]
Notes = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Patch:
    """A finished face, in pixels of the result."""

    x: int
    y: int
    pixels: Pixels
    alpha: Alpha


@dataclass(slots=True)
class Faces:
    """The faces of one picture. ``notes``: what was left out, as (code, message)."""

    patches: list[_Patch] = field(default_factory=list)
    notes: Notes = field(default_factory=list)

    def blend(self, part: Pixels, box: Box, scale: int) -> None:
        """Put what lies in ``box`` of the picture into ``part``, which is that box enlarged."""
        left, top = box.x * scale, box.y * scale
        height, width = part.shape[:2]
        for patch in self.patches:
            x1, y1 = max(left, patch.x), max(top, patch.y)
            x2 = min(left + width, patch.x + patch.pixels.shape[1])
            y2 = min(top + height, patch.y + patch.pixels.shape[0])
            if x1 >= x2 or y1 >= y2:
                continue
            here = (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left))
            there = (slice(y1 - patch.y, y2 - patch.y), slice(x1 - patch.x, x2 - patch.x))
            alpha = patch.alpha[there][..., None]
            mixed = part[here] * (1 - alpha) + patch.pixels[there] * alpha
            part[here] = np.rint(mixed).astype(np.uint8)


class FaceWork:
    """Finds faces and makes them anew. Blocks; one call at a time."""

    def __init__(
        self, finder: FaceFinder, net: Net | None, restorer: Restorer | None, max_faces: int
    ) -> None:
        self._finder = finder
        self._net = net
        self._restorer = restorer
        self._max_faces = max_faces

    @classmethod
    def load(
        cls, detector: Path, net: Net | None, own: Path | None, *, max_faces: int, threads: int
    ) -> FaceWork:
        """``own``: the folder of a restoration model, used instead of ``net``. Raises
        `CannotBoot` for one that cannot be used."""
        restorer = Restorer.load(own, threads) if own is not None else None
        return cls(FaceFinder(detector, threads), net, restorer, max_faces)

    def find(
        self, picture: Pixels, scale: int, wanted: Sequence[Box], stopped: Callable[[], bool]
    ) -> Faces:
        """Faces of ``picture`` as they are in the result ``scale`` times as large; only
        those that touch a ``wanted`` part are worked on. Raises `Stopped`."""
        found = Faces()
        faces = self._finder.find(picture)
        if not faces:
            found.notes.append(("no_faces", "no face was found: the picture is done as a photo"))
        if len(faces) > self._max_faces:
            found.notes.append(
                ("faces_limited", f"{len(faces)} faces, the {self._max_faces} largest are done")
            )
        for face in faces[: self._max_faces]:
            if stopped():
                raise Stopped
            box = _around(face, picture.shape[1], picture.shape[0])
            if not any(_touch(box, part) for part in wanted):
                continue
            if self._restorer is not None:
                found.patches.append(self._restorer.patch(picture, face, scale))
            elif max(box.width, box.height) <= CROP_SIDE:
                found.patches.append(self._enlarged(picture, box, scale, stopped))
        return found

    def _enlarged(
        self, picture: Pixels, box: Box, scale: int, stopped: Callable[[], bool]
    ) -> _Patch:
        import cv2

        assert self._net is not None
        made = self._net.enlarge(picture, box, stopped)
        size = (box.width * scale, box.height * scale)
        pixels = np.asarray(cv2.resize(made, size, interpolation=cv2.INTER_AREA), np.uint8)
        alpha = _feather(box.height * scale, box.width * scale)
        return _Patch(box.x * scale, box.y * scale, pixels, alpha)


class _Meta(msgspec.Struct, forbid_unknown_fields=True):
    input: str
    size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    output: str = ""


class Restorer:
    """A face restoration model of the operator's own."""

    def __init__(self, session: Any, meta: _Meta) -> None:
        self._session = session
        self._meta = meta
        self._mean = np.array(meta.mean, np.float32)
        self._std = np.array(meta.std, np.float32)
        self._template = np.array(TEMPLATE, np.float32) * (meta.size / 512)
        self._alpha = _feather(meta.size, meta.size)

    @classmethod
    def load(cls, folder: Path, threads: int = 0) -> Restorer:
        """Raises `CannotBoot` that names the file and what is wrong with it."""
        if SAFE_NAME.fullmatch(folder.name) is None:
            raise CannotBoot(f"face model {folder.name!r} is no plain name", stage="locate")
        path = folder / "meta.json"
        try:
            meta = msgspec.json.decode(path.read_bytes(), type=_Meta)
        except (OSError, msgspec.DecodeError) as exc:
            raise CannotBoot(f"{path}: {exc}", stage="locate") from exc
        if not 16 <= meta.size <= 2048 or 0 in meta.std:
            raise CannotBoot(f"{path}: size is {meta.size}, expected 16 to 2048", stage="locate")
        session = open_network(folder / "model.onnx", threads)
        restorer = cls(session, meta)
        names = [one.name for one in session.get_inputs()]
        if names != [meta.input]:
            raise CannotBoot(
                f"{folder / 'model.onnx'} has the inputs {names}, {path} says {meta.input!r}",
                stage="weights",
            )
        try:
            restorer.restore(np.zeros((meta.size, meta.size, 3), np.uint8))
        except Exception as exc:
            raise CannotBoot(
                f"{folder / 'model.onnx'} cannot be used as {path} says: {type(exc).__name__}: "
                f"{exc}",
                stage="warm_up",
            ) from exc
        return restorer

    def restore(self, face: Pixels) -> Pixels:
        """One aligned face. Raises `EngineFailed` for a result of another shape."""
        given = (face.astype(np.float32) / 255 - self._mean) / self._std
        batch = np.ascontiguousarray(given.transpose(2, 0, 1)[None])
        names = [self._meta.output] if self._meta.output else None
        made = np.asarray(self._session.run(names, {self._meta.input: batch})[0])
        if made.shape != batch.shape:
            raise EngineFailed(f"the face model made {made.shape}, expected {batch.shape}")
        values = made[0].transpose(1, 2, 0) * self._std + self._mean
        return np.asarray(np.rint(values.clip(0, 1) * 255), np.uint8)

    def patch(self, picture: Pixels, face: Face, scale: int) -> _Patch:
        """The face turned upright, restored, and turned back into its place in the result."""
        import cv2

        size = self._meta.size
        points = np.array(face.points, np.float32)
        matrix, _ = cv2.estimateAffinePartial2D(points, self._template, method=cv2.LMEDS)
        if matrix is None:
            raise EngineFailed("the points of a face cannot be aligned")
        upright = cv2.warpAffine(
            picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        made = self.restore(np.asarray(upright, np.uint8))
        back = cv2.invertAffineTransform(matrix) * scale
        corners = np.array([(0, 0), (size, 0), (0, size), (size, size)], np.float32)
        placed = corners @ back[:, :2].T + back[:, 2]
        low = np.maximum(0, np.floor(placed.min(axis=0))).astype(int)
        limit = (picture.shape[1] * scale, picture.shape[0] * scale)
        high = np.minimum(limit, np.ceil(placed.max(axis=0))).astype(int)
        back[:, 2] -= low
        width, height = (int(n) for n in np.maximum(1, high - low))
        pixels = cv2.warpAffine(made, back, (width, height), flags=cv2.INTER_LINEAR)
        alpha = cv2.warpAffine(self._alpha, back, (width, height), flags=cv2.INTER_LINEAR)
        return _Patch(
            int(low[0]), int(low[1]), np.asarray(pixels, np.uint8), np.asarray(alpha, np.float32)
        )


def _around(face: Face, width: int, height: int) -> Box:
    side = max(face.width, face.height) * AROUND
    x = face.x + face.width / 2 - side / 2
    y = face.y + face.height / 2 - side / 2
    x1, y1 = max(0, round(x)), max(0, round(y))
    x2, y2 = min(width, round(x + side)), min(height, round(y + side))
    return Box(x1, y1, max(1, x2 - x1), max(1, y2 - y1))


def _touch(one: Box, other: Box) -> bool:
    return (
        one.x < other.x + other.width
        and other.x < one.x + one.width
        and one.y < other.y + other.height
        and other.y < one.y + one.height
    )


def _feather(height: int, width: int) -> Alpha:
    """1 inside, falling to 0 at the border."""
    rows, columns = (
        np.minimum(1, np.minimum(np.arange(n), np.arange(n)[::-1]) * (FEATHER / n))
        for n in (height, width)
    )
    return np.outer(rows, columns).astype(np.float32)

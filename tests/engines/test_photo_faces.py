"""Mode face: faces are found, made anew, blended in; a model of one's own takes over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_helpers import load, need
from photo_pictures import face, onnx_negative, scene
from test_photo import composed, made

from forebay.core.events import Notice, Tile
from forebay.engines import Resume, create, weights
from forebay.engines.face_finder import FaceFinder
from forebay.engines.faces import Restorer
from forebay.errors import CannotBoot

MODELS = weights.default_dir(os.environ)


def models(folder: Path) -> Path:
    """The fetched weights, with a place for a model of one's own."""
    need("mtcnn", MODELS, "ncnn", "cv2")
    need("waifu2x-photo", MODELS, "ncnn")
    shared = MODELS
    for name in ("waifu2x-photo", "mtcnn"):
        found = weights.locate(name, shared)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def own(folder: Path, name: str = "negative", side: int = 64, **meta: Any) -> Path:
    place = folder / "face" / name
    place.mkdir(parents=True)
    (place / "model.onnx").write_bytes(onnx_negative(side))
    (place / "meta.json").write_text(json.dumps({"input": "face", "size": side} | meta))
    return place


def test_faces_are_found_where_they_are_and_nowhere_else() -> None:
    need("mtcnn", MODELS, "onnxruntime", "cv2")
    folder = weights.locate("mtcnn", MODELS)
    assert folder is not None
    finder = FaceFinder(folder, threads=1)
    assert finder.find(np.asarray(scene())) == []
    (found,) = finder.find(np.asarray(face(120)))
    assert found.score > 0.95
    assert abs(found.x + found.width / 2 - 160) < 12
    assert abs(found.y + found.height / 2 - 168) < 20
    left, right, nose, *_ = found.points
    assert left[0] < nose[0] < right[0]
    assert max(left[1], right[1]) < nose[1]
    large = np.asarray(face(120).resize((1280, 1280)))
    (again,) = finder.find(large)
    assert abs(again.x / 4 - found.x) < 12
    assert finder.find(np.zeros((8, 8, 3), np.uint8)) == []


async def test_a_face_is_made_anew_and_the_rest_is_the_photo(tmp_path: Path) -> None:
    folder = models(tmp_path)
    own(folder)
    engine = create(
        "image", "waifu2x", {"threads": 1, "models_dir": str(folder), "face": "negative"}
    )
    info = (await load(engine)).info
    assert info.facts["modes"] == ["photo", "face"]
    assert info.facts["limits"] == "face model negative"
    image = face(120)
    plain = composed(await made(engine, image)).astype(int)
    events = await made(engine, image, mode="face")
    faced = composed(events).astype(int)
    assert not [e for e in events if isinstance(e, Notice)]
    cheek = (slice(340, 350), slice(312, 328))  # of the result, twice as large
    assert abs(faced[cheek] - (255 - plain[cheek])).mean() < 12
    assert (faced[:60] == plain[:60]).all()
    assert (faced[:, :60] == plain[:, :60]).all()
    tiles = [e for e in events if isinstance(e, Tile)]
    rest = await made(engine, image, Resume(tiles=tiles[:-1]), mode="face")
    assert [e.data for e in rest if isinstance(e, Tile)] == [tiles[-1].data]
    await engine.unload()


async def test_without_a_face_it_is_done_as_a_photo_and_says_so(tmp_path: Path) -> None:
    folder = models(tmp_path)
    own(folder)
    engine = create(
        "image", "waifu2x", {"threads": 1, "models_dir": str(folder), "face": "negative"}
    )
    await load(engine)
    events = await made(engine, scene(), mode="face")
    assert [e.code for e in events if isinstance(e, Notice)] == ["no_faces"]
    assert (composed(events) == composed(await made(engine, scene()))).all()
    await engine.unload()


async def test_by_default_faces_are_enlarged_by_the_sharp_model() -> None:
    need("mtcnn", MODELS, "ncnn", "cv2")
    need("x4plus", MODELS, "ncnn")
    engine = create("image", "waifu2x", {"threads": 2, "max_faces": 1})
    await load(engine)
    image = face(48, 160, 160)
    plain = composed(await made(engine, image)).astype(int)
    faced = composed(await made(engine, image, mode="face")).astype(int)
    middle = (slice(130, 200), slice(130, 190))
    assert 0.2 < abs(faced[middle] - plain[middle]).mean() < 20
    assert (faced[:60] == plain[:60]).all()
    await engine.unload()


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"input": "wrong"}, "says 'wrong'"),
        ({"size": 4}, "expected 16 to 2048"),
        ({"size": 32}, "cannot be used"),
        ({"std": [0, 0.5, 0.5]}, "expected 16"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_at_the_start(
    tmp_path: Path, meta: dict[str, Any], said: str
) -> None:
    need("mtcnn", MODELS, "onnxruntime")
    with pytest.raises(CannotBoot, match=said):
        Restorer.load(own(tmp_path, **meta))


def test_a_model_is_named_by_a_plain_word(tmp_path: Path) -> None:
    with pytest.raises(CannotBoot, match="no plain name"):
        Restorer.load(tmp_path / "face" / "..")
    need("mtcnn", MODELS, "onnxruntime")
    place = own(tmp_path)
    (place / "model.onnx").write_bytes(b"no model")
    with pytest.raises(CannotBoot, match="no ONNX model"):
        Restorer.load(place)

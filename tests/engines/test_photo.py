"""Real image models on ncnn: better than a filter, seamless, stoppable, refused by name."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from engine_helpers import load, need
from photo_pictures import degraded, psnr, scene
from PIL import Image

from forebay.core.events import OutputEvent, Picture, Result, Tile
from forebay.engines import Resume, create, weights
from forebay.engines.ncnn_net import gpu_of
from forebay.engines.pictures import grid, plan, wish
from forebay.errors import BadRequest, CannotBoot, ConfigError, MissingEngine, TooLarge, Unsupported

MODELS = weights.default_dir(os.environ)


def given(image: Image.Image) -> Picture:
    return Picture(width=image.width, height=image.height, data=image.tobytes())


async def made(engine: Any, image: Image.Image, resume: Resume | None = None, **params: Any) -> Any:
    session = await engine.open(params, resume or Resume())
    return [event async for event in engine.step(session, [given(image)])]


def composed(events: list[OutputEvent]) -> np.ndarray:
    head = events[0]
    assert isinstance(head, Result)
    canvas = np.zeros((head.height, head.width, 3), np.uint8)
    for e in events:
        if isinstance(e, Tile):
            part = np.frombuffer(e.data, np.uint8).reshape(e.height, e.width, 3)
            canvas[e.y : e.y + e.height, e.x : e.x + e.width] = part
    return canvas


def test_a_plan_covers_the_picture_once_with_nearly_equal_tiles() -> None:
    for width, height, side in ((1, 1, 256), (1080, 1440, 400), (513, 300, 256), (7, 900, 256)):
        seen = np.zeros((height, width), int)
        for box in plan(width, height, side):
            assert 0 < box.width <= side
            assert 0 < box.height <= side
            seen[box.y : box.y + box.height, box.x : box.x + box.width] += 1
        assert (seen == 1).all()
    assert len(plan(1080, 1440, 400)) == 12
    assert len(grid(10, 10, 3, 2)) == 6


def test_what_a_job_may_ask_for() -> None:
    assert (wish({}).mode, wish({}).tile) == ("photo", 400)
    assert wish({"quality_level": "fast", "tile_size": 512}).tile == 256
    assert wish({"quality_level": "medium", "tile_size": 512}).tile == 400
    for wrong in ({"tile_size": 255}, {"mode": "magic"}, {"quality_level": "best"}):
        with pytest.raises(BadRequest):
            wish(wrong)


def test_a_device_is_the_processor_or_a_gpu_that_is_there(monkeypatch: Any) -> None:
    need("waifu2x-photo", MODELS, "ncnn")
    monkeypatch.setattr("forebay.engines.ncnn_net._gpus", lambda: 0)
    assert gpu_of("cpu") is None
    assert gpu_of("auto") is None
    with pytest.raises(CannotBoot, match="sees 0 GPUs"):
        gpu_of("cuda:0")
    with pytest.raises(ConfigError, match="expected cpu"):
        gpu_of("tpu")
    monkeypatch.setattr("forebay.engines.ncnn_net._gpus", lambda: 2)
    assert (gpu_of("auto"), gpu_of("cuda:1")) == (0, 1)


async def test_a_damaged_photo_comes_back_closer_to_the_original_than_a_filter_brings_it() -> None:
    need("waifu2x-photo", MODELS, "ncnn")
    engine = create("image", "waifu2x", {"threads": 1})
    info = (await load(engine)).info
    assert info.model == "waifu2x-photo"
    assert "no face prior" in info.facts["limits"]
    original = scene()
    small = degraded(original)
    events = await made(engine, small)
    result = composed(events)
    filtered = small.resize(original.size, Image.Resampling.BICUBIC)
    gain = psnr(original, result) - psnr(original, filtered)
    assert gain > 0.8, f"{gain:.2f} dB over bicubic"
    await engine.unload()


async def test_tiles_meet_without_a_seam_and_resume_leaves_out_what_is_done() -> None:
    need("waifu2x-photo", MODELS, "ncnn")
    engine = create("image", "waifu2x", {"threads": 1})
    await load(engine)
    image = scene(300, 280)
    apart = await made(engine, image, tile_size=256)
    whole = await made(engine, image, tile_size=512)
    tiles = [e for e in apart if isinstance(e, Tile)]
    assert [len(tiles), len(whole)] == [4, 2]
    difference = np.abs(composed(apart).astype(int) - composed(whole).astype(int))
    assert difference.max() <= 2  # half precision rounds differently in pieces of another size
    rest = await made(engine, image, Resume(tiles=tiles[:3]), tile_size=256)
    assert [e.index for e in rest if isinstance(e, Tile)] == [3]
    other = await made(engine, image, Resume(tiles=tiles[:3]), tile_size=512)
    assert [e.index for e in other if isinstance(e, Tile)] == [0]  # another plan: all of it
    await engine.unload()


async def test_threads_with_a_piece_each_make_the_same_picture() -> None:
    need("waifu2x-photo", MODELS, "ncnn")
    image, seen = scene(300, 280), []
    for threads in (1, 2, 4):
        engine = create("image", "waifu2x", {"threads": threads})
        await load(engine)
        seen.append(composed(await made(engine, image)).astype(int))
        await engine.unload()
    for other in seen[1:]:
        assert np.abs(other - seen[0]).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (6, 40), (257, 5)])
async def test_pictures_smaller_than_what_the_network_looks_at(size: tuple[int, int]) -> None:
    need("waifu2x-photo", MODELS, "ncnn")
    engine = create("image", "waifu2x", {"threads": 1})
    await load(engine)
    result = composed(await made(engine, scene().resize(size)))
    assert result.shape == (size[1] * 2, size[0] * 2, 3)
    await engine.unload()


async def test_a_stopped_job_gives_the_slot_back_between_two_pieces() -> None:
    need("waifu2x-photo", MODELS, "ncnn")
    engine: Any = create("image", "waifu2x", {"threads": 1})
    await load(engine)
    calls: list[int] = []
    inner = engine._net._run

    def counted(pixels: Any) -> Any:
        calls.append(1)
        return inner(pixels)

    engine._net._run = counted
    session = await engine.open({"tile_size": 256}, Resume())
    events = engine.step(session, [given(scene(1000, 700))])
    async for event in events:
        if isinstance(event, Tile):
            break
    await events.aclose()
    assert len(calls) <= 5  # of 12: what was waiting (two) and what was being made
    await engine.unload()


async def test_the_slow_model_takes_small_pictures_only_and_says_the_limit() -> None:
    need("x4plus", MODELS, "ncnn")
    engine = create("image", "realesrgan", {"threads": 2, "max_perceptual_px": 24 * 16})
    info = (await load(engine)).info
    assert (info.facts["scale"], info.facts["modes"]) == (4, ["perceptual"])
    result = composed(await made(engine, scene(24, 16), mode="perceptual"))
    assert result.shape == (64, 96, 3)
    bicubic = scene(24, 16).resize((96, 64), Image.Resampling.BICUBIC)
    assert psnr(bicubic, result) > 18  # the same picture, whatever it invents
    with pytest.raises(TooLarge, match="up to 384 pixels, this one is 25x16 = 400"):
        await made(engine, scene(25, 16))
    with pytest.raises(Unsupported, match="waifu2x"):
        await engine.open({"mode": "face"}, Resume())
    await engine.unload()


async def test_what_is_not_there_is_named_with_its_command(tmp_path: Any) -> None:
    need("waifu2x-photo", MODELS, "ncnn")
    engine = create("image", "waifu2x", {"models_dir": str(tmp_path)})
    with pytest.raises(MissingEngine, match="forebay models fetch waifu2x-photo"):
        await load(engine)


async def test_a_mode_without_its_weights_is_refused_before_any_work(
    tmp_path: Any, monkeypatch: Any
) -> None:
    need("waifu2x-photo", MODELS, "ncnn")
    engine: Any = create("image", "waifu2x", {"threads": 1})
    await load(engine)
    monkeypatch.setattr(engine, "_has", lambda name: False)
    with pytest.raises(Unsupported, match="models fetch photo"):
        await engine.open({"mode": "perceptual"}, Resume())
    await engine.unload()

"""What a worker is sent that is no good picture, and what becomes of blobs nobody needs."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_picture import Counting, doubled, photo, saved, world

from forebay.core.events import Ended, Notice, Picture, Result, Tile
from forebay.errors import BadImage
from forebay.worker.pixels import TYPES, decode


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header says so and whose pixels are a kilobyte of zeros."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """12000 x 12000 in half a megabyte."""
    out = io.BytesIO()
    Image.new("L", (12_000, 12_000)).save(out, "PNG")
    return out.getvalue()


WHOLE = saved(photo(), "JPEG", quality=90)
SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
BAD: dict[str, tuple[bytes, str, str]] = {
    "a bomb": (png_header(12_000, 12_000), "image/png", "too_large"),
    "a larger one": (png_header(60_000, 60_000), "image/png", "too_large"),
    "a side too long": (png_header(12_001, 1), "image/png", "too_large"),
    "a truncated jpeg": (WHOLE[: len(WHOLE) // 2], "image/jpeg", "bad_image"),
    "a truncated png": (saved(photo())[:2000], "image/png", "bad_image"),
    "a truncated webp": (saved(photo(), "WEBP")[:900], "image/webp", "bad_image"),
    "a header only": (WHOLE[:3], "image/jpeg", "bad_image"),
    "nothing": (b"", "image/png", "unsupported"),
    "text": (b"hello, I am a picture" * 20, "image/png", "unsupported"),
    "a gif": (saved(photo(), "GIF"), "image/png", "unsupported"),
    "a pdf with a jpeg inside": (b"%PDF-1.4\n" + WHOLE, "image/jpeg", "unsupported"),
    "a jpeg announced as png": (WHOLE, "image/png", "bad_image"),
    "a png behind a jpeg's first bytes": (
        b"\xff\xd8\xff\xe0" + saved(photo()),
        "image/jpeg",
        "bad_image",
    ),
    "a script behind a bitmap's first bytes": (b"BM=1;alert(1)//" * 40, "image/bmp", "bad_image"),
    "a jpeg of a thousand scans": (WHOLE[:-2] + SCAN * 1000, "image/jpeg", "bad_image"),
}


def test_scans_are_counted_by_markers_and_not_by_what_segments_hold(tmp_path: Path) -> None:
    path = tmp_path / "p.jpg"
    notes = b"\xff\xe5" + (2 + 2 * 200).to_bytes(2, "big") + b"\xff\xda" * 200
    many = saved(photo(), "JPEG", quality=90, progressive=True)
    for data in (WHOLE[:2] + notes + WHOLE[2:], many, WHOLE + SCAN * 200):
        path.write_bytes(data)
        made = decode(path, Picture(type="image/jpeg"), max_px=10**8, max_side=12_000)
        assert len(made.data) == made.width * made.height * 3
    path.write_bytes(many[:-2] + b"\xff\x01\xff\xff" + SCAN * 100)
    with pytest.raises(BadImage, match="scans"):
        decode(path, Picture(type="image/jpeg"), max_px=10**8, max_side=12_000)


@pytest.mark.parametrize("name", BAD)
async def test_the_model_never_sees(tmp_path: Path, name: str) -> None:
    data, said, code = BAD[name]
    async with world(tmp_path) as w:
        engine = Counting()
        await w.worker(engine)
        ended = await w.over(await w.job(data, Picture(type=said)))
        assert (ended.state, ended.code, ended.retryable) == ("failed", code, False)
        assert engine.given == []
        good = await w.job(saved(photo()))
        assert (await w.over(good)).state == "completed"  # and the worker lives on


async def test_a_size_that_was_announced_must_be_the_headers(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        engine = Counting()
        await w.worker(engine)
        lie = Picture(type="image/png", width=64, height=64)
        ended = await w.over(await w.job(saved(photo(120, 90)), lie))
        assert ended.code == "bad_image"
        assert "120x90, announced was 64x64" in ended.message
        assert engine.given == []


def test_a_bomb_is_refused_from_its_header_alone(tmp_path: Path) -> None:
    """In a process of its own, whose memory tells."""
    (tmp_path / "bomb.png").write_bytes(bomb())
    (tmp_path / "small.png").write_bytes(saved(photo(16, 12)))
    code = """
import resource, sys, time
from pathlib import Path
from forebay.core.events import Picture
from forebay.errors import TooLarge
from forebay.worker.pixels import decode
path = Path(sys.argv[1])
for _ in range(2):  # what is loaded late is loaded now
    decode(Path(sys.argv[2]), Picture(type="image/png"), max_px=40_000_000, max_side=12_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
try:
    decode(path, Picture(type="image/png"), max_px=40_000_000, max_side=12_000)
except TooLarge as exc:
    print(exc.message)
took = time.process_time() - start
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown < 64 * 1024, grown
assert took < 0.1, took
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bomb.png"), str(tmp_path / "small.png")],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "12000x12000 = 144000000 pixels" in done.stdout


@pytest.mark.parametrize("type", TYPES)
async def test_every_type_is_read(tmp_path: Path, type: str) -> None:
    lossless: dict[str, Any] = {"lossless": True} if type == "image/webp" else {}
    async with world(tmp_path) as w:
        engine = Counting()
        await w.worker(engine)
        data = saved(photo(), TYPES[type], **lossless)
        job = await w.job(data, Picture(type=type, width=120, height=90), format="png")
        assert (await w.over(job)).state == "completed"
        if type != "image/jpeg":
            assert engine.given[0].data == photo().tobytes()


async def test_a_photo_is_turned_upright_and_tells_nothing_of_its_camera(tmp_path: Path) -> None:
    image = photo(120, 90)
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright: rows are columns
    exif[0x010F] = "Camera of Ann"
    async with world(tmp_path) as w:
        engine = Counting(tiles=1)
        await w.worker(engine)
        data = saved(image, "JPEG", quality=95, exif=exif, icc_profile=b"profile")
        job = await w.job(data, Picture(type="image/jpeg", width=120, height=90))
        await w.over(job)
        (result,) = await w.until(job, Result)
        assert (result.width, result.height) == (180, 240)
        written = w.blobs.path(result.blob).read_bytes()
        assert b"Ann" not in written
        assert not w.image(result.blob).getexif()
        assert w.image(result.blob).info.get("icc_profile") == b"profile"  # colours stay right


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "I;16", "RGBA"])
async def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = photo().convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = photo(mode="RGB" if mode in ("1", "P") else mode.replace("LA", "L")).convert(mode)
    form = "TIFF" if mode == "CMYK" else "PNG"
    async with world(tmp_path) as w:
        engine = Counting()
        await w.worker(engine)
        assert (await w.over(await w.job(saved(image, form)))).state == "completed"
        seen = np.frombuffer(engine.given[0].data, np.uint8).reshape(90, 120, 3)
        if mode in ("L", "LA", "I;16"):
            assert np.array_equal(seen[..., 0], np.asarray(grey))


async def test_the_first_of_several_frames_is_used_and_said(tmp_path: Path) -> None:
    frames = [photo(seed=n) for n in (1, 2)]
    async with world(tmp_path) as w:
        await w.worker(Counting())
        data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
        job = await w.job(data, format="png")
        await w.over(job)
        assert [n.code for n in await w.until(job, Notice)] == ["first_frame"]
        (result,) = await w.until(job, Result)
        assert np.array_equal(np.asarray(w.image(result.blob)), doubled(frames[0]))


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"format": "gif"}, "unsupported"),
        ({"quality": 101}, "bad_request"),
        ({"mode": "magic"}, "bad_request"),
        ({"tile_size": 9}, "bad_request"),
    ],
)
async def test_what_a_job_may_not_ask_for(
    tmp_path: Path, params: dict[str, Any], code: str
) -> None:
    async with world(tmp_path) as w:
        await w.worker(Counting())
        assert (await w.over(await w.job(saved(photo()), **params))).code == code


async def test_a_result_that_would_be_too_large_is_refused_before_the_model_works(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        engine = Counting(scale=8)
        await w.worker(engine)
        wide = await w.over(await w.job(saved(photo(3000, 4)), format="webp"))
        assert wide.code == "unsupported"
        assert "16383 a side" in wide.message
        vast = await w.over(await w.job(saved(Image.new("RGB", (1700, 1600)))))
        assert vast.code == "too_large"
        assert "13600x12800 = 174080000 pixels, expected no more than 160000000" in vast.message
        assert engine.made == []


async def test_a_cancel_stops_between_tiles_and_nothing_is_left_behind(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        dropped: list[str] = []
        w.broker._core.drop_blobs = lambda names: dropped.extend(names)
        engine = Counting(tiles=8)
        engine.hold_after = 3
        await w.worker(engine)
        job = await w.job(saved(photo(160, 120)))
        tiles = await w.until(job, Tile, 3)
        await w.broker.cancel(job)
        assert (await w.over(job)).state == "cancelled"
        engine.hold_after = None
        engine.gate.set()
        after = await w.job(saved(photo()))
        assert (await w.over(after)).state == "completed"
        assert engine.made[:3] == [0, 1, 2]
        assert engine.made.count(3) == 1  # the other job's
        assert {t.blob for t in tiles} < set(dropped)
        assert len(dropped) == 4  # three tiles and the upload
        for name in dropped:
            w.blobs.drop(name)
        kept = {p.name for p in w.blobs.folder.rglob("*") if p.is_file()}
        used = {e.blob for e in await w.events(after) if isinstance(e, Tile | Result)}
        assert len([name for name in kept if name not in used]) <= 2  # its upload, a ledger


async def test_blobs_go_when_their_job_is_forgotten(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        dropped: list[str] = []
        w.broker._core.drop_blobs = lambda names: dropped.extend(names)
        await w.worker(Counting(tiles=2))
        job = await w.job(saved(photo()))
        await w.over(job)
        assert dropped == []
        events = await w.events(job)
        w.broker._core.forget(w.broker._core.entries[job])
        named = {e.blob for e in events if isinstance(e, Tile | Result)}
        assert named < set(dropped)
        assert len(set(dropped)) == len(dropped) == 4


async def test_a_tile_whose_blob_is_gone_is_made_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        first, second = Counting(tiles=4), Counting(tiles=4)
        first.hold_after = 2
        name = await w.worker(first)
        job = await w.job(saved(photo(160, 120)), format="png")
        tiles = await w.until(job, Tile, 2)
        w.blobs.drop(tiles[0].blob)
        await w.kill(name)
        await w.worker(second)
        assert (await w.over(job)).state == "completed"
        assert second.made == [0, 2, 3]
        (result,) = await w.until(job, Result)
        assert np.array_equal(np.asarray(w.image(result.blob)), doubled(photo(160, 120)))


async def test_a_death_between_result_and_end_only_ends_it(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        name = await w.worker(Counting(tiles=2))
        near = w._workers[name][0]
        commit = near.commit

        def cut(job: str, attempt: int, events: Any, *rest: Any, **more: Any) -> None:
            if not any(isinstance(e, Ended) for e in events):
                commit(job, attempt, events, *rest, **more)

        near.commit = cut  # type: ignore[method-assign]
        job = await w.job(saved(photo()))
        await w.until(job, Result)
        await w.kill(name)
        second = Counting(tiles=2)
        await w.worker(second)
        assert (await w.over(job)).state == "completed"
        assert second.given == []
        assert len(await w.until(job, Result)) == 1


def test_memory_beyond_the_limit_is_an_answer_not_a_death() -> None:
    code = """
import numpy as np
from forebay.process import limit_memory
limit_memory(0)
limit_memory(1024)
try:
    np.ones(2 << 30, np.uint8)
except MemoryError:
    print("refused")
"""
    assert resource.RLIMIT_AS
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "refused", done.stderr

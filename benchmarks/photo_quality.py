"""Claim: the default image model brings a damaged photo closer to the original than a filter.

Each picture is halved, given a sensor's noise and saved as a small JPEG; then every mode of
the default engine and Pillow's bicubic filter bring it back to its size. PSNR is over all
channels; SSIM over luma, as Z. Wang et al. define it (IEEE Transactions on Image Processing 13,
2004): Gaussian window of 11 x 11 and 1.5 pixels, K1 = 0.01, K2 = 0.03.

``--pictures a.jpg,b.png`` names the originals. Without it those of scikit-image are read where
it is installed (``pip install --no-deps scikit-image``; its code is not run), and beside them
one that is computed.
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness import options, report, run
from forebay.core.events import Picture, Result, Tile
from forebay.engines import Engine, Resume, create

SHIPPED = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")
SIDE = 384
NOISE = 3.0
QUALITY = 45

Row = tuple[str, str, str, bool | None]


def originals(named: str) -> dict[str, Image.Image]:
    """Pictures by name, the middle of each, of an even size."""
    if named:
        return {path.name: cropped(Image.open(path)) for path in map(Path, named.split(","))}
    found = importlib.util.find_spec("skimage")
    folder = Path((found.submodule_search_locations or [""])[0]) / "data" if found else Path()
    there = [folder / name for name in SHIPPED if (folder / name).is_file()]
    return {"computed": computed()} | {path.name: cropped(Image.open(path)) for path in there}


def cropped(image: Image.Image) -> Image.Image:
    width, height = min(SIDE, image.width) & ~1, min(SIDE, image.height) & ~1
    x, y = (image.width - width) // 2, (image.height - height) // 3
    return image.convert("RGB").crop((x, y, x + width, y + height))


def computed() -> Image.Image:
    """A fractal's border before a soft sky: hard edges, fine detail, smooth light."""
    shape = Image.effect_mandelbrot((SIDE, SIDE), (-2.0, -1.4, 0.8, 1.4), 60)
    light = Image.radial_gradient("L").resize((SIDE, SIDE))
    return Image.merge("RGB", (shape, Image.blend(shape, light, 0.5), light))


def damaged(image: Image.Image) -> Image.Image:
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    noise = np.random.default_rng(1).normal(0, NOISE, (half.height, half.width, 3))
    out = io.BytesIO()
    noisy = (np.asarray(half) + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(out, "JPEG", quality=QUALITY)
    return Image.open(out).convert("RGB")


def psnr(one: Image.Image, other: Image.Image) -> float:
    error = np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)
    return float(10 * np.log10(255**2 / error))


def ssim(one: Image.Image, other: Image.Image) -> float:
    x, y = (np.asarray(image.convert("L"), float) for image in (one, other))
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    both = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    return float(np.mean(top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))))


def _blurred(values: Any) -> Any:
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()
    for axis in (0, 1):
        values = np.apply_along_axis(np.convolve, axis, values, window, mode="valid")
    return values


async def enhanced(engine: Engine, image: Image.Image, mode: str) -> Image.Image:
    session = await engine.open({"mode": mode}, Resume())
    item = Picture(width=image.width, height=image.height, data=image.tobytes())
    canvas = np.zeros((1, 1, 3), np.uint8)
    async for event in engine.step(session, [item]):
        if isinstance(event, Result):
            canvas = np.zeros((event.height, event.width, 3), np.uint8)
        elif isinstance(event, Tile):
            part = np.frombuffer(event.data, np.uint8).reshape(event.height, event.width, 3)
            canvas[event.y : event.y + event.height, event.x : event.x + event.width] = part
    return Image.fromarray(canvas)


async def measure(pictures: dict[str, Image.Image]) -> list[dict[str, Any]]:
    engine = create("image", "waifu2x", {})
    info = await engine.load(lambda stage: None)
    rows = []
    for name, whole in pictures.items():
        small = damaged(whole)
        filtered = small.resize(whole.size, Image.Resampling.BICUBIC)
        base = psnr(whole, filtered), ssim(whole, filtered)
        rows.append({"picture": name, "by": "bicubic", "psnr": base[0], "ssim": base[1]})
        for mode in info.facts["modes"]:
            made = await enhanced(engine, small, mode)
            if made.size != whole.size:  # perceptual is fourfold
                made = made.resize(whole.size, Image.Resampling.LANCZOS)
            found = psnr(whole, made), ssim(whole, made)
            row = {"picture": name, "by": mode, "psnr": found[0], "ssim": found[1]}
            rows.append(row | {"psnr_gain": found[0] - base[0], "ssim_gain": found[1] - base[1]})
    await engine.unload()
    return rows


async def main() -> int:
    args = options(__doc__.splitlines()[0], pictures="")
    raw = await measure(originals(args.pictures))
    rows: list[Row] = []
    for row in raw:
        what = f"{row['picture']}: {row['by']}"
        seen = f"{row['psnr']:.2f} dB, SSIM {row['ssim']:.3f}"
        if "psnr_gain" not in row:
            rows.append((what, seen, "", None))
            continue
        seen += f" ({row['psnr_gain']:+.2f} dB, {row['ssim_gain']:+.3f})"
        held = row["psnr_gain"] > 0 and row["ssim_gain"] > 0
        if row["by"] == "photo":
            rows.append((what, seen, "more than bicubic", held))
        else:  # sharper is not closer: told, not wanted
            rows.append((what, seen, "", None))
    return report("Image models against a bicubic filter", rows, args.output_json, measured=raw)


if __name__ == "__main__":
    run(main)

"""Pictures that tests draw themselves, and how good a result is."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["degraded", "face", "onnx_negative", "psnr", "scene"]

SUPER = 4  # drawn larger and reduced, so that edges are as soft as a camera's


def scene(width: int = 256, height: int = 192) -> Image.Image:
    """A landscape of soft light, hard edges and fine texture."""
    image = Image.new("RGB", (width * 2, height * 2))
    draw = ImageDraw.Draw(image)
    for y in range(height * 2):
        share = y / (height * 2)
        draw.line(
            [(0, y), (width * 2, y)], fill=(int(120 + 90 * share), 150, int(220 - 90 * share))
        )
    for n in range(12):
        x, y = (n * 97) % (width * 2), height + (n * 41) % height
        shade = (40 + n * 15, 90 + n * 9, 60 + n * 4)
        draw.polygon([(x - 70, y + 60), (x, y - 80), (x + 70, y + 60)], fill=shade)
    draw.ellipse((40, 30, 140, 130), fill=(250, 235, 180))
    for n in range(0, width * 2, 14):
        draw.line([(n, height * 2), (n + 30, height * 2 - 60)], fill=(70, 60, 40), width=2)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    grain = np.random.default_rng(5).normal(0, 2, (height, width, 1))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def degraded(image: Image.Image, quality: int = 45) -> Image.Image:
    """Half the size, with a sensor's noise and a small file's damage."""
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    noise = np.random.default_rng(1).normal(0, 3, (half.height, half.width, 3))
    out = io.BytesIO()
    noisy = (np.asarray(half) + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(out, "JPEG", quality=quality)
    return Image.open(out).convert("RGB")


def psnr(one: Any, other: Any) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of 8 bits."""
    error = np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def face(size: int = 120, width: int = 320, height: int = 320) -> Image.Image:
    """Somebody, drawn well enough for a detector."""
    image = Image.new("RGB", (width * SUPER, height * SUPER), (90, 110, 130))
    draw = ImageDraw.Draw(image)
    cx, cy, r = width * SUPER // 2, height * SUPER // 2, size * SUPER // 2

    def oval(x: float, y: float, rx: float, ry: float, fill: tuple[int, int, int]) -> None:
        draw.ellipse(
            (cx + (x - rx) * r, cy + (y - ry) * r, cx + (x + rx) * r, cy + (y + ry) * r), fill=fill
        )

    oval(0, -0.15, 0.82, 1.02, (60, 40, 30))
    oval(0, 0.05, 0.68, 0.92, (214, 170, 140))
    oval(0, 0.35, 0.5, 0.5, (220, 178, 150))
    for side in (-1, 1):
        x = side * 0.28
        oval(x, -0.1, 0.17, 0.09, (190, 140, 115))
        oval(x, -0.1, 0.13, 0.065, (245, 240, 235))
        oval(x, -0.1, 0.06, 0.062, (50, 35, 25))
        brow = [(x - 0.16, -0.27), (x, -0.31), (x + 0.16, -0.27)]
        draw.line(
            [(cx + a * r, cy + b * r) for a, b in brow], fill=(60, 40, 30), width=int(0.05 * r)
        )
    nose = [(0, -0.1), (-0.13, 0.27), (0.13, 0.27)]
    draw.polygon([(cx + a * r, cy + b * r) for a, b in nose], fill=(200, 150, 122))
    for side in (-1, 1):
        oval(side * 0.07, 0.27, 0.05, 0.03, (140, 90, 75))
    oval(0, 0.52, 0.26, 0.085, (175, 85, 85))
    oval(0, 0.51, 0.24, 0.02, (110, 45, 45))
    image = image.filter(ImageFilter.GaussianBlur(SUPER * 2.2)).resize((width, height))
    light = 1.12 - 0.35 * np.linspace(0, 1, width)[None, :, None]
    return Image.fromarray((np.asarray(image) * light).clip(0, 255).astype(np.uint8))


def onnx_negative(side: int) -> bytes:
    """The smallest ONNX model: ``face`` of 1 x 3 x side x side in, the same negated out."""

    def field(number: int, data: bytes | int) -> bytes:
        if isinstance(data, int):
            return bytes([number << 3]) + _varint(data)
        return bytes([number << 3 | 2]) + _varint(len(data)) + data

    def value(name: bytes) -> bytes:
        dims = b"".join(field(1, field(1, n)) for n in (1, 3, side, side))
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))

    node = field(1, b"face") + field(2, b"made") + field(4, b"Neg")
    graph = field(1, node) + field(2, b"g") + field(11, value(b"face")) + field(12, value(b"made"))
    return field(1, 8) + field(7, graph) + field(8, field(1, b"") + field(2, 13))


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])

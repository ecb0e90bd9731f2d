"""From a picture's bytes to RGB and back, under limits. All calls block: use a thread.

Nothing is decoded before the type (from the bytes), the size (from the header) and both
against what was announced are found right. What a decoder raises afterwards is the
picture's fault and becomes `BadImage`; it never carries content.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from forebay.core.events import Picture
from forebay.engines.pictures import Pixels
from forebay.errors import BadImage, TooLarge, Unsupported

__all__ = [
    "TILE_TYPE",
    "TYPES",
    "Decoded",
    "decode",
    "draw_tile",
    "encode",
    "encode_tile",
    "refuse_format",
]

warnings.simplefilter("error", Image.DecompressionBombWarning)

TYPES = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
}
TILE_TYPE = "image/png"
JPEG_SCANS = 100
"""A picture made to decode slowly has thousands; the usual progressive one about ten."""
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Any but fill bytes, stuffed zeros and restart markers, which are found inside a scan."""
_SOS, _EOI, _BARE = 0xDA, 0xD9, frozenset({0x01, 0xD8})
_PNG, _SUB = b"\x89PNG\r\n\x1a\n", 1
ICC_BYTES = 1 << 20
WEBP_SIDE = 16_383
JPEG_SIDE = 65_500
_OPAQUE = frozenset({"RGB", "L", "1", "CMYK", "YCbCr"})
_DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    OverflowError,
)
"""What Pillow raises for damaged files, format by format."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """``data``: RGB, upright. ``notes``: what was left out, as (code, message)."""

    width: int
    height: int
    data: bytes
    icc: bytes = b""
    notes: Sequence[tuple[str, str]] = ()


def decode(path: Path, picture: Picture, *, max_px: int, max_side: int) -> Decoded:
    """Raises `Unsupported`, `BadImage` or `TooLarge`; the picture was not decoded then,
    except where the damage lies in its pixels."""
    kind = _check_magic(path, picture)
    Image.MAX_IMAGE_PIXELS = max_side**2  # a net below ours, which knows the size to name
    try:
        with Image.open(path, formats=[TYPES[kind]]) as image:
            _check_size(image.size, picture, max_px, max_side)
            return _upright(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise TooLarge(
            f"a picture of far more pixels than the {max_px} allowed", limit_px=max_px
        ) from exc
    except MemoryError as exc:
        raise TooLarge("this picture needs more memory than this worker may have") from exc
    except _DAMAGED as exc:
        raise BadImage(f"damaged or truncated {kind.partition('/')[2]}") from exc


def _check_magic(path: Path, picture: Picture) -> str:
    with path.open("rb") as file:
        head = file.read(16)
    kind = _type_of(head)
    if kind is None:
        raise Unsupported(f"no picture type is known for these bytes, expected {', '.join(TYPES)}")
    if picture.type and picture.type != kind:
        raise BadImage(f"the bytes are {kind}, announced was {picture.type[:64]!r}")
    if kind == "image/jpeg":
        scans = _jpeg_scans(path.read_bytes())
        if scans > JPEG_SCANS:
            raise BadImage(f"a jpeg of {scans} scans, expected no more than {JPEG_SCANS}")
    return kind


def _jpeg_scans(data: bytes) -> int:
    """How many scans a decoder will meet: markers, walked as it walks them. What a segment
    holds (a thumbnail, a maker's notes) are no markers, whatever its bytes."""
    scans, at = 0, 2
    while (found := _MARKER.search(data, at)) is not None:
        code, at = data[found.start() + 1], found.end()
        if code == _EOI:
            break
        if code in _BARE:
            continue
        scans += code == _SOS
        at += int.from_bytes(data[at : at + 2], "big")
    return scans


def _type_of(head: bytes) -> str | None:
    if head[:3] == b"\xff\xd8\xff":
        return "image/jpeg"
    if head[:8] == _PNG:
        return "image/png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[:2] == b"BM":
        return "image/bmp"
    return "image/tiff" if head[:4] in (b"II*\0", b"MM\0*") else None


def _check_size(size: tuple[int, int], picture: Picture, max_px: int, max_side: int) -> None:
    width, height = size
    if picture.width and (width, height) != (picture.width, picture.height):
        raise BadImage(
            f"the header says {width}x{height}, announced was {picture.width}x{picture.height}"
        )
    if max(size) > max_side:
        raise TooLarge(
            f"a picture of {width}x{height} pixels, expected no side over {max_side}",
            limit_side=max_side,
        )
    if width * height > max_px:
        raise TooLarge(
            f"a picture of {width}x{height} = {width * height} pixels, "
            f"expected no more than {max_px}",
            limit_px=max_px,
        )


def _upright(image: Image.Image) -> Decoded:
    notes: list[tuple[str, str]] = []
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1:
        notes.append(("first_frame", f"a picture of {frames} frames: the first one is used"))
    image.load()
    icc = image.info.get("icc_profile") or b""
    keep = image.mode in ("RGB", "RGBA") and len(icc) <= ICC_BYTES
    turned = ImageOps.exif_transpose(image)
    rgb = _rgb(turned, notes)
    return Decoded(rgb.width, rgb.height, rgb.tobytes(), icc if keep else b"", notes)


def _rgb(image: Image.Image, notes: list[tuple[str, str]]) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits of grey: Pillow's own conversion clips them
        array = np.asarray(image)
        top = 257 if array.max(initial=0) > 255 else 1
        return Image.fromarray((array // top).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in _OPAQUE or not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    if clear.getchannel("A").getextrema()[0] == 255:
        return clear.convert("RGB")
    notes.append(("alpha", "transparent parts are shown on white: the result has no alpha"))
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(clear)
    return white.convert("RGB")


# ------------------------------------------------------------------------------ back


def encode_tile(width: int, height: int, data: bytes) -> bytes:
    """Lossless and cheap: a PNG of differences to the pixel on the left, runs and Huffman
    codes only. Half the time of Pillow's least compression, for some tenth more bytes; the
    model next door wants this processor."""
    pixels = np.frombuffer(data, np.uint8).reshape(height, width * 3)
    rows = np.empty((height, width * 3 + 1), np.uint8)
    rows[:, 0] = _SUB
    rows[:, 1:4] = pixels[:, :3]
    np.subtract(pixels[:, 3:], pixels[:, :-3], out=rows[:, 4:])
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    body = packer.compress(rows.data) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits each of RGB
    return b"".join([_PNG, _chunk(b"IHDR", head), _chunk(b"IDAT", body), _chunk(b"IEND", b"")])


def _chunk(name: bytes, body: bytes) -> bytes:
    check = zlib.crc32(body, zlib.crc32(name))
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)


def draw_tile(path: Path, canvas: Pixels, x: int, y: int) -> None:
    """Put a tile that an earlier attempt has encoded into ``canvas``."""
    with Image.open(path, formats=["PNG"]) as image:
        part = np.asarray(image.convert("RGB"))
    canvas[y : y + part.shape[0], x : x + part.shape[1]] = part


def refuse_format(format: str, width: int, height: int) -> None:
    """Raises `Unsupported` for a format that is not ours or cannot hold so many pixels."""
    sides = {"jpeg": JPEG_SIDE, "png": None, "webp": WEBP_SIDE}
    if format not in sides:
        raise Unsupported(f"format is {format!r}, expected one of {', '.join(sides)}")
    limit = sides[format]
    if limit is not None and max(width, height) > limit:
        raise Unsupported(
            f"a result of {width}x{height} pixels, {format} holds {limit} a side: ask for png"
        )


def encode(canvas: Pixels, format: str, quality: int, icc: bytes) -> bytes:
    """The result in its format, without any metadata but its colour profile."""
    out = io.BytesIO()
    image = Image.fromarray(canvas)
    profile = icc or None
    if format == "jpeg":
        whole = 0 if quality >= 90 else 2  # chroma at full size where quality is asked for
        image.save(out, "JPEG", quality=quality, subsampling=whole, icc_profile=profile)
    elif format == "webp":
        image.save(out, "WEBP", quality=quality, icc_profile=profile)
    else:
        image.save(out, "PNG", compress_level=3, icc_profile=profile)
    return out.getvalue()

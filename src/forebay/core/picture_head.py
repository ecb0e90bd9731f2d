"""What a picture is, from its header alone: type and size, before anything is decoded.

Reads JPEG, PNG, WebP, BMP and TIFF by their own lengths and offsets, which are checked
against the bytes that are there. What is cut short, contradicts itself, or is at the same time
a file of another kind is refused here, so that no decoder ever meets it. The pixels are not
looked at: a file that passes may still be damaged inside.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, overload

from forebay.errors import BadImage, BadRequest, TooLarge, Unsupported

__all__ = ["MAX_MPX", "MAX_SIDE", "Bytes", "PictureHead", "check_size", "read_head"]

MAX_SIDE = 12_000
MAX_MPX = 40.0

_HEAD = 1024  # where readers of other kinds look for their own mark
_TAIL = 66_000  # as far from the end as a zip's directory may begin
_MAX_PARTS = 100_000  # markers or chunks walked before the file is called nonsense


class Bytes(Protocol):
    """``bytes``, or a file mapped into memory."""

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, at: int, /) -> int: ...

    @overload
    def __getitem__(self, at: slice, /) -> bytes: ...

    def rfind(self, part: bytes, start: int, end: int, /) -> int: ...


@dataclass(frozen=True, slots=True)
class PictureHead:
    """``type``: a MIME type. ``width``, ``height``: pixels, as stored."""

    type: str
    width: int
    height: int


def read_head(data: Bytes) -> PictureHead:
    """Raises `BadRequest` for no bytes at all, `Unsupported` for bytes of no kind that is
    read here, and `BadImage` for a file that is damaged or is two files at once."""
    if not len(data):
        raise BadRequest("the file is empty")
    start = bytes(data[0:16])
    for test, mime, measure in _KINDS:
        if test(start):
            width, height = measure(data)
            if width < 1 or height < 1:
                raise BadImage(f"the picture is {width}x{height} pixels")
            _refuse_second_kind(data)
            return PictureHead(mime, width, height)
    raise Unsupported("the file's first bytes are not those of a jpeg, png, webp, bmp or tiff")


def check_size(head: PictureHead, max_mpx: float = MAX_MPX, max_side: int = MAX_SIDE) -> None:
    """Raises `TooLarge` for more pixels than a model should see."""
    if max(head.width, head.height) > max_side:
        raise TooLarge(
            f"the picture is {head.width}x{head.height} pixels, expected no side over {max_side}",
            limit_side=max_side,
        )
    if head.width * head.height > max_mpx * 1e6:
        raise TooLarge(
            f"the picture has {head.width * head.height / 1e6:.1f} million pixels, "
            f"expected no more than {max_mpx:g}",
            limit_mpx=max_mpx,
        )


def _refuse_second_kind(data: Bytes) -> None:
    """A zip is found from its end, a page or a program by its mark near the beginning."""
    size = len(data)
    if data.rfind(b"PK\x05\x06", max(0, size - _TAIL), size) >= 0:
        raise BadImage("the file is a picture and a zip archive at once")
    head = bytes(data[0:_HEAD]).lower()
    for mark in (b"%pdf-", b"<?php", b"<script", b"<html", b"<svg"):
        if mark in head:
            raise BadImage("the file is a picture and a document at once")


def _cut() -> BadImage:
    return BadImage("the file ends before its picture does")


def _unpack(form: str, data: Bytes, at: int) -> tuple[Any, ...]:
    end = at + struct.calcsize(form)
    if at < 0 or end > len(data):
        raise _cut()
    return struct.unpack(form, data[at:end])


# ----------------------------------------------------------------------------------- jpeg


def _jpeg(data: Bytes) -> tuple[int, int]:
    at, size = 2, (0, 0)
    for _ in range(_MAX_PARTS):
        (mark, kind) = _unpack("BB", data, at)
        if mark != 0xFF:
            raise BadImage("a jpeg marker is missing")
        if kind == 0xFF:  # fill bytes may stand before a marker
            at += 1
            continue
        if kind == 0xDA:
            if size == (0, 0):
                raise BadImage("a jpeg without a size before its pixels")
            if data.rfind(b"\xff\xd9", at, len(data)) < 0:
                raise _cut()
            return size
        (length,) = _unpack(">H", data, at + 2)
        if length < 2:
            raise BadImage("a jpeg segment has an impossible length")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = _unpack(">HH", data, at + 5)
            size = (width, height)
        at += 2 + length
    raise BadImage("a jpeg of too many segments")


# ------------------------------------------------------------------------------------ png


_AFTER_PNG = (
    b"\xff\xd8\xff",
    b"GIF8",
    b"\x89PNG",
    b"RIFF",
    b"Rar!",
    b"7z\xbc\xaf",
    b"\x7fELF",
    b"MZ",
)
"""What another file would begin with. A jpeg may end so: telephones put films there."""


def _png(data: Bytes) -> tuple[int, int]:
    length, kind, width, height = _unpack(">I4sII", data, 8)
    (crc,) = _unpack(">I", data, 29)
    if (length, kind) != (13, b"IHDR") or zlib.crc32(data[12:29]) != crc:
        raise BadImage("the png's header is damaged")
    at = 33
    for _ in range(_MAX_PARTS):
        length, kind = _unpack(">I4s", data, at)
        at += 12 + length
        if at > len(data):
            raise _cut()
        if kind == b"IEND":
            if bytes(data[at : at + 4]).startswith(_AFTER_PNG):
                raise BadImage("the file is a png and another file at once")
            return width, height
    raise BadImage("a png of too many chunks")


# ----------------------------------------------------------------------------------- webp


def _webp(data: Bytes) -> tuple[int, int]:
    (riff,) = _unpack("<I", data, 4)
    if riff + 8 > len(data):
        raise _cut()
    (kind,) = _unpack("4s", data, 12)
    if kind == b"VP8 ":
        mark, width, height = _unpack("<3sHH", data, 23)
        if mark != b"\x9d\x01\x2a":
            raise BadImage("the webp's header is damaged")
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        mark, bits = _unpack("<BI", data, 20)
        if mark != 0x2F:
            raise BadImage("the webp's header is damaged")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        a, b, c, d, e, f = _unpack("6B", data, 24)
        return (a | b << 8 | c << 16) + 1, (d | e << 8 | f << 16) + 1
    raise BadImage("a webp of an unknown kind")


# ------------------------------------------------------------------------------------ bmp


def _bmp(data: Bytes) -> tuple[int, int]:
    pixels, header = _unpack("<II", data, 10)
    if header == 12:
        width, height, planes, bits = _unpack("<HHHH", data, 18)
        packed = 0
    elif header >= 40:
        width, height, planes, bits, packed = _unpack("<iiHHI", data, 18)
        height = abs(height)  # negative: from the top down
    else:
        raise BadImage("a bmp of an unknown kind")
    if planes != 1 or bits not in (1, 4, 8, 16, 24, 32):
        raise BadImage("the bmp's header is damaged")
    stored = 1 if packed not in (0, 3) else (max(0, width) * bits + 31) // 32 * 4 * height
    if pixels + stored > len(data):
        raise _cut()
    return width, height


# ----------------------------------------------------------------------------------- tiff


_TIFF_SIZES = {1: "B", 3: "H", 4: "I"}
_WIDTH, _HEIGHT = 256, 257
_PLACES = {273: 279, 324: 325}  # where strips or tiles lie, and how long they are


def _tiff(data: Bytes) -> tuple[int, int]:
    order = "<" if data[0] == 0x49 else ">"
    (at,) = _unpack(order + "I", data, 4)
    (count,) = _unpack(order + "H", data, at)
    found: dict[int, tuple[int, ...]] = {}
    for index in range(count):
        entry = at + 2 + 12 * index
        tag, form, number = _unpack(order + "HHI", data, entry)
        if tag in (_WIDTH, _HEIGHT, *_PLACES, *_PLACES.values()):
            found[tag] = _values(data, order, entry, form, number)
    for places, lengths in _PLACES.items():
        ends = zip(found.get(places, ()), found.get(lengths, ()), strict=False)
        if any(place + length > len(data) for place, length in ends):
            raise _cut()
    if not any(found.get(places) for places in _PLACES):
        raise BadImage("a tiff without pixels")
    try:
        return found[_WIDTH][0], found[_HEIGHT][0]
    except (KeyError, IndexError):
        raise BadImage("a tiff without a size") from None


def _values(data: Bytes, order: str, entry: int, form: int, number: int) -> tuple[int, ...]:
    letter = _TIFF_SIZES.get(form)
    if letter is None or number > _MAX_PARTS:
        raise BadImage("a tiff's directory is damaged")
    at = entry + 8
    if number * struct.calcsize(letter) > 4:
        (at,) = _unpack(order + "I", data, at)
    return _unpack(f"{order}{number}{letter}", data, at)


_KINDS: tuple[tuple[Callable[[bytes], bool], str, Callable[[Bytes], tuple[int, int]]], ...] = (
    (lambda start: start[:3] == b"\xff\xd8\xff", "image/jpeg", _jpeg),
    (lambda start: start[:8] == b"\x89PNG\r\n\x1a\n", "image/png", _png),
    (lambda start: start[:4] == b"RIFF" and start[8:12] == b"WEBP", "image/webp", _webp),
    (lambda start: start[:2] == b"BM", "image/bmp", _bmp),
    (lambda start: start[:4] in (b"II*\x00", b"MM\x00*"), "image/tiff", _tiff),
)

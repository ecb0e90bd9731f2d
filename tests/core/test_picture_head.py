"""What a picture is, from its header: real files, cut files, lies, and two files in one."""

from __future__ import annotations

import io
import mmap
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from forebay.core import picture_head
from forebay.core.picture_head import PictureHead, check_size, read_head
from forebay.errors import BadImage, BadRequest, ForebayError, TooLarge, Unsupported


def picture(form: str, size: tuple[int, int] = (37, 21), mode: str = "RGB", **facts) -> bytes:
    out = io.BytesIO()
    noise = Image.frombytes(
        mode, size, bytes((i * 7) % 251 for i in range(size[0] * size[1] * len(mode)))
    )
    noise.save(out, form, **facts)
    return out.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(width: int = 12000, height: int = 12000) -> bytes:
    """A small PNG of very many equal pixels."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * ((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


GOOD = [
    ("image/jpeg", picture("JPEG")),
    ("image/jpeg", picture("JPEG", progressive=True, exif=b"Exif\0\0" + b"\0" * 60000)),
    ("image/png", picture("PNG")),
    ("image/webp", picture("WEBP")),
    ("image/webp", picture("WEBP", lossless=True)),
    ("image/webp", picture("WEBP", exif=b"Exif\0\0II*\0")),
    ("image/bmp", picture("BMP")),
    ("image/tiff", picture("TIFF")),
    ("image/tiff", picture("TIFF", compression="tiff_lzw")),
]


@pytest.mark.parametrize(("mime", "data"), GOOD)
def test_type_and_size_are_read_from_the_header(mime: str, data: bytes) -> None:
    assert read_head(data) == PictureHead(mime, 37, 21)


def test_a_file_mapped_into_memory_will_do() -> None:
    with mmap.mmap(-1, len(GOOD[0][1])) as mapped:
        mapped[:] = GOOD[0][1]
        assert read_head(mapped).width == 37


def test_no_bytes_are_a_bad_request() -> None:
    with pytest.raises(BadRequest) as refused:
        read_head(b"")
    assert refused.value.http_status == 400


@pytest.mark.parametrize(
    "data",
    [b"GIF89a" + b"\0" * 50, b"plain text", b"%PDF-1.7", b"\0" * 100, b"PK\x03\x04" + b"\0" * 40],
)
def test_bytes_of_another_kind_are_unsupported(data: bytes) -> None:
    with pytest.raises(Unsupported):
        read_head(data)


@pytest.mark.parametrize(("mime", "data"), GOOD)
@pytest.mark.parametrize("share", [0.02, 0.2, 0.6, 0.97])
def test_a_file_cut_short_is_refused(mime: str, data: bytes, share: float) -> None:
    with pytest.raises((BadImage, Unsupported)):
        read_head(data[: max(3, int(len(data) * share))])


def test_more_pixels_than_a_model_should_see_are_too_large() -> None:
    head = read_head(bomb(12000, 12000))
    with pytest.raises(TooLarge, match="144.0 million"):
        check_size(head)
    with pytest.raises(TooLarge, match="12001"):
        check_size(PictureHead("image/png", 12001, 10))
    check_size(PictureHead("image/png", 5000, 8000))
    with pytest.raises(TooLarge):
        check_size(PictureHead("image/png", 1000, 1001), max_mpx=1)


@pytest.mark.parametrize(
    ("added", "at_end"),
    [(b"PK\x05\x06" + b"\0" * 18, True), (b"%PDF-1.4", False), (b"<?php x", False),
     (b"<SCRIPT>", False), (b"<html>", False), (b"<svg ", False)],
)  # fmt: skip
def test_two_files_in_one_are_refused(added: bytes, at_end: bool) -> None:
    data = picture("JPEG")
    note = b"\xff\xfe" + struct.pack(">H", len(added) + 2) + added
    both = data + added if at_end else data[:2] + note + data[2:]
    with pytest.raises(BadImage, match="at once"):
        read_head(both)


def test_what_a_camera_appends_is_let_be() -> None:
    assert read_head(picture("JPEG") + b"\0\0\0\x18ftypmp42" + b"\0" * 500).width == 37


@pytest.mark.parametrize("other", [picture("JPEG"), b"GIF89a", b"Rar!\x1a\x07", b"\x7fELF"])
def test_what_follows_a_png_is_no_file_of_its_own(other: bytes) -> None:
    with pytest.raises(BadImage, match="at once"):
        read_head(picture("PNG") + other)
    assert read_head(picture("PNG") + b"\0" * 8).width == 37


JPEG = picture("JPEG")
PNG = picture("PNG")
WEBP, LOSSLESS, EXTENDED = GOOD[3][1], GOOD[4][1], GOOD[5][1]
BMP = picture("BMP")
SOF = JPEG.index(b"\xff\xc0")
SOS = JPEG.index(b"\xff\xda")


@pytest.mark.parametrize(
    "data",
    [
        JPEG[:SOF] + JPEG[SOS:],  # no size
        JPEG[:20] + b"\x00" + JPEG[21:],  # no marker
        JPEG[:4] + b"\0\0" + JPEG[6:],  # a segment of length 0
        JPEG[: SOF + 5] + b"\0\0\0\0" + JPEG[SOF + 9 :],  # 0x0
        PNG[:12] + b"IHDX" + PNG[16:],
        PNG[:20] + b"\xff" + PNG[21:],  # a changed height
        PNG[:33] + b"\xff\xff\xff\xff" + PNG[37:],  # a chunk past the end
        WEBP[:12] + b"VP9 " + WEBP[16:],
        WEBP[:23] + b"\0\0\0" + WEBP[26:],
        LOSSLESS[:20] + b"\0" + LOSSLESS[21:],
        BMP[:14] + b"\x10\0\0\0" + BMP[18:],  # header of 16 bytes
        BMP[:26] + b"\x07\0" + BMP[28:],  # seven planes
        BMP[:18] + b"\xff\xff\xff\x7f" + BMP[22:],  # wider than the file is long
        BMP[:18] + b"\xff\xff\xff\xff" + BMP[22:],  # -1 wide
    ],
)
def test_a_header_that_contradicts_itself_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        read_head(data)


def test_fill_bytes_before_a_marker_are_skipped() -> None:
    assert read_head(JPEG[:2] + b"\xff\xff" + JPEG[2:]).width == 37


def test_an_old_a_packed_and_an_upside_down_bmp_are_read() -> None:
    old = b"BM" + struct.pack("<IHHI", 26 + 8, 0, 0, 26) + struct.pack("<IHHHH", 12, 2, 1, 1, 24)
    assert read_head(old + b"\0" * 8) == PictureHead("image/bmp", 2, 1)
    down = BMP[:22] + struct.pack("<i", -21) + BMP[26:]
    assert read_head(down).height == 21
    packed = BMP[:30] + b"\x01\0\0\0" + BMP[34:]
    assert read_head(packed).width == 37


def tiff(order: str, entries: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    out = mark + struct.pack(order + "IH", 8, len(entries))
    for tag, form, number, value in entries:
        inline = (
            struct.pack(order + "H", value) + b"\0\0"
            if form == 3
            else struct.pack(order + "I", value)
        )
        out += struct.pack(order + "HHI", tag, form, number) + inline
    return out + tail


def test_tiffs_of_both_byte_orders_strips_and_tiles_are_read() -> None:
    for order in "<>":
        for places, lengths in ((273, 279), (324, 325)):
            made = tiff(order, [(256, 3, 1, 9), (257, 4, 1, 8), (places, 4, 1, 8), (lengths, 4, 1, 4),
                                (305, 2, 5, 8)], b"\0" * 40)  # fmt: skip
            assert read_head(made) == PictureHead("image/tiff", 9, 8)


@pytest.mark.parametrize(
    "entries",
    [
        [(256, 3, 1, 9), (257, 3, 1, 8)],  # no pixels
        [(256, 3, 1, 9), (273, 4, 1, 8), (279, 4, 1, 4)],  # no height
        [(256, 3, 0, 9), (257, 3, 1, 8), (273, 4, 1, 8), (279, 4, 1, 4)],  # no width's value
        [(256, 3, 1, 9), (257, 3, 1, 8), (273, 4, 1, 8), (279, 4, 1, 4000)],  # pixels past the end
        [(256, 2, 1, 9), (257, 3, 1, 8)],  # a width in letters
        [(256, 3, 200_000, 9)],  # 200 000 widths
        [(273, 4, 9, 4000)],  # a list past the end
    ],
)
def test_a_tiff_that_contradicts_itself_is_refused(entries) -> None:
    with pytest.raises(BadImage):
        read_head(tiff("<", entries, b"\0" * 40))


def test_endless_segments_and_chunks_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_head, "_MAX_PARTS", 3)
    for data in (JPEG, PNG[:33] + chunk(b"tEXt", b"a") * 5 + PNG[33:]):
        with pytest.raises(BadImage, match="too many"):
            read_head(data)


@given(st.sampled_from([data for _, data in GOOD]), st.integers(0, 400), st.binary(max_size=12))
def test_any_damage_is_refused_by_name_or_read(data: bytes, at: int, other: bytes) -> None:
    try:
        head = read_head(data[:at] + other + data[at + len(other) :])
    except ForebayError:
        return
    assert head.width > 0
    assert head.height > 0

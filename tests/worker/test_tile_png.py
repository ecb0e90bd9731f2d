"""A tile's PNG is what every reader takes it for, to the last pixel."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from forebay.worker.pixels import TILE_TYPE, encode_tile

SIZES = [(1, 1), (2, 1), (1, 9), (257, 3), (360, 480)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("flat", [True, False])
def test_a_tile_is_a_lossless_rgb_png(size: tuple[int, int], flat: bool) -> None:
    width, height = size
    noise = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    pixels = np.full_like(noise, 255) if flat else noise
    data = encode_tile(width, height, pixels.tobytes())
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # the checksums too
    with Image.open(io.BytesIO(data)) as image:
        assert (image.get_format_mimetype(), image.mode, image.size) == (TILE_TYPE, "RGB", size)
        assert (np.asarray(image) == pixels).all()


def test_what_is_flat_takes_next_to_nothing() -> None:
    assert len(encode_tile(512, 512, bytes(512 * 512 * 3))) < 8192

"""The order of what a session sent, on disk."""

from __future__ import annotations

import pytest

from forebay.core.reel import FILE, HEAD_BYTES, PART, SAMPLES, head, read_head


@pytest.mark.parametrize("kind", [SAMPLES, FILE, PART])
def test_a_head_says_what_follows_it(kind: int) -> None:
    written = head(kind, 48_000, 1 << 33)
    assert len(written) == HEAD_BYTES
    assert read_head(written) == (kind, 48_000, 1 << 33)


@pytest.mark.parametrize("data", [b"", head(FILE, 0, 1)[:-1], b"\xff" * HEAD_BYTES])
def test_what_is_cut_or_no_head_ends_the_reel(data: bytes) -> None:
    assert read_head(data) is None

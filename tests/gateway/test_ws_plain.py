"""The short way for usual frames agrees with the codec on every byte, or leaves it to it."""

from __future__ import annotations

import os
import random
import struct

import pytest
from websockets.frames import apply_mask
from websockets.protocol import OPEN, SERVER, Protocol

from forebay.gateway.ws_plain import FrameEdge, plain_frame

LIMIT = 1 << 20


def frame(payload: bytes, *, first: int = 0x81, masked: bool = True) -> bytes:
    size, mask = len(payload), 0x80 if masked else 0
    if size < 126:
        head = bytes((first, mask | size))
    elif size < 65536:
        head = bytes((first, mask | 126)) + struct.pack("!H", size)
    else:
        head = bytes((first, mask | 127)) + struct.pack("!Q", size)
    key = os.urandom(4)
    return head + (key + apply_mask(payload, key) if masked else payload)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 4400, 65535])
@pytest.mark.parametrize("first", [0x81, 0x82])
def test_a_whole_plain_frame_is_read_as_the_codec_reads_it(size: int, first: int) -> None:
    payload = os.urandom(size)
    data = b"before" + frame(payload, first=first) + b"after"
    found = plain_frame(data, 6, LIMIT)
    assert found == (first == 0x81, payload, len(data) - 5)


def test_what_is_not_plain_whole_or_short_enough_is_left_to_the_codec() -> None:
    whole = frame(b"x" * 300)
    for cut in range(len(whole)):
        assert plain_frame(whole[:cut], 0, LIMIT) is None
    assert plain_frame(whole, 0, 299) is None
    for first in (0x01, 0x80, 0x88, 0x89, 0x8A, 0xC1, 0x83):  # fragments, control, extensions
        assert plain_frame(frame(b"abc", first=first), 0, LIMIT) is None
    assert plain_frame(frame(b"abc", masked=False) + bytes(10), 0, LIMIT) is None
    # A length in more bytes than it needs, and one that only long frames have.
    assert plain_frame(b"\x81\xfe\x00\x05" + bytes(20), 0, LIMIT) is None
    assert plain_frame(frame(b"x" * 70_000), 0, LIMIT) is None


def test_the_edge_is_between_frames_exactly_when_the_codec_is() -> None:
    rng = random.Random(5)
    for _ in range(60):
        sizes = [rng.choice((0, 3, 125, 126, 200, 4400, 70_000)) for _ in range(6)]
        parts = [frame(b"a" * size) for size in sizes]
        data = b"".join(parts)
        edges = {sum(map(len, parts[:n])) for n in range(len(parts) + 1)}
        edge, codec, at = FrameEdge(), Protocol(SERVER, state=OPEN), 0
        while at < len(data):
            step = data[at : at + rng.choice((1, 2, 3, 7, 100, 4096, 100_000))]
            edge.fed(step)
            codec.receive_data(step)
            at += len(step)
            assert edge.between == (at in edges)
        assert [len(event.data) for event in codec.events_received()] == sizes


def test_an_edge_that_was_lost_is_never_found_again() -> None:
    edge = FrameEdge()
    edge.lost = True
    edge.fed(frame(b"abc"))
    assert not edge.between

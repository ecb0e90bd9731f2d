"""What a piece of audio is taken for, from its first bytes."""

from __future__ import annotations

import random
from array import array

import pytest

from forebay.core.sniff import is_file


def mp3_frame(head: bytes, length: int) -> bytes:
    return head + bytes(length - len(head))


@pytest.mark.parametrize(
    "data",
    [
        b"RIFF\x24\x00\x00\x00WAVEfmt ",
        b"RF64\xff\xff\xff\xffWAVEds64",
        b"OggS\x00\x02",
        b"fLaC\x00\x00",
        b"\x1a\x45\xdf\xa3\x9f",
        b"\x00\x00\x00\x20ftypM4A ",
        b"ID3\x04\x00\x00\x00\x00\x0f\x76\x00",
        2 * mp3_frame(b"\xff\xfb\x90\x00", 417),  # MPEG 1, 128 kbit/s, 44.1 kHz
        5 * mp3_frame(b"\xff\xfb\x90\x00", 417),
        2 * mp3_frame(b"\xff\xfb\x92\x00", 418),  # padded by one byte
    ],
)
def test_containers_are_known_by_their_first_bytes(data: bytes) -> None:
    assert is_file(data)


def test_mpeg_2_frames_are_known_too() -> None:
    # 64 kbit/s at 22.05 kHz: 72 * 64000 / 22050 = 208 bytes
    assert is_file(2 * mp3_frame(b"\xff\xf3\x80\x00", 208))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"RIFF\x24\x00\x00\x00AVI LIST",
        b"ID3",
        b"ID3\x04\x00\x00\xff\xff\xff\xff\x00",
        b"\xff\xfb\x90\x00",  # one frame's head is also two samples
        mp3_frame(b"\xff\xfb\x90\x00", 417) + bytes(400),
        b"\xff\xfb\xf0\x00" * 300,  # no such bit rate
        b"\xff\xfb\x00\x00" * 300,
        b"\xff\xfb\x9c\x00" * 300,  # no such sample rate
        b"\xff\xeb\x90\x00" * 300,  # no such version
        bytes(3200),
    ],
)
def test_samples_and_scraps_are_no_files(data: bytes) -> None:
    assert not is_file(data)


def test_noise_and_quiet_speech_are_never_taken_for_a_file() -> None:
    chance = random.Random(7)
    for _ in range(3000):
        loud = chance.choice((1500, 32767))
        samples = array("h", (chance.randint(-loud, loud) for _ in range(400)))
        samples[0] = -1025  # as bytes the beginning of an mp3 frame
        assert not is_file(samples.tobytes())

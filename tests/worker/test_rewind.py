"""A recording made of what a session sent: samples, containers, and their faults."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from test_decode import RATE, TONE, encoded

from forebay.core.reel import FILE, PART, SAMPLES, head
from forebay.history import Recordings, Take
from forebay.worker.rewind import rewind

JOB = "0" * 32
SOUND = TONE.tobytes()


def made(folder: Path, *takes: tuple[int, int, bytes], limit_s: float = 60) -> np.ndarray | None:
    recordings = Recordings(folder)
    assert not recordings.append_all(Take(JOB, data, rate, kind) for kind, rate, data in takes)
    plain, reel, target = recordings.sources(JOB)
    seconds = rewind(plain, reel, target, limit_s)
    if not target.exists():
        assert seconds == 0
        return None
    with wave.open(str(target)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
        assert file.getnframes() == round(seconds * RATE)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


@pytest.mark.parametrize("what", ["webm", "ogg", "m4a", "wav float"])
def test_every_container_is_in_it_at_its_place(what: str, tmp_path: Path) -> None:
    file = encoded(what)
    silence = bytes(2 * RATE)
    found = made(tmp_path, (0, RATE, silence), (FILE, 0, file), (SAMPLES, RATE, silence))
    assert found is not None and abs(len(found) - 3 * RATE) < 0.15 * RATE
    assert not found[:RATE].any() and found[RATE : 2 * RATE].any()
    assert not found[-RATE:].any()


def test_a_container_in_parts_is_one_container(tmp_path: Path) -> None:
    file = encoded("flac")
    parts = [(PART, 0, file[:500]), (PART, 0, file[500:900]), (FILE, 0, file[900:])]
    found = made(tmp_path, *parts)
    assert found is not None and abs(len(found) - RATE) < 10


def test_other_rates_become_one(tmp_path: Path) -> None:
    half = TONE[::2].tobytes()
    found = made(tmp_path, (0, 8000, half), (SAMPLES, 8000, half), (SAMPLES, RATE, SOUND))
    assert found is not None and abs(len(found) - 3 * RATE) < 10
    assert (found[-RATE:] == TONE).all()


def test_damage_is_left_out_and_the_rest_kept(tmp_path: Path) -> None:
    found = made(
        tmp_path, (SAMPLES, RATE, SOUND), (FILE, 0, b"OggS" + bytes(90)), (SAMPLES, RATE, SOUND)
    )
    assert found is not None and (found == np.tile(TONE, 2)).all()


def test_a_reel_that_was_cut_is_its_beginning(tmp_path: Path) -> None:
    recordings = Recordings(tmp_path)
    recordings.wind(Take(JOB, SOUND, RATE, SAMPLES))
    plain, reel, target = recordings.sources(JOB)
    with reel.open("ab") as file:
        file.write(head(SAMPLES, RATE, 1 << 40) + SOUND[:1001])
    assert rewind(plain, reel, target) == (len(TONE) + 500) / RATE


def test_it_ends_at_its_limit_and_without_sound_there_is_none(tmp_path: Path) -> None:
    found = made(tmp_path, *[(SAMPLES, RATE, SOUND)] * 4, limit_s=2.5)
    assert found is not None and len(found) == 2.5 * RATE
    assert made(tmp_path / "other", (FILE, 0, b"no sound at all")) is None

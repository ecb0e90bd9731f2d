"""`forebay caption`: a file is spoken into a room, with real processes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
import wave
from pathlib import Path

import numpy as np
import pytest
from benchmarks.harness import FOREBAY, serving

from forebay.commands.caption import CaptionOptions, Lags, main, wav_pieces
from forebay.core.tones import speak
from forebay.errors import ConfigError

WORDS = list(range(40, 60))


def write(path: Path, data: bytes, rate: int = 16_000, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(data)
    return path


@pytest.fixture(scope="module")
def server():
    with serving(
        *("--engine", "recognition=synthetic:rtf=0.02,slots=2"),
        *("--workers", "text=0", "--workers", "speech=0"),
    ) as running:
        yield running


def test_a_file_becomes_captions_and_their_lags_are_kept(server, tmp_path):
    sound = write(tmp_path / "talk.wav", speak(WORDS))
    run = subprocess.run(
        [str(FOREBAY), "caption", "--room", "talk", "--passphrase", "open", "--wav", str(sound),
         "--url", server.http, "--name", "Ada", "--export", str(tmp_path / "lags.json")],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    with urllib.request.urlopen(f"{server.http}/api/list?room=talk", timeout=5) as answer:
        said = json.load(answer)["transcriptions"]
    assert " ".join(one["text"] for one in said).split() == [f"w{word}" for word in WORDS]
    assert {one["user_name"] for one in said} == {"Ada"}
    found = json.loads((tmp_path / "lags.json").read_text())
    assert found["counters"]["sent"] == len(said) == len(found["lag_s"])
    assert found["counters"]["queued"] == 0


def test_words_show_here_without_a_room(server, tmp_path):
    sound = write(tmp_path / "talk.wav", speak([7, 8]))
    run = subprocess.run(
        [str(FOREBAY), "caption", "--room", "none", "--passphrase", "open", "--wav", str(sound),
         "--url", server.http, "--no-sync"],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0 and "w7 w8" in run.stdout
    with urllib.request.urlopen(f"{server.http}/api/list?room=none", timeout=5) as answer:
        assert json.load(answer)["transcriptions"] == []


def read(path: Path) -> bytes:
    async def whole() -> bytes:
        return b"".join([piece async for piece in wav_pieces(path)])

    return asyncio.run(whole())


def test_any_wav_is_made_mono_at_16_khz(tmp_path):
    stereo = np.repeat(np.full(4410, 1000, "<i2"), 2).tobytes()
    path = write(tmp_path / "s.wav", stereo, 44_100, 2)
    assert abs(len(read(path)) // 2 - 1600) <= 2


def test_a_file_that_is_no_wav_is_said_so(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"not a wav at all")
    with pytest.raises(ConfigError, match="cannot be read as a WAV file"):
        read(tmp_path / "x.wav")


def test_lags_are_counted_for_captions_that_came_back():
    lags = Lags()
    assert lags.words() == "-"
    lags.said(1, 10.0)
    lags.came(1, 10.04)
    lags.came(2, 11.0)
    assert lags.words().startswith("last 40 ms")


def test_the_last_display_of_all_gateways_counts():
    lags = Lags()
    assert lags.shown_words() == "no display tells"
    lags.said(1, 10.0)
    lags.shown({"seq": 1, "displays": 2, "of": 2, "ago_ms": 20}, 10.1)
    lags.shown({"seq": 1, "displays": 1, "of": 3, "ago_ms": 0}, 10.2)
    lags.shown({"seq": 9, "displays": 1, "of": 1, "ago_ms": 0}, 10.2)
    assert lags.shown_words() == "last 200 ms, p50 200, p99 200 (3 of 5 displays)"


def refused(*words: str) -> str:
    """What the command says when it cannot begin: one line, no traceback."""
    run = subprocess.run(
        [str(FOREBAY), "caption", "--room", "r", "--passphrase", "p", "--no-sync", *words],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode in (1, 2) and "Traceback" not in run.stdout + run.stderr
    return run.stderr


@pytest.mark.parametrize("missing", ["package", "library"])
def test_a_microphone_without_portaudio_is_said_with_what_to_do(missing, monkeypatch):
    if missing == "package":
        monkeypatch.setitem(sys.modules, "sounddevice", None)
    else:

        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "sounddevice":
                    raise OSError("PortAudio library not found")

        monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
        monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    options = CaptionOptions(
        url="http://127.0.0.1:9", server="http://127.0.0.1:9", room="r", passphrase="p", name="A"
    )
    with pytest.raises(ConfigError, match=r"needs PortAudio .* libportaudio2; or use the page"):
        main(options)


def test_a_recogniser_that_is_not_there_is_one_line(tmp_path):
    sound = write(tmp_path / "talk.wav", speak([1]))
    said = refused("--wav", str(sound), "--url", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in said


def test_a_file_that_cannot_be_heard_is_one_line(server, tmp_path):
    (tmp_path / "x.wav").write_bytes(b"not a wav at all")
    said = refused("--wav", str(tmp_path / "x.wav"), "--url", server.http)
    assert "cannot be read as a WAV file" in said

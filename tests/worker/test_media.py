"""From the engine's PCM to every format a client may ask for."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from forebay.errors import Unsupported
from forebay.worker.media import FORMATS, Frames, Resampler, make_encoder


def tone(rate: int, seconds: float = 1.0) -> Frames:
    at = np.arange(int(rate * seconds)) / rate
    return (np.sin(2 * np.pi * 440 * at) * 12_000).astype(np.int16)


def seconds_of(data: bytes) -> float:
    with av.open(io.BytesIO(data)) as file:
        rate = file.streams.audio[0].rate
        return sum(frame.samples for frame in file.decode(audio=0)) / rate


@pytest.mark.parametrize("rate", [8000, 10_000, 22_050, 24_000, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("pcm16", "wav")])
def test_a_compressed_stream_decodes_to_its_length(name: str, channels: int, rate: int) -> None:
    encoder = make_encoder(name, rate, channels)
    frames = tone(rate)
    parts = [encoder.encode(part) for part in np.array_split(frames, 7)]
    assert any(parts), "nothing came out before the end"
    data = b"".join(parts) + encoder.flush()
    assert seconds_of(data) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac"])
def test_a_stream_that_a_second_worker_goes_on_with_still_decodes(name: str) -> None:
    data = b""
    for resumed in (False, True):
        encoder = make_encoder(name, 24_000, 1, resumed=resumed)
        data += encoder.encode(tone(24_000)) + encoder.flush()
    if name == "flac":
        assert data.count(b"fLaC") == 1
    assert data[:2] != b"ID" and b"Xing" not in data
    assert seconds_of(data) > 0.9


@pytest.mark.parametrize("name", ["pcm16", "wav"])
def test_raw_formats_are_frames_and_nothing_else(name: str) -> None:
    frames = tone(8000, 0.01)
    assert make_encoder(name, 8000, 1).encode(frames) == frames.tobytes()
    both = np.frombuffer(make_encoder(name, 8000, 2).encode(frames), np.int16)
    assert (both[0::2] == frames).all() and (both[1::2] == frames).all()


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Unsupported, match="'midi', expected one of pcm16, wav, mp3"):
        make_encoder("midi", 24_000, 1)


@pytest.mark.parametrize(("into", "out"), [(24_000, 16_000), (22_050, 48_000), (16_000, 16_000)])
def test_resampling_in_parts_keeps_the_length_and_the_tone(into: int, out: int) -> None:
    resampler = Resampler(into, out)
    parts = np.array_split(tone(into), 5)
    got = [resampler.feed(p, last=i == 4) for i, p in enumerate(parts)]
    whole = np.concatenate(got)
    assert len(whole) == out
    middle = whole[out // 4 : 3 * out // 4].astype(float)
    assert np.abs(np.fft.rfft(middle)).argmax() == pytest.approx(220, abs=2)

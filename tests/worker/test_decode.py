"""Containers as people send them: every codec, and everything that is wrong with them."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from forebay.errors import BadAudio
from forebay.worker.decode import MAX_AUDIO_S, RATE, is_quick, open_sound

TONE = (8000 * np.sin(2 * np.pi * 440 / RATE * np.arange(RATE))).astype(np.int16)
FORMATS = {
    "wav": ("wav", "pcm_s16le", 16_000),
    "wav 24 bit": ("wav", "pcm_s24le", 44_100),
    "wav float": ("wav", "pcm_f32le", 48_000),
    "flac": ("flac", "flac", 22_050),
    "mp3": ("mp3", "libmp3lame", 44_100),
    "m4a": ("mp4", "aac", 48_000),
    "aac": ("adts", "aac", 48_000),
    "ogg": ("ogg", "libopus", 48_000),
    "webm": ("webm", "libopus", 48_000),
}


def encoded(what: str, seconds: float = 1.0, layout: str = "stereo") -> bytes:
    container, codec, rate = FORMATS[what]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.layout = layout
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
        frames = np.resize(TONE, round(seconds * RATE)).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(frames, format="s16", layout="mono")
        frame.sample_rate = RATE
        fifo = av.AudioFifo()
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            fifo.write(piece)
        while piece := fifo.read(stream.frame_size or 1024, partial=True):
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return file.getvalue()


def decoded(source: bytes | Path, block: int = 5000) -> np.ndarray:
    decoder = open_sound(source)
    parts = []
    while len(part := decoder.read(block)):
        assert len(part) <= block
        parts.append(part)
    decoder.close()
    return np.concatenate(parts) if parts else np.zeros(0, np.int16)


@pytest.mark.parametrize("what", FORMATS)
def test_every_container_becomes_its_length_of_mono_sound(what: str, tmp_path: Path) -> None:
    data = encoded(what)
    sound = decoded(data)
    assert len(sound) == pytest.approx(RATE, abs=RATE * 0.13)
    middle = sound[4000:12_000].astype(np.float64)
    assert np.abs(np.fft.rfft(middle)).argmax() * RATE / len(middle) == pytest.approx(440, abs=3)
    path = tmp_path / "blob"
    path.write_bytes(data)
    assert np.array_equal(decoded(path), sound)


@pytest.mark.parametrize("what", FORMATS)
def test_a_file_that_is_cut_off_is_its_beginning_or_bad_audio(what: str) -> None:
    data = encoded(what)
    for part in (0.02, 0.3, 0.6, 0.95):
        try:
            assert len(decoded(data[: int(len(data) * part)])) <= RATE * 1.13
        except BadAudio:
            pass


def test_damage_anywhere_is_sound_or_bad_audio_and_nothing_else() -> None:
    chance = random.Random(5)
    for what in FORMATS:
        data = bytearray(encoded(what, 0.3))
        for _ in range(12):
            for _ in range(chance.choice((1, 20))):
                data[chance.randrange(min(len(data), 400))] = chance.randrange(256)
            try:
                decoded(bytes(data))
            except BadAudio:
                pass


def wav(channels: int, rate: int, bits: int = 16, data: bytes = bytes(640), code: int = 1) -> bytes:
    width = max(1, channels * bits // 8) & 0xFFFF
    head = struct.pack("<HHIIHH", code, channels, rate, rate * width & 0xFFFFFFFF, width, bits)
    body = b"fmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


@pytest.mark.parametrize(
    "data",
    [
        wav(1, 0),
        wav(0, 16_000),
        wav(65_535, 16_000),
        wav(65_535, 16_000, bits=24),
        wav(1, 4_000_000_000),
        wav(1, 0, bits=24),
        wav(1, 16_000, bits=0, code=3),
        wav(1, 16_000)[:30],
        b"RIFF\0\0\0\0WAVE" + b"LIST\0\0\0\0" * 5000,
        b"#EXTM3U\nhttp://127.0.0.1/secret",
        b"ffconcat version 1.0\nfile /etc/passwd",
        b"ID3" + bytes(2000),
        b"OggS" + bytes(2000),
        b"\x1aE\xdf\xa3" + bytes(2000),
        b"fLaC" + bytes(2000),
        b"\0\0\0\x20ftypM4A " + bytes(2000),
        b"",
        b"\xff",
    ],
)
def test_what_is_no_audio_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(BadAudio):
        decoded(data)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (wav(1, 16_000, bits=0, code=3), "WAV"),
        (b"ID3" + bytes(2000), "MP3"),
        (b"OggS" + bytes(2000), "Ogg"),
        (b"\x1aE\xdf\xa3" + bytes(2000), "WebM/Matroska"),
        (b"fLaC" + bytes(2000), "FLAC"),
        (b"\0\0\0\x20ftypM4A " + bytes(2000), "MP4/M4A"),
        (encoded("ogg")[:60], "Ogg"),
    ],
    ids=["wav", "mp3", "ogg", "webm", "flac", "m4a", "cut ogg"],
)
def test_a_broken_file_is_called_what_people_call_it(data: bytes, name: str) -> None:
    with pytest.raises(BadAudio) as caught:
        decoded(data)
    said = caught.value.message
    assert name in said and "Error" not in said and "matroska" not in said and "mov" not in said


def test_a_video_without_sound_is_refused() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        out.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        out.mux(stream.encode(None))
    with pytest.raises(BadAudio, match="no audio"):
        decoded(file.getvalue())


def test_a_bomb_of_compressed_silence_ends_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.worker.decode.MAX_AUDIO_S", 1)
    with pytest.raises(BadAudio, match="more than 1 s"):
        decoded(encoded("flac", 3))
    assert MAX_AUDIO_S == 6 * 3600


def test_channels_are_mixed_and_a_broken_last_frame_is_left_out() -> None:
    left_right = np.stack([np.full(160, 1000, "<i2"), np.full(160, 3000, "<i2")], axis=1)
    data = wav(2, 16_000, data=left_right.tobytes() + b"\1\2\3")
    assert decoded(data).tolist() == [2000] * 160


def test_plain_wav_is_known_to_be_quick() -> None:
    assert is_quick(wav(1, 16_000))
    assert not is_quick(wav(1, 16_000, bits=24))
    assert not is_quick(encoded("flac", 0.1))

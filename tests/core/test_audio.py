"""PCM arithmetic."""

from __future__ import annotations

import base64
import io
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.audio import split_pieces, trim_audio, wav_header
from forebay.core.events import Audio
from forebay.errors import Unsupported


def test_the_streaming_header_is_what_voice_clients_expect() -> None:
    header = wav_header(16_000, 1)
    assert len(header) == 44
    assert len(base64.b64encode(header)) == 60
    assert header[4:8] == (36).to_bytes(4, "little")
    assert header[40:44] == bytes(4)


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (48_000, 2)])
def test_a_wav_reader_understands_the_header(rate: int, channels: int) -> None:
    data = bytes(4 * channels)
    with wave.open(io.BytesIO(wav_header(rate, channels, data_bytes=len(data)) + data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (
            rate,
            channels,
            2,
        )
        assert file.getnframes() == 2


@given(
    st.integers(0, 500_000),
    st.sampled_from([8_000, 22_050, 24_000, 48_000]),
    st.integers(1, 300),
    st.sampled_from([0.25, 1.0]),
)
def test_every_frame_and_unit_is_in_exactly_one_piece(
    frames: int, rate: int, units: int, max_s: float
) -> None:
    pieces = split_pieces(frames, rate, units, max_s)
    frame_at = unit_at = 0
    for frame_start, frame_end, unit_start, unit_end in pieces:
        assert (frame_start, unit_start) == (frame_at, unit_at)
        assert unit_end > unit_start
        frame_at, unit_at = frame_end, unit_end
        if len(pieces) < units:
            assert frame_end - frame_start <= rate * max_s
    assert (frame_at, unit_at) == (frames, units)
    if frames:
        assert len(pieces) == min(units, -(-frames // int(rate * max_s)))
    else:
        assert len(pieces) == 1


def test_audio_without_units_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        split_pieces(100, 8_000, 0)


def piece(unit: int, text: str, channels: int = 1, per_unit: int = 3) -> Audio:
    data = b"".join(bytes([unit + i, 0]) * channels * per_unit for i in range(len(text)))
    return Audio(
        data=data,
        text=text,
        unit=unit,
        frames=per_unit * len(text),
        offset=7,
        n=4,
        units=unit + len(text),
        samples=99,
    )


@pytest.mark.parametrize("channels", [1, 2])
def test_a_trimmed_event_is_the_same_event_without_what_the_reader_has(channels: int) -> None:
    event = piece(10, "abcd", channels)
    cut = trim_audio(event, 12, channels)
    assert (cut.text, cut.unit, cut.frames) == ("cd", 12, 6)
    assert cut.data == event.data[-6 * 2 * channels :]
    assert (cut.offset, cut.n, cut.units, cut.samples) == (7, 4, 14, 99)


def test_nothing_to_trim_leaves_the_event_alone() -> None:
    event = piece(10, "abcd")
    assert trim_audio(event, 10, 1) is event
    assert trim_audio(event, 3, 1) is event


def test_trimming_everything_or_encoded_audio_is_refused() -> None:
    with pytest.raises(ValueError, match="ends at unit 14"):
        trim_audio(piece(10, "abcd"), 14, 1)
    with pytest.raises(Unsupported, match="expected 48 of pcm"):
        trim_audio(piece(10, "abcd"), 11, 2)

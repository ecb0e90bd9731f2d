"""From the engine's PCM to the job's rate, channels and format.

`Resampler` changes the rate without a seam inside one segment. Encoders take mono frames at
the job's rate and give bytes of the job's format as early as the format can: raw PCM at
once, compressed formats in whole frames of theirs. What an encoder still holds comes out of
`flush`; a new encoder on a later attempt goes on in the same stream of bytes.

``pcm16`` and ``wav`` both carry raw PCM; the header is the gateway's, who alone knows
whether the length is known.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import soxr

from forebay.errors import Unsupported

__all__ = ["FORMATS", "Encoder", "Frames", "Resampler", "make_encoder"]

Frames = npt.NDArray[np.int16]
"""Mono sample frames."""


class Resampler:
    """One segment from ``rate_in`` to ``rate_out``; passes frames through where equal."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        self._stream = (
            None
            if rate_in == rate_out
            else soxr.ResampleStream(rate_in, rate_out, 1, dtype="int16", quality="HQ")
        )

    @property
    def delays(self) -> bool:
        """True where some frames come out only with later ones, or with ``last``."""
        return self._stream is not None

    def feed(self, frames: Frames, *, last: bool = False) -> Frames:
        if self._stream is None:
            return frames
        out: Frames = self._stream.resample_chunk(frames, last=last)
        return out.reshape(-1)


class Encoder(Protocol):
    def encode(self, frames: Frames) -> bytes:
        """Bytes that exist now; may be empty while a compressed frame fills up."""

    def flush(self) -> bytes:
        """The rest. Nothing may be encoded after it."""


class _Pcm:
    def __init__(self, channels: int) -> None:
        self._channels = channels

    def encode(self, frames: Frames) -> bytes:
        return (frames if self._channels == 1 else np.repeat(frames, self._channels)).tobytes()

    def flush(self) -> bytes:
        return b""


class _Sink:
    """What libav writes to; takes no seeks, so no header is ever rewritten."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self.parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data, self.parts = b"".join(self.parts), []
        return data


class _Codec:
    """How one compressed format is made with libav."""

    def __init__(
        self, codec: str, container: str, rates: tuple[int, ...], options: dict[str, str]
    ) -> None:
        self.codec = codec
        self.container = container
        self.rates = rates
        self.options = options

    def rate(self, wanted: int) -> int:
        """The lowest rate of the codec that loses nothing, or its highest."""
        return next((r for r in self.rates if r >= wanted), self.rates[-1])


_MPEG_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_EVERY_RATE: tuple[int, ...] = tuple(range(8000, 48001))

_CODECS = {
    # No ID3 tag, no Xing frame: both are statements about a whole file.
    "mp3": _Codec("libmp3lame", "mp3", _MPEG_RATES, {"id3v2_version": "0", "write_xing": "0"}),
    # Pages of 100 ms: the default of a second is a second of silence for the listener.
    "opus": _Codec(
        "libopus", "ogg", (8000, 12000, 16000, 24000, 48000), {"page_duration": "100000"}
    ),
    "aac": _Codec("aac", "adts", _MPEG_RATES, {}),
    "flac": _Codec("flac", "flac", _EVERY_RATE, {}),
}

FORMATS = ("pcm16", "wav", *_CODECS)


class _Av:
    def __init__(self, how: _Codec, rate: int, channels: int, *, resumed: bool) -> None:
        import av  # here: text workers never need it, and it takes 100 ms to import

        self._av = av
        self._rate = rate
        self._layout = "mono" if channels == 1 else "stereo"
        self._channels = channels
        self._pts = 0
        self._sink = _Sink()
        self._out: Any = av.open(
            self._sink, "w", format=how.container, options=how.options | {"flush_packets": "1"}
        )
        stream: Any = self._out.add_stream(how.codec, rate=how.rate(rate))
        self._stream = stream
        stream.layout = self._layout
        self._out.start_encoding()
        if resumed and how.container == "flac":
            self._sink.take()  # a second file header inside a FLAC stream is an error

    def encode(self, frames: Frames) -> bytes:
        if len(frames):
            data = frames if self._channels == 1 else np.repeat(frames, self._channels)
            frame = self._av.AudioFrame.from_ndarray(
                np.ascontiguousarray(data).reshape(1, -1), format="s16", layout=self._layout
            )
            frame.sample_rate = self._rate
            frame.pts = self._pts
            self._pts += len(frames)
            self._out.mux(self._stream.encode(frame))
        return self._sink.take()

    def flush(self) -> bytes:
        self._out.mux(self._stream.encode(None))
        self._out.close()
        return self._sink.take()


def make_encoder(format: str, rate: int, channels: int, *, resumed: bool = False) -> Encoder:
    """An encoder of frames at ``rate``. ``resumed``: an earlier attempt began the stream.

    Raises `Unsupported` for a format not in `FORMATS`.
    """
    if format in ("pcm16", "wav"):
        return _Pcm(channels)
    how = _CODECS.get(format)
    if how is None:
        raise Unsupported(f"audio format {format!r}, expected one of {', '.join(FORMATS)}")
    return _Av(how, rate, channels, resumed=resumed)

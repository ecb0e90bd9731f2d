"""``POST /v1/audio/speech``: text in, audio out while it is being made.

The body of the answer is the audio itself (``stream_format`` audio) or server-sent events
with base64 pieces (sse). Audio is 24 kHz mono. A WAV that is streamed declares an unknown
length (0xFFFFFFFF), one that is not (``"stream": false``, our addition) its own.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from forebay.core.audio import wav_header
from forebay.core.events import Audio, End, Ended, OutputEvent, Text
from forebay.core.kinds import Kind
from forebay.dialects import error_of
from forebay.dialects.openai_common import Call, decode_request, error_object, sse
from forebay.errors import BadRequest, TooLarge

__all__ = [
    "MEDIA_TYPES",
    "SAMPLE_RATE",
    "PieceEncoder",
    "SpeechRequest",
    "Whole",
    "media_type",
    "parse",
]

SAMPLE_RATE = 24_000
MAX_CHARS = 20_000
MAX_BYTES = 100_000
WHOLE_BYTES = 64 * 1024 * 1024
"""A whole (not streamed) answer held while it is made: 22 minutes of PCM."""

MEDIA_TYPES = {
    "mp3": b"audio/mpeg",
    "opus": b"audio/ogg",
    "aac": b"audio/aac",
    "flac": b"audio/flac",
    "wav": b"audio/wav",
    "pcm": b"audio/pcm",
}
_ITEM_CHARS = 4000  # one stream item; the worker cuts sentences out of them as they come


class VoiceId(msgspec.Struct):
    id: Annotated[str, Meta(min_length=1, max_length=200)]


class SpeechRequest(msgspec.Struct):
    """What is read of a request; everything else in it is ignored."""

    input: str
    model: Annotated[str, Meta(max_length=200)] | None = None
    voice: Annotated[str, Meta(max_length=200)] | VoiceId | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Meta(ge=0.25, le=4)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    stream: bool = True
    language: Annotated[str, Meta(max_length=35)] | None = None


_decoder = msgspec.json.Decoder(SpeechRequest)


def parse(body: bytes) -> Call:
    """A request body as a speech job. Raises `BadRequest` (``details["param"]``), `TooLarge`."""
    request = decode_request(_decoder, body)
    text = request.input
    if not text.strip():
        raise BadRequest("input is empty, expected text", param="input")
    size = len(text.encode())
    if len(text) > MAX_CHARS or size > MAX_BYTES:
        raise TooLarge(
            f"input is {len(text)} characters and {size} bytes, "
            f"expected no more than {MAX_CHARS} and {MAX_BYTES}",
            param="input",
        )
    form = request.response_format
    params: dict[str, Any] = {
        "sample_rate": SAMPLE_RATE,
        "channels": 1,
        # the header is ours: whether the length is known depends on how we answer
        "format": "pcm16" if form in ("pcm", "wav") else form,
        "speed": request.speed,
    }
    voice = request.voice.id if isinstance(request.voice, VoiceId) else request.voice
    if voice:
        params["voice"] = voice
    if request.language:
        params["language"] = request.language
    pieces = [
        Text(text=text[at : at + _ITEM_CHARS], unit=at) for at in range(0, len(text), _ITEM_CHARS)
    ]
    return Call(
        kind=Kind.SPEECH,
        model=request.model or None,
        params=params,
        items=(*pieces, End()),
        stream=request.stream,
        request=request,
        units=len(text),
    )


def media_type(request: SpeechRequest, *, streamed: bool) -> bytes:
    if streamed and request.stream_format == "sse":
        return b"text/event-stream; charset=utf-8"
    return MEDIA_TYPES[request.response_format]


class PieceEncoder:
    """Events to the bytes of the answer: a function of the event and of constants only."""

    def __init__(self, request: SpeechRequest) -> None:
        self._sse = request.stream_format == "sse"
        self._head = unknown_length_header() if request.response_format == "wav" else b""
        self._units = len(request.input)

    def encode(self, event: OutputEvent) -> Sequence[bytes]:
        """A job that failed has no frames as plain audio: the caller cuts the connection."""
        match event:
            case Audio():
                data = self._head + event.data if event.n == 1 and self._head else event.data
                if not data:
                    return ()
                return (self._piece(data),) if self._sse else (data,)
            case Ended() if self._sse:
                return (self._end(event),)
            case _:
                return ()

    def _piece(self, data: bytes) -> bytes:
        return b'data: {"type":"speech.audio.delta","audio":"' + base64.b64encode(data) + b'"}\n\n'

    def _end(self, event: Ended) -> bytes:
        if event.state != "completed":
            body = {"type": "error", **error_object(error_of(event))}
            return sse(msgspec.json.encode(body, enc_hook=str))
        usage = {"input_tokens": self._units, "output_tokens": 0, "total_tokens": self._units}
        return sse(msgspec.json.encode({"type": "speech.audio.done", "usage": usage}))


class Whole:
    """Collects one answer. ``take`` every event; then `body`, if the job completed."""

    def __init__(self, request: SpeechRequest) -> None:
        self._wav = request.response_format == "wav"
        self._pieces: list[bytes] = []
        self._bytes = 0

    def take(self, event: OutputEvent) -> None:
        """Raises `TooLarge` past `WHOLE_BYTES`."""
        if isinstance(event, Audio):
            self._pieces.append(event.data)
            self._bytes += len(event.data)
            if self._bytes > WHOLE_BYTES:
                raise TooLarge(
                    f"audio is over {WHOLE_BYTES} bytes, expected a streamed answer for so much"
                )

    def body(self) -> bytes:
        head = wav_header(SAMPLE_RATE, 1, data_bytes=self._bytes) if self._wav else b""
        return head + b"".join(self._pieces)


def unknown_length_header() -> bytes:
    """A WAV header that says: until the end of the stream."""
    head = wav_header(SAMPLE_RATE, 1)
    return head[:4] + b"\xff" * 4 + head[8:40] + b"\xff" * 4

"""``POST /v1/audio/transcriptions``: a file in, its words out, in five forms or streamed.

A streamed answer (``stream=true``) is server-sent events: ``transcript.text.delta`` for each
stretch of text that will not change again, and ``transcript.text.done``. Fields that this
gateway's models cannot act on (prompt, temperature, word timestamps) are taken and named in
the header ``x-forebay-ignored``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from forebay.core.events import End, Ended, Final, Notice, OutputEvent, Sound
from forebay.core.kinds import Kind
from forebay.core.sniff import is_file
from forebay.dialects import error_of
from forebay.dialects.openai_common import Call, error_object, sse
from forebay.errors import BadAudio, BadRequest, TooLarge

__all__ = ["FORMS", "FILE_RUN_S", "MEDIA_TYPES", "Request", "Whole", "encode_event", "parse"]

FORMS = ("json", "text", "verbose_json", "srt", "vtt")
MEDIA_TYPES = {
    "json": b"application/json",
    "verbose_json": b"application/json",
    "text": b"text/plain; charset=utf-8",
    "srt": b"text/plain; charset=utf-8",
    "vtt": b"text/vtt; charset=utf-8",
}
FILE_RUN_S = 3600.0
"""Model time that a file may take."""
EVENT_RATE = 16_000
ASSUMED_BYTES_S = 16_000
"""Of audio in a compressed container, for its cost; a WAV's own are 32000."""
WHOLE_CHARS = 4_000_000
LANGUAGE_CHARS = 35
SHOWN_CHARS = 40
"""So much of a value that is refused is said back."""
GRANULARITIES = ("word", "segment")

_IGNORED = ("prompt", "temperature", "include", "include[]", "chunking_strategy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """``ignored``: fields that were sent and have no effect."""

    form: str
    stream: bool
    language: str
    ignored: tuple[str, ...] = ()


def parse(fields: Mapping[str, Sequence[str]], data: bytes | None) -> Call:
    """A form as a recognition job. ``data``: the part ``file``.

    Raises `BadRequest` (``details["param"]``) and `BadAudio`."""
    if data is None:
        raise BadRequest("file is missing, expected a form part with a file name", param="file")
    if not data:
        raise BadAudio("file has 0 bytes, expected a recording", param="file")
    if not is_file(data):
        raise BadAudio(
            "file is no wav, webm, ogg, mp3, m4a or flac by its first bytes", param="file"
        )
    form = _one(fields, "response_format", "json")
    if form not in FORMS:
        raise BadRequest(
            f"response_format is {_short(form)}, expected one of {', '.join(FORMS)}",
            param="response_format",
        )
    stream = _flag(_one(fields, "stream", "false"))
    if stream and form not in ("json", "text"):
        raise BadRequest(
            f"response_format is {form}, expected json or text where stream is true",
            param="response_format",
        )
    language = _one(fields, "language", "")
    if len(language) > LANGUAGE_CHARS:
        raise BadRequest(
            f"language has {len(language)} characters, expected no more than {LANGUAGE_CHARS}",
            param="language",
        )
    _check_temperature(_one(fields, "temperature", "0"))
    request = Request(form=form, stream=stream, language=language, ignored=_ignored(fields))
    params: dict[str, Any] = {"file": True}
    if language:
        params["language"] = language
    wav = data[:4] in (b"RIFF", b"RF64")
    return Call(
        kind=Kind.RECOGNITION,
        model=_one(fields, "model", "") or None,
        params=params,
        items=(Sound(data=data, form="file", seq=1), End(seq=1)),
        stream=stream,
        request=request,
        units=len(data) * EVENT_RATE // (2 * EVENT_RATE if wav else ASSUMED_BYTES_S),
        run_s=FILE_RUN_S,
    )


def _one(fields: Mapping[str, Sequence[str]], name: str, default: str) -> str:
    values = fields.get(name)
    return values[-1].strip() if values and values[-1].strip() else default


def _flag(value: str) -> bool:
    if value.lower() in ("true", "1"):
        return True
    if value.lower() in ("false", "0"):
        return False
    raise BadRequest(f"stream is {_short(value)}, expected true or false", param="stream")


def _short(value: str) -> str:
    more = "..." if len(value) > SHOWN_CHARS else ""
    return repr(value[:SHOWN_CHARS] + more)


def _check_temperature(value: str) -> None:
    """It has no effect here, but a client that sends nonsense should learn so."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise BadRequest(
            f"temperature is {_short(value)}, expected a number from 0 to 1", param="temperature"
        )


def _ignored(fields: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    found = [name.removesuffix("[]") for name in _IGNORED if _one(fields, name, "")]
    wanted = [
        *fields.get("timestamp_granularities[]", ()),
        *fields.get("timestamp_granularities", ()),
    ]
    for value in wanted:
        if value not in GRANULARITIES:
            raise BadRequest(
                f"timestamp_granularities has {_short(value)}, expected word or segment",
                param="timestamp_granularities",
            )
    if "word" in wanted:
        found.append("timestamp_granularities")
    return tuple(dict.fromkeys(found))


# --------------------------------------------------------------------------- streamed


def encode_event(event: OutputEvent) -> Sequence[bytes]:
    """A function of the event alone, so any gateway can go on where another stopped."""
    match event:
        case Final():
            body: dict[str, Any] = {"type": "transcript.text.delta", "delta": event.text}
        case Notice() if event.code == BadAudio.code:
            body = {"type": "error", **error_object(BadAudio(event.message, param="file"))}
        case Ended(state="completed"):
            body = {
                "type": "transcript.text.done",
                "text": str(event.details.get("text", "")),
                "usage": _usage(event),
            }
        case Ended(code=BadAudio.code):
            body = {"type": "error", **error_object(BadAudio(event.message, param="file"))}
        case Ended():
            body = {"type": "error", **error_object(error_of(event))}
        case _:
            return ()
    return (sse(msgspec.json.encode(body, enc_hook=str)),)


def _usage(ended: Ended) -> dict[str, Any]:
    return {"type": "duration", "seconds": float(ended.details.get("audio_s", 0.0))}


# ------------------------------------------------------------------------------ whole


class Whole:
    """Collects one transcript. ``take`` every event; then `body`, if the job completed."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._finals: list[Final] = []
        self._chars = 0
        self._ended: Ended | None = None

    def take(self, event: OutputEvent) -> None:
        """Raises `BadAudio` for a file that could not be read, `TooLarge` past a bound."""
        match event:
            case Final():
                self._finals.append(event)
                self._chars += len(event.text)
                if self._chars > WHOLE_CHARS:
                    raise TooLarge(f"the transcript is over {WHOLE_CHARS} characters")
            case Notice() | Ended() if event.code == BadAudio.code:
                raise BadAudio(event.message, param="file")
            case Ended():
                self._ended = event

    def body(self) -> bytes:
        text = "".join(final.text for final in self._finals).strip()
        match self._request.form:
            case "text":
                return text.encode() + b"\n"
            case "srt":
                return self._timed(",", numbered=True).encode()
            case "vtt":
                return b"WEBVTT\n\n" + self._timed(".", numbered=False).encode()
            case "verbose_json":
                return msgspec.json.encode(self._verbose(text))
            case _:
                usage = _usage(self._ended) if self._ended is not None else None
                return msgspec.json.encode({"text": text, "usage": usage})

    def _verbose(self, text: str) -> dict[str, Any]:
        facts = self._ended.details if self._ended is not None else {}
        said = next((final.language for final in self._finals if final.language), "")
        heard = str(facts.get("language") or said)
        return {
            "task": "transcribe",
            "language": heard or self._request.language or "unknown",  # a text for every client
            "duration": float(facts.get("audio_s", 0.0)),
            "text": text,
            "segments": [
                {
                    "id": index,
                    "start": round(final.start / EVENT_RATE, 3),
                    "end": round(final.end / EVENT_RATE, 3),
                    "text": final.text,
                }
                for index, final in enumerate(self._finals)
            ],
        }

    def _timed(self, mark: str, *, numbered: bool) -> str:
        cues = []
        for index, final in enumerate(self._finals, 1):
            head = f"{index}\n" if numbered else ""
            start, end = _clock(final.start, mark), _clock(final.end, mark)
            # A cue ends at an empty line, and "-->" inside one is an error of the format.
            text = " ".join(final.text.split()).replace("-->", "->")
            cues.append(f"{head}{start} --> {end}\n{text}\n")
        return "\n".join(cues)


def _clock(samples: int, mark: str) -> str:
    ms = round(samples * 1000 / EVENT_RATE)
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{ms:03}"

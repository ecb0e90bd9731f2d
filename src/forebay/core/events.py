"""What travels on streams: input items, output events, and where they stand.

Both are frozen msgspec structs, tagged by ``t``: the same bytes go over the Unix-socket
link, into the journal and into Redis, and are validated when they are read.

Positions. A stream numbers its items 1, 2, 3... without a gap (``offset``), across all
attempts. An output event also carries ``n``, its ordinal among events of its own type
(1, 2, 3...), and cumulative counters *through this event* (units, chars, samples...), so a
dialect can encode any event without having seen the ones before it.

The engine fills in content only. ``offset``, ``n`` and the cumulative counters are stamped
by `core.stream.Stamper` in the runner, from where the previous attempt stopped.

At most 25 types. If a 26th seems needed, the unification leaks: redesign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

__all__ = [
    "TERMINAL",
    "Audio",
    "Caption",
    "Cell",
    "Consumed",
    "Display",
    "End",
    "Ended",
    "FileOp",
    "Final",
    "Heard",
    "Input",
    "InputItem",
    "Notice",
    "Output",
    "OutputEvent",
    "Partial",
    "Picture",
    "Progress",
    "Prompt",
    "Result",
    "Sound",
    "Text",
    "TextDelta",
    "Tile",
    "ToolCalls",
    "Usage",
    "blobs_of",
    "faded",
    "marks",
    "rewrites",
    "size_of",
    "trim_text",
]

EndState = Literal["completed", "failed", "cancelled", "expired"]
TERMINAL: frozenset[str] = frozenset({"completed", "failed", "cancelled", "expired"})


class Consumed(msgspec.Struct, frozen=True, array_like=True):
    """How much input an output accounts for.

    ``offset``: every input item up to here is wholly consumed. ``fine``: cumulative count in
    the kind's own measure (unit, sample, tile), which may stand inside a later item.
    A new attempt reads the items after ``offset`` and skips what lies below ``fine``.

    Where input is heard before it is consumed (recognition): ``heard`` is the last input
    offset that the engine has taken, and ``at`` is the ``fine`` count at the end of item
    ``offset``, from which a new attempt goes on counting.
    """

    offset: int = 0
    fine: int = 0
    heard: int = 0
    at: int = 0


# ------------------------------------------------------------------ input items


class Input(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", omit_defaults=True):
    """One item of a job's input stream. ``offset`` is assigned by the store."""

    offset: int = 0


class Prompt(Input, frozen=True, tag="prompt"):
    """A whole conversation for a text job: OpenAI-shaped messages, oldest first."""

    messages: list[dict[str, Any]]


class Text(Input, frozen=True, tag="text"):
    """Text to be spoken. ``unit`` is the session-wide index of its first unit.

    A unit is one Unicode code point. ``seq`` is the client's own number of this message
    (S1 ``seq``), echoed by audio that was synthesised when it was the newest.
    """

    text: str
    unit: int
    seq: int = 0


class Sound(Input, frozen=True, tag="sound"):
    """Audio to be recognised: one client chunk, or a part of one.

    ``form``: "pcm16", headerless s16le mono at ``rate``; or "file", one complete container
    (WAV, WebM, Ogg, mp3, m4a, flac), decoded in the worker, where its end is the end of an
    utterance. A file over the item bound is a blob: ``blob`` is its id, ``data`` is empty.
    ``seq``: the client's number of the chunk, echoed by `Heard`. ``more``: this chunk (or
    this file) goes on in the next item, so it is not heard yet at the end of this one.
    """

    data: bytes = b""
    form: Literal["pcm16", "file"] = "pcm16"
    rate: int = 16_000
    seq: int = 0
    more: bool = False
    blob: str = ""


class Picture(Input, frozen=True, tag="picture"):
    """An image to work on: a blob, and what its header says before anything is decoded.

    ``data`` is empty on the wire; inside a worker it is the decoded image, ``width`` x
    ``height`` RGB, 8 bits each, row by row, which is what an engine's step is given.
    """

    blob: str = ""
    type: str = ""  # from the bytes: image/jpeg, image/png, image/webp, image/bmp, image/tiff
    width: int = 0
    height: int = 0
    size_bytes: int = 0
    data: bytes = b""


class Cell(Input, frozen=True, tag="cell"):
    """Code for a notebook's kernel. ``code`` over the item bound is a blob instead."""

    code: str = ""
    blob: str = ""


class FileOp(Input, frozen=True, tag="op"):
    """Work on a notebook's files that needs no kernel and runs beside a cell.

    ``op``: list, read, write, info, delete, and what else the kernel engine documents;
    ``args`` its plain arguments. Content over the item bound is a blob.
    """

    op: str
    args: dict[str, Any] = {}
    blob: str = ""


class End(Input, frozen=True, tag="end"):
    """No more input will come."""

    seq: int = 0


InputItem = Prompt | Text | Sound | Picture | Cell | FileOp | End

# ----------------------------------------------------------------- output events


class Output(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", omit_defaults=True):
    """One event of a job's output stream, numbered by the stream."""

    offset: int = 0
    n: int = 0


class TextDelta(Output, frozen=True, tag="delta"):
    """More text. ``chars``, ``tokens``: cumulative through this event."""

    text: str
    chars: int = 0
    tokens: int = 0
    count: int = 1  # tokens in this delta


class ToolCalls(Output, frozen=True, tag="tools"):
    """All tool calls so far, accumulated: ``[{index, id, function: {name, arguments}}]``.

    ``delta`` holds only what this event added, in the same shape.
    """

    calls: list[dict[str, Any]]
    delta: list[dict[str, Any]]


class Usage(Output, frozen=True, tag="usage"):
    """What the model counted. ``finish``: stop, length, tool_calls (OpenAI's words)."""

    prompt_tokens: int
    completion_tokens: int
    finish: str = "stop"


class Notice(Output, frozen=True, tag="notice"):
    """Something the client should know that is no failure, such as a shortened prompt."""

    code: str
    message: str
    details: dict[str, Any] = {}


class Audio(Output, frozen=True, tag="audio"):
    """A piece of audio and exactly the units it speaks.

    ``data``: s16le PCM at the job's rate and channels, or whole encoded frames of the job's
    format. ``text``: the units spoken, ``len(text)`` of them, from ``unit`` on.
    ``frames``: sample frames in this piece (one frame = one sample per channel).
    ``units``, ``samples``: cumulative units and sample frames through this event;
    ``unit + len(text) == units`` always.
    """

    data: bytes
    text: str
    unit: int
    frames: int
    seq: int = 0
    units: int = 0
    samples: int = 0


class Partial(Output, frozen=True, tag="partial"):
    """What the sound since the last final seems to say. The next partial or final replaces it.

    ``start``, ``end``: samples at 16 kHz, cumulative over the session. A partial that a newer
    one replaced while it was stored has an empty ``text``: encoders leave it out.
    """

    text: str
    start: int
    end: int = 0


class Final(Output, frozen=True, tag="final"):
    """Text that will not change again, for the samples from ``start`` to ``end``.

    Samples are at 16 kHz, cumulative over the session. Spaced scripts carry the space before
    them: the finals of a session are joined without a separator. ``chars``: cumulative.
    """

    text: str
    start: int
    end: int
    language: str = ""
    chars: int = 0


class Heard(Output, frozen=True, tag="heard"):
    """The engine has taken the client chunk ``seq`` to its end. One for each chunk, in order.

    ``samples``: all samples so far, through that end. ``text``: what became final since the
    previous one (may be empty). ``told``: characters in all ``text`` so far.
    """

    seq: int
    samples: int
    text: str = ""
    told: int = 0


class Progress(Output, frozen=True, tag="progress"):
    """How far a job is, 0..1. The next one replaces it; an empty ``stage`` was replaced."""

    value: float
    stage: str = ""  # decode, tiles, encode
    eta_s: float | None = None


class Tile(Output, frozen=True, tag="tile"):
    """A finished part of a picture: a blob of ``type``, placed at ``x``, ``y`` of the result.

    Pixels of the result, origin top left. ``index``: 0, 1, 2... in the fixed order of the
    plan, of ``total``. ``tiles``: cumulative. ``data``: empty on the wire; from an engine the
    part's own RGB bytes, which the worker encodes and puts into the blob.
    """

    index: int
    total: int
    x: int
    y: int
    width: int
    height: int
    blob: str = ""
    type: str = ""
    tiles: int = 0
    data: bytes = b""


class Result(Output, frozen=True, tag="result"):
    """What a job made, whole: a blob, or plain ``value`` where that is small.

    ``size_bytes``, ``sha256``: of the blob. ``width``, ``height``: of a picture.
    """

    blob: str = ""
    type: str = ""
    size_bytes: int = 0
    sha256: str = ""
    width: int = 0
    height: int = 0
    value: dict[str, Any] = {}


class Display(Output, frozen=True, tag="display"):
    """One output of a cell, as Jupyter's kernels say it.

    ``what``: stream (``name``: stdout or stderr, text in ``data["text/plain"]``), display,
    result, error (``data``: ename, evalue, traceback list), update (of ``display_id``), clear.
    ``data``: MIME type to content; binary content is base64, as on the Jupyter wire; content
    over the item bound is a blob, ``blobs``: MIME type to blob id. ``size``: cumulative bytes
    of content. An empty ``what`` is a progress line that a newer one replaced.
    """

    what: str
    name: str = ""
    data: dict[str, Any] = {}
    blobs: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    display_id: str = ""
    size: int = 0


class Caption(Output, frozen=True, tag="caption"):
    """One message in a room. ``client`` and ``seq``: its writer's identity, empty and 0 where
    the writer has none. ``created_ms``: Unix time at which the room took it. ``style``: colours
    and fonts, validated by the dialect. ``preview``: unstored, replaced by its writer's next.
    """

    user: str
    text: str
    timestamp: str = ""
    created_ms: int = 0
    client: str = ""
    seq: int = 0
    preview: bool = False
    style: dict[str, str] = {}


class Ended(Output, frozen=True, tag="ended"):
    """The one terminal event. ``code`` and ``message`` are an error's, for failed and expired.

    ``details`` of a completed recognition: ``text`` (all finals joined; over 160 KiB only the
    newest part, and ``text_from`` says how many characters are missing before it),
    ``chunks`` (heard), ``audio_s`` (from real bytes), ``language`` where one was found.
    """

    state: EndState
    code: str = ""
    message: str = ""
    retryable: bool = False
    details: dict[str, Any] = {}
    seq: int = 0  # newest client number heard (S1 `tts_end.seq`)


OutputEvent = (
    TextDelta
    | ToolCalls
    | Usage
    | Notice
    | Audio
    | Partial
    | Final
    | Heard
    | Progress
    | Tile
    | Result
    | Display
    | Caption
    | Ended
)


def marks(event: Output) -> dict[str, int]:
    """The cumulative counters of ``event``, by name; what `after_mark` may search by."""
    found = _MARKS.get(type(event))
    return {} if found is None else found(event)


_MARKS: dict[type, Callable[[Any], dict[str, int]]] = {
    TextDelta: lambda event: {"chars": event.chars, "tokens": event.tokens},
    Audio: lambda event: {"units": event.units, "samples": event.samples},
    Final: lambda event: {"consumed": event.end, "chars": event.chars},
    Heard: lambda event: {"heard": event.samples, "told": event.told},
    Tile: lambda event: {"tiles": event.tiles},
    Display: lambda event: {"bytes": event.size},
}


def faded(event: OutputEvent) -> OutputEvent:
    """``event`` once a newer one of its type has replaced it: a number without content."""
    match event:
        case Partial():
            return msgspec.structs.replace(event, text="")
        case Progress():
            return msgspec.structs.replace(event, stage="")
        case Display():
            return msgspec.structs.replace(event, what="", data={})
        case _:
            return event


def blobs_of(item: Any) -> Sequence[str]:
    """The blobs that ``item`` names: they are needed as long as its job is remembered."""
    if type(item) not in _NAMES_BLOBS:
        return ()
    if isinstance(item, Display):
        return tuple(item.blobs.values())
    return (item.blob,) if item.blob else ()


_NAMES_BLOBS = frozenset({Sound, Picture, Cell, FileOp, Tile, Result, Display})


def rewrites(event: Output) -> tuple[str, bool, bool] | None:
    """For an event of a replaceable type: (line, whether it replaces the one before it on that
    line, whether the next may replace it); None where it touches no line.

    Partials and progress replace each other. Of a cell's output only a progress line does:
    text after ``\\r`` overwrites the unfinished line that began with one, on its own stream."""
    if not isinstance(event, Display):
        return "", True, True
    if event.what != "stream":
        return None
    text = str(event.data.get("text/plain", ""))
    back = text.startswith("\r")
    return event.name, back, back and "\n" not in text


def trim_text(event: TextDelta, have: int) -> TextDelta:
    """What a reader with ``have`` characters lacks of ``event``: it, less, or empty text.

    Offset, ordinal and cumulative counters stay: the trimmed event is the same event."""
    extra = have - (event.chars - len(event.text))
    return event if extra <= 0 else msgspec.structs.replace(event, text=event.text[extra:])


def size_of(item: Input | Output) -> int:
    """Bytes that ``item`` counts for against windows, credits and item bounds.

    Content bytes plus a fixed 64 for the frame: cheap, and never under the true content.
    """
    return _SIZES.get(type(item), _size_of_frame)(item)


# By type and not by `match`: sizes are asked for several times on the way of every event.


def _size_of_frame(item: Any) -> int:
    return 64


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _size_of_text(item: Any) -> int:
    text = item.text
    return (len(text) if text.isascii() else _utf8_bytes(text)) + 64


def _size_of_json(item: Any) -> int:
    return len(msgspec.json.encode(item)) + 64


_SIZES: dict[type, Callable[[Any], int]] = {
    Audio: lambda item: len(item.data) + len(item.text) * 4 + 64,
    Sound: lambda item: len(item.data) + 64,
    **dict.fromkeys((TextDelta, Text, Partial, Final, Heard), _size_of_text),
    **dict.fromkeys((Picture, Tile), lambda item: len(item.data) + 256),
    Cell: lambda item: _utf8_bytes(item.code) + 64,
    **dict.fromkeys((Prompt, ToolCalls, Notice, Ended, FileOp, Result, Display), _size_of_json),
    Caption: lambda item: (len(item.text) + len(item.user)) * 4 + 256,
}

"""``POST /v1/images/edits``: a photo in, the same photo enhanced, whole or tile by tile.

A streamed answer has ``image_edit.partial_image`` events and one ``image_edit.completed``.
OpenAI's partial images are the whole picture, rough; ours are finished tiles of it, and say
where they belong (``x``, ``y``, ``width``, ``height``, our additions). What an enhancer
cannot act on (the prompt, a size, a background) is taken and named in ``x-forebay-ignored``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from forebay.core.events import End, Ended, OutputEvent, Picture, Result, Tile
from forebay.core.kinds import Kind
from forebay.dialects import error_of
from forebay.dialects.openai_common import Call, error_object
from forebay.dialects.photos import read_wish
from forebay.errors import BadRequest, JobFailed

__all__ = ["EditEncoder", "EditRequest", "WholeEdit", "blob_of", "parse", "sse_named"]

LEVELS = {"low": "fast", "standard": "medium", "medium": "medium", "high": "high", "auto": "high"}
MAX_PARTIAL = 3
_IGNORED = ("prompt", "background", "input_fidelity", "size", "user", "moderation")

ReadBlob = Callable[[str], str]
"""A blob in base64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRequest:
    """``form``: of the result. ``partial``: how many partial images are wanted."""

    form: str
    quality: str
    stream: bool
    partial: int
    ignored: tuple[str, ...] = ()


def parse(fields: Mapping[str, Sequence[str]], picture: Picture) -> Call:
    """A form as an image job. Raises `BadRequest` (``details["param"]``)."""
    if _one(fields, "n", "1") != "1":
        raise BadRequest("n is not 1: an enhanced photo has one result", param="n")
    if _one(fields, "response_format", "b64_json") != "b64_json":
        raise BadRequest("response_format is offered as b64_json only", param="response_format")
    quality = _one(fields, "quality", "auto")
    if quality not in LEVELS:
        raise BadRequest(f"quality is not one of {', '.join(LEVELS)}", param="quality")
    wish = {name: _one(fields, name, "") for name in ("tile_size", "mode")}
    wish["format"] = form = _one(fields, "output_format", "png")
    wish["quality"] = _one(fields, "output_compression", "")
    wish["quality_level"] = LEVELS[quality]
    params = read_wish({name: value for name, value in wish.items() if value}, {})
    partial = _one(fields, "partial_images", "0")
    if partial not in tuple(str(n) for n in range(MAX_PARTIAL + 1)):
        raise BadRequest(f"partial_images is not 0 to {MAX_PARTIAL}", param="partial_images")
    request = EditRequest(
        form=form,
        quality=quality,
        stream=_flag(_one(fields, "stream", "false")),
        partial=int(partial),
        ignored=tuple(name for name in _IGNORED if _one(fields, name, "")),
    )
    return Call(
        kind=Kind.IMAGE,
        model=_one(fields, "model", "") or None,
        params=params,
        items=(picture, End()),
        stream=request.stream,
        request=request,
    )


def _one(fields: Mapping[str, Sequence[str]], name: str, default: str) -> str:
    values = fields.get(name)
    return values[-1].strip() if values and values[-1].strip() else default


def _flag(value: str) -> bool:
    if value.lower() in ("true", "1"):
        return True
    if value.lower() in ("false", "0"):
        return False
    raise BadRequest("stream is neither true nor false", param="stream")


def sse_named(body: Mapping[str, Any]) -> bytes:
    """One event whose name is its ``type``."""
    name = str(body["type"]).encode()
    return b"event: " + name + b"\ndata: " + msgspec.json.encode(body, enc_hook=str) + b"\n\n"


def _usage() -> dict[str, Any]:
    """Pictures have no tokens here."""
    return {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
    }


def _wanted(tile: Tile, request: EditRequest) -> bool:
    """As many as were asked for, spread over the picture."""
    share = request.partial
    return tile.tiles * share // tile.total > (tile.tiles - 1) * share // tile.total


def blob_of(event: OutputEvent, request: EditRequest) -> str:
    """The blob that `EditEncoder` reads for ``event``; nothing where it reads none."""
    if isinstance(event, Tile):
        return event.blob if _wanted(event, request) else ""
    return event.blob if isinstance(event, Result) else ""


class EditEncoder:
    """Events to frames: a function of the event and of constants, ``read`` being one."""

    def __init__(self, request: EditRequest, created: int, read: ReadBlob) -> None:
        self._request = request
        self._created = created
        self._read = read

    def encode(self, event: OutputEvent) -> Sequence[bytes]:
        match event:
            case Tile() if _wanted(event, self._request):
                return (sse_named(self._partial(event)),)
            case Result():
                return (sse_named(self._completed(event)),)
            case Ended() if event.state != "completed":
                body = {"type": "error", **error_object(error_of(event))}
                return (sse_named(body),)
            case _:
                return ()

    def _facts(self, width: int, height: int) -> dict[str, Any]:
        return {
            "created_at": self._created,
            "size": f"{width}x{height}",
            "quality": self._request.quality,
            "background": "opaque",
        }

    def _partial(self, tile: Tile) -> dict[str, Any]:
        return {
            "type": "image_edit.partial_image",
            "b64_json": self._read(tile.blob),
            **self._facts(tile.width, tile.height),
            "output_format": tile.type.rpartition("/")[2],
            "partial_image_index": tile.tiles * self._request.partial // tile.total - 1,
            "x": tile.x,
            "y": tile.y,
            "width": tile.width,
            "height": tile.height,
            "tile": tile.index,
            "tiles": tile.total,
        }

    def _completed(self, result: Result) -> dict[str, Any]:
        return {
            "type": "image_edit.completed",
            "b64_json": self._read(result.blob),
            **self._facts(result.width, result.height),
            "output_format": result.type.rpartition("/")[2],
            "usage": _usage(),
        }


class WholeEdit:
    """Collects one answer; a `Collector`."""

    def __init__(self, request: EditRequest, created: int, read: ReadBlob) -> None:
        self._request = request
        self._created = created
        self._read = read
        self._result: Result | None = None

    def take(self, event: OutputEvent) -> None:
        if isinstance(event, Result):
            self._result = event

    def body(self) -> bytes:
        """Raises `JobFailed` for a job that ended without a picture."""
        result = self._result
        if result is None:
            raise JobFailed("the job ended without a result")
        return msgspec.json.encode(
            {
                "created": self._created,
                "background": "opaque",
                "output_format": result.type.rpartition("/")[2],
                "quality": self._request.quality,
                "size": f"{result.width}x{result.height}",
                "data": [{"b64_json": self._read(result.blob)}],
                "usage": _usage(),
            }
        )

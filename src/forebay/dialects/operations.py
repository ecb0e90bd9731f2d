"""``POST /send_operation``: a notebook front end's operations in, one JSON object a line out.

Each operation has its fixed order of events; a last ``ok`` line closes every stream, and an
error stands in each place where some client looks for it. The model's text leaves as it
comes: tags in it are turned into what a notebook cell shows, and never hold text back.

Positions. ``id`` of a line (sent where the client asked for a handle) is the number of
characters of content so far plus one for every line that is none. It does not depend on how
the text was cut into lines, so a client that comes back gets exactly what it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from forebay.core.events import Ended, OutputEvent, Prompt, TextDelta, size_of
from forebay.core.kinds import Kind, row
from forebay.core.tags import CloseTag, OpenTag, Piece, TagParser
from forebay.dialects import error_of
from forebay.dialects.openai_common import Call, check_depth, decode_request
from forebay.dialects.operation_words import error_words, messages, no_media, refused_prefix
from forebay.errors import BadRequest, ForebayError, TooLarge

__all__ = ["ASKS", "Composer", "Operation", "as_call", "closing", "of_params", "parse"]

ASKS = frozenset({"user_question", "user_command", "code_output", "code_error_should_debug"})
"""Operations that a language model answers."""
KNOWN = ASKS | {"ping", "check_video_generation_status"}

TAGS = ("add-text", "add-code", "new-section", "answer", "draw-image")
VERBATIM = ("add-code",)

OperationType = str


class _Operation(msgspec.Struct):
    type: str
    payload: dict[str, Any] | None = None


class _Request(msgspec.Struct):
    operation: _Operation
    notebook_id: str = ""
    lang: str | None = None


_decoder = msgspec.json.Decoder(_Request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation, read. ``lang``: en or zh. ``handle``: the client can come back, so lines
    carry their position; ``after``: the position it has."""

    type: OperationType
    payload: dict[str, Any] = field(default_factory=dict)
    notebook_id: str = ""
    lang: str = "en"
    handle: bool = False
    after: int = 0

    @property
    def echo(self) -> dict[str, Any]:
        """What its events repeat of the request, as it was given."""
        names = {"user_question": ("QId",), "user_command": ("commandId",)}.get(self.type, ())
        return {name: self.payload[name] for name in names if name in self.payload}

    @property
    def description(self) -> str:
        """Of the cell a command makes."""
        words = self.payload.get("description") or self.payload.get("content") or ""
        return words[:200] if isinstance(words, str) else ""


def parse(body: bytes) -> Operation:
    """A request body. Raises `BadRequest`."""
    request = decode_request(_decoder, body)
    payload = request.operation.payload or {}
    check_depth(payload, "payload")
    payload.setdefault("notebook_id", request.notebook_id)
    lang = (request.lang or "").lower()
    return Operation(
        type=request.operation.type[:64],
        payload=payload,
        notebook_id=request.notebook_id,
        lang="zh" if lang.startswith("zh") else "en",
    )


def as_call(op: Operation, sampling: dict[str, Any]) -> Call:
    """An operation of `ASKS` as a text job. Raises `BadRequest` for what it lacks and
    `TooLarge`. ``sampling``: parameters of the model."""
    if op.type == "user_question" and not _named(op.payload.get("QId")):
        raise BadRequest("QId is missing", param="QId")
    prefix = refused_prefix(op.type, op.payload)
    if prefix:
        raise BadRequest(no_media(prefix, op.lang), param="content")
    prompt = Prompt(messages=messages(op.type, op.payload, op.lang))
    size, limit = size_of(prompt), row(Kind.TEXT).item_limit_bytes
    if size > limit:
        raise TooLarge(f"operation is {size} bytes, expected no more than {limit}")
    kept = {"type": op.type, "lang": op.lang, "payload": op.echo}
    if op.description:
        kept["description"] = op.description
    return Call(
        kind=Kind.TEXT,
        model=None,
        params={**sampling, "operation": kept},
        items=(prompt,),
        stream=True,
        request=op,
    )


def of_params(params: Any, *, after: int) -> Operation:
    """The operation of a job that is there already, for a client that comes back."""
    kept = params["operation"]
    payload = {**kept["payload"], "description": kept.get("description", "")}
    return Operation(
        type=kept["type"], payload=payload, lang=kept["lang"], handle=True, after=after
    )


def _named(value: Any) -> bool:
    """QId is text or a list of one text, and is echoed as it came."""
    if isinstance(value, list):
        return len(value) == 1 and _named(value[0])
    return isinstance(value, str) and bool(value)


# --------------------------------------------------------------------------- lines


def _line(event: dict[str, Any]) -> bytes:
    return msgspec.json.encode(event, enc_hook=str) + b"\n"


def _event(kind: str, payload: dict[str, Any], status: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "data": {"payload": payload, "status": status, **more}}


def closing(op: Operation, error: ForebayError | None = None) -> list[dict[str, Any]]:
    """The last events: the error, if there was one, and the ``ok`` that closes every stream."""
    if op.type == "ping" and error is None:
        return [{"type": "ok", "data": {"status": "completed", "message": "pong"}}]
    events: list[dict[str, Any]] = []
    if error is not None:
        said = error_words(error, op.lang)
        facts = {**op.echo, "error": said, "code": error.code}
        data = {"payload": facts, "status": "completed", "error": said}
        events.append({"type": "error", "error": said, "payload": facts, "data": data})
        if error.retry_after_s is not None:
            facts["retry_after_s"] = round(error.retry_after_s, 3)
    outcome = "completed" if error is None else "failed"
    message = f"Operation {op.type} {outcome}"
    events.append({"type": "ok", "data": {"status": "completed", "message": message}})
    return events


class Composer:
    """The lines of one operation. `begin`, `take` every event of the job, in order.

    What it remembers is made of the job's own output, so another gateway that reads the job
    from its beginning says the same lines; those the client has (``op.after``) are left out.
    """

    def __init__(self, op: Operation) -> None:
        self._op = op
        self._position = 0
        self._chars = 0
        self._said: list[str] = []
        self._at_line_start = True
        self.timing: Mapping[str, float] = {}  # stages in ms; beside the words, not among them
        marked = op.type in ("user_command", "code_error_should_debug")
        self._tags = TagParser(TAGS, VERBATIM) if marked else None

    def begin(self) -> list[bytes]:
        """What is said before the model is."""
        op, echo = self._op, self._op.echo
        match op.type:
            case "user_question" if not _named(echo.get("QId")):
                return []  # a page cannot begin an answer without a name
            case "user_question":
                return self._whole([_event("initStreamingAnswer", echo, "processing")])
            case "user_command":
                cell = {"type": "Hybrid", "content": "", **echo, "description": op.description}
                return self._whole([_event("addCell2EndWithContent", cell, "processing")])
            case "code_error_should_debug":
                return self._whole(
                    [
                        _event("convertCurrentCodeCellToHybridCell", {}, "processing"),
                        _event("updateCurrentCellWithContent", {"content": ""}, "processing"),
                    ]
                )
            case "check_video_generation_status":
                return self._whole([self._video()])
            case _:
                return []

    def take(self, event: OutputEvent) -> Sequence[bytes]:
        match event:
            case TextDelta():
                return self._content(self._shown(event.text))
            case Ended():
                return self._end(event)
            case _:
                return ()

    def close(self, error: ForebayError | None = None) -> list[bytes]:
        """The closing lines of an operation that no model answers, or that broke."""
        events = closing(self._op, error)
        if self.timing:
            events[-1]["data"]["timing"] = dict(self.timing)
        return self._whole(events)

    # ------------------------------------------------------------------------ content

    def _shown(self, text: str) -> str:
        return text if self._tags is None else self._cell(self._tags.feed(text))

    def _cell(self, pieces: Sequence[Piece]) -> str:
        """Pieces as a notebook cell shows them: markdown with fenced code."""
        out: list[str] = []
        for piece in pieces:
            text = self._marked(piece)
            if text:
                out.append(text)
                self._at_line_start = text.endswith("\n")
        return "".join(out)

    def _marked(self, piece: Piece) -> str:
        fresh = "" if self._at_line_start else "\n"
        match piece:
            case OpenTag(tag="add-code"):
                return f"{fresh}```{piece.attributes.get('language') or 'python'}\n"
            case CloseTag(tag="add-code"):
                return f"{fresh}```\n"
            case OpenTag(tag="new-section"):
                return f"{fresh}## {piece.attributes.get('title', '')}"
            case CloseTag(tag="new-section"):
                return fresh
            case OpenTag(tag="draw-image"):
                return f"{fresh}[image: {piece.attributes.get('prompt', '')}"
            case CloseTag(tag="draw-image"):
                return "]\n"
            case OpenTag() | CloseTag():
                return ""
            case _:
                return piece.text

    def _content(self, text: str) -> list[bytes]:
        if not text:
            return []
        self._said.append(text)
        self._chars += len(text)
        self._position += len(text)
        lacks = min(len(text), self._position - self._op.after)
        if lacks <= 0:
            return []
        return [self._text(text[len(text) - lacks :])]

    def _text(self, text: str) -> bytes:
        op = self._op
        payload: dict[str, Any] = {**op.echo, "content": text}
        match op.type:
            case "user_question":
                event = _event("addContentToAnswer", payload, "processing")
            case "code_output":
                event = _event("addNewContent2CurrentCellDescription", payload, "processing")
            case _:
                event = _event(
                    "addNewContent2CurrentCell", payload, "processing", index=self._chars
                )
        return _line(self._numbered(event))

    # ---------------------------------------------------------------------------- end

    def _end(self, event: Ended) -> list[bytes]:
        rest = [] if self._tags is None else self._content(self._cell(self._tags.end()))
        if event.state == "completed":
            return [*rest, *self._whole(self._finish()), *self.close()]
        return [*rest, *self.close(error_of(event))]

    def _finish(self) -> list[dict[str, Any]]:
        echo, response = self._op.echo, "".join(self._said)
        match self._op.type:
            case "user_question":
                said = {**echo, "response": response}
                return [_event("finishStreamingAnswer", said, "completed")]
            case "user_command":
                said = {**echo, "response": response}
                return [
                    _event("runCurrentCodeCell", echo, "processing"),
                    _event("setCurrentCellMode_onlyOutput", said, "completed"),
                ]
            case "code_error_should_debug":
                return [_event("runCurrentCodeCell", echo, "completed")]
            case _:
                return []

    def _video(self) -> dict[str, Any]:
        task = self._op.payload.get("taskId")
        said = no_media("/video", self._op.lang)
        payload = {"taskId": task, "status": "failed", "error": said}
        return _event("video_generation_status_update", payload, "completed")

    # ---------------------------------------------------------------------- positions

    def _whole(self, events: Sequence[dict[str, Any]]) -> list[bytes]:
        lines = []
        for event in events:
            self._position += 1
            if self._position > self._op.after:
                lines.append(_line(self._numbered(event)))
        return lines

    def _numbered(self, event: dict[str, Any]) -> dict[str, Any]:
        return {**event, "id": self._position} if self._op.handle else event

"""Multipart form bodies: bounded, and nothing a client calls a file is ever a path."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from forebay.errors import BadRequest, TooLarge, Unsupported

__all__ = ["Form", "Upload", "parse_form"]

MAX_PARTS = 64
MAX_FIELD_BYTES = 64 * 1024
MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class Upload:
    """A part with a file name. ``name``: the client's word for it, for messages only."""

    name: str
    type: str
    data: bytes


@dataclass(slots=True)
class Form:
    """``fields``: text parts by name, in order of arrival. ``files``: the last of each name."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, Upload] = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """The newest value of a field, None where it was not sent."""
        values = self.fields.get(name)
        return values[-1] if values else None


def parse_form(content_type: str, body: bytes) -> Form:
    """A ``multipart/form-data`` body. Blocks for large ones.

    Raises `Unsupported` for another content type, `BadRequest` for a malformed or unfinished
    body, `TooLarge` for too many parts or too long a field."""
    kind, options = parse_options_header(content_type.encode("latin-1", "replace"))
    if kind != b"multipart/form-data":
        raise Unsupported("the body is no multipart/form-data")
    boundary = options.get(b"boundary")
    if not boundary:
        raise BadRequest("multipart/form-data without a boundary")
    collector = _Collector()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collector.begin,
                "on_header_field": collector.header_name,
                "on_header_value": collector.header_value,
                "on_header_end": collector.header_end,
                "on_part_data": collector.data,
                "on_part_end": collector.end,
                "on_end": collector.finish,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise BadRequest("the multipart body is malformed") from error
    if not collector.whole:
        raise BadRequest("the multipart body ends before its last boundary")
    return collector.form


class _Collector:
    """Turns the parser's callbacks into a `Form`."""

    def __init__(self) -> None:
        self.form = Form()
        self.whole = False
        self._parts = 0
        self._reset()

    def _reset(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._pieces: list[bytes] = []
        self._size = 0

    def begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise TooLarge(f"a form of more than {MAX_PARTS} parts", limit=MAX_PARTS)
        self._reset()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])
        self._size += end - start

    def end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name or len(name) > MAX_NAME:
            raise BadRequest(f"a form part without a name of 1 to {MAX_NAME} characters")
        data = b"".join(self._pieces)
        if b"filename" in options or b"filename*" in options:
            said = options.get(b"filename", b"").decode("utf-8", "replace")
            said = said[-MAX_NAME:]  # its end says the format
            kind = self._headers.get(b"content-type", b"").decode("latin-1")[:MAX_NAME]
            self.form.files[name] = Upload(said, kind, data)
            return
        if self._size > MAX_FIELD_BYTES:
            raise TooLarge(
                f"field has {self._size} bytes, expected no more than {MAX_FIELD_BYTES}",
                param=name,
            )
        try:
            self.form.fields.setdefault(name, []).append(data.decode())
        except UnicodeDecodeError:
            raise BadRequest("a form field is not utf-8", param=name) from None

    def finish(self) -> None:
        self.whole = True

"""Multipart form bodies: bounded, and nothing a client calls a file is ever a path.

`parse_form` reads a whole body; a `FormReader` takes one as it comes and hands the bytes of
files to sinks, so that a large upload never stands in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from forebay.errors import BadRequest, TooLarge, Unsupported

__all__ = ["FileSink", "Form", "FormReader", "Upload", "parse_form"]

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


class FileSink(Protocol):
    """Where the bytes of one file go."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None:
        """The file is whole."""


def parse_form(content_type: str, body: bytes) -> Form:
    """A ``multipart/form-data`` body. Blocks for large ones. Raises as `FormReader`."""
    form = Form()

    def open_file(field_name: str, name: str, kind: str) -> FileSink:
        return _InMemory(form, field_name, name, kind)

    reader = FormReader(content_type, open_file, form)
    reader.feed(body)
    return reader.finish()


class _InMemory:
    """A file that becomes an `Upload` of its form."""

    def __init__(self, form: Form, field_name: str, name: str, kind: str) -> None:
        self._form = form
        self._field = field_name
        self._name = name
        self._kind = kind
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._pieces.append(data)

    def close(self) -> None:
        self._form.files[self._field] = Upload(self._name, self._kind, b"".join(self._pieces))


class FormReader:
    """A ``multipart/form-data`` body, fed piece by piece.

    ``open_file`` is called for each file with its field's name, the client's name for it and
    the content type it gave; what it raises goes to whoever feeds. Raises `Unsupported` for
    another content type, `BadRequest` for a malformed or unfinished body, `TooLarge` for too
    many parts or too long a field."""

    def __init__(
        self,
        content_type: str,
        open_file: Callable[[str, str, str], FileSink],
        form: Form | None = None,
    ) -> None:
        kind, options = parse_options_header(content_type.encode("latin-1", "replace"))
        if kind != b"multipart/form-data":
            raise Unsupported("the body is no multipart/form-data")
        boundary = options.get(b"boundary")
        if not boundary:
            raise BadRequest("multipart/form-data without a boundary")
        self._collector = collector = _Collector(open_file, form or Form())
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": collector.begin,
                    "on_header_field": collector.header_name,
                    "on_header_value": collector.header_value,
                    "on_header_end": collector.header_end,
                    "on_headers_finished": collector.headers_end,
                    "on_part_data": collector.data,
                    "on_part_end": collector.end,
                    "on_end": collector.finish,
                },
            )
        except FormParserError as error:
            raise BadRequest("the multipart body is malformed") from error

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise BadRequest("the multipart body is malformed") from error

    def finish(self) -> Form:
        """The body is whole: its fields, and the files that were kept in memory."""
        try:
            self._parser.finalize()
        except FormParserError as error:
            raise BadRequest("the multipart body is malformed") from error
        if not self._collector.whole:
            raise BadRequest("the multipart body ends before its last boundary")
        return self._collector.form


class _Collector:
    """Turns the parser's callbacks into a `Form`."""

    def __init__(self, open_file: Callable[[str, str, str], FileSink], form: Form) -> None:
        self.form = form
        self.whole = False
        self._open_file = open_file
        self._parts = 0
        self._reset()

    def _reset(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._field = ""
        self._sink: FileSink | None = None
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

    def headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name or len(name) > MAX_NAME:
            raise BadRequest(f"a form part without a name of 1 to {MAX_NAME} characters")
        self._field = name
        if b"filename" in options or b"filename*" in options:
            said = options.get(b"filename", b"").decode("utf-8", "replace")
            said = said[-MAX_NAME:]  # its end says the format
            kind = self._headers.get(b"content-type", b"").decode("latin-1")[:MAX_NAME]
            self._sink = self._open_file(name, said, kind)

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._sink is not None:
            self._sink.write(data[start:end])
            return
        self._size += end - start
        if self._size > MAX_FIELD_BYTES:
            raise TooLarge(
                f"field has {self._size} bytes, expected no more than {MAX_FIELD_BYTES}",
                param=self._field,
            )
        self._pieces.append(data[start:end])

    def end(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._sink = None
            return
        try:
            text = b"".join(self._pieces).decode()
        except UnicodeDecodeError:
            raise BadRequest("a form field is not utf-8", param=self._field) from None
        self.form.fields.setdefault(self._field, []).append(text)

    def finish(self) -> None:
        self.whole = True

"""Multipart bodies: what is read of them, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import BadRequest, ForebayError, TooLarge, Unsupported
from forebay.gateway.forms import MAX_FIELD_BYTES, MAX_PARTS, parse_form

TYPE = 'multipart/form-data; boundary="xx"'


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    said = f'form-data; name="{name}"'
    if filename is not None:
        said += f'; filename="{filename}"'
    return b"--xx\r\ncontent-disposition: " + said.encode() + b"\r\n\r\n" + data + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--xx--\r\n"


def test_fields_and_files_are_told_apart() -> None:
    form = parse_form(
        TYPE, body(part("model", b"m"), part("a[]", b"1"), part("a[]", b"2"), part("file", b"\0\xff", "../x"))
    )  # fmt: skip
    assert form.text("model") == "m"
    assert form.fields["a[]"] == ["1", "2"]
    assert form.text("file") is None and form.text("none") is None
    assert form.files["file"].data == b"\0\xff"


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/mixed; boundary=xx"])
def test_another_content_type_is_unsupported(kind: str) -> None:
    with pytest.raises(Unsupported):
        parse_form(kind, body())


@pytest.mark.parametrize(
    "data",
    [b"", b"nonsense", b"--xx\r\n", part("a", b"1"), body(b"--xx\r\nno-header\r\n\r\n"),
     b"--xx\r\ncontent-disposition: form-data\r\n\r\n1\r\n--xx--\r\n", body(part("a", b"\xff"))],
)  # fmt: skip
def test_a_malformed_or_unfinished_body_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_form(TYPE, data)


def test_a_form_without_a_boundary_is_refused() -> None:
    with pytest.raises(BadRequest, match="boundary"):
        parse_form("multipart/form-data", b"")


def test_parts_and_fields_are_bounded() -> None:
    with pytest.raises(TooLarge, match="parts"):
        parse_form(TYPE, body(*(part(f"p{n}", b"") for n in range(MAX_PARTS + 1))))
    with pytest.raises(TooLarge, match="bytes"):
        parse_form(TYPE, body(part("long", b"x" * (MAX_FIELD_BYTES + 1))))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.text(max_size=60))
def test_no_bytes_break_it(data: bytes, kind: str) -> None:
    for content_type in (TYPE, kind):
        try:
            parse_form(content_type, b"--xx\r\n" + data)
        except ForebayError:
            pass

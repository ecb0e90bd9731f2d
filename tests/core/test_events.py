"""Events know their own size, their counters, and what is left when a newer one replaces them."""

import msgspec
import pytest

from forebay.core.events import (
    Caption,
    Cell,
    Display,
    FileOp,
    InputItem,
    OutputEvent,
    Partial,
    Picture,
    Progress,
    Result,
    Sound,
    TextDelta,
    Tile,
    blobs_of,
    faded,
    marks,
    size_of,
)
from forebay.core.stream import Stamper

TILE = Tile(index=0, total=2, x=0, y=0, width=8, height=8, blob="b" * 32, type="image/png")


@pytest.mark.parametrize(
    "item",
    [
        Picture(blob="b" * 32, type="image/png", width=3, height=2, data=b"x" * 18),
        Cell(code="print(1)"),
        FileOp(op="list", args={"path": ""}),
        TILE,
        Result(blob="b" * 32, type="image/jpeg", size_bytes=10, sha256="0" * 64),
        Display(what="stream", name="stdout", data={"text/plain": "hello"}),
        Caption(user="Ann", text="hello"),
    ],
)
def test_an_event_counts_at_least_its_content(item: InputItem | OutputEvent) -> None:
    assert size_of(item) >= len(msgspec.json.encode(getattr(item, "data", ""))) - 2


def test_numbers_of_tiles_and_outputs_are_cumulative() -> None:
    stamper = Stamper(3, {"tile": 1}, {"tiles": 1, "bytes": 100})
    assert marks(stamper.stamp(TILE)) == {"tiles": 2}
    out = stamper.stamp(Display(what="stream", data={"text/plain": "a"}))
    assert marks(out)["bytes"] > 100
    assert (out.offset, out.n) == (5, 1)


def test_what_a_newer_event_replaces_keeps_its_number_only() -> None:
    assert faded(Partial(text="a", start=0)) == Partial(text="", start=0)
    assert faded(Progress(value=0.5, stage="tiles")) == Progress(value=0.5)
    line = Display(what="stream", data={"text/plain": "10 %"}, size=9)
    assert faded(line) == Display(what="", size=9)
    assert faded(TextDelta(text="a")) == TextDelta(text="a")


def test_what_lies_beside_a_stream_is_named_by_its_items() -> None:
    assert blobs_of(TILE) == ("b" * 32,)
    assert blobs_of(Sound(form="file", blob="a" * 32)) == ("a" * 32,)
    assert blobs_of(Cell(code="print(1)")) == ()
    plots = Display(what="display", blobs={"image/png": "c" * 32, "text/html": "d" * 32})
    assert blobs_of(plots) == ("c" * 32, "d" * 32)
    assert blobs_of(TextDelta(text="a")) == ()

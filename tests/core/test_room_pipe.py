"""What a recognition says, as captions of a room."""

from __future__ import annotations

import pytest

from forebay.core.events import Final, Heard, Partial
from forebay.core.pipe import PREVIEW_CHARS, RoomMap
from forebay.core.room import is_room, room_id
from forebay.errors import BadRequest


def test_finals_are_numbered_by_their_source_and_the_open_partial_is_a_preview() -> None:
    events = [
        Partial(offset=1, text="hel", start=0),
        Final(offset=2, text=" hello", start=0, end=9),
        Heard(offset=3, seq=1, samples=9),
        Partial(offset=4, text="", start=9),
        Final(offset=5, text="  ", start=9, end=10),
        Final(offset=6, text="world", start=9, end=10),
        Partial(offset=7, text="aga" + "x" * PREVIEW_CHARS, start=10),
    ]
    preview, items = RoomMap("captions:Ada").items(events, "p", now_ms=5, stamp="now")
    assert [(i.client, i.seq, i.settled) for i in items] == [("pipe:p", 2, 1), ("pipe:p", 6, 5)]
    assert [i.caption.text for i in items if i.caption] == ["hello", "world"]
    assert preview is not None and preview.preview and preview.text == "x" * PREVIEW_CHARS
    assert (preview.user, preview.created_ms, preview.timestamp) == ("Ada", 5, "now")


def test_a_final_ends_the_preview_before_it_and_other_maps_are_refused() -> None:
    events = [Partial(offset=1, text="a", start=0), Final(offset=2, text="a", start=0, end=1)]
    made = RoomMap("captions")
    assert made.user == "speaker"
    assert made.items(events, "p", now_ms=1, stamp="")[0] is None
    with pytest.raises(BadRequest):
        RoomMap("speak")
    assert is_room(room_id("t", "r")) and not is_room("3f")

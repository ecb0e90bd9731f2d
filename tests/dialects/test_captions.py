"""What senders post, and captions as files: every field, every refusal, no surprise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.events import Caption
from forebay.core.room import RoomAnswer
from forebay.dialects.captions import (
    Posted,
    answer_many,
    answer_one,
    parse_post,
    room_name,
    shown,
    style_of,
)
from forebay.dialects.captions_export import export
from forebay.dialects.centrifuge import commands, failure, pushed
from forebay.errors import (
    BadRequest,
    Forbidden,
    ForebayError,
    NotFound,
    QuotaExceeded,
    ResumeNotAvailable,
    StoreFull,
    TooLarge,
    Unauthorized,
)

BASE = {"room": "talk", "passphrase": "p", "user_name": " Ada ", "text": " hello\x00 "}


def parse(lenient: bool = False, **fields: Any) -> Posted:
    body = json.dumps({**BASE, **fields}).encode()
    return parse_post(body, lenient=lenient, now_ms=5, stamp="10:00:00")


def test_a_message_is_trimmed_stamped_and_left_without_what_is_not_understood() -> None:
    posted = parse(user_color="#12345678", text_color="blue", font_type="google", other={})
    (message,) = posted.messages
    assert message.caption == Caption(
        user="Ada",
        text="hello",
        timestamp="10:00:00",
        created_ms=5,
        style={"user_color": "#12345678", "font_type": "google"},
    )
    assert not posted.many and posted.client == "" and posted.persist is None
    two_lines = parse(user_name="a\n\nb", timestamp="9\n10").messages[0].caption
    assert two_lines is not None and (two_lines.user, two_lines.timestamp) == ("a b", "9 10")
    assert parse(timestamp="9:59", room=7, passphrase=8).messages[0].caption is not None
    assert parse(persist=False).persist is False


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"room": True}, BadRequest),
        ({"room": "a b"}, BadRequest),
        ({"passphrase": "p" * 257}, TooLarge),
        ({"passphrase": ["p"]}, BadRequest),
        ({"text": "x" * 2001}, TooLarge),
        ({"user_name": "x" * 65}, TooLarge),
        ({"timestamp": "x" * 33}, TooLarge),
        ({"client_id": "a b"}, BadRequest),
        ({"client_id": 7}, BadRequest),
        ({"seq": 1}, BadRequest),
        ({"client_id": "c", "seq": -1}, BadRequest),
        ({"client_id": "c", "seq": 1.5}, BadRequest),
        ({"client_id": "c", "seq": True}, BadRequest),
        ({"client_id": "c", "settled": "x"}, BadRequest),
        ({"client_id": "c", "skip": True}, BadRequest),
        ({"messages": {}}, BadRequest),
    ],
)
def test_what_is_wrong_is_said(fields: dict[str, Any], error: type[ForebayError]) -> None:
    with pytest.raises(error):
        parse(**fields)


def test_names_of_rooms_that_are_not_plain_cannot_meet_those_that_are() -> None:
    assert room_name(" talk ", lenient=True) == "talk"
    odd = room_name("会议 室", lenient=True)
    assert odd.startswith("~") and odd != room_name("会议室", lenient=True)
    for bad in ("", "x" * 201):
        with pytest.raises(BadRequest):
            room_name(bad, lenient=True)


def test_many_messages_share_what_stands_beside_them() -> None:
    posted = parse(
        client_id="c",
        text=None,
        user_color="#000000",
        messages=[{"seq": 1, "text": "a"}, {"seq": 2, "skip": 1}, {"seq": 3}, 4, {"seq": "x"}],
    )
    first, skipped, empty, odd, wrong = posted.messages
    assert first.caption is not None and first.caption.style == {"user_color": "#000000"}
    assert skipped.caption is None and skipped.seq == 2 and skipped.error is None
    assert empty.seq == 3 and empty.error is not None
    assert odd.error is not None and wrong.error is not None and wrong.seq == 0
    said = answer_many(
        posted,
        [
            RoomAnswer(result="appended", offset=4, next_seq=2),
            RoomAnswer(result="skipped", next_seq=3),
            empty.error,
            QuotaExceeded("slow down", retry_after_s=0.25),
            "preview",
        ],
    )
    assert said["next_seq"] == 3
    assert said["results"][0] == {"status": 200, "result": "appended", "offset": 4, "seq": 1}
    assert said["results"][2]["error"] == "Missing required fields"
    assert said["results"][3]["retry_after_s"] == 0.25
    assert said["results"][4] == {"status": 200, "result": "preview"}


def test_one_message_is_answered_with_its_place() -> None:
    posted = parse(client_id="c", seq=5)
    said = answer_one(posted, RoomAnswer(result="appended", offset=9, next_seq=6))
    assert said["status"] == "ok" and (said["offset"], said["next_seq"]) == (9, 6)
    assert answer_one(posted, "preview")["result"] == "preview"
    preview = parse(client_id="c", seq=5, is_preview="true").messages[0]
    assert preview.preview and preview.seq == 0


def test_items_carry_who_sent_them_or_their_own_name() -> None:
    message = parse(client_id="c", seq=5).messages[0]
    item = message.item("c", 4)
    assert (item.client, item.seq, item.settled) == ("c", 5, 4)
    named = parse(client_id="c", message_id="m").messages[0].item("c", 0)
    assert (named.client, named.seq) == ("c#m", 0)
    assert parse(message_id="m").messages[0].item("", 0).client == "#m"
    skipped = parse(client_id="c", seq=5, skip=True).messages[0].item("c", 0)
    assert (skipped.client, skipped.caption) == ("c", None)


@given(st.dictionaries(st.sampled_from([*BASE, "font_family", "user_color"]), st.text()))
def test_no_text_is_ever_taken_for_a_style_that_is_none(fields: dict[str, str]) -> None:
    style = style_of(fields)
    assert not set("{}();:'\"<>\\/") & set("".join(style.values()))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [*BASE, "client_id", "seq", "settled", "skip", "messages", "is_preview", "message_id", "id"]
    + ["connect", "subscribe", "publish", "history"]
)


@given(st.dictionaries(FIELDS, JSON) | JSON)
def test_whatever_is_sent_is_taken_or_refused_by_name(sent: Any) -> None:
    body = json.dumps(sent)
    try:
        posted = parse_post(body.encode(), lenient=True, now_ms=1, stamp="")
    except BadRequest:
        pass
    else:
        assert posted.messages
    try:
        for command in commands(body):
            assert isinstance(command.id, int)
            failure(command, BadRequest("x"))
    except BadRequest:
        pass


def test_errors_have_the_numbers_that_sdks_know() -> None:
    (command,) = commands('{"id":7,"subscribe":{"channel":"x"}}')
    (unknown,) = commands('{"id":8,"dance":{}}')
    for error, code in [
        (Unauthorized("x"), 101),
        (NotFound("x"), 102),
        (Forbidden("x"), 103),
        (TooLarge("x"), 106),
        (BadRequest("x"), 107),
        (QuotaExceeded("x"), 111),
        (ResumeNotAvailable("x"), 112),
        (StoreFull("x"), 100),
        (ForebayError("x"), 100),
    ]:
        assert json.loads(failure(command, error))["error"]["code"] == code
    assert json.loads(failure(unknown, NotFound("x")))["error"]["code"] == 104
    assert command.number("offset") == 0 and command.fields() == {}
    assert command.text("channel") == "x" and not command.flag("recover")


def caption(text: str, at_ms: int, user: str = "Ada") -> Caption:
    return Caption(user=user, text=text, timestamp="t", created_ms=at_ms, offset=1)


def test_subtitles_follow_the_captions_times_and_never_break_their_format() -> None:
    said = [
        caption("one", 1000),
        caption("two\n\n--> three", 3500, "<b>&"),
        caption("late", 3000),
        caption("end", 60_000),
    ]
    srt = export(said, "srt")
    assert srt.startswith("1\n00:00:00,000 --> 00:00:02,500\nAda: one\n\n2\n00:00:02,500 --> ")
    assert "two\n→ three" in srt and srt.count(" --> ") == 4
    assert "4\n00:00:59,000 --> 00:01:06,000\nAda: end\n" in srt
    vtt = export(said, "vtt")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:02.500\n<v Ada>one\n\n")
    assert "<v &lt;b&gt;&amp;>two" in vtt
    assert export(said, "txt").splitlines()[1] == "[t] <b>&: two --> three"
    assert export([], "srt") == "" and export([], "vtt") == "WEBVTT\n"
    with pytest.raises(BadRequest):
        export(said, "doc")


def test_a_caption_is_one_object_wherever_it_is_read() -> None:
    one = Caption(user="u", text="t", created_ms=3, client="c", seq=2, offset=9)
    body = shown(one)
    assert (body["id"], body["client_id"], body["seq"]) == (9, "c", 2)
    named = Caption(user="u", text="t", created_ms=3, client="#m", offset=9)
    assert "client_id" not in shown(named)
    push = json.loads(pushed("talk", one))["push"]
    assert push == {"channel": "talk", "pub": {"data": body, "offset": 9}}

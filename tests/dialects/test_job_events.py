"""A job's events as JSON: what is said, what is left out, and where a client stands."""

from __future__ import annotations

import json

import pytest

from forebay.core.events import (
    Audio,
    Display,
    Ended,
    Final,
    Partial,
    Progress,
    Result,
    TextDelta,
    Tile,
)
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec, JobView, QueuePlace
from forebay.dialects.job_events import (
    JobWords,
    Position,
    error_body,
    position_id,
    read_position,
    sse_event,
    ws_event,
)
from forebay.errors import BadRequest, QueueFull, ResumeNotAvailable

WORDS = JobWords()


def view(**facts):
    spec = JobSpec(id="a" * 32, kind=Kind.TEXT, pool="text/m", params={"x": "secret"})
    return JobView(spec=spec, **{"state": "running", "epoch": "e1", "head": 7, **facts})


def test_an_event_is_its_fields_under_its_type():
    (body,) = WORDS.event(TextDelta(text="hi", offset=3, n=2, chars=5, tokens=2))
    assert body == {"type": "delta", "offset": 3, "n": 2, "text": "hi", "chars": 5, "tokens": 2,
                    "count": 1}  # fmt: skip


def test_sound_is_base64_and_names_of_blobs_stay_inside():
    (audio,) = WORDS.event(Audio(data=b"\x00\x01", text="a", unit=0, frames=1))
    (tile,) = WORDS.event(Tile(index=0, total=2, x=0, y=0, width=4, height=4, blob="b" * 32))
    (result,) = WORDS.event(Result(blob="b" * 32, size_bytes=9))
    (shown,) = WORDS.event(Display(what="display", data={"text/plain": "1"}))
    assert audio["data"] == "AAE="
    assert "data" not in tile
    assert "blob" not in tile
    assert "blob" not in result
    assert shown["data"] == {"text/plain": "1"}
    assert "blobs" not in shown


@pytest.mark.parametrize(
    "event", [Progress(value=0.5), Partial(text="", start=0), Display(what="")]
)
def test_what_a_newer_event_replaced_is_left_out(event):
    assert WORDS.event(event) == ()


@pytest.mark.parametrize(
    "event",
    [
        Progress(value=0.5, stage="tiles"),
        Partial(text="x", start=0),
        Final(text="", start=0, end=1),
    ],
)
def test_what_nothing_replaced_is_said(event):
    assert len(WORDS.event(event)) == 1


def test_the_end_says_why():
    (done,) = WORDS.event(Ended(state="completed", offset=9))
    (failed,) = WORDS.event(Ended(state="failed", code="worker_lost", message="gone"))
    assert (done["type"], done["state"]) == ("ended", "completed")
    assert "error" not in done
    assert failed["error"] == {"code": "worker_lost", "message": "gone"}


def test_the_opening_says_where_the_job_stands():
    (job,) = WORDS.opening(view())
    assert (job["state"], job["epoch"], job["head"], job["first"]) == ("running", "e1", 7, 1)
    assert "secret" not in str(job)
    waiting = view(state="queued", place=QueuePlace(position=3, eta_s=12.34))
    _, place = WORDS.opening(waiting)
    assert (place["type"], place["position"], place["eta_s"]) == ("queued", 3, 12.3)


def test_a_lease_and_an_error_have_words():
    assert [b["type"] for b in (*WORDS.lease(True), *WORDS.lease(False))] == ["running", "requeued"]
    (body,) = WORDS.error(QueueFull("full", retry_after_s=2.04, limit=5))
    assert body == {"type": "error", "code": "queue_full", "message": "full",
                    "details": {"limit": 5}, "retry_after_s": 2.0}  # fmt: skip
    assert error_body(BadRequest("no"))["code"] == "bad_request"


def test_an_event_stream_has_the_position_as_its_id():
    body = {"type": "delta", "text": "a\nb"}
    assert (
        sse_event(body, "e:3")
        == b'id: e:3\nevent: delta\ndata: {"type":"delta","text":"a\\nb"}\n\n'
    )
    assert sse_event({"x": 1}) == b'event: message\ndata: {"x":1}\n\n'
    assert json.loads(ws_event(body, "e:3")) == {**body, "id": "e:3"}
    assert json.loads(ws_event(body)) == body


def test_a_position_is_read_back():
    assert read_position(position_id("abc", 12)) == Position("abc", 12)
    assert read_position(" 7 ") == Position("", 7)
    for bad in ("", "x", "a:", ":1", "-1", "1.5", "a:b:1", "9" * 16, "e\n:1"):
        with pytest.raises(BadRequest):
            read_position(bad)


def test_a_position_of_another_stream_or_past_its_head_is_refused_by_name():
    assert Position("e1", 7).check(view()) == 7
    assert Position("", 0).check(view()) == 0
    with pytest.raises(ResumeNotAvailable) as lost:
        Position("e2", 1).check(view())
    with pytest.raises(ResumeNotAvailable) as ahead:
        Position("e1", 8).check(view())
    assert lost.value.details["reason"] == "state_lost"
    assert ahead.value.details["reason"] == "ahead_of_head"

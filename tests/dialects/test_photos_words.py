"""The photo dialect's words: wishes, names, ids, how tasks and batches are told."""

from __future__ import annotations

import uuid

import pytest

from forebay.core.events import Ended, Notice, Progress, Result
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec, JobView, QueuePlace
from forebay.dialects import photos as words
from forebay.dialects.photos import PhotoWords, Standing


def standing(state="running", events=(), **facts):
    spec = JobSpec(id="a" * 32, kind=Kind.IMAGE, pool="image/m", name="t1",
                   params={"created_at": 100.0, "filename": "x"})  # fmt: skip
    view = JobView(spec=spec, state=state, epoch="e", created_s=5.0, **facts)
    return Standing.of(view, events, 9.0)


def test_the_query_wins_over_the_form_and_levels_cap_the_tile():
    wish = words.read_wish({"tile_size": "512"}, {"tile_size": ["256"], "quality_level": ["fast"]})
    assert (wish["tile_size"], wish["quality_level"]) == (256, "fast")
    assert words.read_wish({}, {})["tile_size"] == 400
    for bad in ({"tile_size": "９"}, {"mode": "x"}, {"quality": "0"}, {"format": "gif"}):
        with pytest.raises(words.Unprocessable):
            words.read_wish(bad, {})


def test_ids_are_version_four_and_follow_from_the_batch():
    batch = words.new_task_id("f" * 32)
    subs = [words.sub_task_id(batch, n) for n in range(3)]
    assert {uuid.UUID(i).version for i in (batch, *subs)} == {4}
    assert len({batch, *subs}) == 4
    assert subs[1] == words.sub_task_id(batch, 1)


@pytest.mark.parametrize(
    ("state", "status", "share"),
    [("queued", "queued", 0.0), ("running", "processing", 0.5), ("completed", "completed", 1.0),
     ("failed", "failed", 0.5), ("cancelled", "failed", 0.5), ("expired", "failed", 0.5)],
)  # fmt: skip
def test_each_state_has_a_word_that_clients_know(state, status, share):
    events = [] if state == "queued" else [Progress(value=0.5, stage="tiles")]
    body = words.task_body(standing(state, events, message="m"))
    assert (body["status"], body["progress"]) == (status, share)
    assert (body["error"] is not None) == (status == "failed")
    assert (body["result_url"] is not None) == (status == "completed")


def test_a_waiting_task_tells_its_place_and_one_that_lost_its_worker_does_not_go_back():
    waiting = standing("queued", place=QueuePlace(position=2, eta_s=3.21))
    assert words.task_body(waiting)["message"] == "Waiting: place 2, about 3 s"
    assert words.task_body(waiting)["eta_s"] == 3.2
    assert standing("queued", attempts=1).status == "processing"


def test_a_batch_counts_what_is_so_now():
    done, failed, runs = standing("completed"), standing("failed"), standing("running")
    for tasks, status in (
        ([done, done], "completed"),
        ([done, failed], "partial_completed"),
        ([failed], "failed"),
        ([done, runs], "processing"),
        ([standing("queued")], "queued"),
    ):
        assert words.batch_body("b", tasks)["status"] == status


def test_what_was_replaced_is_not_told_and_the_end_has_a_word():
    told = PhotoWords("t1")
    assert told.event(Progress(value=0.3)) == ()
    assert told.event(Notice(code="c", message="m"))[0]["type"] == "notice"
    assert told.event(Result(blob="b"))[0]["url"] == "/api/v1/download/t1"
    assert told.event(Ended(state="completed"))[0]["type"] == "completed"
    assert told.event(Ended(state="cancelled"))[0]["code"] == "cancelled"
    assert told.event(Ended(state="failed", code="poison"))[0]["code"] == "poison"
    assert told.lease(False)[0]["type"] == "recovering"

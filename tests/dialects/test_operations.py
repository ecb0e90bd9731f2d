"""`/send_operation` as text: requests in, lines out, in the order notebook front ends expect."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.events import Ended, Heard, OutputEvent, TextDelta
from forebay.dialects.operation_words import CONTEXT_CHARS, TEXT_CHARS, error_words, messages
from forebay.dialects.operations import Composer, Operation, as_call, of_params, parse
from forebay.errors import BadRequest, NoWorkers, QueueFull, TooLarge, UpstreamFailed

DONE = Ended(state="completed")


def body(kind: str, payload: Any = None, **more: Any) -> bytes:
    operation = {"type": kind} if payload is None else {"type": kind, "payload": payload}
    return json.dumps({"notebook_id": "nb", "operation": operation, **more}).encode()


def lines(op: Operation, *events: OutputEvent) -> list[dict[str, Any]]:
    composer = Composer(op)
    raw = [*composer.begin(), *(line for event in events for line in composer.take(event))]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in raw)
    return [json.loads(line) for line in raw]


def command(**facts: Any) -> Operation:
    payload = {"content": "plot x", "commandId": "c1"}
    return Operation(type="user_command", payload=payload, **facts)


def test_a_question_is_answered_between_its_init_and_its_finish() -> None:
    op = parse(body("user_question", {"content": "why?", "QId": ["q7"]}, id=3, timestamp="x"))
    said = lines(op, TextDelta(text="be"), Heard(seq=1, samples=1), TextDelta(text="cause"), DONE)
    assert said == [
        {"type": "initStreamingAnswer",
         "data": {"payload": {"QId": ["q7"]}, "status": "processing"}},
        {"type": "addContentToAnswer",
         "data": {"payload": {"QId": ["q7"], "content": "be"}, "status": "processing"}},
        {"type": "addContentToAnswer",
         "data": {"payload": {"QId": ["q7"], "content": "cause"}, "status": "processing"}},
        {"type": "finishStreamingAnswer",
         "data": {"payload": {"QId": ["q7"], "response": "because"}, "status": "completed"}},
        {"type": "ok",
         "data": {"status": "completed", "message": "Operation user_question completed"}},
    ]  # fmt: skip


def test_a_command_makes_a_cell_fills_it_runs_it_and_shows_its_output() -> None:
    said = lines(command(), TextDelta(text="Hi "), TextDelta(text="you"), DONE)
    assert [event["type"] for event in said] == [
        "addCell2EndWithContent",
        "addNewContent2CurrentCell",
        "addNewContent2CurrentCell",
        "runCurrentCodeCell",
        "setCurrentCellMode_onlyOutput",
        "ok",
    ]
    assert said[0]["data"]["payload"] == {
        "type": "Hybrid", "content": "", "commandId": "c1", "description": "plot x"
    }  # fmt: skip
    assert said[1]["data"]["payload"] == {"content": "Hi ", "commandId": "c1"}
    assert [event["data"]["index"] for event in said[1:3]] == [3, 6]
    assert said[3]["data"]["payload"] == {"commandId": "c1"}
    assert said[4]["data"]["payload"] == {"commandId": "c1", "response": "Hi you"}


def test_tags_become_what_a_cell_shows_while_they_are_written() -> None:
    text = (
        "<new-section>Plan</new-section><add-text> a <b </add-text>"
        '<add-code language="r">x <- 1</add-code>'
        '<draw-image prompt="cat"></draw-image><answer>42'
    )
    said = lines(command(), *(TextDelta(text=char) for char in text), DONE)
    shown = "".join(
        e["data"]["payload"]["content"] for e in said if e["type"] == "addNewContent2CurrentCell"
    )
    assert shown == "## Plan\n a <b \n```r\nx <- 1\n```\n[image: cat]\n42"
    assert shown == said[-2]["data"]["payload"]["response"]


def test_what_could_have_been_a_tag_is_said_at_the_end() -> None:
    said = lines(command(), TextDelta(text="1 <add-"), DONE)
    assert [e["data"]["payload"]["content"] for e in said[1:3]] == ["1 ", "<add-"]


def test_output_is_described_and_an_error_is_mended() -> None:
    output = lines(Operation(type="code_output"), TextDelta(text="A plot"), DONE)
    assert [e["type"] for e in output] == ["addNewContent2CurrentCellDescription", "ok"]
    mended = lines(Operation(type="code_error_should_debug"), TextDelta(text="x"), DONE)
    assert [e["type"] for e in mended] == [
        "convertCurrentCodeCellToHybridCell",
        "updateCurrentCellWithContent",
        "addNewContent2CurrentCell",
        "runCurrentCodeCell",
        "ok",
    ]


def test_a_film_is_honestly_not_made_and_a_ping_is_a_pong() -> None:
    composer = Composer(Operation(type="check_video_generation_status", payload={"taskId": "t"}))
    update, ok = [json.loads(x) for x in (*composer.begin(), *composer.close())]
    assert update["type"] == "video_generation_status_update"
    assert update["data"]["payload"] == {
        "taskId": "t", "status": "failed", "error": "no model here makes videos"
    }  # fmt: skip
    assert ok["type"] == "ok"
    pong = Composer(Operation(type="ping"))
    assert pong.begin() == []
    assert json.loads(pong.close()[0]) == {
        "type": "ok", "data": {"status": "completed", "message": "pong"}
    }  # fmt: skip


def test_an_error_stands_wherever_a_client_looks_and_the_stream_is_closed_all_the_same() -> None:
    failed = Ended(state="failed", code="upstream_failed", message="model server broke")
    said = lines(command(), TextDelta(text="<add-text>half"), failed)
    error, ok = said[-2:]
    assert error["error"] == error["payload"]["error"] == error["data"]["error"]
    assert error["data"]["payload"]["error"] == "model server broke"
    assert error["payload"]["commandId"] == "c1"
    assert ok["data"]["message"] == "Operation user_command failed"
    assert "runCurrentCodeCell" not in [event["type"] for event in said]


def test_errors_speak_the_language_that_was_asked_for() -> None:
    assert error_words(QueueFull("5 wait"), "en") == "5 wait"
    assert error_words(QueueFull("5 wait"), "zh") == "排队已满，请稍后再试（5 wait）"
    assert error_words(BadRequest("本服务不生成图片"), "zh") == "本服务不生成图片"
    late = NoWorkers("none", retry_after_s=1.234567)
    error = json.loads(Composer(Operation(type="ping", lang="zh")).close(late)[0])
    assert error["payload"]["retry_after_s"] == 1.235
    assert error_words(TooLarge("x"), "zh").startswith("请求过大")
    assert error_words(UpstreamFailed("x"), "zh").startswith("模型服务器出错")


@pytest.mark.parametrize(("lang", "is_zh"), [("zh", True), ("zh-CN", True), ("en", False), (None, False)])  # fmt: skip
def test_the_model_is_told_which_language_to_answer_in(lang: str | None, is_zh: bool) -> None:
    op = parse(body("user_question", {"QId": "q", "content": "?"}, lang=lang))
    call = as_call(op, {"temperature": 0.5})
    system = call.items[0].messages[0]["content"]  # type: ignore[union-attr]
    assert ("中文" in system) == is_zh
    assert call.params["temperature"] == 0.5


def test_every_name_of_the_debug_fields_reaches_the_model() -> None:
    new = messages("code_error_should_debug",
                   {"error": "E1", "HistoryCode": "H1", "executeCode": "C1"}, "en")  # fmt: skip
    old = messages("code_error_should_debug",
                   {"executeResult": ["E2"], "historyCode": "H2", "executeCode": "C2"}, "en")  # fmt: skip
    assert new[-1]["content"] == "Earlier code:\nH1\n\nCode:\nC1\n\nError:\nE1"
    assert old[-1]["content"] == 'Earlier code:\nH2\n\nCode:\nC2\n\nError:\n["E2"]'


def test_prefixes_choose_a_style_and_context_is_bounded() -> None:
    told = messages("user_command", {"content": "/react a button"}, "en")
    assert "React component" in told[0]["content"]
    assert told[-1]["content"] == "a button"
    cells = messages("user_question", {"content": None, "related_cells": "x" * 70_000}, "en")
    assert len(cells[1]["content"]) == CONTEXT_CHARS + len("Notebook:\n")
    assert cells[-1]["content"] == ""
    output = messages("code_output", {"executeCode": "1", "executeResult": []}, "zh")
    assert output[-1]["content"] == "Code:\n1"
    long = messages("user_question", {"content": "y" * 200_000}, "en")
    assert len(long[-1]["content"]) == TEXT_CHARS


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "body is no json"),
        (b"{}", "missing"),
        (body("x", 5), "object"),
        (body("x", json.loads("[" * 40 + "]" * 40)), "object"),
    ],
)
def test_what_is_no_operation_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        parse(raw)


@pytest.mark.parametrize("qid", [None, "", [], ["a", "b"], [1], 5])
def test_a_question_without_its_id_is_refused(qid: Any) -> None:
    with pytest.raises(BadRequest, match="QId"):
        as_call(Operation(type="user_question", payload={"QId": qid}), {})


def test_pictures_are_refused_in_the_askers_language_and_monsters_by_size() -> None:
    picture = Operation(type="user_command", payload={"content": "/image a cat"}, lang="zh")
    with pytest.raises(BadRequest, match="本服务不生成图片"):
        as_call(picture, {})
    assert (
        "本服务不生成视频"
        in Composer(Operation(type="check_video_generation_status", lang="zh")).begin()[0].decode()
    )
    fields = {name: "é" * 100_000 for name in ("error", "HistoryCode", "executeCode")}
    with pytest.raises(TooLarge):
        as_call(Operation(type="code_error_should_debug", payload=fields), {})


def test_a_job_remembers_what_its_operation_was() -> None:
    op = parse(body("user_command", {"content": "do", "commandId": "c9"}))
    back = of_params(as_call(op, {}).params, after=3)
    assert (back.type, back.echo, back.description, back.after) == (
        "user_command", {"commandId": "c9"}, "do", 3
    )  # fmt: skip
    bare = as_call(Operation(type="code_output", payload={}), {})
    assert of_params(bare.params, after=0).description == ""
    odd = Operation(type="user_command", payload={"content": ["x"]})
    assert odd.description == ""


@given(
    st.lists(st.text(alphabet="ab<>/ \n-dt", max_size=8), min_size=1, max_size=8),
    st.integers(0, 60),
    st.sampled_from(["completed", "failed"]),
)
def test_who_comes_back_gets_exactly_what_was_missing(
    parts: list[str], after: int, state: Any
) -> None:
    """However the text is cut into events the second time."""
    ended = Ended(state=state, code="x", message="y")
    whole = lines(command(handle=True), *(TextDelta(text=p) for p in parts), ended)
    got = [line for line in whole if line["id"] <= after]
    rest = lines(
        command(handle=True, after=got[-1]["id"] if got else 0),
        TextDelta(text="".join(parts)),
        ended,
    )

    def told(events: list[dict[str, Any]]) -> tuple[str, list[str]]:
        text = [e["data"]["payload"]["content"] for e in events if "index" in e["data"]]
        return "".join(text), [e["type"] for e in events if "index" not in e["data"]]

    first, second, once = told(got), told(rest), told(whole)
    assert (first[0] + second[0], first[1] + second[1]) == once
    assert [e["id"] for e in whole] == sorted({e["id"] for e in whole})

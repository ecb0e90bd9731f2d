"""The notebook backend's words: output items, carriage returns, clearing, language."""

from __future__ import annotations

from typing import Any

import pytest

from forebay.core.events import Display, Ended, Notice, Result
from forebay.dialects.notebook import (
    Outputs,
    language,
    overwrite,
    read_body,
    say,
    wanted_mime,
    words_of,
)
from forebay.errors import BadRequest, NotFound


def shown(*events: Any, lang: str = "en") -> list[tuple[str, str]]:
    outputs = Outputs("2026-01-01T00:00:00+00:00", lang)
    for event in events:
        outputs.take(event)
    return [(item["type"], item["content"]) for item in outputs.items]


def line(text: str, name: str = "stdout") -> Display:
    return Display(what="stream", name=name, data={"text/plain": text})


def rich(what: str = "display", display_id: str = "", **data: Any) -> Display:
    return Display(
        what=what,
        display_id=display_id,
        data={k.replace("_", "/", 1): v for k, v in data.items()},
    )


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain\n", "plain\n"),
        ("\r10%\r20%\r30%", "30%"),
        ("a\r\nb", "a\nb"),
        ("50%\r", "50%"),
        ("x\rdone\nnext", "done\nnext"),
    ],
)
def test_a_return_overwrites_its_line(text: str, seen: str) -> None:
    assert overwrite(text) == seen


def test_text_of_one_stream_is_one_item_and_progress_is_its_newest() -> None:
    assert shown(line("a\n"), line("\r1%"), line("\r2%"), line("\n"), line("e", "stderr")) == [
        ("text", "a\n2%\n"),
        ("text", "e"),
    ]


def test_html_wins_over_a_picture_and_a_picture_over_text() -> None:
    assert shown(
        rich(text_html="<b>", image_png="AA==", text_plain="t"),
        rich(image_png="A\nA==", text_plain="t"),
        rich(text_plain=["a", "b"]),
        rich(**{"image_svg+xml": "<svg/>"}),
        rich(application_json="{}"),
    ) == [
        ("html", "<b>"),
        ("image", "data:image/png;base64,AA=="),
        ("text", "ab"),
        ("html", "<svg/>"),
        ("unknown", "application/json"),
    ]
    assert wanted_mime({}) == ""


def test_a_display_is_updated_where_it_stands() -> None:
    assert shown(
        rich(text_plain="1", display_id="d"),
        line("between"),
        rich("update", text_html="<i>2</i>", display_id="d"),
        rich("update", text_plain="3", display_id="unknown"),
    ) == [("html", "<i>2</i>"), ("text", "between")]


def test_clearing_takes_effect_at_once_or_with_the_next_output() -> None:
    clear, wait = Display(what="clear", data={}), Display(what="clear", data={"wait": True})
    assert shown(line("a"), clear) == []
    assert shown(line("a"), wait) == [("text", "a")]
    assert shown(line("a"), wait, line("b")) == [("text", "b")]
    assert shown(line("a"), wait, rich(text_plain="c")) == [("text", "c")]


def test_an_error_is_its_traceback_and_gives_the_verdict() -> None:
    outputs = Outputs("now")
    outputs.take(Display(what="error", data={"ename": "E", "evalue": "v", "traceback": ["a", "b"]}))
    outputs.take(Display(what=""))  # a progress line that was replaced
    outputs.take(Result(value={"status": "error", "timing_ms": {"run": 1}}))
    outputs.take(Ended(state="completed"))
    assert outputs.items == [{"type": "error", "content": "a\nb", "timestamp": "now"}]
    assert (outputs.error, outputs.verdict(), outputs.timing) == ("E: v", "error", {"run": 1})


@pytest.mark.parametrize(
    ("ended", "status", "verdict"),
    [
        (Ended(state="completed"), "ok", "ok"),
        (Ended(state="completed"), "interrupted", "cancelled"),
        (Ended(state="completed"), "error", "error"),
        (Ended(state="cancelled"), "", "cancelled"),
        (Ended(state="expired", code="deadline_exceeded", message="m"), "", "error"),
        (Ended(state="failed", code="kernel_lost", message="it was restarted"), "", "cancelled"),
    ],
)
def test_how_a_cell_ended(ended: Ended, status: str, verdict: str) -> None:
    outputs = Outputs("now")
    outputs.take(Result(value={"status": status}))
    outputs.take(ended)
    assert outputs.verdict() == verdict


def test_notices_and_failures_are_items_in_the_clients_language() -> None:
    notice = Notice(code="kernel_lost", message="the kernel was lost")
    assert shown(notice) == [("text", "[the kernel was lost]\n")]
    assert shown(notice, lang="zh")[0][1].startswith("[内核已退出")
    ended = Ended(state="expired", code="deadline_exceeded", message="used its 1 s")
    assert shown(ended, lang="zh") == [("error", "单元运行超过时间限制（used its 1 s）")]


def test_words_in_two_languages() -> None:
    assert (language("zh-CN"), language("de"), language(None)) == ("zh", "en", "en")
    assert say("created", "en") == "Notebook created"
    assert say("no_such_word", "zh") == "no_such_word"
    assert say("no_such_word", "zh", "fact") == "操作失败（fact）"
    assert say("not_found", "zh", "已经是中文") == "未找到"
    assert words_of(NotFound("no file", word="No file"), "zh") == "No file"
    assert words_of(NotFound("no file"), "en") == "no file"


def test_a_body_of_other_types_is_refused() -> None:
    assert read_body(b"").code == ""
    assert read_body(b'{"code": "1", "unknown": 1}').code == "1"
    assert read_body(b'{"notebook_id": "a-1"}').notebook() == "a-1"
    for bad in (b"[]", b'{"code": 1}', b"\xff", b"{"):
        with pytest.raises(BadRequest):
            read_body(bad)
    with pytest.raises(BadRequest):
        read_body(b'{"notebook_id": "../x"}').notebook()

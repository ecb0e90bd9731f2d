"""What a kernel says becomes few events, bounded, and no progress line is lost."""

from __future__ import annotations

from typing import Any

import pytest

from forebay.core.events import Display, Notice, OutputEvent
from forebay.engines.kernel_output import CellOutput, settle_returns
from forebay.errors import KernelLost


def fed(*texts: str, output: CellOutput | None = None) -> CellOutput:
    output = output or CellOutput(1 << 20)
    for text in texts:
        output.feed("stream", {"name": "stdout", "text": text})
    return output


def taken(output: CellOutput) -> list[OutputEvent]:
    found = []
    while (event := output.take()) is not None:
        found.append(event)
    return found


def texts(output: CellOutput) -> list[str]:
    return [e.data["text/plain"] for e in taken(output) if isinstance(e, Display)]


@pytest.mark.parametrize(
    ("text", "settled"),
    [
        ("plain", "plain"),
        ("\r1\r2\r3", "\r3"),
        ("a\r\nb\r\n", "a\nb\n"),
        ("1%\r2%\nx", "\r2%\nx"),
    ],
)
def test_overwritten_parts_of_a_line_are_left_out(text: str, settled: str) -> None:
    assert settle_returns(text) == settled


def test_text_nobody_took_yet_is_joined() -> None:
    assert texts(fed("a\n", "b\n", "c\n")) == ["a\nb\nc\n"]


def test_progress_nobody_took_yet_is_only_the_newest() -> None:
    assert texts(fed("start\n", "\r1%", "\r2%", "\r3%")) == ["start\n", "\r3%"]
    assert texts(fed("\r1%", "\r2% and\n", "more")) == ["\r2% and\nmore"]


def test_a_return_at_the_end_belongs_to_what_follows() -> None:
    assert texts(fed("1%\r", "2%\r", "3%")) == ["1%", "\r3%"]
    assert texts(fed("windows\r", "\nline\n")) == ["windows\nline\n"]


def test_lines_before_a_progress_line_are_kept_apart_from_it() -> None:
    assert texts(fed("a\nb\n\r5%")) == ["a\nb\n", "\r5%"]


def test_long_text_comes_in_pieces_and_streams_stay_apart() -> None:
    output = fed("x" * 100_000)
    output.feed("stream", {"name": "stderr", "text": "e"})
    parts = texts(output)
    assert "".join(parts) == "x" * 100_000 + "e"
    assert max(map(len, parts)) <= 32 * 1024


def test_updates_of_one_display_are_joined() -> None:
    output = CellOutput(1 << 20)
    for number in range(5):
        content: dict[str, Any] = {
            "data": {"text/plain": str(number)},
            "transient": {"display_id": "d"},
        }
        output.feed("update_display_data", content)
    assert texts(output) == ["4"]


def test_over_the_bound_one_notice_and_then_only_the_error() -> None:
    output = CellOutput(400_000)
    for number in range(100):
        fed(f"{number}" * 5000, output=output)
        output.take()
    output.feed("error", {"ename": "E", "evalue": "v", "traceback": ["t" * 50_000] * 4})
    events = taken(output)
    assert [type(e) for e in events][-1] is Display
    assert output.error["ename"] == "E"
    assert sum(map(len, output.error["traceback"])) < 100_000
    assert output.dropped_bytes > 400_000
    assert not any(isinstance(e, Notice) for e in taken(fed("more", output=output)))


def test_a_long_progress_bar_is_no_long_output() -> None:
    output = fed(*(f"\r{n} " + "#" * 1000 for n in range(5000)), output=CellOutput(600_000))
    assert output.dropped_bytes == 0
    assert texts(output) == ["\r4999 " + "#" * 1000]


async def test_waiting_ends_with_news_and_with_the_end() -> None:
    output = fed("a")
    await output.wait()
    assert texts(output) == ["a"]
    output.end(KernelLost("gone"))
    await output.wait()
    assert output.failure is not None
    assert not output.over

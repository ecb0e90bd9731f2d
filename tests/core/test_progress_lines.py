"""Progress bars of cells: a line that was overwritten is not kept."""

from __future__ import annotations

from forebay.core.events import Display, OutputEvent, rewrites
from forebay.core.stream import Stamper, StreamLog, Window


def _cells() -> StreamLog[OutputEvent]:
    return StreamLog("e", Window(max_bytes=1 << 20, replaceable="display"))


def _line(text: str, name: str = "stdout", what: str = "stream") -> Display:
    return Display(what=what, name=name, data={"text/plain": text})


def _kept(log: StreamLog[OutputEvent]) -> list[str]:
    return [e.data.get("text/plain", "") for e in log.after(0) if isinstance(e, Display)]


def test_a_progress_line_gives_way_to_the_next_on_its_stream() -> None:
    log = _cells()
    stamper = Stamper(0, {}, {})
    for text in ("begin\n", "\r10%", "\r20%", "\r30%", "\r100%\n", "end\n"):
        log.append([stamper.stamp(_line(text))])
    assert _kept(log) == ["begin\n", "", "", "", "\r100%\n", "end\n"]
    assert [e.what for e in log.after(0) if isinstance(e, Display)][1:4] == ["", "", ""]


def test_plain_output_keeps_the_progress_line_that_it_goes_on() -> None:
    log = _cells()
    stamper = Stamper(0, {}, {})
    for text in ("\r50%", " half\n", "\r10%"):
        log.append([stamper.stamp(_line(text))])
    assert _kept(log) == ["\r50%", " half\n", "\r10%"]


def test_progress_lines_of_two_streams_and_pictures_between_do_not_disturb_each_other() -> None:
    log = _cells()
    stamper = Stamper(0, {}, {})
    events = [
        _line("\r1", "stderr"),
        _line("\ra", "stdout"),
        _line("picture", what="display"),
        _line("\r2", "stderr"),
        _line("\rb", "stdout"),
    ]
    for event in events:
        log.append([stamper.stamp(event)])
    assert _kept(log) == ["", "", "picture", "\r2", "\rb"]


def test_only_streams_touch_lines() -> None:
    assert rewrites(_line("x", what="display")) is None
    assert rewrites(_line("x")) == ("stdout", False, False)
    assert rewrites(_line("\r5%")) == ("stdout", True, True)
    assert rewrites(_line("\rdone\n")) == ("stdout", True, False)

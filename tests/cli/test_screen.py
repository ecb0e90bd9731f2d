"""The start screen, from the supervisor's events."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from forebay.core.kinds import Kind
from forebay.core.spec import LoadStage, PoolView
from forebay.screen import Facts, Screen
from forebay.supervisor import Event


def pool(stage: LoadStage | None = None, ready: int = 0, **facts) -> PoolView:
    named = {"name": "speech/voices", "kind": Kind.SPEECH, "engine": "voices"} | facts
    return PoolView(ready=ready, slots=4, stages={"w1": stage} if stage else {}, **named)


@pytest.fixture
def shown():
    out = io.StringIO()

    def make(terminal: bool = False, **facts) -> tuple[Screen, io.StringIO]:
        console = Console(file=out, force_terminal=terminal, width=100, color_system=None)
        named = {
            "url": "http://127.0.0.1:8600/",
            "workers": {"speech/voices-1": "speech/voices"},
        } | facts
        return Screen(Facts(**named), console), out

    return make


def test_loading_stages_are_lines_once_each(shown):
    screen, out = shown()
    stage = LoadStage(stage="weights", done=1, total=2, memory_mb=10, elapsed_s=1)
    for _ in range(3):
        screen.on_event(Event(what="pools", pools=(pool(stage),)))
    assert out.getvalue().count("weights 1/2") == 1
    screen.close()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_final_screen_stands_once_everything_is_up(shown, terminal):
    screen, out = shown(terminal, log_file="/x.log", data_dir="/d")
    screen.on_event(Event(what="ready", name="gateway"))
    screen.on_event(Event(what="ready", name="speech/voices-1"))
    assert "is ready" not in out.getvalue()  # the gateway has not said so yet
    screen.on_event(Event(what="pools", pools=(pool(ready=1, model="hibari"),)))
    text = out.getvalue()
    assert text.count("is ready") == 1
    for word in ("http://127.0.0.1:8600/", "hibari on voices, 1 worker", "/x.log", "/d", "Ctrl-C"):
        assert word in text
    screen.close()


def test_a_failed_boot_says_why_and_does_not_hold_up_the_rest(shown):
    screen, out = shown()
    screen.on_event(Event(what="ready", name="gateway"))
    screen.on_event(
        Event(what="waiting", name="speech/voices-1", detail="weights: disk is full", wait_s=0.5)
    )
    assert "weights: disk is full; trying again in 0.5 s" in out.getvalue()
    assert "is ready" in out.getvalue()
    screen.close()


def test_what_lacks_is_named_with_its_command(shown):
    screen, out = shown(lacks=[("text has no engine", "make models")], notes=["n1"])
    assert "missing: text has no engine" in out.getvalue()
    assert "get it with: make models" in out.getvalue()
    screen.close()


def test_later_deaths_are_told_and_the_end_is_quiet(shown):
    screen, out = shown()
    screen.on_event(Event(what="ready", name="gateway"))
    screen.on_event(Event(what="ready", name="speech/voices-1"))
    screen.on_event(Event(what="pools", pools=(pool(ready=1),)))
    screen.on_event(
        Event(what="exited", name="speech/voices-1", pid=7, detail="killed by signal 9")
    )
    assert "process 7 killed by signal 9" in out.getvalue()
    screen.on_event(Event(what="halting"))
    screen.on_event(Event(what="exited", name="speech/voices-1", pid=8, detail="left"))
    assert "stopping" in out.getvalue() and "process 8" not in out.getvalue()
    screen.close()

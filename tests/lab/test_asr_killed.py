"""Workers killed while people speak: of a server of one's own, and not a word is lost."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from forebay.cli import app
from forebay.errors import ConfigError
from forebay.lab import asr, asr_killed
from forebay.lab.asr_killed import Killing


def test_there_are_as_many_workers_as_the_speakers_need_and_one_more() -> None:
    assert Killing(every_s=1).count(500) == 57
    assert Killing(every_s=1).count(1) == 2
    assert Killing(every_s=1, workers=3).count(500) == 3


@pytest.mark.parametrize(
    "killing",
    [Killing(every_s=0), Killing(every_s=1, workers=0), Killing(every_s=1, rtf=0)],
)
def test_what_cannot_be_meant_is_refused(killing: Killing) -> None:
    with pytest.raises(ConfigError):
        killing.check()


def test_workers_of_a_server_that_runs_already_are_never_killed() -> None:
    found = CliRunner().invoke(
        app, ["bench", "asr", "--kill-every", "2", "--url", "ws://127.0.0.1:1/ws/asr"]
    )
    assert found.exit_code == 2
    assert "leave --url out" in found.output.replace("\n", " ").replace("│", "")


async def test_killed_workers_cost_no_word_and_nothing_is_left_behind() -> None:
    options = asr.Options(scenario="flat", audio_s=5.0, concurrency=4, patience_s=60)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    result = await asr_killed.run(options, Killing(every_s=1.0, workers=3))
    found = result.figures
    assert found["workers_killed"] >= 1
    assert found["ended"] == {"completed": 4}
    assert found["chunks_lost"] == found["words_missing"] == found["words_extra"] == 0
    assert result.verdict.kind != "fault", result.verdict.said
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert not left


async def test_a_run_in_which_nobody_died_shows_nothing(tmp_path: Path) -> None:
    options = asr.Options(scenario="flat", audio_s=0.5, concurrency=1)
    result = await asr_killed.run(options, Killing(every_s=600, workers=1))
    assert result.verdict.kind == "fault" and "no worker was killed" in result.verdict.said

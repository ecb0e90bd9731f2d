"""The log's file: written by several processes, turned over by size, nothing lost."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
import structlog

from forebay import telemetry
from forebay.config import load, table_log
from forebay.log_file import LogFile, LogPlace
from forebay.serve_log import log_env, log_place

WRITER = """
import sys
from pathlib import Path
from forebay.log_file import LogFile
file = LogFile(Path(sys.argv[1]), 4000, 100)
for n in range(300):
    file.write(f"{sys.argv[2]} {n} " + "x" * 30 + "\\n")
"""


def test_a_full_file_is_renamed_and_the_oldest_goes(tmp_path):
    path = tmp_path / "f.log"
    file = LogFile(path, 100, 2)
    for number in range(10):
        file.write(f"{number}" * 60 + "\n")
    file.close()
    kept = {p.name: p.read_text()[0] for p in tmp_path.glob("f.log*") if p.suffix != ".lock"}
    assert kept == {"f.log": "9", "f.log.1": "8", "f.log.2": "7"}
    assert path.stat().st_mode & 0o077 == 0


def test_without_older_files_it_is_begun_anew(tmp_path):
    file = LogFile(tmp_path / "f.log", 100, 0)
    file.write("a" * 90)
    file.write("b" * 90)
    file.close()
    assert (tmp_path / "f.log").read_text() == "b" * 90
    assert not (tmp_path / "f.log.1").exists()


def test_a_file_that_was_taken_away_is_made_again(tmp_path):
    path = tmp_path / "f.log"
    file = LogFile(path, 1000, 1)
    file.write("a\n")
    path.rename(tmp_path / "elsewhere")
    file.write("b\n")
    file.close()
    assert path.read_text() == "b\n"


def test_several_processes_lose_no_line_and_mix_none(tmp_path):
    path = tmp_path / "f.log"
    names = ("one", "two", "three")
    running = [subprocess.Popen([sys.executable, "-c", WRITER, path, name]) for name in names]
    assert [process.wait(30) for process in running] == [0, 0, 0]
    lines = []
    for file in tmp_path.glob("f.log*"):
        if file.suffix != ".lock":
            assert file.stat().st_size <= 4000 + 2 * 50  # each of the others was in its write
            lines += file.read_text().splitlines()
    assert len(lines) == 900
    assert {tuple(line.split()[:2]) for line in lines} == {
        (name, str(n)) for name in names for n in range(300)
    }


@pytest.fixture
def quiet():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_events_go_to_the_file(tmp_path, quiet):
    path = tmp_path / "f.log"
    telemetry.configure(file=LogPlace(path=str(path)), process="test")
    structlog.get_logger("x").warning("stream.slow", job="j", first_ms=9)
    line = json.loads(path.read_text())
    assert (line["event"], line["process"], line["first_ms"]) == ("stream.slow", "test", 9)


def test_a_file_that_cannot_be_opened_is_said_and_not_used(tmp_path, quiet, capsys):
    telemetry.configure(form="json", file=LogPlace(path=str(tmp_path / "none" / "f.log")))
    structlog.get_logger("x").info("a.b")
    said = capsys.readouterr().err
    assert "cannot be written" in said and '"a.b"' in said


def test_children_are_told_where_to_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(
        folder=tmp_path, environ={"FOREBAY_LOG_FILE": "x.log", "FOREBAY_LOG_FILE_MIB": "3"}
    )
    place = log_place(config)
    assert place == LogPlace(path=str(tmp_path / "x.log"), size_bytes=3 << 20, files=5)
    again = load(folder=tmp_path, environ=log_env(config))
    assert log_place(again) == place
    assert table_log.LOG_FILE.env not in log_env(load(folder=tmp_path, environ={}))

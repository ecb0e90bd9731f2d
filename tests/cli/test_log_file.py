"""The log's file: written by several processes, turned over by size, nothing lost."""

from __future__ import annotations

import errno
import io
import json
import logging
import subprocess
import sys
from pathlib import Path

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


class Disk(io.StringIO):
    """A stream whose disk is full now and then."""

    full = False

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)

    def flush(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_under_the_log_stops_nobody_and_is_told_once_there_is_room(quiet):
    disk = Disk()
    telemetry.configure(form="json", stream=disk)
    log = structlog.get_logger("x")
    log.info("a.b")
    disk.full = True
    log.info("c.d")
    logging.getLogger("uvicorn").error("not through our loggers")
    disk.full = False
    log.info("e.f")
    log.info("g.h")
    lines = [json.loads(line) for line in disk.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["a.b", "log.lost", "e.f", "g.h"]
    assert lines[1]["lines"] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_log_file_on_a_full_disk_stops_nobody(quiet):
    telemetry.configure(form="json", file=LogPlace(path="/dev/full"))
    for _ in range(3):
        structlog.get_logger("x").error("a.b")


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

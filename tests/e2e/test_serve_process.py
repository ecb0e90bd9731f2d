"""`forebay serve` as a process: starts, says what runs, serves, replaces, drains."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

FOREBAY = [sys.executable, "-m", "forebay"]
START_S = 240.0


class Served:
    """A server of its own, with its screen in a file. ``words``: after ``forebay serve``."""

    def __init__(self, folder: Path, *words: str, env: dict[str, str] | None = None) -> None:
        if "recognition=synthetic" not in " ".join(words):
            words += ("--engine", "recognition=synthetic")
        self.screen = folder / "screen"
        self.log = folder / "log"
        with self.screen.open("wb") as out, self.log.open("wb") as err:
            self.process = subprocess.Popen(
                [*FOREBAY, "serve", "--port", "0", "--data-dir", str(folder / "data"), *words],
                stdout=out,
                stderr=err,
                env=os.environ | (env or {}),
                cwd=folder,
            )
        self.url = self._wait(r"starting on (http://[^/]+)/")

    def _wait(self, pattern: str) -> str:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            found = re.search(pattern, self.screen.read_text())
            if found:
                return found[1] if found.groups() else found[0]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(self.screen.read_text() + self.log.read_text()[-3000:])

    def wait_ready(self) -> None:
        self._wait(r"is ready \([\s\S]*Ctrl-C")  # the whole screen, to its last line

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return json.load(response)

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*FOREBAY, *words, "--url", self.url], capture_output=True, text=True, timeout=240
        )

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = Served(
        tmp_path_factory.mktemp("serve"),
        *("--engine", "text=synthetic", "--engine", "speech=synthetic"),
    )
    server.wait_ready()
    yield server
    server.stop()


def test_the_start_screen_says_what_runs_and_that_it_is_synthetic(served):
    text = served.screen.read_text()
    assert served.url in text
    assert text.count("synthetic: not a model") == 3
    assert "Ctrl-C" in text


@pytest.fixture(scope="module")
def examined(served):
    """What `forebay doctor` says of it; from here on something has been said in it."""
    return served.ask("doctor")


def test_doctor_hears_a_first_byte(examined):
    assert examined.returncode == 0, examined.stdout
    assert "first audio after" in examined.stdout


def test_jobs_are_listed_and_shown_without_what_was_said(served, examined):
    jobs = json.loads(served.ask("jobs", "list", "--json").stdout)
    assert jobs and jobs[0]["pool"] == "speech/synthetic"
    shown = served.ask("jobs", "show", jobs[0]["id"][:8]).stdout
    assert "completed" in shown and "Hello" not in shown
    missing = served.ask("jobs", "show", "0" * 32)
    assert missing.returncode == 1 and "no job" in missing.stderr


def speech_workers(served: Served) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(served.process.pid).children():
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if "speech" in words and "--standby" not in words:
            found.append(child)
    return found


def test_a_killed_worker_is_replaced(served):
    (worker,) = speech_workers(served)
    worker.kill()
    until = time.monotonic() + 60
    while time.monotonic() < until:
        pool = next(p for p in served.get("/readyz")["pools"] if p["name"].startswith("speech"))
        now = speech_workers(served)
        if pool["ready"] and now and now[0].pid != worker.pid:
            break
        time.sleep(0.1)
    assert served.ask("doctor").returncode == 0


def test_nothing_a_user_said_is_in_the_log(served, examined):
    assert "Hello" not in served.log.read_text()


def test_missing_models_are_named_and_the_rest_serves_and_ends_whole_on_sigterm(tmp_path):
    server = Served(
        tmp_path,
        *("--engine", "text=llama", "--engine", "speech=synthetic"),
        env={"FOREBAY_MODELS": str(tmp_path / "none")},
    )
    try:
        server.wait_ready()
        text = server.screen.read_text()
        assert "missing: text has no engine: llama cannot start" in text
        assert "get it with:" in text
        assert server.ask("doctor").returncode == 0
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert len(children) >= 3
    finally:
        assert server.stop() == 0
    assert not [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]

"""`forebay bench captions`, small, against a real server."""

from __future__ import annotations

import json
import subprocess

import pytest
from benchmarks.harness import FOREBAY, serving

from forebay.errors import ConfigError
from forebay.lab.captions import Options, Result, judge


@pytest.fixture(scope="module")
def server():
    with serving(*("--workers", "text=0", "--workers", "speech=0"), wait="/healthz") as running:
        yield running


@pytest.mark.parametrize("scenario", ["fanout", "rooms", "network"])
def test_every_display_shows_every_caption(server, tmp_path, scenario):
    run = subprocess.run(
        [str(FOREBAY), "bench", "captions", "--url", server.http, "--scenario", scenario,
         "--displays", "20", "--rooms", "4", "--rate", "20", "--duration", "1", "--rtt", "20",
         "--output-json", str(tmp_path / "out.json"), "--report", str(tmp_path / "out.html")],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert figures["missing"] == figures["doubled"] == figures["reordered"] == 0
    assert figures["captions"] == (80 if scenario == "rooms" else 20)
    assert ("one_by_one" in figures) == (scenario == "network")
    assert "<svg" in (tmp_path / "out.html").read_text()


def test_losses_make_the_status_non_zero():
    found = judge(Result(options={}, machine={}, failed=["3 captions were missing"]))
    assert found.status == 1 and "3 captions" in found.said


def test_options_out_of_range_are_refused():
    with pytest.raises(ConfigError):
        Options(scenario="storm").check()
    with pytest.raises(ConfigError):
        Options(displays=0).check()

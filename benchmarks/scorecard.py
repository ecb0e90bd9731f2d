"""Scenarios of `forebay chaos` as benchmarks: the same runs, their checks as rows of a report."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import FOREBAY, options, report


def judged(title: str, about: str, *scenarios: str) -> None:
    """Run ``scenarios`` through the command line, print their checks and exit: 1 when one did
    not hold."""
    wanted = options(about, scale=1.0, seed=1)
    with tempfile.TemporaryDirectory(prefix="fb-") as folder:
        card = Path(folder) / "scorecard.json"
        command = [str(FOREBAY), "chaos", "run", *scenarios, "--output-json", str(card)]
        command += ["--scale", str(wanted.scale), "--seed", str(wanted.seed)]
        subprocess.run(command, check=False)
        scores: list[dict[str, Any]] = json.loads(card.read_text())["scores"]
    rows: list[tuple[str, str, str, bool | None]] = []
    for score in scores:
        name = score["name"]
        rows.append((name, score["verdict"], "held", score["verdict"] == "held"))
        rows += [
            (f"{name}: {c['what']}", c["seen"], c["wanted"], c["held"]) for c in score["checks"]
        ]
    raise SystemExit(report(title, rows, wanted.output_json, scores=scores))

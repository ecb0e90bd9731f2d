"""`forebay bench all --own`: a server of its own, measured and ended."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path


async def test_a_server_of_its_own_is_started_measured_and_ended(tmp_path: Path) -> None:
    figures = tmp_path / "all.json"
    words = ["bench", "all", "--own", "--kind", "text", "--kind", "captions", "--duration", "1"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "forebay", *words, "--concurrency", "1",
        "--output-json", str(figures),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    found = json.loads(figures.read_text())
    assert {name: kind["state"] for name, kind in found["kinds"].items()} == {
        "text": "held",
        "captions": "held",
    }
    assert all(kind["waits"]["count"] for kind in found["kinds"].values())

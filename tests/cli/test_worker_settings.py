"""A worker on a machine of its own finds its broker and its files where a gateway would."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from forebay.cli import app

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the worker's process would be started with."""
    found: dict[str, Any] = {}

    async def run_worker(**words: Any) -> int:
        found.update(words)
        return 0

    monkeypatch.setattr("forebay.worker.main.run_worker", run_worker)
    monkeypatch.setattr("forebay.telemetry.configure", lambda **words: None)
    monkeypatch.setenv("FOREBAY_SERVER_BROKER", "redis://store:6379/0")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return found


def start(*words: str) -> None:
    command = typer.main.get_command(app)
    command.main(
        ["worker", "--kind", "speech", "--engine", "synthetic", *words], standalone_mode=False
    )


def test_the_broker_comes_from_the_settings_where_no_argument_names_it(
    told: dict[str, Any],
) -> None:
    start()
    assert told["broker_url"].startswith("redis://store:6379/0?")
    start("--broker", "redis://other:1")
    assert told["broker_url"].startswith("redis://other:1?")


def test_large_files_are_where_a_gateway_with_the_same_settings_has_them(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start()
    assert told["blobs_dir"] is None
    (tmp_path / "home" / "forebay" / "blobs").mkdir(parents=True)
    start()
    assert told["blobs_dir"] == str(tmp_path / "home" / "forebay" / "blobs")
    monkeypatch.setenv("FOREBAY_SERVER_DATA_DIR", str(tmp_path / "data"))
    start()
    assert told["blobs_dir"] == str(tmp_path / "data" / "blobs")
    monkeypatch.setenv("FOREBAY_BLOBS_URL", "s3://files")
    start()
    assert told["blobs_dir"] == "s3://files"
    start("--blobs-dir", "/here")
    assert told["blobs_dir"] == "/here"


def commands() -> list[list[str]]:
    """Every command line of a worker in deploy/, with its variables filled in."""
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
    lines = [s["command"] for n, s in services.items() if n.startswith("worker-")]
    filled = [[re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in line] for line in lines]
    chart = (DEPLOY / "helm" / "forebay" / "templates" / "workers.yaml").read_text()
    args = re.search(r"args: (\[.*\])", chart)
    assert args is not None
    kind = args[1].replace("{{ $kind | quote }}", '"image"')
    filled.append(yaml.safe_load(kind.replace("{{ $worker.engine | quote }}", '"waifu2x"')))
    unit = (DEPLOY / "systemd" / "forebay-worker@.service").read_text()
    line = re.search(r"exec forebay ([^']*)'", unit)
    assert line is not None
    text = line[1].replace("$$kind", "speech").replace("$$ENGINE", "voices")
    return [*filled, shlex.split(text)]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_command_lines_of_the_deployment_files_are_the_programs(words: list[str]) -> None:
    group = typer.main.get_command(app)
    assert words[0] == "worker"
    parsed = group.commands["worker"].make_context("worker", words[1:])  # type: ignore[attr-defined]
    assert parsed.params["kind"] in ("text", "speech", "recognition", "image", "kernel")

"""`forebay bench all`: one row a kind; what is not served is left out, what fails is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from forebay.errors import ConfigError
from forebay.lab import every
from forebay.lab.command import all_held
from forebay.lab.every import KINDS, Options, Row, run
from forebay.lab.notebook import Result

POOLS = [
    {"name": "text/a", "ready": 1, "synthetic": True},
    {"name": "speech/b", "ready": 0, "synthetic": True},
]


async def served(pools: list[dict[str, object]]) -> tuple[web.AppRunner, str]:
    """Something that says it serves ``pools``."""

    async def status(request: web.Request) -> web.Response:
        return web.json_response({"pools": pools})

    app = web.Application()
    app.router.add_get("/api/status", status)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


def fake(monkeypatch: pytest.MonkeyPatch, name: str, *, failed: tuple[str, ...] = ()) -> None:
    async def measured(asked: object) -> object:
        result = Result(options={}, machine={}, figures={"cells": 3})
        result.points = [(0.0, 0.010), (1.0, 0.030)]
        return result, all_held(failed)

    monkeypatch.setitem(KINDS, name, replace(KINDS[name], run=measured))


async def test_each_kind_has_a_row_and_what_is_not_served_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in KINDS:
        fake(monkeypatch, name, failed=("one lost",) if name == "captions" else ())
    server, url = await served(POOLS)
    try:
        rows = await run(Options(url=url))
    finally:
        await server.cleanup()
    states = {row.kind: row.state for row in rows}
    assert list(states) == list(KINDS)
    assert states["text"] == "held"
    assert states["captions"] == "failed"  # needs no worker
    assert {states[name] for name in ("tts", "asr", "photos", "notebook")} == {"left out"}
    assert "no speech worker is ready" in next(row.said for row in rows if row.kind == "tts")
    assert rows[0].waits["p50_ms"] == 20.0


async def test_a_kind_that_cannot_be_reached_fails_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(asked: object) -> object:
        raise aiohttp.ClientConnectionError("refused")

    monkeypatch.setitem(KINDS, "text", replace(KINDS["text"], run=broken))
    fake(monkeypatch, "captions")
    server, url = await served(POOLS)
    try:
        rows = await run(Options(url=url, only=("text", "captions")))
    finally:
        await server.cleanup()
    assert [(row.state, row.said) for row in rows] == [
        ("failed", "ClientConnectionError: refused"),
        ("held", "all checks held"),
    ]


async def test_a_server_that_is_not_there_is_named_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="--own"):
        await run(Options(url="http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"only": ("nothing",)}, "kind is 'nothing', expected one of text"),
        ({"seconds": 0.0}, "duration"),
        ({"people": 1000}, "concurrency"),
    ],
)
async def test_odd_options_are_refused(more: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        await run(Options(**more))  # type: ignore[arg-type]


@pytest.mark.parametrize(("state", "status"), [("held", 0), ("failed", 1), ("left out", 1)])
def test_the_table_is_also_a_file_and_a_page(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: str,
    status: int,
) -> None:
    row = Row(
        kind="text", load="4 readers", what="first text", state=state, said="<said>",
        waits={"p50_ms": 1.5, "p95_ms": 2.0, "count": 7}, points=[(0.0, 0.001), (1.0, 0.002)],
    )  # fmt: skip
    other = replace(row, kind="tts", what="typed to heard")

    async def measured(options: Options, progress: object) -> list[Row]:
        return [row, other]

    monkeypatch.setattr(every, "run", measured)
    figures, page = tmp_path / "all.json", tmp_path / "all.html"
    assert every.main(Options(), output_json=figures, report=page) == status
    found = json.loads(figures.read_text())
    assert found["kinds"]["text"]["waits"]["p50_ms"] == 1.5
    assert found["failed"] == (["text", "tts"] if status and state == "failed" else [])
    assert page.read_text().count("<svg") == 2
    assert "<said>" not in page.read_text()
    assert "first text" in capsys.readouterr().out

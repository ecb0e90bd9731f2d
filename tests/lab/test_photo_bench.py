"""`forebay bench photos` and `forebay enhance` against a real server with a synthetic model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from benchmarks.harness import Server, serving
from PIL import Image
from rich.console import Console

from forebay.commands.enhance import Wanted, enhance, target_of
from forebay.errors import BadRequest
from forebay.lab import photos as lab
from forebay.lab import show


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(
        "--engine", "image=synthetic:tile_ms=5",
        "--workers", "text=0", "--workers", "speech=0",
    ) as running:  # fmt: skip
        yield running


def test_every_mode_is_measured_and_written_down(server: Server, tmp_path: Path) -> None:
    options = lab.Options(url=server.http, concurrency=2, width=300, height=200)
    figures, report = tmp_path / "a.json", tmp_path / "a.html"
    assert lab.bench(options, figures, report) == 0
    found = msgspec.json.decode(figures.read_bytes())
    assert set(found["figures"]) == {
        "stream_1", "batch_1", "stream_2", "batch_2", "status_call_p99_ms"
    }  # fmt: skip
    assert found["figures"]["stream_2"]["success"] == "2/2"
    assert found["figures"]["batch_2"]["first_s"] > 0
    assert len(found["timeline"]) == 6
    page = report.read_text()
    assert page.count("<svg") == 2
    assert "<script" not in page


async def test_one_client_has_a_turn_before_every_other_and_medians_are_told(
    server: Server,
) -> None:
    options = lab.Options(url=server.http, concurrency=2, width=60, height=40, rounds=3)
    found = await lab.run(options)
    assert {name: f["runs"] for name, f in found.figures.items() if isinstance(f, dict)} == {
        "stream_1": 6, "batch_1": 1, "stream_2": 3, "batch_2": 1
    }  # fmt: skip
    assert found.figures["stream_2"]["success"] == "6/6"
    firsts = sorted(p.shown - p.begun for p in found.photos if p.run == "stream 1" and p.shown)
    assert firsts[2] - 0.01 <= found.figures["stream_1"]["first_s"] <= firsts[3] + 0.01


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    for options in (lab.Options(mode="x"), lab.Options(file=tmp_path / "none.jpg")):
        with pytest.raises(BadRequest):
            lab.bench(options, None, None)


def test_a_server_that_is_not_there_fails_every_photo() -> None:
    assert (
        lab.bench(lab.Options(url="http://127.0.0.1:9", mode="batch", concurrency=1), None, None)
        == 1
    )


def test_results_are_written_beside_their_photos(server: Server, tmp_path: Path) -> None:
    good, bad = tmp_path / "lake.png", tmp_path / "cut.jpg"
    Image.new("RGB", (120, 80), (1, 2, 3)).save(good)
    bad.write_bytes(lab.a_photo(60, 40)[:-30])
    out = io.StringIO()
    console = Console(file=out, width=200)
    assert enhance([good, bad], Wanted(url=server.http, form="png"), console) == 1
    with Image.open(target_of(good, "png")) as made:
        assert made.size == (240, 160)
    assert not target_of(bad, "png").exists()
    assert "ends before" in out.getvalue()
    with pytest.raises(BadRequest, match="there already"):
        enhance([good], Wanted(url=server.http, form="png"), console)
    assert enhance([good], Wanted(url=server.http, form="png", force=True), console) == 0


def test_a_missing_file_or_a_strange_format_is_refused_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    with pytest.raises(BadRequest, match="not a file"):
        enhance([tmp_path / "none.jpg"], Wanted(url="http://127.0.0.1:9"))
    with pytest.raises(BadRequest, match="gif"):
        enhance([], Wanted(url="http://127.0.0.1:9", form="gif"))


def test_a_timeline_shows_what_there_is() -> None:
    rows = [{"run": "<a>", "begun_s": 0.0, "upload_s": 0.5, "queue_s": None}]
    drawn = show.timeline(rows, ("upload_s", "queue_s"))
    assert "&lt;a&gt;" in drawn
    assert drawn.count("<rect") == 2

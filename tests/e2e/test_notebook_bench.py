"""`forebay bench notebook` against a server with real kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from benchmarks.harness import Server, serving

from forebay.errors import ConfigError
from forebay.lab import notebook


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    kinds = ("--engine", "speech=synthetic", "--engine", "text=synthetic")
    with serving(*kinds, "--workers", "image=0", "--engine", "kernel=python") as running:
        yield running


async def test_cells_are_counted_and_no_line_is_lost(server: Server) -> None:
    options = notebook.Options(
        url=server.http, concurrency=1, duration_s=2.0, lines=5, lines_per_s=100
    )
    found = await notebook.run(options, lambda outcomes, at: None)
    assert found.failed == []
    figures = found.figures
    assert figures["cells"] >= 10 and figures["cells_per_s"] > 1
    assert figures["lines"] >= 5
    assert figures["execute_to_first_output"]["count"] == figures["cells"]
    assert figures["kernel_start"]["count"] == 1
    assert "cells" in notebook.live_line([], 1.0)


async def test_a_server_without_notebooks_fails_the_run(server: Server) -> None:
    options = notebook.Options(url=f"{server.http}/none", duration_s=0.1)
    assert any("404" in line for line in (await notebook.run(options)).failed)


def test_what_is_lost_is_told_and_odd_options_are_refused() -> None:
    wrong = notebook.Outcome(wrong=1, cells=1)
    assert "lost or doubled" in notebook.judge(notebook.figures([wrong], 1.0))[0]
    for facts in ({"concurrency": 0}, {"lines": 0}, {"lines_per_s": 0}):
        with pytest.raises(ConfigError):
            notebook.Options(**facts).check()  # type: ignore[arg-type]

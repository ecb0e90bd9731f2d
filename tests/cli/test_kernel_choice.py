"""Who may run code in notebooks, decided before anything is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forebay.choice import choose
from forebay.choice_kernel import placed
from forebay.config import Config, load, rows
from forebay.core.kinds import Kind
from forebay.engines import kernel_jail
from forebay.serve import compose


def settled(folder: Path, **more: object) -> Config:
    named = {name.replace("__", "."): value for name, value in more.items()}
    return load(environ={}, folder=folder, flags=named)


def kernels(config: Config, folder: Path) -> list[str]:
    return [choice.name for choice in choose(config, folder) if choice.kind is Kind.KERNEL]


@pytest.mark.parametrize(
    ("uid", "jail", "more", "served"),
    [
        (1000, True, {}, True),
        (1000, False, {}, True),
        (0, True, {}, True),
        (0, False, {}, False),
        (0, False, {"kernel__confine": "never"}, True),
        (1000, False, {"kernel__confine": "always"}, False),
        (1000, True, {"kernel__enabled": "no"}, False),
        (1000, True, {"server__host": "0.0.0.0"}, False),
        (1000, True, {"server__host": "0.0.0.0", "kernel__enabled": "yes"}, True),
        (0, False, {"kernel__engines": ["python"]}, True),  # it refuses by itself, and says why
    ],
)
def test_notebooks_run_code_by_default_where_that_is_safe(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
    jail: bool,
    more: dict[str, object],
    served: bool,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(kernel_jail, "probe", lambda: (object() if jail else None, ""))
    assert kernels(settled(tmp_path, **more), tmp_path) == (["python"] if served else [])


def test_off_loopback_kernels_are_confined_or_do_not_start(tmp_path: Path) -> None:
    here = settled(tmp_path, kernel__confine="never")
    there = settled(tmp_path, kernel__confine="never", server__host="0.0.0.0")
    options = {"confine": "never"}
    assert "confine" not in placed(here, options, tmp_path)
    assert placed(there, options, tmp_path)["confine"] == "always"


def test_a_notebook_worker_is_told_its_folder_and_limits_and_has_no_spare(tmp_path: Path) -> None:
    config = settled(
        tmp_path,
        server__port=0,
        kernel__engines=["python"],
        kernel__memory_mib=300,
        kernel__cell_s=12,
        kernel__idle_h=0.5,
        **{f"workers__{kind}": 0 for kind in ("text", "speech", "recognition", "image")},
    )
    plan = compose(config, data_dir=tmp_path)
    try:
        workers = [spec for spec in plan.specs if spec.role == "worker"]
        assert [(w.name, w.spare) for w in workers] == [("kernel/python-1", False)]
        engine = workers[0].argv[workers[0].argv.index("--engine") + 1]
        assert f"dir={tmp_path}/notebooks" in engine
        assert "memory_mib=300" in engine
        assert "idle_s=1800" in engine
        assert rows(config)[Kind.KERNEL].run_s == 12
        assert "--row-file" in workers[0].argv
    finally:
        plan.close()

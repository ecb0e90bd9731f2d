"""Kernels start where they may: refusals name the setting, and options are checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from forebay.core.events import Cell, Display, FileOp, Result
from forebay.core.kinds import Kind
from forebay.core.spec import LoadStage
from forebay.engines import Resume, create, kernel_jail
from forebay.engines import kernel as module
from forebay.engines.kernel import NotebookKernels
from forebay.errors import BadRequest, CannotBoot, ConfigError


def absent() -> tuple[None, str]:
    return None, "bubblewrap (bwrap) is not installed"


def engine(folder: Path, **options: Any) -> NotebookKernels:
    return NotebookKernels(dir=str(folder), **options)


async def test_as_root_without_bubblewrap_the_refusal_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "probe", absent)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(CannotBoot, match=r"bwrap.*kernel\.confine"):
        await engine(tmp_path).load(lambda stage: None)
    stages: list[LoadStage] = []
    info = await engine(tmp_path, confine="never").load(stages.append)
    assert info.facts["confined"] is False
    assert stages[-1].detail == "not confined: it was switched off"


async def test_as_root_a_jail_without_a_cgroup_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(kernel_jail, "_try", lambda jail: "")
    monkeypatch.setattr(kernel_jail.shutil, "which", lambda name: "/bin/true")
    monkeypatch.setattr(kernel_jail, "usable_cgroup", lambda name, limits: None)
    with pytest.raises(CannotBoot, match=r"only a cgroup bounds.*kernel\.confine"):
        await engine(tmp_path).load(lambda stage: None)
    with pytest.raises(CannotBoot, match="must be confined"):
        await engine(tmp_path, confine="always").load(lambda stage: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    info = await engine(tmp_path, confine="always").load(lambda stage: None)
    assert info.facts["confined"] is True  # this user's processes can be counted without one


async def test_as_another_user_without_bubblewrap_kernels_run_unless_they_must_be_confined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "probe", absent)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    info = await engine(tmp_path).load(lambda stage: None)
    assert info.facts["confined"] is False
    with pytest.raises(CannotBoot, match="must be confined"):
        await engine(tmp_path, confine="always").load(lambda stage: None)


async def test_a_job_of_no_notebook_is_refused(tmp_path: Path) -> None:
    kernels = engine(tmp_path)
    for bad in ({}, {"affinity": "nobook"}, {"affinity": "t/a b"}):
        with pytest.raises(BadRequest):
            await kernels.open(bad, Resume())
    with pytest.raises(ConfigError):
        engine(tmp_path, confine="perhaps")


async def test_the_synthetic_kernel_prints_numbered_lines_and_says_what_it_is(
    tmp_path: Path,
) -> None:
    kernels = create(Kind.KERNEL, "synthetic", {"dir": str(tmp_path), "lines": 2})
    info = await kernels.load(lambda stage: None)
    assert info.synthetic
    session = await kernels.open({"affinity": "local/a"}, Resume())
    events = [e async for e in kernels.step(session, [Cell(code="whatever")])]
    lines = [e.data["text/plain"] for e in events if isinstance(e, Display)]
    assert lines == ["line 1\n", "line 2\n"]
    assert isinstance(events[-1], Result)
    assert events[-1].value == {"status": "ok", "execution_count": 1}
    said = [e async for e in kernels.step(session, [Cell(code="lines=5 every_ms=1")])]
    assert len(said) == 6
    made = [e async for e in kernels.step(session, [FileOp(op="make")])]
    assert isinstance(made[0], Result)
    assert (tmp_path / "local" / "a").is_dir()

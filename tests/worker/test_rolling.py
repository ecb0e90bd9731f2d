"""Rolling restarts of a supervisor's processes: with real processes, and their order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from test_supervisor import Stage, serving

from forebay import supervisor
from forebay.supervisor import ProcessSpec


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def roll() -> None:
    os.kill(os.getpid(), signal.SIGUSR2)


def story(stage: Stage) -> list[tuple[str, str]]:
    """What happened after everybody was ready, without what only repeats it."""
    seen = [(e.what, e.name) for e in stage.events]
    return [entry for entry in seen if entry[0] in ("spawned", "ready", "exited")]


@asynccontextmanager
async def ready(stage: Stage, *specs: ProcessSpec, **more: Any) -> AsyncIterator[None]:
    async with serving(stage, *specs, **more):
        await stage.until(lambda: len(stage.seen("ready")) == len(specs))
        stage.events.clear()
        yield


async def test_a_gateway_leaves_only_when_its_successor_is_ready(stage: Stage) -> None:
    specs = [stage.spec("ready", f"g{n}", role="gateway") for n in (1, 2)]
    async with ready(stage, *specs):
        roll()
        await stage.until(lambda: stage.seen("rolled"))
        assert story(stage) == [
            (what, name) for name in ("g1", "g2") for what in ("spawned", "ready", "exited")
        ]
        assert stage.seen("rolled")[0].detail == "2 processes replaced"
        assert await stage.stop() == 0


async def test_what_cannot_run_twice_leaves_before_its_successor_comes(stage: Stage) -> None:
    async with ready(stage, stage.spec("ready", "g", role="gateway", overlaps=False)):
        roll()
        await stage.until(lambda: stage.seen("rolled"))
        assert [what for what, _ in story(stage)] == ["exited", "spawned", "ready"]


async def test_workers_follow_gateways_and_spares_come_last(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "available_bytes", lambda: 1 << 40)
    specs = [
        stage.spec("ready", "spare", spare=True),
        stage.spec("ready", "w"),
        stage.spec("ready", "g", role="gateway"),
    ]
    async with ready(stage, *specs):
        roll()
        await stage.until(lambda: stage.seen("rolled"))
        assert [name for what, name in story(stage) if what == "exited"] == ["g", "w", "spare"]
        await stage.until(lambda: stage.seen("ready", "spare"))


async def test_without_memory_for_two_a_worker_leaves_first(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "available_bytes", lambda: 1 << 20)
    async with ready(stage, stage.spec("ready", "w")):
        roll()
        await stage.until(lambda: stage.seen("rolled"))
        assert [what for what, _ in story(stage)] == ["exited", "spawned", "ready"]


async def test_a_successor_that_cannot_boot_ends_the_roll_and_the_old_one_serves_on(
    stage: Stage,
) -> None:
    async with ready(stage, stage.spec("ready_once", "g", role="gateway")):
        pid = stage.lines()[0].split()[1]
        roll()
        await stage.until(lambda: stage.seen("rolled"))
        assert stage.seen("rolled")[0].detail.startswith("g did not become ready, 1 processes")
        os.kill(int(pid), 0)  # it lives
        assert await stage.stop() == 0


async def test_a_second_wish_to_roll_meanwhile_changes_nothing(stage: Stage) -> None:
    async with ready(stage, stage.spec("ready", "g", role="gateway")):
        roll()
        await asyncio.sleep(0.05)
        roll()
        await stage.until(lambda: stage.seen("rolled"))
        await asyncio.sleep(0.3)
        assert len(stage.seen("rolled")) == 1
        assert len(stage.seen("spawned")) == 1


async def test_a_halt_in_the_middle_of_a_roll_leaves_nobody(stage: Stage) -> None:
    specs = [stage.spec("ready", f"g{n}", role="gateway") for n in range(3)]
    async with ready(stage, *specs):
        roll()
        await stage.until(lambda: stage.seen("spawned"))
        assert await stage.stop() == 0
    pids = [int(line.split()[1]) for line in stage.lines()]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_hangup_reaches_the_gateways_alone(stage: Stage) -> None:
    specs = [stage.spec("ready", "w"), stage.spec("hangup", "g", role="gateway")]
    async with ready(stage, *specs):
        os.kill(os.getpid(), signal.SIGHUP)
        await stage.until(lambda: any(line.startswith("hangup-heard") for line in stage.lines()))
        assert stage.seen("exited") == []
        assert await stage.stop() == 0


async def test_a_store_is_ready_when_its_probe_says_so_and_leaves_last(stage: Stage) -> None:
    up: list[bool] = []
    specs = [
        stage.spec("store", "s", role="store", probe=lambda: bool(up)),
        stage.spec("ready", "w"),
        stage.spec("ready", "g", role="gateway"),
    ]
    async with serving(stage, *specs):
        await stage.until(lambda: len(stage.seen("ready")) == 2)
        assert not stage.seen("ready", "s")
        up.append(True)
        await stage.until(lambda: stage.seen("ready", "s"))
        stage.events.clear()
        assert await stage.stop() == 0
        assert [e.name for e in stage.seen("exited")] == ["g", "w", "s"]


async def test_a_gateway_that_stands_by_takes_the_place_of_one_that_dies(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "available_bytes", lambda: 1 << 40)
    specs = [
        stage.spec("ready", "g", role="gateway"),
        stage.spec("ready", "g-spare", role="gateway", spare=True),
    ]
    async with ready(stage, *specs):
        first, spare = (int(line.split()[1]) for line in stage.lines())
        os.kill(first, signal.SIGKILL)
        await stage.until(lambda: f"promoted {spare}" in stage.lines())
        assert stage.seen("ready", "g")[-1].pid == spare, "it goes by the name of the dead one"
        await stage.until(lambda: stage.seen("ready", "g-spare"))  # and there is a new spare
        assert stage.lines()[-1].endswith("standby")
        assert await stage.stop() == 0

"""Spawn, reap, replace, halt: with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from forebay import supervisor
from forebay.broker.link_server import serve_link
from forebay.process import describe_exit, oom_kills
from forebay.supervisor import Event, ProcessSpec, serve
from forebay.worker.steps import StepsTable

CHILD = str(Path(__file__).parent / "child.py")


class Stage:
    """A supervisor at work, what it said, and what its children wrote."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "children.log"
        self.events: list[Event] = []
        self.calls: list[str] = []  # what was said in one call of the loop; "|" is its end
        self.result: asyncio.Task[int]

    def hear(self, event: Event) -> None:
        self.events.append(event)
        if not self.calls or self.calls[-1] == "|":
            asyncio.get_running_loop().call_soon(self.calls.append, "|")
        self.calls.append(event.what)

    def spec(self, how: str, name: str = "", **more: Any) -> ProcessSpec:
        return ProcessSpec(
            name=name or how,
            argv=[sys.executable, CHILD, how, str(self.log)],
            role=more.pop("role", "worker"),
            group="g",
            **more,
        )

    def seen(self, what: str, name: str = "") -> list[Event]:
        return [e for e in self.events if e.what == what and name in ("", e.name)]

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    async def until(self, ready: Callable[[], Any], limit_s: float = 60.0) -> None:
        async with asyncio.timeout(limit_s):
            while not ready():  # noqa: ASYNC110 - processes have no event to await
                await asyncio.sleep(0.01)

    async def stop(self) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return await asyncio.wait_for(self.result, 60)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@asynccontextmanager
async def serving(stage: Stage, *specs: ProcessSpec, **more: Any) -> AsyncIterator[Stage]:
    more = {"link_path": None, "gateway_drain_s": 2.0, "worker_drain_s": 2.0, **more}
    stage.result = asyncio.create_task(serve(specs, on_event=stage.hear, **more))
    try:
        yield stage
    finally:
        if not stage.result.done():
            stage.result.cancel()
        await asyncio.gather(stage.result, return_exceptions=True)


async def test_a_worker_that_is_killed_is_replaced_at_once_and_the_cause_is_named(
    stage: Stage,
) -> None:
    async with serving(stage, stage.spec("ready")):
        await stage.until(lambda: stage.seen("ready"))
        os.kill(stage.seen("ready")[0].pid, signal.SIGKILL)
        await stage.until(lambda: len(stage.seen("spawned")) == 2)
        at = stage.calls.index("exited")
        assert stage.calls[at : at + 2] == ["exited", "spawned"], "not in the same moment"
        assert stage.seen("exited")[0].detail == "killed by signal 9 (SIGKILL), out of memory?"
        await stage.until(lambda: len(stage.seen("ready")) == 2)
        assert stage.seen("waiting") == []
        assert await stage.stop() == 0


async def test_a_worker_that_cannot_boot_is_tried_again_ever_later_and_says_why(
    stage: Stage,
) -> None:
    async with serving(stage, stage.spec("cannot_boot")):
        await stage.until(lambda: len(stage.seen("waiting")) == 3)
    waits = [e.wait_s for e in stage.seen("waiting")]
    assert waits == [0.5, 1.0, 2.0]
    assert stage.seen("exited")[0].detail == "cannot boot: weights: no such file"


async def test_death_before_ready_is_a_boot_failure_too(stage: Stage) -> None:
    async with serving(stage, stage.spec("dies")):
        await stage.until(lambda: stage.seen("waiting"))
    assert stage.seen("waiting")[0].detail == "exited with code 3"
    assert len(stage.lines()) == 1


async def test_who_is_killed_while_it_starts_is_started_again_at_once_but_only_once(
    stage: Stage,
) -> None:
    async with serving(stage, stage.spec("starts")):
        for count in (1, 2):
            await stage.until(lambda n=count: len(stage.lines()) == n)
            assert stage.seen("waiting") == []
            os.kill(stage.seen("spawned")[-1].pid, signal.SIGKILL)
        await stage.until(lambda: stage.seen("waiting"))
    assert stage.seen("waiting")[0].wait_s == 1.0


async def test_workers_are_copies_of_a_warm_process_and_are_replaced_rolled_and_drained_as_any(
    stage: Stage,
) -> None:
    specs = [stage.spec("ready", name, light=True) for name in ("w1", "w2")]
    async with serving(stage, *specs, preload=["forebay.worker.steps"]):
        await stage.until(lambda: len(stage.seen("ready")) == 2, 30)
        first = stage.seen("ready", "w1")[0].pid
        family = psutil.Process().children()
        loaded = [c for c in family if "forebay.fork_server" in c.cmdline()]
        assert len(loaded) == (sys.platform == "linux")
        os.kill(first, signal.SIGKILL)
        await stage.until(lambda: len(stage.seen("ready", "w1")) == 2)
        os.kill(os.getpid(), signal.SIGUSR2)
        await stage.until(lambda: stage.seen("rolled"), 30)
        assert stage.seen("rolled")[0].detail == "2 processes replaced"
        assert not any(p.is_running() for p in loaded)
        assert await stage.stop() == 0
    assert sum(line.startswith("left") for line in stage.lines()) == 4
    assert not [c for c in psutil.Process().children() if "forebay.fork_server" in c.cmdline()]


async def test_a_command_that_does_not_exist_is_reported_and_waited_for(stage: Stage) -> None:
    spec = ProcessSpec(name="x", argv=["/no/such/program"], role="worker")
    async with serving(stage, spec):
        await stage.until(lambda: stage.seen("waiting"))
    assert "No such file" in stage.seen("waiting")[0].detail


def test_the_wait_between_boots_has_a_limit() -> None:
    waits = [min(supervisor.BACKOFF_FIRST_S * 2.0**n, supervisor.BACKOFF_MOST_S) for n in range(17)]
    assert waits[-1] == 30.0


async def test_a_spare_starts_standing_by_once_the_regular_workers_are_ready(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "available_bytes", lambda: 1 << 40)
    specs = [stage.spec("ready", "spare", spare=True), stage.spec("ready", "w1")]
    async with serving(stage, *specs):
        await stage.until(lambda: stage.seen("ready", "spare"))
        order = [(e.what, e.name) for e in stage.events]
        assert order.index(("ready", "w1")) < order.index(("spawned", "spare"))
        assert [line.split()[2] for line in stage.lines()] == ["regular", "standby"]


async def test_without_memory_there_is_no_spare_and_it_is_said_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "available_bytes", lambda: 1 << 29)
    monkeypatch.setattr(supervisor, "SPARE_RETRY_S", 0.05)
    specs = [stage.spec("ready", "w1"), stage.spec("ready", "spare", spare=True)]
    async with serving(stage, *specs):
        await stage.until(lambda: stage.seen("no_spare"))
        await asyncio.sleep(0.3)
        assert len(stage.seen("no_spare")) == 1
        assert stage.seen("no_spare")[0].detail.startswith("512 MiB free, a warm spare needs")
        monkeypatch.setattr(supervisor, "available_bytes", lambda: 1 << 40)
        await stage.until(lambda: stage.seen("ready", "spare"))


async def test_gateways_leave_before_workers_are_told_to(stage: Stage) -> None:
    specs = [stage.spec("ready", "w"), stage.spec("gateway", role="gateway")]
    async with serving(stage, *specs):
        await stage.until(lambda: len(stage.lines()) == 2 and stage.seen("ready", "w"))
        assert await stage.stop() == 0
    assert [line.split()[2] for line in stage.lines() if line.startswith("left")] == [
        "gateway",
        "ready",
    ]
    assert stage.seen("spawned") and len(stage.seen("exited")) == 2


async def test_who_does_not_leave_is_killed_at_the_limit(stage: Stage) -> None:
    async with serving(stage, stage.spec("stubborn"), worker_drain_s=0.3):
        await stage.until(lambda: stage.seen("ready"))
        pid = stage.seen("ready")[0].pid
        assert await stage.stop() == 1
        assert not psutil.pid_exists(pid)
        assert stage.seen("exited")[0].detail == "killed: did not leave in time"


async def test_a_second_signal_kills_at_once(stage: Stage) -> None:
    async with serving(stage, stage.spec("stubborn"), worker_drain_s=3600.0):
        await stage.until(lambda: stage.seen("ready"))
        os.kill(os.getpid(), signal.SIGINT)
        await stage.until(lambda: stage.seen("halting"))
        assert await stage.stop() == 1  # and not in an hour
        assert stage.seen("exited")[0].detail == "killed: told twice to stop"


async def test_cancelling_the_supervisor_leaves_nobody_behind(stage: Stage) -> None:
    async with serving(stage, stage.spec("stubborn")):
        await stage.until(lambda: stage.seen("ready"))
        pid = stage.seen("ready")[0].pid
    assert not psutil.pid_exists(pid)


async def test_the_broker_hears_of_an_exit_and_of_the_steps_it_died_in(
    stage: Stage, tmp_path: Path
) -> None:
    from test_link import Host

    host = Host()
    server = await serve_link(tmp_path / "b.sock", host)
    async with serving(stage, stage.spec("stepping"), link_path=tmp_path / "b.sock"):
        await stage.until(lambda: stage.seen("ready") and stage.seen("pools"))
        os.kill(stage.seen("ready")[0].pid, signal.SIGKILL)
        await stage.until(lambda: host.calls)
    [first, *_] = host.calls
    assert first[0] == "exited" and first[2] is True
    assert sorted(first[3]) == [("job-a", 2), ("job-b", 5)]
    await server.close()


def test_when_the_supervisor_is_killed_its_children_die_with_it(tmp_path: Path) -> None:
    log = tmp_path / "children.log"
    code = (
        "import asyncio, sys\n"
        "from forebay.supervisor import ProcessSpec, serve\n"
        f"spec = ProcessSpec(name='w', argv=[sys.executable, {CHILD!r}, 'stubborn', {str(log)!r}],"
        " role='worker')\n"
        "asyncio.run(serve([spec], link_path=None))\n"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # where its leavings do not stay
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=env) as boss:
        limit = time.monotonic() + 60
        while not log.exists() or not log.read_text().strip():
            assert time.monotonic() < limit
            time.sleep(0.02)
        child = int(log.read_text().split()[1])
        boss.kill()
    limit = time.monotonic() + 60
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < limit, "the child outlived its supervisor"
        time.sleep(0.01)


# --------------------------------------------------------------- the steps table


def test_the_steps_table_is_read_by_another_mapping_of_the_same_file(tmp_path: Path) -> None:
    with StepsTable.create(tmp_path / "t") as boss, StepsTable.open(tmp_path / "t") as worker:
        assert worker.supervisor_pid == os.getpid()
        assert not boss.ready
        worker.mark_ready()
        assert boss.ready
        with worker.inside("a" * 32, 7):
            with worker.inside("b" * 32, 1):
                assert sorted(boss.stepping()) == [("a" * 32, 7), ("b" * 32, 1)]
            assert boss.stepping() == [("a" * 32, 7)]
        assert boss.stepping() == []
        worker.mark_failed("weights: " + "é" * 2000)
        assert boss.failure.startswith("weights: éé")


def test_a_file_that_is_no_steps_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(5000))
    for path in (tmp_path / "x", tmp_path / "absent"):
        with pytest.raises(supervisor_error()):
            StepsTable.open(path)


def supervisor_error() -> type[Exception]:
    from forebay.errors import ConfigError

    return ConfigError


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "left by itself with exit code 0"),
        (78, "cannot boot"),
        (1, "exited with code 1"),
        (-9, "killed by signal 9 (SIGKILL), out of memory?"),
        (-11, "killed by signal 11 (SIGSEGV)"),
    ],
)
def test_an_exit_code_is_put_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words


@pytest.mark.parametrize(
    ("own", "file"),
    [
        ("0::/system.slice/forebay.service", "system.slice/forebay.service/memory.events"),
        ("4:cpu,memory:/x\n0::/", "memory/x/memory.oom_control"),
        ("0::/only/the/host/sees/this", "memory.events"),
        ("4:memory:/docker/1", "memory/memory.oom_control"),
    ],
)
def test_what_the_kernel_killed_is_counted_where_this_process_is(
    tmp_path: Path, own: str, file: str
) -> None:
    (tmp_path / "own").write_text(f"9:pids:/elsewhere\n{own}\n")
    assert oom_kills(str(tmp_path), str(tmp_path / "own")) == 0
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("under_oom 0\noom_kill 3\n")
    assert oom_kills(str(tmp_path), str(tmp_path / "own")) == 3
    assert oom_kills(str(tmp_path), str(tmp_path / "none")) in (0, 3)

"""Processes that are forked from a warm one, and what becomes of them; with real processes."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from forebay import spawner as spawning
from forebay.process_title import set_title
from forebay.spawner import Forked, Process, Spawner

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")

PROGRAM = str(Path(__file__).parent / "forked.py")
LIMIT_S = 60


@asynccontextmanager
async def spawner(*preload: str) -> AsyncIterator[Spawner]:
    found = Spawner(preload or ["json"])
    try:
        await found.warm_up()
        yield found
    finally:
        found.close()


async def until(ready: Callable[[], Any]) -> Any:
    async with asyncio.timeout(LIMIT_S):
        while not (found := ready()):  # noqa: ASYNC110 - processes have no event to await
            await asyncio.sleep(0.01)
    return found


def program(out: Path, how: str = "0") -> list[str]:
    return [sys.executable, PROGRAM, str(out), how]


async def facts(out: Path) -> dict[str, Any]:
    return await until(lambda: json.loads(out.read_text()) if out.exists() else None)


async def ended(process: Process) -> int:
    await until(lambda: process.poll() is not None)
    assert process.returncode is not None
    return process.returncode


async def test_a_forked_process_finds_what_a_started_one_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORK_TEST", "old")
    (tmp_path / "held").touch()
    held = os.open(tmp_path / "held", os.O_RDONLY)
    here = tmp_path / "out"
    env = {"FORK_TEST": "new", "CUDA_VISIBLE_DEVICES": "1", "WORD": "ümlaut=\udcff"}
    seen = []
    for warm in (True, False):
        here.unlink(missing_ok=True)
        async with spawner() as starter:
            if not warm:
                starter.close()
            process = starter.spawn(program(here), env, [held])
            assert isinstance(process, Forked) is warm
            assert await ended(process) == 0
        seen.append(await facts(here))
    os.close(held)
    forked, started = ({k: v for k, v in s.items() if k not in ("pid", "chances")} for s in seen)
    assert forked == started
    assert forked["parent"] == os.getpid()
    assert forked["fds"][str(held)].endswith("/held")
    assert forked["env"]["FORK_TEST"] == "new"
    assert not set(seen[0]["chances"]) & set(seen[1]["chances"])


async def test_two_copies_of_one_process_draw_different_numbers(tmp_path: Path) -> None:
    async with spawner("random", "uuid", "secrets") as starter:
        outs = [tmp_path / "a", tmp_path / "b"]
        for out in outs:
            await ended(starter.spawn(program(out), {}))
        first, second = [(await facts(out))["chances"] for out in outs]
    assert not set(first) & set(second)


async def test_how_a_forked_process_ended_is_told_as_of_any_other(tmp_path: Path) -> None:
    async with spawner() as starter:
        assert await ended(starter.spawn(program(tmp_path / "a", "78"), {})) == 78
        assert await ended(starter.spawn(program(tmp_path / "b", "raise"), {})) == 1
        killed = starter.spawn(program(tmp_path / "c", "stay"), {})
        watched = os.pidfd_open(killed.pid)
        await facts(tmp_path / "c")
        with pytest.raises(subprocess.TimeoutExpired):
            killed.wait(0.01)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(LIMIT_S) == -signal.SIGKILL
        os.close(watched)
        killed.send_signal(signal.SIGTERM)  # nobody is there: nothing happens


async def test_it_is_the_supervisors_child_and_other_orphans_are_not(tmp_path: Path) -> None:
    async with spawner() as starter:
        process = starter.spawn(program(tmp_path / "out", "stay"), {})
        found = await facts(tmp_path / "out")
        assert found["parent"] == os.getpid()
        assert process.pid in [c.pid for c in psutil.Process().children()]
        adopts = ctypes.c_int(-1)
        ctypes.CDLL(None).prctl(37, ctypes.byref(adopts), 0, 0, 0)  # PR_GET_CHILD_SUBREAPER
        assert adopts.value == 0
        process.send_signal(signal.SIGKILL)
        await ended(process)


def fork_server() -> psutil.Process:
    children = psutil.Process().children()
    return next(c for c in children if "forebay.fork_server" in c.cmdline())


async def test_without_its_fork_server_processes_start_all_the_same_and_it_comes_back(
    tmp_path: Path,
) -> None:
    async with spawner() as starter:
        before = starter.spawn(program(tmp_path / "before", "stay"), {})
        await facts(tmp_path / "before")
        fork_server().kill()
        after = starter.spawn(program(tmp_path / "after"), {})
        assert not isinstance(after, Forked)
        assert await ended(after) == 0
        assert before.poll() is None  # it needs nobody
        await until(lambda: starter.warm)
        again = starter.spawn(program(tmp_path / "again"), {})
        assert isinstance(again, Forked)
        assert await ended(again) == 0
        before.send_signal(signal.SIGKILL)
        await ended(before)


async def test_a_fork_server_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawning, "ANSWER_S", 0.3)
    async with spawner() as starter:
        fork_server().suspend()
        process = starter.spawn(program(tmp_path / "out"), {})
        assert not isinstance(process, Forked)
        assert await ended(process) == 0


async def test_what_is_not_needed_at_once_is_loaded_when_nobody_asks(tmp_path: Path) -> None:
    script = tmp_path / "say.py"
    script.write_text("import sys\nsys.exit('wave' in sys.modules)")
    async with spawner("json", "--", "wave") as starter:
        assert await ended(starter.spawn([sys.executable, str(script)], {})) == 0
        for _ in range(20):
            await asyncio.sleep(1.5)
            if await ended(starter.spawn([sys.executable, str(script)], {})) == 1:
                break
        assert await ended(starter.spawn([sys.executable, str(script)], {})) == 1
        assert starter.warm


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raise OSError('no such thing')", "cannot be loaded: OSError: no such thing"),
        (
            "import threading, time\n"
            "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            "2 threads after loading, expected 1",
        ),
    ],
    ids=["fails", "threads"],
)
async def test_what_cannot_be_copied_is_not_and_it_is_said_why(
    text: str,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "unfit_for_forks.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with spawner("unfit_for_forks") as starter:
        assert not starter.warm
        process = starter.spawn(program(tmp_path / "out"), {})
        assert not isinstance(process, Forked)
        assert await ended(process) == 0
    assert why in "".join(capfd.readouterr())


async def test_what_an_interpreter_reads_at_its_start_is_not_forked(tmp_path: Path) -> None:
    async with spawner() as starter:
        process = starter.spawn(program(tmp_path / "out"), {"PYTHONHASHSEED": "7"})
        assert not isinstance(process, Forked)
        other = starter.spawn(["/bin/true"], {})
        assert not isinstance(other, Forked)
        assert [await ended(process), await ended(other)] == [0, 0]


async def test_a_fork_server_started_afresh_has_loaded_what_is_on_the_disk_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "upgraded.py").write_text("version = 1")
    script = tmp_path / "say.py"
    script.write_text("import sys, upgraded\nsys.exit(upgraded.version)")
    async with spawner("upgraded") as starter:
        assert await ended(starter.spawn([sys.executable, str(script)], {})) == 1
        (tmp_path / "upgraded.py").write_text("version = 2  # longer, so that it is seen")
        assert await ended(starter.spawn([sys.executable, str(script)], {})) == 1
        await starter.warm_up()
        assert await ended(starter.spawn([sys.executable, str(script)], {})) == 2


SUPERVISOR = """
import asyncio, sys
from forebay.supervisor import ProcessSpec, serve
specs = [
    ProcessSpec(name=f"w{n}", argv=[sys.executable, sys.argv[1], "ready", sys.argv[2]],
                role="worker", group="g")
    for n in range(2)
]
asyncio.run(serve(specs, preload=["forebay.worker.steps"]))
"""


async def test_nobody_is_left_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    child = str(Path(__file__).parent / "child.py")
    log = tmp_path / "log"
    process = subprocess.Popen(  # noqa: ASYNC220 - forks at once, waits for nothing
        [sys.executable, "-c", SUPERVISOR, child, str(log)]
    )
    try:
        await until(lambda: log.exists() and len(log.read_text().splitlines()) == 2)
        family = psutil.Process(process.pid).children()
        assert len(family) == 3  # both and the fork server
        forked = [p for p in family if "forebay.fork_server" not in p.cmdline()]
        assert all(p.cmdline()[1] == child for p in forked)
    finally:
        process.kill()
        process.wait()
    await until(lambda: not any(p.is_running() and p.status() != "zombie" for p in family))


def test_a_command_line_that_is_too_long_is_cut_and_the_rest_stays() -> None:
    script = (
        "import sys; from forebay.process_title import set_title\n"
        "assert set_title([b'one', b'two' * 5000])\n"
        "shown = open('/proc/self/cmdline', 'rb').read()\n"
        "assert shown.startswith(b'one\\0twotwo'), shown\n"
        "assert len(shown) < 5000 and shown.endswith(b'\\0')\n"
    )
    subprocess.run([sys.executable, "-c", script, "word"], check=True)


def test_no_command_line_is_written_where_the_system_shows_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", absent)
    assert set_title([b"x"]) is False


async def test_a_fork_costs_less_than_half_of_a_start(tmp_path: Path) -> None:
    """In processor time of all of them, which does not depend on who else is busy."""
    script = tmp_path / "nothing.py"
    script.write_text("import forebay.worker.main")

    async def used(starter: Spawner, count: int) -> float:
        before = os.times()
        for _ in range(count):
            assert await ended(starter.spawn([sys.executable, str(script)], {})) == 0
        after = os.times()
        return (
            after.children_user
            + after.children_system
            - (before.children_user + before.children_system)
        )

    async with spawner("forebay.worker.main") as starter:
        forked = await used(starter, 5)
        starter.close()
        started = await used(starter, 2)
    assert forked / 5 < started / 2 / 2

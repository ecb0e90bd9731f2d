"""A kernel that does not come up leaves nothing behind: no process, no socket, no folder."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq

from forebay.core.events import Cell
from forebay.engines import Resume, kernel_process
from forebay.engines.kernel import NotebookKernels
from forebay.engines.kernel_jail import Jail, Limits
from forebay.engines.kernel_process import Housing, Kernel
from forebay.errors import EngineFailed

MiB = 1024 * 1024


def kernel(folder: Path, start_s: float = 60.0, jail: Jail | None = None) -> Kernel:
    limits = Limits(memory_bytes=1024 * MiB, disk_bytes=64 * MiB, processes=128, cpus=1.0)
    housing = Housing(jail=jail, limits=limits, flush_s=0.01, start_s=start_s, interrupt_s=1.0)
    return Kernel("forebay-test", folder, housing, lambda ended: None)


def opened() -> tuple[int, int, int]:
    """ZeroMQ's contexts and sockets that are open, and this process's descriptors."""
    found = [thing for thing in gc.get_objects() if isinstance(thing, (zmq.Context, zmq.Socket))]
    live = [thing for thing in found if not thing.closed]
    sockets = sum(isinstance(thing, zmq.Socket) for thing in live)
    return len(live) - sockets, sockets, len(os.listdir("/dev/fd"))


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Nothing may be left to the collector: it does not run."""
    gc.collect()
    gc.disable()
    try:
        before, children = opened(), set(psutil.Process().children())
        yield  # servers that other tests share may be among the children, and start some too
        assert opened() == before
        started = set(psutil.Process().children()) - children
        assert not started, [process.cmdline() for process in started]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("script", "start_s"), [("import sys; sys.exit(3)", 60.0), ("import time; time.sleep(60)", 0.5)]
)
async def test_a_kernel_that_ends_or_never_answers_is_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, start_s: float
) -> None:
    boot = tmp_path / "boot.py"
    boot.write_text(script)
    monkeypatch.setattr(kernel_process, "BOOT", boot)
    with nothing_left():
        with pytest.raises(EngineFailed, match="did not start"):
            await kernel(tmp_path, start_s).start()


async def test_a_program_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_process.sys, "executable", "/nowhere/python")
    with nothing_left():
        with pytest.raises(EngineFailed, match="/nowhere/python"):
            await kernel(tmp_path).start()


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.2])
async def test_a_start_that_is_broken_off_ends_the_process_it_has_made(
    tmp_path: Path, after_s: float
) -> None:
    with nothing_left():
        starting = asyncio.create_task(kernel(tmp_path).start())
        await asyncio.sleep(after_s)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting


async def test_a_kernel_that_ends_as_soon_as_it_has_started_is_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Kernel.start

    async def dying(self: Kernel) -> None:
        await begin(self)
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        await self._ended.wait()

    monkeypatch.setattr(Kernel, "start", dying)
    engine = NotebookKernels(dir=str(tmp_path), confine="never")
    await engine.load(lambda stage: None)
    with nothing_left():
        book = await engine.open({"affinity": "local/book"}, Resume())
        with pytest.raises(EngineFailed, match="as soon as it had started"):
            async for _ in engine.step(book, [Cell(code="1")]):
                pass
        await engine.unload()


async def test_a_kernel_of_root_whose_cgroup_cannot_be_made_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(kernel_process, "usable_cgroup", lambda name, limits: None)
    with nothing_left():
        with pytest.raises(EngineFailed, match="no cgroup can be made"):
            await kernel(tmp_path, jail=Jail("bwrap", frozenset())).start()

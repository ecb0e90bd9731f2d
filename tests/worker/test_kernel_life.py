"""How kernels begin and end: restart, shutdown, idleness, death, and what the next cell is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kernel_world import World, ending, notices, result, text, world

from forebay.core.events import Cell


async def test_restart_forgets_variables_keeps_files_and_loses_the_running_cell(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as here:
        job = await here.submit(
            Cell(
                code="v = 1\nopen('a.txt','w').write('kept')\nprint('on', flush=True)\nimport time; time.sleep(60)"
            )
        )
        await here.until(job, lambda seen: text(seen) == "on\n")
        assert await here.control("restart")
        ended = ending(await here.ended(job))
        assert (ended.state, ended.code) == ("failed", "kernel_lost")
        events = await here.run("print('v' in globals(), open('a.txt').read())")
        assert text(events) == "False kept\n"
        assert notices(events) == []
        assert result(events)["execution_count"] == 1


async def test_shutdown_gives_the_credit_back_and_the_next_cell_begins_anew(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as here:
        await here.run("v = 1")
        assert here.free() == 0
        assert await here.control("shutdown")
        await _until_free(here)
        assert await here.control("interrupt") is False
        events = await here.run("print('v' in globals())")
        assert text(events) == "False\n"
        assert notices(events) == []


async def _until_free(here: World) -> None:
    for _ in range(500):
        if here.free() == 1:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the credit did not come back")


async def test_an_idle_kernel_is_reaped_and_the_next_cell_says_so(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1, idle_s=1.0) as here:
        await here.run("v = 1")
        await _until_free(here)
        assert notices(await here.run("1")) == ["kernel_reaped"]


async def test_a_kernel_that_dies_loses_its_cell_by_name(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        events = await here.run("import os; os._exit(3)")
        assert ending(events).code == "kernel_lost"
        assert notices(await here.run("1")) == ["kernel_lost"]

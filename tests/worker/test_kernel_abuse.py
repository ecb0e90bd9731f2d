"""Hostile notebooks: each is contained, and the next cell finds a kernel again."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from pathlib import Path

import psutil
import pytest
from kernel_world import JAIL, WHY_NO_JAIL, World, ending, error, notices, text, world

from forebay.core.events import Cell

pytestmark = pytest.mark.skipif(JAIL is None, reason=WHY_NO_JAIL or "no jail")
NEIGHBOUR = "local/neighbour"


async def still_fine(here: World) -> None:
    """The notebook beside it answers, and so does a new cell of the same one."""
    assert text(await here.run("print('fine')", book=NEIGHBOUR)) == "fine\n"
    assert "again" in text(await here.run("print('again')"))


async def test_a_fork_bomb_ends_with_its_kernel(tmp_path: Path) -> None:
    async with world(tmp_path, processes=40) as here:
        await here.run("1", book=NEIGHBOUR)
        events = await here.run(
            "import os, time\nmade = 0\ntry:\n    while made < 5000:\n"
            "        if os.fork() == 0:\n            time.sleep(60); os._exit(0)\n"
            "        made += 1\nexcept OSError as e:\n    print('stopped', made)"
        )
        stopped = text(events)
        assert stopped.startswith("stopped"), events
        assert int(stopped.split()[1]) < 45
        await here.control("restart")
        await still_fine(here)


async def test_ten_gigabytes_are_refused(tmp_path: Path) -> None:
    async with world(tmp_path, memory_mib=300) as here:
        await here.run("1", book=NEIGHBOUR)
        events = await here.run("x = bytearray(10 * 1024**3)")
        assert error(events)["ename"] == "MemoryError"
        spread = (
            "import os, time\nfor i in range(8):\n    if os.fork() == 0:\n"
            "        x = bytearray(100 * 1024**2)\n        time.sleep(20); os._exit(0)\n"
            "time.sleep(3); print('survived')"
        )
        job = await here.submit(Cell(code=spread))
        await here.ended(job)  # whatever became of it: together they stay under the bound
        await here.control("restart")
        await still_fine(here)


async def test_a_disk_that_is_filled_ends_the_kernel(tmp_path: Path) -> None:
    async with world(tmp_path, disk_mib=20) as here:
        await here.run("1", book=NEIGHBOUR)
        one = await here.run("f = open('big', 'wb')\nfor i in range(100): f.write(b'x' * 1024**2)")
        assert error(one)["ename"] == "OSError"  # of one file: the system says so at once
        many = await here.run(
            "import time\nfor i in range(500):\n    open(f'f{i}', 'wb').write(b'x' * 1024**2)\n"
            "    time.sleep(.01)"
        )
        assert ending(many).code == "kernel_lost"
        assert "20 MiB" in ending(many).message
        folder = tmp_path / "notebooks" / "local" / "book"
        used = sum(f.stat().st_size for f in folder.iterdir())
        assert used < 400 * 1024**2
        for file in folder.iterdir():
            file.unlink()
        events = await here.run("print('again')")
        assert notices(events) == ["kernel_lost"]


async def test_nothing_of_this_process_can_be_read_or_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_CANARY", "canary-4711")
    secret = tmp_path / "secret.txt"
    secret.write_text("canary-4712")
    async with world(tmp_path) as here:
        await here.run("1", book=NEIGHBOUR)
        code = (
            "import glob, os, signal\nfound = [str(dict(os.environ))]\n"
            "for name in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):\n"
            "    try: found.append(open(name, 'rb').read().decode('latin-1'))\n"
            "    except OSError: pass\n"
            f"for name in ({str(secret)!r}, '/etc/shadow', '/root/.ssh', "
            f"{str(tmp_path / 'notebooks/local/neighbour')!r}):\n"
            "    print(name in ('/etc/shadow',), os.path.exists(name))\n"
            "print('canary' in ''.join(found))\n"
            f"for pid in ({os.getpid()}, {os.getppid()}):\n"
            "    try: os.kill(pid, signal.SIGKILL); print('killed', pid)\n"
            "    except (ProcessLookupError, PermissionError) as e: print(type(e).__name__)\n"
            "print(os.getuid(), os.getgid())"
        )
        events = await here.run(code)
        said = text(events).splitlines()
        assert [line.split()[1] for line in said[:4]] == ["False"] * 4, said
        assert said[4] == "False"
        assert not any(line.startswith("killed") for line in said)
        assert said[-1] == "1000 1000"
        os.kill(os.getpid(), 0)
        await still_fine(here)


async def test_neither_the_gateway_nor_redis_can_be_reached(tmp_path: Path) -> None:
    reached: list[object] = []

    async def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(writer)
        writer.close()

    server = await asyncio.start_server(came, "127.0.0.1", 0)
    path = tmp_path / "broker.sock"
    local = await asyncio.start_unix_server(came, str(path))
    port = server.sockets[0].getsockname()[1]
    with socket.socket() as probe:  # it is there, seen from here
        probe.connect(("127.0.0.1", port))
    async with world(tmp_path) as here:
        events = await here.run(
            "import socket\n"
            f"for family, to in ((socket.AF_INET, ('127.0.0.1', {port})), "
            f"(socket.AF_UNIX, {str(path)!r}), (socket.AF_INET, ('1.1.1.1', 53))):\n"
            "    s = socket.socket(family); s.settimeout(2)\n"
            "    try: s.connect(to); print('reached')\n"
            "    except OSError as e: print('refused')"
        )
        assert text(events) == "refused\n" * 3
    assert len(reached) == 1
    for each in (server, local):
        each.close()
        await each.wait_closed()


async def test_the_system_and_python_cannot_be_written_to(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        events = await here.run(
            "import sys, os\nfor place in ('/usr/x', '/etc/x', sys.prefix + '/x', '/x/y'):\n"
            "    try: open(place, 'w'); print('wrote', place)\n    except OSError: print('no')"
        )
        assert text(events) == "no\n" * 4


async def test_a_killed_worker_takes_its_kernels_along(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.run("1")
        kernels = [p for p in psutil.Process().children(recursive=True) if "bwrap" in p.name()]
        assert kernels
        for kernel in kernels:
            kernel.kill()
        events = await here.run("print('again')")
        if ending(events).code == "kernel_lost":  # it was leased before the end was heard
            events = await here.run("print('again')")
        assert text(events) == "again\n"
        gone, alive = psutil.wait_procs(kernels, timeout=5)
        assert not alive


async def test_what_a_killed_worker_left_is_swept_by_the_next(tmp_path: Path) -> None:
    gone = await asyncio.create_subprocess_exec("true")
    await gone.wait()
    left = Path(tempfile.gettempdir()) / f"fbk-{gone.pid}-test"
    mine = Path(tempfile.gettempdir()) / f"fbk-{os.getpid()}-test"
    left.mkdir(mode=0o700)
    mine.mkdir(mode=0o700)
    try:
        async with world(tmp_path):
            assert not left.exists()
            assert mine.exists()
    finally:
        mine.rmdir()

"""The public centrifuge package, unmodified, in Node, against a real gateway."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from room_world import PASS, World, world

NODE = Path(__file__).parent.parent / "node"


@pytest.fixture(scope="module")
def packages() -> Path:
    """What the lock file pins, installed once, however many test processes there are."""
    if shutil.which("npm") is None:
        pytest.fail("npm is not installed, run: make setup-system")
    with (NODE / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (NODE / "node_modules" / "centrifuge").is_dir():
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(command, cwd=NODE, check=True, timeout=120, capture_output=True)
    return NODE


class Client:
    """The Node process, which says what happens to it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.process, self._in, self._out = process, process.stdin, process.stdout

    def do(self, word: str) -> None:
        self._in.write(f"{word}\n".encode())

    async def hear(self, what: str) -> Any:
        """The next thing said, which must be this."""
        line = await asyncio.wait_for(self._out.readline(), 60)
        said = json.loads(line)
        assert said["what"] == what, said
        return said

    async def texts(self, count: int) -> list[str]:
        return [(await self.hear("publication"))["text"] for _ in range(count)]


@pytest.fixture
async def both(packages: Path, tmp_path: Path) -> AsyncIterator[tuple[World, Client]]:
    async with world(tmp_path) as w:
        for n in range(3):
            await w.post(text=str(n))
        url = w.main.replace("http", "ws") + "/connection/websocket"
        process = await asyncio.create_subprocess_exec(
            "node",
            "room_client.mjs",
            url,
            "talk",
            PASS,
            cwd=packages,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        yield w, Client(process)
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_it_reads_publishes_and_comes_back_without_loss(
    both: tuple[World, Client],
) -> None:
    w, node = both
    await node.hear("subscribing")
    await node.hear("connected")
    told = await node.hear("subscribed")
    assert told["recovered"] and told["wasRecovering"]
    assert await node.texts(3) == ["0", "1", "2"]
    await w.post(text="live")
    await w.post(text="typing", is_preview=True)
    assert (await node.hear("publication"))["offset"] == 4
    preview = await node.hear("publication")
    assert preview["preview"] and "offset" not in preview

    node.do("cut")
    await node.hear("subscribing")
    await w.post(text="missed")
    await node.hear("connected")
    told = await node.hear("subscribed")
    assert told["recovered"] and told["wasRecovering"]
    assert await node.texts(1) == ["missed"]  # whenever it was said, it came after the answer

    node.do("publish")
    heard = sorted([json.dumps(await said(node)), json.dumps(await said(node))])
    assert "from node" in heard[0] + heard[1]
    assert await w.texts() == ["0", "1", "2", "live", "missed", "from node"]

    node.do("forbidden")
    assert (await node.hear("refused"))["code"] == 101
    node.do("presence")
    assert (await node.hear("presence"))["users"] == ["node"]
    node.do("stats")
    stats = await node.hear("stats")
    assert (stats["numClients"], stats["numUsers"]) == (1, 1)
    node.do("history")
    assert (await node.hear("history"))["texts"] == ["0", "1"]

    await w.post("/api/rooms/talk/drop")
    assert (await node.hear("subscribing"))["code"] == 2500
    told = await node.hear("subscribed")
    assert not told["recovered"] and told["wasRecovering"]
    node.do("unsubscribe")
    await node.hear("unsubscribed")
    node.do("quit")
    assert await asyncio.wait_for(node.process.wait(), 60) == 0


async def said(node: Client) -> Any:
    return json.loads(await asyncio.wait_for(node._out.readline(), 60))

"""Claim: a server killed and started again under a speaker loses, doubles and reorders no
caption of a room that persists.

A publisher sends 1000 captions at 100 a second while `forebay serve` and everything below it
is killed (SIGKILL) and started again ``--kills`` times; afterwards the room is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import aiohttp
import psutil

from benchmarks.captions_fanout import NO_WORKERS
from benchmarks.harness import FOREBAY, free_port, options, report, run
from forebay.client import CaptionPublisher

ACCESS = {"room": "kept", "passphrase": "bench"}


def start(port: int, folder: Path) -> subprocess.Popen[bytes]:
    command = [str(FOREBAY), "serve", "--port", str(port), "--data-dir", str(folder), *NO_WORKERS]
    with (folder / "serve.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


async def wait(port: int, limit_s: float = 30) -> float:
    began = time.monotonic()
    while time.monotonic() - began < limit_s:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(
                urllib.request.urlopen, f"http://127.0.0.1:{port}/healthz", None, 2
            )
            return time.monotonic() - began
        await asyncio.sleep(0.05)
    raise RuntimeError("the server does not come up")


def kill(process: subprocess.Popen[bytes]) -> None:
    family = [psutil.Process(process.pid)]
    family += family[0].children(recursive=True)
    for each in family:
        with contextlib.suppress(psutil.Error):
            each.kill()
    process.wait()
    psutil.wait_procs(family, 5)


async def speak(publisher: CaptionPublisher, count: int) -> None:
    for n in range(count):
        publisher.send(f"caption {n}")
        await asyncio.sleep(0.01)


async def main() -> int:
    wanted = options(__doc__ or "", count=1000, kills=3)
    port = free_port()
    back = []
    with tempfile.TemporaryDirectory(prefix="fb-") as name:
        folder = Path(name)
        process = start(port, folder)
        await wait(port)
        publisher = CaptionPublisher(
            f"http://127.0.0.1:{port}", user_name="Ann", outbox=folder / "outbox.db",
            persist=True, **ACCESS,
        )  # fmt: skip
        speaking = asyncio.ensure_future(speak(publisher, wanted.count))
        for _ in range(wanted.kills):
            await asyncio.sleep(wanted.count * 0.01 / (wanted.kills + 1))
            kill(process)
            process = start(port, folder)
            back.append(await wait(port))
        await speaking
        done = await asyncio.to_thread(publisher.flush, 60)
        counters = (await asyncio.to_thread(publisher.close)).counters
        async with aiohttp.ClientSession() as http:
            async with http.get(
                f"http://127.0.0.1:{port}/api/list", params={**ACCESS, "limit": "1000"}
            ) as answer:
                texts = [one["text"] for one in (await answer.json())["transcriptions"]]
        kill(process)
    numbers = [int(text.rpartition(" ")[2]) for text in texts]
    doubled = len(numbers) - len(set(numbers))
    reordered = sum(b < a for a, b in zip(numbers, numbers[1:], strict=False))
    lost = wanted.count - len(set(numbers))
    rows: list[tuple[str, str, str, bool | None]] = [
        ("lost", str(lost), "0", lost == 0),
        ("doubled", str(doubled), "0", doubled == 0),
        ("reordered", str(reordered), "0", reordered == 0),
        ("everything answered", str(done), "True", done),
        ("kills, time to answer again", f"{len(back)}, {max(back):.2f} s at most", "", None),
        ("retried / errors", f"{counters.retried} / {counters.errors}", "", None),
    ]
    return report("captions: a killed server", rows, wanted.output_json)


if __name__ == "__main__":
    run(main)

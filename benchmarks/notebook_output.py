"""Claim: cell output reaches the client when it exists; no line waits, no burst stalls.

From the request to the first output (p50 at most 4 ms), beside bare ZeroMQ (the kernel's own
floor) and jupyter_server in the same run, in a virtual environment made for it; flushed lines
at 100 a second (p50 at most 2 ms, p99 at most 5 ms after their print); prints that do not
flush (within 25 ms); 100,000 lines at once (no silence over a second, memory bounded).
Times are taken on one clock: a line says when it was printed.

``--cells``, ``--lines``: how many are measured. ``--jupyter-server 0`` leaves that peer out.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from jupyter_client.manager import start_new_async_kernel

from benchmarks.harness import Server, free_port, options, report, run, serving

FIRST_MS, LINE_P50_MS, LINE_P99_MS, UNFLUSHED_MS = 4.0, 2.0, 5.0, 25.0
STALL_S, GROWTH_MIB = 1.0, 100.0
BURST = 100_000
Row = tuple[str, str, str, bool | None]


def at(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def events(http: aiohttp.ClientSession, code: str) -> AsyncIterator[tuple[float, Any]]:
    """The events of one cell with their time of arrival."""
    head = {"accept": "text/event-stream"}
    body = {"code": code, "cell": secrets.token_hex(4)}
    async with http.post("/v1/notebooks/bench/cells", json=body, headers=head) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if line.startswith(b"data: "):
                yield time.time(), json.loads(line[6:])


async def texts(http: aiohttp.ClientSession, code: str) -> AsyncIterator[tuple[float, str]]:
    async for when, event in events(http, code):
        if event["type"] == "display" and event["what"] == "stream":
            yield when, event["data"]["text/plain"]


async def first_output(http: aiohttp.ClientSession, cells: int) -> list[float]:
    found = []
    for _ in range(cells):
        began = time.perf_counter()
        first = None
        async for _when, _text in texts(http, "print(1, flush=True)"):
            first = first or time.perf_counter() - began
        found.append((first or 0.0) * 1000)
    return found


async def delays(http: aiohttp.ClientSession, code: str) -> list[float]:
    """Milliseconds from each printed time to its arrival."""
    found = []
    async for when, text in texts(http, code):
        found += [(when - float(line)) * 1000 for line in text.split()]
    return found


async def bare(cells: int) -> list[float]:
    """The same print over the kernel's own sockets, in this process: nothing beside it."""
    manager, client = await start_new_async_kernel(kernel_name="python3")
    found = []
    try:
        for _ in range(cells):
            began = time.perf_counter()
            asked = client.execute("print(1, flush=True)")
            first = 0.0
            while True:
                message = await client.get_iopub_msg(timeout=30)
                if message["parent_header"].get("msg_id") != asked:
                    continue
                if message["msg_type"] == "stream" and not first:
                    first = time.perf_counter() - began
                if message["content"].get("execution_state") == "idle":
                    break
            found.append(first * 1000)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
    return found


@asynccontextmanager
async def jupyter_server(folder: Path) -> AsyncIterator[str]:
    """jupyter_server in an environment of its own; its address."""
    await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "venv", folder / "v"], check=True
    )
    pip = [
        str(folder / "v/bin/python"),
        "-m",
        "pip",
        "install",
        "-q",
        "jupyter_server",
        "ipykernel",
    ]
    await asyncio.to_thread(subprocess.run, pip, check=True)
    port = free_port()
    command = [
        str(folder / "v/bin/python"), "-m", "jupyter_server", f"--port={port}", "--no-browser",
        "--allow-root", "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True",
        f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
    try:
        await _answers(f"http://127.0.0.1:{port}/api")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _answers(url: str) -> None:
    async with aiohttp.ClientSession() as http:
        for _ in range(300):
            try:
                async with http.get(url) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise TimeoutError("jupyter_server did not start")


async def over_jupyter_server(url: str, cells: int) -> list[float]:
    found = []
    async with aiohttp.ClientSession(url) as http:
        async with http.post("/api/kernels", json={}) as answer:
            kernel = (await answer.json())["id"]
        session = secrets.token_hex(8)
        async with http.ws_connect(f"/api/kernels/{kernel}/channels?session_id={session}") as ws:
            for number in range(cells + 1):
                began, asked, first = time.perf_counter(), secrets.token_hex(8), 0.0
                await ws.send_json(_request(asked, session))
                while True:
                    message = await ws.receive_json(timeout=60)
                    if message["parent_header"].get("msg_id") != asked:
                        continue
                    if message["msg_type"] == "stream" and not first:
                        first = time.perf_counter() - began
                    if message["content"].get("execution_state") == "idle":
                        break
                if number:  # the first one started the kernel
                    found.append(first * 1000)
    return found


def _request(ident: str, session: str) -> dict[str, Any]:
    return {
        "channel": "shell",
        "header": {
            "msg_id": ident, "msg_type": "execute_request", "username": "", "session": session,
            "date": "", "version": "5.3",
        },
        "parent_header": {},
        "metadata": {},
        "content": {
            "code": "print(1, flush=True)", "silent": False, "store_history": False,
            "user_expressions": {}, "allow_stdin": False, "stop_on_error": True,
        },
    }  # fmt: skip


async def burst(server: Server, http: aiohttp.ClientSession) -> tuple[float, float, float, int]:
    """Seconds in all, longest silence, growth of gateway and worker in MiB, lines."""
    watched = [server.gateway(), *server.workers("kernel")]
    before = sum(p.memory_info().rss for p in watched)
    most, lines = before, 0
    began = last = time.time()
    gap = 0.0
    async for when, text in texts(http, f"for i in range({BURST}): print('line', i)"):
        gap, last = max(gap, when - last), when
        lines += text.count("\n")
        most = max(most, sum(p.memory_info().rss for p in watched))
    return time.time() - began, gap, (most - before) / 2**20, lines


async def main() -> int:
    chosen = options(__doc__ or "", cells=200, lines=500, jupyter_server=1)
    rows: list[Row] = []
    raw: dict[str, Any] = {}
    with serving(
        "--engine", "kernel=python",
        "--workers", "text=0", "--workers", "speech=0", "--workers", "image=0",
    ) as server:  # fmt: skip
        async with aiohttp.ClientSession(server.http) as http:
            async for _ in events(http, "import time"):
                continue
            quiet = await bare(chosen.cells // 2)  # half before and half after: machines drift
            first = await first_output(http, chosen.cells)
            flushed = await delays(
                http,
                f"for _ in range({chosen.lines}):\n    print(time.time(), flush=True); time.sleep(.01)",
            )
            unflushed = await delays(
                http,
                f"for _ in range({chosen.lines // 10}):\n    print(time.time()); time.sleep(.1)",
            )
            took_s, gap_s, grown, lines = await burst(server, http)
    peer = quiet + await bare(chosen.cells // 2)
    raw |= {"first_ms": first, "bare_ms": peer, "flushed_ms": flushed, "unflushed_ms": unflushed}
    p50 = at(first, 0.5)
    rows.append(
        ("request to first output, p50", f"{p50:.2f} ms", f"<= {FIRST_MS:g} ms", p50 <= FIRST_MS)
    )
    rows.append(("  p99", f"{at(first, 0.99):.2f} ms", "", None))
    floor = at(peer, 0.5)
    rows.append(("  bare ZeroMQ, p50", f"{floor:.2f} ms", "an unaltered kernel", None))
    rows.append(
        ("  added to it, ratio", f"{p50 - floor:+.2f} ms, {p50 / floor:.2f}", "ratios travel", None)
    )
    if chosen.jupyter_server:
        with tempfile.TemporaryDirectory(prefix="fb-js-") as folder:
            async with jupyter_server(Path(folder)) as address:
                other = await over_jupyter_server(address, chosen.cells)
        raw["jupyter_server_ms"] = other
        rows.append(
            ("  jupyter_server, p50", f"{at(other, 0.5):.2f} ms", "", p50 <= at(other, 0.5))
        )
    for share, limit in ((0.5, LINE_P50_MS), (0.99, LINE_P99_MS)):
        seen = at(flushed, share)
        rows.append(
            (
                f"flushed lines, p{share * 100:.0f}",
                f"{seen:.2f} ms",
                f"<= {limit:g} ms",
                seen <= limit,
            )
        )
    worst = at(unflushed, 0.99)
    rows.append(
        (
            "prints that do not flush, p99",
            f"{worst:.1f} ms",
            f"<= {UNFLUSHED_MS:g} ms",
            worst <= UNFLUSHED_MS,
        )
    )
    rows.append(
        (f"{BURST:,} lines at once", f"{took_s:.2f} s, {lines:,} came", "all", lines == BURST)
    )
    rows.append(("  longest silence", f"{gap_s:.2f} s", f"<= {STALL_S:g} s", gap_s <= STALL_S))
    rows.append(
        (
            "  gateway and worker grew by",
            f"{grown:.0f} MiB",
            f"<= {GROWTH_MIB:g} MiB",
            grown <= GROWTH_MIB,
        )
    )
    return report("Notebook output", rows, chosen.output_json, **raw)


if __name__ == "__main__":
    run(main)

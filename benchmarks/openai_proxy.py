"""Claim: in front of an OpenAI-compatible server Forebay adds little time and little CPU.

The upstream is `tests.fakes.sglang`: 20 tokens, 10 ms apart. Asked in turns, in the same
run: the upstream itself, a bare aiohttp pass-through, Forebay with queue, worker, journal
position and all, and LiteLLM's proxy where it is installed. Load and upstream are pinned to
one core, the proxies to another. Time to first token is the median over all requests less
the upstream's own; CPU is what all processes of a proxy used, for each chunk delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.harness import free_port, options, report, run, serving
from benchmarks.peers import litellm_proxy
from forebay.lab.stats import percentile

MODEL = "fake-model"
TOKENS = 20
INTERVAL_MS = 10
WORD = re.compile(rb"\bt\d+ ")
BODY = json.dumps(
    {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "count to twenty"}]}
).encode()


@dataclass
class Seen:
    """What the client saw of one target. Seconds."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    chunks: int = 0
    cpu_s: float = 0.0
    failed: int = 0


@dataclass
class Target:
    name: str
    url: str
    pids: tuple[int, ...] = ()
    seen: dict[int, Seen] = field(default_factory=dict)

    def processes(self) -> list[psutil.Process]:
        found = []
        for pid in self.pids:
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(pid)
                found += [root, *root.children(recursive=True)]
        return found

    def cpu_s(self) -> float:
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total


class Client:
    """One kept-alive connection; raw, so that the load costs as little as it can."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._host, self._port = where.hostname or "", where.port or 80
        self._request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {where.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
        ).encode() + BODY
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, seen: Seen, tokens: int = TOKENS) -> None:
        if self._writer is None or self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        begun = time.perf_counter()
        self._writer.write(self._request)
        last, body = 0.0, b""
        while not body.endswith(b"0\r\n\r\n"):
            data = await self._reader.read(65536)
            now = time.perf_counter()
            if not data:
                break
            body += data
            if WORD.search(data):  # a proxy may put several words into one chunk
                seen.gaps.append(now - last) if last else seen.first.append(now - begun)
                last = now
        words = len(WORD.findall(body))
        seen.chunks += words
        if words != tokens or b"[DONE]" not in body:
            seen.failed += 1
            await self.close()

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._reader = self._writer = None


async def load(
    target: Target,
    streams: int,
    requests: int,
    tokens: int = TOKENS,
    interval_ms: float = INTERVAL_MS,
) -> None:
    """``streams`` clients ask ``requests`` times each, one after another."""
    seen = target.seen.setdefault(streams, Seen())
    before = target.cpu_s()

    async def one(number: int) -> None:
        client = Client(target.url)
        await asyncio.sleep(number * tokens * interval_ms / 1000 / streams)
        for _ in range(requests):
            await client.ask(seen, tokens)
        await client.close()

    async with asyncio.TaskGroup() as clients:
        for number in range(streams):
            clients.create_task(one(number))
    seen.cpu_s += target.cpu_s() - before


@contextlib.contextmanager
def child(*command: str) -> Iterator[tuple[str, int]]:
    """A process whose first line is its address."""
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip(), process.pid
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def litellm(program: str | None, upstream: str) -> Iterator[Target | None]:
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="fb-litellm-") as folder:
        port = free_port()
        process = litellm_proxy.start(program, upstream, MODEL, port, Path(folder))
        try:
            yield Target("LiteLLM", f"http://127.0.0.1:{port}", (process.pid,))
        finally:
            process.kill()
            process.wait()


def pin(targets: list[Target], load_pids: list[int]) -> bool:
    """Proxies on the first core, load and upstream on the second."""
    if (os.cpu_count() or 1) < 2 or not hasattr(os, "sched_setaffinity"):
        return False
    for pid in (0, *load_pids):
        os.sched_setaffinity(pid, {1})
    for target in targets:
        for process in target.processes():
            for thread in process.threads():
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(thread.id, {0})
    return True


async def settle(targets: list[Target]) -> None:
    """Wait until nobody is still starting: spare workers load after the first is ready."""
    for _ in range(60):
        before = [t.cpu_s() for t in targets]
        await asyncio.sleep(1)
        if all(t.cpu_s() - b < 0.1 for t, b in zip(targets, before, strict=True)):
            return


def figures(target: Target, direct: Target) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for streams, seen in target.seen.items():
        base = direct.seen[streams]
        found[str(streams)] = {
            "ttft_p50_ms": round(percentile(seen.first, 50) * 1000, 3),
            "ttft_p99_ms": round(percentile(seen.first, 99) * 1000, 3),
            "added_p50_ms": round((percentile(seen.first, 50) - percentile(base.first, 50)) * 1000, 3),
            "added_p99_ms": round((percentile(seen.first, 99) - percentile(base.first, 99)) * 1000, 3),
            "gap_p99_ms": round(percentile(seen.gaps, 99) * 1000, 2),
            "cpu_us_per_chunk": round(seen.cpu_s / max(1, seen.chunks) * 1e6, 1),
            "answers": len(seen.first),
            "failed": seen.failed,
        }  # fmt: skip
    return found


Rows = list[tuple[str, str, str, bool | None]]


def judged(found: dict[str, dict[str, Any]], rss_mb: float) -> Rows:
    ours, bare = found["Forebay"], found["pass-through"]
    rows: Rows = []
    for name, by_streams in found.items():
        for streams, f in by_streams.items():
            rows.append(
                (
                    f"{name}, {streams} streams",
                    f"+{f['added_p50_ms']} / +{f['added_p99_ms']} ms, gap {f['gap_p99_ms']} ms, "
                    f"{f['cpu_us_per_chunk']} us a chunk, {f['failed']} failed",
                    "",
                    None,
                )
            )
    cpu = ours["32"]["cpu_us_per_chunk"]
    for streams, limit in (("1", 3), ("32", 8)):
        added = ours[streams]["added_p50_ms"]
        rows.append(
            (f"added TTFT p50, {streams} streams", f"{added} ms", f"<= {limit} ms", added <= limit)
        )
        gap = ours[streams]["gap_p99_ms"]
        rows.append((f"p99 gap, {streams} streams", f"{gap} ms", "<= 25 ms", gap <= 25))
    rows.append(("gateway process", f"{rss_mb:.0f} MB", "<= 150 MB", rss_mb <= 150))
    ratio = cpu / max(1e-9, bare["32"]["cpu_us_per_chunk"])
    rows.append(("CPU a chunk over pass-through", f"{ratio:.1f}x", "<= 4x", ratio <= 4))
    if "LiteLLM" in found:
        part = cpu / max(1e-9, found["LiteLLM"]["32"]["cpu_us_per_chunk"])
        rows.append(("CPU a chunk over LiteLLM", f"{part:.2f}x", "<= 0.2x", part <= 0.2))
    else:
        rows.append(("LiteLLM", "not installed, skipped", litellm_proxy.HOW, None))
    failed = sum(f["failed"] for f in ours.values())
    rows.append(("answers that were not whole", str(failed), "0", failed == 0))
    return rows


async def main() -> int:
    wanted = options(__doc__ or "", requests=40, rounds=3, litellm="")
    upstream_args = ("--tokens", str(TOKENS), "--interval-ms", str(INTERVAL_MS))
    with contextlib.ExitStack() as stack:
        fake, fake_pid = stack.enter_context(child("tests.fakes.sglang", *upstream_args))
        bare, bare_pid = stack.enter_context(child("benchmarks.peers.passthrough", "--upstream", fake))  # fmt: skip
        engine = f"text=openai:base_url={fake},model={MODEL},slots=64"
        server = stack.enter_context(serving("--engine", engine, "--engine", "speech=synthetic"))
        other = stack.enter_context(litellm(litellm_proxy.find(wanted.litellm), fake))
        direct = Target("direct", fake)
        ours = Target("Forebay", server.http, (server.process.pid,))
        proxies = [Target("pass-through", bare, (bare_pid,)), ours, *([other] if other else [])]
        await settle(proxies)
        pinned = pin(proxies, [fake_pid])
        for target in (direct, *proxies):
            await load(target, 4, 3)
        for target in (direct, *proxies):
            target.seen.clear()
        for _ in range(wanted.rounds):
            for streams in (1, 32):
                for target in (direct, *proxies):
                    each = wanted.requests if streams == 1 else max(2, wanted.requests // 4)
                    await load(target, streams, each)
        rss_mb = server.gateway().memory_info().rss / 1e6
        found = {t.name: figures(t, direct) for t in (direct, *proxies)}
    rows = judged(found, rss_mb)
    return report(
        "openai proxy",
        rows,
        wanted.output_json,
        figures=found,
        gateway_rss_mb=rss_mb,
        pinned=pinned,
    )


if __name__ == "__main__":
    run(main)

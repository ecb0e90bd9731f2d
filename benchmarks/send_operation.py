"""Claim: `/send_operation` adds no delay anybody feels, direct and through nginx.

A ping's first line; the way of a token from the model server's write to the line that holds
it, at 32 streams; and what the older flush rules buy and cost: latency beside processor time
for immediate, 50 ms / 15 pieces, and 100 ms / 40 pieces, in the same run. The model server
writes the time into each token (`peers.stamping`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.harness import FOREBAY, Server, free_port, options, report, run, serving
from benchmarks.openai_proxy import Target, child, pin, settle
from benchmarks.peers.stamping import MODEL
from forebay.lab.stats import percentile

TOKENS = 40
INTERVAL_MS = 25
RULES = {"immediate": (0, 15, 20), "50 ms / 15": (50, 15, 20), "100 ms / 40": (100, 40, 50)}
QUESTION = {"type": "user_question", "payload": {"QId": "q", "content": "now?"}}


@dataclass
class Seen:
    """Seconds. ``way``: of each token; ``lines``: how many carried them."""

    first: list[float] = field(default_factory=list)
    way: list[float] = field(default_factory=list)
    lines: int = 0
    failed: int = 0
    cpu_s: float = 0.0


class Client:
    """One kept-alive connection, raw, so that the load costs as little as it can."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._host, self._port = where.hostname or "", where.port or 80
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, operation: dict[str, Any], seen: Seen) -> None:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        body = json.dumps({"notebook_id": "b", "operation": operation}).encode()
        begun = time.monotonic()
        self._writer.write(
            f"POST /send_operation HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, ended = False, False
        chunked = b"chunked" in head.lower()
        left = 0 if chunked else int(head.lower().partition(b"content-length:")[2].split()[0])
        while not ended:
            data, left = await self._piece(chunked, left)
            now = time.monotonic()
            if not first:
                first = True
                seen.first.append(now - begun)
            for line in data.splitlines():
                if b'"content":"' in line:
                    seen.lines += 1
                    words = line.partition(b'"content":"')[2].partition(b'"')[0].split()
                    seen.way += [now - int(word) / 1e9 for word in words]
            ended = b'"type":"ok"' in data
        seen.failed += b'"type":"error"' in data
        if chunked:
            await self._reader.readuntil(b"0\r\n\r\n")

    async def _piece(self, chunked: bool, left: int) -> tuple[bytes, int]:
        assert self._reader is not None
        if not chunked:
            return await self._reader.readexactly(left), 0
        size = int((await self._reader.readuntil(b"\r\n"))[:-2], 16)
        return (await self._reader.readexactly(size + 2))[:-2], 0

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()


async def pings(url: str, count: int) -> list[float]:
    client, seen = Client(url), Seen()
    for _ in range(20):
        await client.ask({"type": "ping"}, Seen())
    for _ in range(count):
        await client.ask({"type": "ping"}, seen)
    await client.close()
    return seen.first


async def questions(server: Server, url: str, streams: int, requests: int) -> Seen:
    """``streams`` clients ask ``requests`` times each; the gateway's CPU over that time."""
    seen = Seen()
    gateway = server.gateway()

    async def one(number: int) -> None:
        client = Client(url)
        await asyncio.sleep(number * TOKENS * INTERVAL_MS / 1000 / streams)
        for _ in range(requests):
            await client.ask(QUESTION, seen)
        await client.close()

    before = _cpu_s(gateway)
    async with asyncio.TaskGroup() as clients:
        for number in range(streams):
            clients.create_task(one(number))
    seen.cpu_s = _cpu_s(gateway) - before
    return seen


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextlib.contextmanager
def nginx(server: Server, program: str = "nginx") -> Iterator[str | None]:
    """A private nginx with the file that ``forebay config nginx`` prints."""
    found = [p for p in (f"/usr/sbin/{program}", f"/usr/bin/{program}") if Path(p).is_file()]
    if not found:
        yield None
        return
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="fb-nginx-") as folder:
        printed = subprocess.run(
            [str(FOREBAY), "config", "nginx"], capture_output=True, text=True, check=True,
            env={**os.environ, "FOREBAY_SERVER_PORT": str(server.port)},
        ).stdout  # fmt: skip
        block = printed.replace("listen 80;", f"listen 127.0.0.1:{port};")
        block = block.replace("listen 18600;", f"listen 127.0.0.1:{free_port()};")
        paths = "".join(
            f"{name}_temp_path {folder}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = Path(folder) / "nginx.conf"
        config.write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
            f"events {{}}\nhttp {{ access_log off;\n{paths}{block}\n}}\n"
        )
        process = subprocess.Popen([found[0], "-p", folder, "-c", str(config)])
        try:
            time.sleep(0.5)
            if process.poll() is not None:
                raise RuntimeError((Path(folder) / "error.log").read_text()[-1000:])
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def ours(upstream: str, rule: tuple[int, int, int]) -> Iterator[Server]:
    interval_ms, items, cap = rule
    env = {
        **os.environ,
        "FOREBAY_OPERATIONS_FLUSH_INTERVAL_MS": str(interval_ms),
        "FOREBAY_OPERATIONS_FLUSH_ITEMS": str(items),
        "FOREBAY_OPERATIONS_FLUSH_CAP": str(cap),
    }
    engine = f"text=openai:base_url={upstream},model={MODEL},slots=64"
    arguments = ("--engine", engine, "--engine", "speech=synthetic", "--workers", "speech=0")
    with serving(*arguments, env=env) as server:
        yield server


def ms(values: list[float], q: float) -> float:
    return round(percentile(values, q) * 1000, 2)


def row(seen: Seen) -> dict[str, Any]:
    tokens = max(1, len(seen.way))
    return {
        "way_p50_ms": ms(seen.way, 50),
        "way_p99_ms": ms(seen.way, 99),
        "lines_per_token": round(seen.lines / tokens, 3),
        "gateway_cpu_us_per_token": round(seen.cpu_s / tokens * 1e6, 1),
        "tokens": len(seen.way),
        "failed": seen.failed,
    }


async def main() -> int:
    wanted = options(__doc__ or "", pings=400, streams=32, requests=6)
    raw: dict[str, Any] = {"rules": {}}
    stamps = ("--tokens", str(TOKENS), "--interval-ms", str(INTERVAL_MS))
    with child("benchmarks.peers.stamping", *stamps) as (upstream, pid):
        for name, rule in RULES.items():
            with ours(upstream, rule) as server:
                target = Target("Forebay", server.http, (server.process.pid,))
                await settle([target])
                raw["pinned"] = pin([target], [pid])
                await questions(server, server.http, 4, 1)
                seen = await questions(server, server.http, wanted.streams, wanted.requests)
                raw["rules"][name] = row(seen)
                if rule[0]:
                    continue
                raw["ping_p50_ms"] = ms(await pings(server.http, wanted.pings), 50)
                with nginx(server) as proxied:
                    if proxied is not None:
                        raw["nginx_ping_p50_ms"] = ms(await pings(proxied, wanted.pings), 50)
                        through = await questions(server, proxied, wanted.streams, wanted.requests)
                        raw["nginx"] = row(through)
    now = raw["rules"]["immediate"]
    rows: list[tuple[str, str, str, bool | None]] = []
    for name in ("ping_p50_ms", "nginx_ping_p50_ms"):
        if name in raw:
            rows.append((name, f"{raw[name]} ms", "<= 5 ms", raw[name] <= 5))
    rows += [
        ("token to line p50", f"{now['way_p50_ms']} ms", "<= 2 ms", now["way_p50_ms"] <= 2),
        ("token to line p99", f"{now['way_p99_ms']} ms", "<= 20 ms", now["way_p99_ms"] <= 20),
    ]
    if "nginx" in raw:
        added = round(raw["nginx"]["way_p99_ms"] - now["way_p99_ms"], 2)
        rows.append(("nginx adds, p99", f"{added} ms", "<= 2 ms", added <= 2))
    for name, found in raw["rules"].items():
        said = (
            f"{found['way_p50_ms']} / {found['way_p99_ms']} ms, "
            f"{found['gateway_cpu_us_per_token']} us a token, "
            f"{found['lines_per_token']} lines a token"
        )
        rows.append((f"{name}: p50 / p99", said, "", None))
    failed = sum(found["failed"] for found in raw["rules"].values())
    rows.append(("answers with an error", str(failed), "0", failed == 0))
    return report("send_operation", rows, wanted.output_json, **raw)


if __name__ == "__main__":
    run(main)

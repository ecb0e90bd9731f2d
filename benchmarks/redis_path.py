"""How long a chunk takes from a worker through Redis to a gateway, and how many get through.

Two figures: latency at many streams of ordinary speed, and the most that one server takes from
several workers. Beside the first stands the floor: the same bytes, as often, by bare pub/sub
through the same server in the same run; what lies between is what the broker's promises cost.

    python -m benchmarks.redis_path [--make redis|valkey] [--streams 200] [--seconds 10]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import struct
import sys
import time
from typing import Any

import psutil
import uvloop

from benchmarks.harness import console
from forebay.broker import Assign, Credit, OutputPush
from forebay.broker.local_base import Settings
from forebay.broker.redis import RedisOptions, open_gateway_broker
from forebay.broker.redis_worker import worker_broker
from forebay.core.admission import JobLimits
from forebay.core.events import Audio, Consumed, Text
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec, WorkerInfo
from forebay.core.stream import Stamper
from forebay.lab.redis_server import PrivateRedis, find_program
from forebay.lab.stats import machine

POOL = "speech/bench"
FRAMES = 50  # with its header a chunk of about 100 bytes
PAD = bytes(2 * FRAMES - 8)


class Streams:
    """A worker that speaks as many streams as it is leased, as often as it is told."""

    def __init__(self, port: Any) -> None:
        self.port = port
        self.stampers: dict[str, Stamper] = {}
        self.credit: dict[str, int] = {}

    def take(self, push: Any) -> None:
        if isinstance(push, Assign):
            self.stampers[push.lease.spec.id] = Stamper(0, {}, {})
            self.credit[push.lease.spec.id] = push.lease.credit_bytes
        elif isinstance(push, Credit):
            self.credit[push.job] += push.add

    def speak(self, job: str) -> bool:
        if self.credit[job] < 1000:
            return False
        stamper = self.stampers[job]
        unit = stamper.marks.get("units", 0)
        data = struct.pack("<d", time.monotonic()) + PAD
        event = stamper.stamp(Audio(data=data, text="x", unit=unit, frames=FRAMES))
        self.credit[job] -= len(data) + 68
        self.port.commit(job, 1, [event], Consumed(0, unit + 1))
        return True


async def _work(url: str, name: str, expect: int, rate: float, seconds: float) -> None:
    port = worker_broker(url, name, options=RedisOptions())
    streams = Streams(port)
    await port.connect(streams.take)
    port.register(WorkerInfo(id=name, pools=[POOL], slots=expect, sessions=expect))
    while len(streams.stampers) < expect:
        port.beat(name, {})
        await asyncio.sleep(0.05)
    jobs = list(streams.stampers)
    until, beat_at, index = time.monotonic() + seconds, 0.0, 0
    started = time.monotonic()
    while (now := time.monotonic()) < until:
        if now > beat_at:
            port.beat(name, {})
            beat_at = now + 0.25
        if rate:
            due = int((now - started) * rate)
            while index < due:
                streams.speak(jobs[index % len(jobs)])
                index += 1
            await asyncio.sleep(0.001)
        else:
            for job in jobs:
                streams.speak(job)
            await asyncio.sleep(0)
    await port.drained()
    await port.close()


def _worker(url: str, name: str, expect: int, rate: float, seconds: float) -> None:
    uvloop.run(_work(url, name, expect, rate, seconds))


async def _publish(path: str, rate: float, seconds: float) -> None:
    from redis.asyncio import Redis

    client = Redis(unix_socket_path=path, protocol=3)
    started, index = time.monotonic(), 0
    payload = bytes(120)
    while (now := time.monotonic()) < started + seconds:
        due = int((now - started) * rate)
        if due > index:
            async with client.pipeline(transaction=False) as pipe:
                for _ in range(due - index):
                    pipe.publish("floor", struct.pack("<d", time.monotonic()) + payload)
                await pipe.execute()
            index = due
        await asyncio.sleep(0.001)
    await client.aclose()


def _publisher(path: str, rate: float, seconds: float) -> None:
    uvloop.run(_publish(path, rate, seconds))


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 if ordered else 0.0


async def _nothing(_: Any) -> None:
    """The floor needs no functions."""


async def _floor(server: PrivateRedis, rate: float, seconds: float) -> list[float]:
    """Latencies of bare pub/sub, read as the gateway reads."""
    from forebay.broker.redis_address import parse_url
    from forebay.broker.redis_client import Store

    times: list[float] = []

    def take(_: bytes, message: bytes) -> None:
        times.append(time.monotonic() - struct.unpack_from("<d", message)[0])

    store = Store(
        parse_url(server.url),
        "floor",
        channels=lambda: ["floor"],
        on_push=take,
        on_up=_nothing,
    )
    await store.open()
    child = multiprocessing.get_context("spawn").Process(
        target=_publisher, args=(server.path, rate, seconds)
    )
    child.start()
    await asyncio.to_thread(child.join)
    await store.close()
    return times


async def _path(
    server: PrivateRedis, streams: int, workers: int, rate: float, seconds: float
) -> dict[str, float]:
    """``rate``: chunks a second in all; 0 is as many as get through."""
    settings = Settings(limits=JobLimits(jobs=100_000))
    broker = await open_gateway_broker(server.url, settings)
    broker.expect([POOL])
    times: list[float] = []
    first, last = 0.0, 0.0

    def take(push: Any) -> None:
        nonlocal first, last
        if isinstance(push, OutputPush):
            now = time.monotonic()
            first, last = first or now, now
            for event in push.events:
                if isinstance(event, Audio):
                    times.append(now - struct.unpack_from("<d", event.data)[0])

    broker.open("g1", take)
    await broker.settled()
    each = streams // workers
    children = [
        multiprocessing.get_context("spawn").Process(
            target=_worker, args=(server.url, f"w{n}", each, rate / workers, seconds)
        )
        for n in range(workers)
    ]
    for child in children:
        child.start()
    jobs = [f"{time.monotonic_ns()}-{n}" for n in range(each * workers)]
    for job in jobs:
        params = {"sample_rate": 16_000}
        spec = JobSpec(id=job, kind=Kind.SPEECH, pool=POOL, params=params, detach_s=60)
        await broker.submit(spec, [Text(text="x" * 100, unit=0)], gateway="g1")
        await broker.attach(job, gateway="g1", write=False)
    mine, theirs = psutil.Process(), psutil.Process(server.pid)
    before = sum(mine.cpu_times()[:2]), sum(theirs.cpu_times()[:2])
    positions: dict[str, int] = {}
    while any(child.is_alive() for child in children):
        await asyncio.sleep(0.25)
        # Readers say how far they are, as the hub does; so the windows move.
        heads = await broker.jobs(limit=len(jobs)) if not rate else []
        positions = {view.spec.id: view.head for view in heads}
        await broker.delivered("g1", positions)
    after = sum(mine.cpu_times()[:2]), sum(theirs.cpu_times()[:2])
    for job in jobs:
        await broker.cancel(job)
    await broker.close()
    count = max(1, len(times))
    span = max(1e-9, last - first)
    return {
        "chunks": len(times),
        "per_s": len(times) / span,
        "p50_ms": quantile(times, 0.5),
        "p99_ms": quantile(times, 0.99),
        "gateway_us": 1e6 * (after[0] - before[0]) / count,
        "store_us": 1e6 * (after[1] - before[1]) / count,
    }


async def run(options: argparse.Namespace) -> dict[str, Any]:
    program = find_program(options.make)
    if program is None:
        sys.exit(f"no {options.make}-server here")
    server = PrivateRedis(program)
    try:
        rate = options.streams * options.rate
        floor = await _floor(server, rate, options.seconds)
        path = await _path(server, options.streams, 2, rate, options.seconds)
        most = await _path(server, 400, options.workers, 0, options.seconds)
    finally:
        server.close()
    return {
        "machine": machine(),
        "make": options.make,
        "streams": options.streams,
        "floor": {"p50_ms": quantile(floor, 0.5), "p99_ms": quantile(floor, 0.99)},
        "path": path,
        "most": most,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--make", choices=("redis", "valkey"), default="valkey")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=float, default=5.0, help="chunks a second per stream")
    parser.add_argument("--workers", type=int, default=2, help="that write as fast as they can")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()
    found = uvloop.run(run(options))
    console.print_json(json.dumps(found, default=str))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump(found, out, indent=2, default=str)


if __name__ == "__main__":
    main()

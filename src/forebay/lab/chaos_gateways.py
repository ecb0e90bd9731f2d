"""Gateways that die, leave and are replaced, alone and together with workers."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

import aiohttp
import msgspec

from forebay.lab.chaos import Check, Options, register
from forebay.lab.chaos_cluster import Cluster, Server, until
from forebay.lab.chaos_people import Crowd, gaps, history, said, within
from forebay.lab.stats import summary

__all__: list[str] = []

TWO = ("--broker", "redis", "--gateways", "2")
KILL_EVERY_S = 1.5


@register(
    "kills",
    rows=(1, 9),
    fault="a SIGKILL every 1.5 s for 60 s, drawn evenly from gateways and workers",
    expected="300 sessions lose, repeat and reorder nothing; drop to next chunk p95 <= 1 s",
    limit_s=300,
)
async def kills(options: Options) -> Sequence[Check]:
    rng = random.Random(options.seed)
    seconds = max(10.0, 60.0 * options.scale)
    async with Cluster() as cluster:
        server = await cluster.serve(*TWO, "--workers", "speech=3")
        await cluster.ready(server, 3)
        crowd = Crowd(cluster.http, [server.tts], options.sized(300, 10), seconds, spread_s=3.0)
        await crowd.begin()
        victims: Counter[str] = Counter()
        end = time.monotonic() + seconds
        while time.monotonic() < end and crowd.active:
            await asyncio.sleep(KILL_EVERY_S)
            role = rng.choice(("gateway", "worker"))
            pool = server.gateways() if role == "gateway" else server.workers("speech")
            if pool:
                rng.choice(pool).kill()
                victims[role] += 1
        outcomes = await crowd.finish()
        ready = _ready_times(server)
        return [
            Check("kills", said(victims)),
            *history(outcomes),
            within("drop to next chunk", [s for o in outcomes for s in o.gaps_s], 1.0, 95),
            *gaps(outcomes),
            *(
                Check(f"{role}: killed to ready again", f"p50 {t['p50_ms']:.0f} ms, "
                      f"max {t['max_ms']:.0f} ms of {t['count']:g}")
                for role, t in ready.items()
            ),
        ]  # fmt: skip


def _ready_times(server: Server) -> dict[str, dict[str, float]]:
    """From each exit of a process to its successor's readiness, from the supervisor's log."""
    gone: dict[str, float] = {}
    took: dict[str, list[float]] = {"gateway": [], "worker": []}
    for line in server.text().splitlines():
        with contextlib.suppress(ValueError, KeyError):
            entry = msgspec.json.decode(line)
            at = datetime.fromisoformat(entry["ts"]).timestamp()
            name = entry["name"]
            role = "gateway" if name.startswith("gateway") else "worker"
            if entry["event"] == "process.exited":
                gone[name] = at
            elif entry["event"] in ("process.ready", "process.promoted") and name in gone:
                took[role].append(at - gone.pop(name))
    return {role: summary(values) for role, values in took.items()}


@register(
    "gateway-kill",
    rows=(9,),
    fault="a gateway is killed with SIGKILL; its clients resume on the other",
    expected="nothing lost; drop to next chunk p95 <= 1 s with 50 ms of client back-off",
)
async def gateway_kill(options: Options) -> Sequence[Check]:
    async with Cluster() as cluster:
        server = await cluster.serve(*TWO)
        crowd = Crowd(cluster.http, [server.tts], options.sized(60, 6), 10)
        await crowd.begin()
        for _ in range(2):
            await until(lambda: len(server.gateways()) == 2, 20, "the replacement")
            await asyncio.sleep(2.0)
            server.gateways()[0].kill()
            await asyncio.sleep(0.3)
        outcomes = await crowd.finish()
        return [
            *history(outcomes),
            within("drop to next chunk", [s for o in outcomes for s in o.gaps_s], 1.0, 95),
            *gaps(outcomes),
        ]


@register(
    "both-gateways",
    rows=(11,),
    fault="both gateways are killed one second apart during 100 streams",
    expected="every session resumes and ends completed",
)
async def both_gateways(options: Options) -> Sequence[Check]:
    async with Cluster() as cluster:
        server = await cluster.serve(*TWO)
        crowd = Crowd(cluster.http, [server.tts], options.sized(100, 10), 10)
        await crowd.begin()
        first, second = server.gateways()
        first.kill()
        await asyncio.sleep(1.0)
        second.kill()
        outcomes = await crowd.finish()
        return [*history(outcomes), *gaps(outcomes)]


# -------------------------------------------------------------------------- rolling


class Looper:
    """A client that connects, asks and leaves, again and again."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.connects = 0
        self.failed: Counter[str] = Counter()
        self.stop = False

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=10)
        while not self.stop:
            # A connector of its own each time: a new connection, not a kept one.
            connector = aiohttp.TCPConnector(force_close=True)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
                try:
                    async with http.get(self._url + "/healthz") as answer:
                        await answer.read()
                        if answer.status != 200:
                            self.failed[f"status {answer.status}"] += 1
                except (aiohttp.ClientError, OSError) as exc:
                    self.failed[type(exc).__name__] += 1
            self.connects += 1


@register(
    "rolling-restart",
    rows=(10,),
    fault="five rolling restarts under 32 looping clients and speaking sessions",
    expected="0 failed connects of >= 10,000; no session is lost",
    limit_s=600,
)
async def rolling_restart(options: Options) -> Sequence[Check]:
    rolls = options.sized(5, 1)
    async with Cluster() as cluster:
        server = await cluster.serve(*TWO, env={"FOREBAY_SERVER_DRAIN_S": "5"})
        before = {p.pid for p in (*server.gateways(), *server.workers())}
        loopers = [Looper(server.http) for _ in range(32)]
        running = [asyncio.create_task(looper.run()) for looper in loopers]
        crowd = Crowd(cluster.http, [server.tts], options.sized(40, 4), 20.0 * rolls)
        try:
            await crowd.begin()
            took = [await _roll(server, n) for n in range(1, rolls + 1)]
            wanted = options.sized(10_000, 100)
            await until(lambda: sum(x.connects for x in loopers) >= wanted, 120, "the connects")
        finally:
            for looper in loopers:
                looper.stop = True
            await asyncio.gather(*running)
        outcomes = await crowd.finish()
        failed: Counter[str] = sum((looper.failed for looper in loopers), Counter())
        after = {p.pid for p in (*server.gateways(), *server.workers())}
        return [
            Check("rolling restarts", f"{rolls}, {max(took):.1f} s at most"),
            Check("processes that are still the old", str(len(before & after)), "0",
                  not before & after),
            Check("connects", str(sum(x.connects for x in loopers)), f">= {wanted}",
                  sum(x.connects for x in loopers) >= wanted),
            Check("failed connects", said(failed), "none", not failed),
            *history(outcomes),
            within("drop to next chunk", [s for o in outcomes for s in o.gaps_s], 1.0, 95),
        ]  # fmt: skip


async def _roll(server: Server, times: int) -> float:
    began = time.monotonic()
    server.send(signal.SIGUSR2)
    await until(lambda: server.text('"supervisor.rolled"').count("\n") + 1 >= times
                and server.text('"supervisor.rolled"'), 120, "the end of the roll")  # fmt: skip
    return time.monotonic() - began


# ---------------------------------------------------------------------------- storm


@register(
    "reconnect-storm",
    rows=(26,),
    fault="2,000 sessions lose their connection at the same moment",
    expected="all are back within 10 s; no job twice",
    limit_s=240,
)
async def reconnect_storm(options: Options) -> Sequence[Check]:
    async with Cluster() as cluster:
        server = await cluster.serve(*TWO)
        count = options.sized(2000, 20)
        crowd = Crowd(cluster.http, [server.tts], count, 15.0, spread_s=6.0 * options.scale)
        await crowd.begin()
        for gateway in server.gateways():
            gateway.kill()
        struck = time.monotonic()
        await until(lambda: sum(o.resumed > 0 for o in crowd.outcomes) >= 0.999 * count
                    or not crowd.active, 60, "the sessions' return")  # fmt: skip
        back_s = time.monotonic() - struck
        rss = [p.memory_info().rss / 1e6 for p in server.gateways()]
        outcomes = await crowd.finish()
        jobs = await cluster.status(server, "/api/jobs?limit=10000")
        return [
            Check("all back after", f"{back_s:.1f} s", "<= 10 s", back_s <= 10),
            Check("gateway memory", ", ".join(f"{mb:.0f} MB" for mb in rss)),
            Check("jobs", f"{len(jobs.get('jobs', []))} listed of {count} sessions"),
            *history(outcomes),
        ]

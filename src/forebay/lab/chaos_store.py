"""The store under everything: killed, emptied, frozen, full, or refused at the start."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import Sequence

import aiohttp

from forebay.lab.chaos import Check, NotRun, Options, register
from forebay.lab.chaos_cluster import (
    SPEECH,
    Cluster,
    Server,
    Store,
    around,
    commands,
    until,
)
from forebay.lab.chaos_people import Crowd, history, said, within

__all__: list[str] = []

FREEZE_S = 10.0


async def _around(cluster: Cluster, store: Store) -> Server:
    """Two gateways and two workers around ``store``."""
    words = ("--gateways", "2", "--engine", f"speech={SPEECH}", "--workers", "speech=2")
    server = await cluster.serve(*words, env=around(store.url))
    await cluster.ready(server, 2)
    return server


@register(
    "redis-restart",
    rows=(12,),
    fault="Redis is killed with SIGKILL and started again with its append-only file",
    expected="streams pause for <= 2 s and go on; nothing lost, no process exits",
)
async def redis_restart(options: Options) -> Sequence[Check]:
    async with Cluster() as cluster:
        store = await cluster.store()
        server = await _around(cluster, store)
        pids = {p.pid for p in (*server.gateways(), *server.workers())}
        crowd = Crowd(cluster.http, [server.tts], options.sized(40, 4), 10)
        await crowd.begin()
        await asyncio.sleep(1.0)
        store.kill()
        await store.start()
        outcomes = await crowd.finish()
        left = pids - {p.pid for p in (*server.gateways(), *server.workers())}
        return [
            *history(outcomes),
            within("pause of a session", [o.worst_gap_s for o in outcomes], 2.0),
            Check("processes that exited", str(len(left)), "0", not left),
        ]


@register(
    "redis-loss",
    rows=(13,),
    fault="Redis is killed and comes back empty",
    expected="every client is told state_lost within 3 s; none hangs, nothing is skipped",
)
async def redis_loss(options: Options) -> Sequence[Check]:
    async with Cluster() as cluster:
        store = await cluster.store()
        server = await _around(cluster, store)
        crowd = Crowd(cluster.http, [server.tts], options.sized(40, 4), 10)
        await crowd.begin()
        await asyncio.sleep(1.0)
        live = [o for o in crowd.outcomes if not o.ended]
        store.kill()
        store.forget()
        await store.start()
        back = time.monotonic()
        with contextlib.suppress(RuntimeError):
            await until(lambda: all(o.restarted or o.ended for o in live), 10)
        told_s = time.monotonic() - back
        told = sum(bool(o.restarted) or o.ended == "state_lost" for o in live)
        outcomes = await crowd.finish()
        hung = sum("hung" in o.errors for o in outcomes)
        return [
            Check("told that the state is lost", f"{told} of {len(live)}", "all",
                  told == len(live)),
            Check("told after", f"{told_s:.2f} s", "<= 3 s", told_s <= 3),
            Check("hanging sessions", str(hung), "0", hung == 0),
            Check("ended", said(Counter(o.ended or "nothing" for o in outcomes))),
            *history(outcomes, whole=False),
        ]  # fmt: skip


@register(
    "redis-freeze",
    rows=(14,),
    fault="Redis is stopped for 10 s (SIGSTOP, SIGCONT)",
    expected="new work refused in <= 1 s; not ready; all goes on <= 2 s after it wakes",
)
async def redis_freeze(options: Options) -> Sequence[Check]:
    async with Cluster() as cluster:
        store = await cluster.store()
        server = await _around(cluster, store)
        crowd = Crowd(cluster.http, [server.tts], options.sized(20, 4), 20)
        await crowd.begin()
        store.send(signal.SIGSTOP)
        await asyncio.sleep(0.5)
        end = time.monotonic() + FREEZE_S - 0.5
        answers: Counter[str] = Counter()
        slowest, ready = 0.0, True
        while time.monotonic() < end:
            began = time.monotonic()
            answers[await _submit(cluster.http, server)] += 1
            slowest = max(slowest, time.monotonic() - began)
            ready = (await cluster.status(server, "/readyz")).get("ready", False)
            await asyncio.sleep(0.2)
        store.send(signal.SIGCONT)
        woke = time.monotonic()

        async def served() -> bool:
            return await _submit(cluster.http, server) == "200"

        await until(served, 20, "service after the freeze")
        recovered_s = time.monotonic() - woke
        outcomes = await crowd.finish()
        return [
            Check("new work while frozen", said(answers), "refused", "200" not in answers),
            Check("slowest answer", f"{slowest:.2f} s", "<= 1 s", slowest <= 1.0),
            Check("ready while frozen", str(ready), "False", not ready),
            Check("recovery after it woke", f"{recovered_s:.2f} s", "<= 2 s", recovered_s <= 2),
            *history(outcomes),
        ]


async def _submit(http: aiohttp.ClientSession, server: Server) -> str:
    """The status of a plain speech request, or what went wrong."""
    body = {"model": "tts-1", "input": "Hello.", "voice": "alloy", "response_format": "pcm"}
    try:
        async with http.post(
            server.http + "/v1/audio/speech", json=body, timeout=aiohttp.ClientTimeout(total=8)
        ) as answer:
            await answer.read()
            return str(answer.status)
    except (aiohttp.ClientError, OSError) as exc:
        return type(exc).__name__


@register(
    "redis-full",
    rows=(17,),
    fault="Redis reaches maxmemory",
    expected="new work is refused with 503, nothing crashes; accepted again when there is room",
)
async def redis_full(options: Options) -> Sequence[Check]:
    async with Cluster() as cluster:
        store = await cluster.store()
        server = await _around(cluster, store)
        crowd = Crowd(cluster.http, [server.tts], options.sized(10, 4), 8)
        await crowd.begin()
        await _config(cluster, store, "maxmemory", "1mb")
        await asyncio.sleep(1.0)
        answers = Counter([await _submit(cluster.http, server) for _ in range(10)])
        await _config(cluster, store, "maxmemory", "0")
        freed = time.monotonic()

        async def served() -> bool:
            return await _submit(cluster.http, server) == "200"

        await until(served, 10, "service after there was room")
        took_s = time.monotonic() - freed
        outcomes = await crowd.finish()
        tracebacks = server.text().count("Traceback")
        return [
            Check("new work while full", said(answers), "503", set(answers) == {"503"}),
            Check("accepted again after", f"{took_s:.2f} s", "<= 2 s", took_s <= 2),
            Check("tracebacks", str(tracebacks), "0", tracebacks == 0),
            Check("ended", said(Counter(o.ended or "nothing" for o in outcomes))),
            *history(outcomes, whole=False),
        ]


async def _config(cluster: Cluster, store: Store, name: str, value: str) -> None:
    """CONFIG SET over a connection of its own."""
    from redis.asyncio import Redis

    async with Redis.from_url(store.url, socket_timeout=5) as client:
        await client.config_set(name, value)


@register(
    "redis-eviction",
    rows=(18,),
    fault="Redis is configured to evict keys",
    expected="the start is refused with one line that says so",
)
async def redis_eviction(options: Options) -> Sequence[Check]:
    async with Cluster() as cluster:
        store = await cluster.store(maxmemory_policy="allkeys-lru", maxmemory="100mb")
        words = ("--workers", "speech=0")
        server = await cluster.serve(*words, ready=False, env=around(store.url))
        found = await until(lambda: server.text("gateway.cannot_boot"), 20, "the refusal")
        line = found.splitlines()[0]
        return [
            Check("refused with", line[:160]),
            Check("says which policy", str("allkeys-lru" in line), "True", "allkeys-lru" in line),
            Check("tracebacks", str(server.text().count("Traceback")), "0",
                  "Traceback" not in server.text()),
        ]  # fmt: skip


@register(
    "disk-full",
    rows=(20,),
    fault="the disk under Redis's append-only file is full",
    expected="new work is refused; nothing crashes; it clears itself when there is room",
)
async def disk_full(options: Options) -> Sequence[Check]:
    async with Cluster() as cluster:
        disk = cluster.folder / "disk"
        disk.mkdir()
        commands("a small disk", [["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]])
        try:
            return await _on_small_disk(cluster, Store(disk / "store", persist=True, settings={}))
        finally:
            for store in cluster.stores:
                store.kill()
            with contextlib.suppress(NotRun):
                commands("umount", [["umount", "-l", str(disk)]])


async def _on_small_disk(cluster: Cluster, store: Store) -> list[Check]:
    cluster.stores.append(store)
    await store.start()
    server = await _around(cluster, store)
    ballast = store.files.config.parent.parent / "ballast" if store.files else None
    assert ballast is not None  # noqa: S101 - started above
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)

    async def refused() -> bool:
        return await _submit(cluster.http, server) not in ("200", "ServerDisconnectedError")

    with contextlib.suppress(RuntimeError):
        await until(refused, 15)
    answers = Counter([await _submit(cluster.http, server) for _ in range(5)])
    health = await cluster.status(server, "/healthz")
    ballast.unlink()

    async def served() -> bool:
        return await _submit(cluster.http, server) == "200"

    freed = time.monotonic()
    await until(served, 30, "service after there was room")
    return [
        Check("new work while full", said(answers), "refused", "200" not in answers),
        Check("health goes on", str(bool(health)), "True", bool(health)),
        Check("accepted again after", f"{time.monotonic() - freed:.2f} s"),
        Check("tracebacks", str(server.text().count("Traceback")), "0",
              "Traceback" not in server.text()),
    ]  # fmt: skip

"""Workers that die, freeze, run out of memory, or are told to stop in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import msgspec

from forebay.client.s1 import SpeechState
from forebay.lab.chaos import Check, NotRun, Options, register
from forebay.lab.chaos_cluster import Cluster, until
from forebay.lab.chaos_people import Crowd, history, within

__all__: list[str] = []

REDIS = ("--broker", "redis")
LEASE_S = 0.8


@register(
    "worker-kill",
    rows=(1,),
    fault="a worker is killed with SIGKILL in the middle of its streams",
    expected="others go on from the last commit; nothing lost, doubled or reordered",
)
async def worker_kill(options: Options) -> Sequence[Check]:
    rng = random.Random(options.seed)
    async with Cluster() as cluster:
        server = await cluster.serve(*REDIS, "--workers", "speech=2")
        await cluster.ready(server, 2)
        crowd = Crowd(cluster.http, [server.tts], options.sized(40, 4), 12)
        await crowd.begin()
        kills = []
        for _ in range(4):
            await until(lambda: len(server.workers("speech")) == 2, 20, "the replacement")
            await cluster.ready(server, 2)
            await asyncio.sleep(rng.uniform(0.2, 0.6))
            rng.choice(server.workers("speech")).kill()
            kills.append(time.monotonic())
        outcomes = await crowd.finish()
        return [
            Check("kills", str(len(kills))),
            *history(outcomes),
            within("longest silence of a session", [o.worst_gap_s for o in outcomes], 2.0, 99),
        ]


@register(
    "worker-freeze",
    rows=(2,),
    fault="a worker is stopped for two leases and then wakes up (SIGSTOP, SIGCONT)",
    expected="its jobs move; what it writes after waking is refused",
)
async def worker_freeze(options: Options) -> Sequence[Check]:
    async with Cluster() as cluster:
        server = await cluster.serve(*REDIS, "--workers", "speech=2")
        await cluster.ready(server, 2)
        crowd = Crowd(cluster.http, [server.tts], options.sized(40, 4), 10)
        await crowd.begin()
        victim = server.workers("speech")[0]
        victim.suspend()
        await asyncio.sleep(2 * LEASE_S)
        victim.resume()
        outcomes = await crowd.finish()
        return [
            *history(outcomes),
            within("longest silence of a session", [o.worst_gap_s for o in outcomes], 3.0, 99),
        ]


MEMORY_GROUP = Path("/sys/fs/cgroup/memory")
FILL = """
import sys, time
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
open("/proc/self/oom_score_adj", "w").write("-900")
held = []
while True:
    held.append(b"x" * (1 << 20))
    time.sleep(0.01)
"""
"""A neighbour that takes more than there is, little by little, and is not chosen for it."""


@register(
    "worker-oom",
    rows=(3,),
    fault="the control group of a server is out of memory; the kernel kills a worker",
    expected="as a kill; the exit is called what it was",
)
async def worker_oom(options: Options) -> Sequence[Check]:
    if not (MEMORY_GROUP / "memory.limit_in_bytes").exists() or os.geteuid() != 0:
        raise NotRun("needs root and the memory controller of control groups, version 1")
    group = MEMORY_GROUP / f"forebay-chaos-{secrets.token_hex(4)}"
    try:
        group.mkdir()
    except OSError as exc:
        raise NotRun(f"control groups cannot be made here: {exc.strerror}") from exc
    try:
        async with Cluster() as cluster:
            return await _out_of_memory(cluster, group, options)
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def _choose(pid: int) -> None:
    """Whom the kernel kills first."""
    Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


async def _out_of_memory(cluster: Cluster, group: Path, options: Options) -> list[Check]:
    server = await cluster.serve(*REDIS, "--workers", "speech=2", group=group)
    await cluster.ready(server, 2)
    crowd = Crowd(cluster.http, [server.tts], options.sized(20, 4), 8)
    await crowd.begin()
    victim = server.workers("speech")[0]
    limit = group / "memory.limit_in_bytes"
    _choose(victim.pid)
    limit.write_text(str(int((group / "memory.usage_in_bytes").read_text()) + (1 << 20)))
    hog = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", FILL, str(group))
    try:
        await until(lambda: not victim.is_running() or victim.status() == "zombie", 20)
    except RuntimeError as exc:
        await crowd.stop()
        raise NotRun("the kernel found room for all") from exc
    finally:
        limit.write_text("-1")
        with contextlib.suppress(ProcessLookupError):
            hog.kill()
        await hog.wait()
    outcomes = await crowd.finish()
    named = "ran out of memory" in server.text("process.exited")
    return [
        Check("its exit is called out of memory", str(named), "True", named),
        *history(outcomes),
    ]


@register(
    "cancel",
    rows=(8,),
    fault="clients cancel in the middle of a stream",
    expected="the end is told at once, nothing is heard after it, the slot is free",
)
async def cancel(options: Options) -> Sequence[Check]:
    async with Cluster() as cluster:
        engine = "speech=synthetic:rtf=1,unit_ms=40,slots=200"
        server = await cluster.serve(*REDIS, "--engine", engine)
        found = await asyncio.gather(
            *(_cancel(cluster.http, server.tts) for _ in range(options.sized(50, 5)))
        )

        async def idle() -> bool:
            status = await cluster.status(server)
            return all(p.get("running", 0) == 0 for p in status.get("pools", [{}]))

        began = time.monotonic()
        await until(idle, 5, "a free slot")
        return [
            within("cancel to tts_end", [s for s, _ in found], 0.25, 99),
            Check("audio after the end", str(sum(n for _, n in found)), "0",
                  not any(n for _, n in found)),
            Check("slots free after", f"{(time.monotonic() - began) * 1000:.0f} ms"),
        ]  # fmt: skip


async def _cancel(http: aiohttp.ClientSession, url: str) -> tuple[float, int]:
    """Seconds from cancel to `tts_end`, and audio frames after that."""
    state = SpeechState(secrets.token_hex(16))
    async with http.ws_connect(url, compress=0) as socket:
        await socket.send_str(msgspec.json.encode(state.start()).decode())
        await socket.receive()
        await socket.send_str(msgspec.json.encode(state.delta("A long sentence. " * 20)).decode())
        while (msgspec.json.decode((await socket.receive()).data))["type"] != "audio_chunk":
            continue
        at = time.monotonic()
        await socket.send_str(msgspec.json.encode(state.cancel()).decode())
        took, late = 0.0, 0
        async for message in socket:
            kind = msgspec.json.decode(message.data)["type"]
            if kind == "tts_end":
                took = time.monotonic() - at
            elif kind == "audio_chunk" and took:
                late += 1
        return took, late


@register(
    "worker-drain",
    rows=(10,),
    fault="a worker is told to leave (SIGTERM) in the middle of its streams",
    expected="it hands its sessions back after the step; nobody hears of it",
)
async def worker_drain(options: Options) -> Sequence[Check]:
    async with Cluster() as cluster:
        server = await cluster.serve(*REDIS, "--workers", "speech=2")
        await cluster.ready(server, 2)
        crowd = Crowd(cluster.http, [server.tts], options.sized(40, 4), 8)
        await crowd.begin()
        victim = server.workers("speech")[0]
        began = time.monotonic()
        victim.send_signal(signal.SIGTERM)
        await until(lambda: not victim.is_running() or victim.status() == "zombie", 20)
        left_s = time.monotonic() - began
        outcomes = await crowd.finish()
        return [
            Check("left after", f"{left_s:.2f} s"),
            *history(outcomes),
            within("longest silence of a session", [o.worst_gap_s for o in outcomes], 2.0, 99),
        ]

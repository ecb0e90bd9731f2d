"""More work than there is room for, and clients that ask for what cannot be."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import aiohttp
import msgspec

from forebay.client.s1 import SpeechState
from forebay.lab.chaos import Check, Options, register
from forebay.lab.chaos_cluster import Cluster, Server
from forebay.lab.chaos_people import said, within
from forebay.lab.stats import percentile

__all__: list[str] = []

TWO = ("--broker", "redis", "--gateways", "2")
SERVICE_S = 0.4


def _answers(slots: int) -> str:
    """A model that takes `SERVICE_S` for an answer. Text, because one of its slots holds one
    job: a voice's slot holds a hundred, and nobody would wait in the queue."""
    return f"text=synthetic:tokens=1,token_ms=0,latency_ms={SERVICE_S * 1000:g},slots={slots}"


async def _post(
    http: aiohttp.ClientSession, server: Server, headers: Mapping[str, str] | None = None
) -> tuple[str, float, str]:
    """(status, seconds, Retry-After) of one short completion."""
    body = {"model": "synthetic", "messages": [{"role": "user", "content": "Hello."}]}
    began = time.monotonic()
    try:
        async with http.post(
            server.http + "/v1/chat/completions",
            json=body,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=60),
        ) as answer:
            await answer.read()
            after = answer.headers.get("Retry-After", "")
            return str(answer.status), time.monotonic() - began, after
    except (aiohttp.ClientError, OSError) as exc:
        return type(exc).__name__, time.monotonic() - began, ""


class Pace(NamedTuple):
    """Answers a second, and how long the slowest of a hundred took."""

    per_s: float
    p99_s: float


async def _closed_loop(cluster: Cluster, server: Server, people: int, seconds: float) -> Pace:
    """How fast ``people`` who each ask again at once are answered: what this machine can do
    today, beside which an overload is judged."""
    took: list[float] = []
    end = time.monotonic() + seconds

    async def ask() -> None:
        while time.monotonic() < end:
            status, seconds_, _ = await _post(cluster.http, server)
            if status == "200":
                took.append(seconds_)

    began = time.monotonic()
    await asyncio.gather(*(ask() for _ in range(people)))
    return Pace(len(took) / (time.monotonic() - began), percentile(took, 99))


async def _longest_queue(cluster: Cluster, server: Server) -> int:
    """How many wait at most, until this is cancelled."""
    most = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            most = max(most, int((await cluster.status(server)).get("queued", 0)))
            await asyncio.sleep(0.1)
    return most


@register(
    "herd",
    rows=(27,),
    fault="2,000 posts at once for 50 slots and a queue of 200",
    expected="what fits is served; the rest is refused at once with a jittered Retry-After",
)
async def herd(options: Options) -> Sequence[Check]:
    queue, slots = options.sized(200, 10), options.sized(50, 4)
    async with Cluster() as cluster:
        server = await cluster.serve(
            *TWO, "--engine", _answers(slots), env={"FOREBAY_LIMITS_QUEUE_JOBS": str(queue)}
        )
        count = options.sized(2000, 60)
        watch = asyncio.create_task(_longest_queue(cluster, server))
        found = await asyncio.gather(*(_post(cluster.http, server) for _ in range(count)))
        watch.cancel()
        longest = await watch
        answers = Counter(status for status, _, _ in found)
        refused = [entry for entry in found if entry[0] in ("503", "429")]
        waits = {after for _, _, after in refused}
        return [
            Check("answers", said(answers), "200 and 503", set(answers) <= {"200", "503", "429"}),
            Check("served", str(answers["200"]), f">= {slots}", answers["200"] >= slots),
            Check("longest queue", str(longest), f"<= {queue}", longest <= queue),
            Check("refusals that say when to come back",
                  f"{sum(bool(after) for _, _, after in refused)} of {len(refused)}", "all",
                  all(after for _, _, after in refused)),
            Check("different Retry-After", str(len(waits)), ">= 2",
                  len(waits) >= 2 or len(refused) < 20),
            # With the time that one process takes to open so many connections at once.
            Check("refused after p99, the crowd's own time included",
                  f"{percentile([s for _, s, _ in refused], 99) * 1000:.0f} ms"),
        ]  # fmt: skip


@register(
    "overload",
    rows=(28,),
    fault="twice the work there is capacity for, for a minute",
    expected="goodput stays >= 90 % of what was measured before; who is let in waits no longer "
    "than the queue takes",
)
async def overload(options: Options) -> Sequence[Check]:
    slots = options.sized(20, 2)
    queue = 2 * slots
    seconds = max(8.0, 60.0 * options.scale)
    async with Cluster() as cluster:
        server = await cluster.serve(
            *TWO, "--engine", _answers(slots), env={"FOREBAY_LIMITS_QUEUE_JOBS": str(queue)}
        )
        before = await _closed_loop(cluster, server, slots, 5.0)
        rate = 2 * before.per_s
        tasks = []
        began = time.monotonic()
        for n in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + n / rate - time.monotonic()))
            tasks.append(asyncio.create_task(_post(cluster.http, server)))
        sent_s = time.monotonic() - began
        found = await asyncio.gather(*tasks)
        took_s = time.monotonic() - began
        after = await _closed_loop(cluster, server, slots, 5.0)
        # The machine may have been given to somebody else meanwhile: the slower of the two.
        per_s = min(before.per_s, after.per_s)
        answers = Counter(status for status, _, _ in found)
        share = answers["200"] / took_s / per_s
        waited_s = 1.5 * max(before.p99_s, after.p99_s) + queue / per_s
        return [
            Check("capacity before and after",
                  f"{before.per_s:.1f}/s, {after.per_s:.1f}/s of {slots / SERVICE_S:g}/s"),
            Check("offered", f"{len(tasks) / sent_s:.1f}/s for {sent_s:.0f} s", "more than capacity",
                  len(tasks) / sent_s > per_s),
            Check("answers", said(answers), "200 and 503", set(answers) <= {"200", "503", "429"}),
            Check("refused", str(answers["503"]), "> 0", answers["503"] > 0),
            Check("goodput", f"{share:.0%} of capacity", ">= 90 %", share >= 0.9),
            within("admitted", [s for status, s, _ in found if status == "200"],
                   round(waited_s, 2), 99),
        ]  # fmt: skip


@register(
    "flood",
    rows=(29,),
    fault="one tenant floods the queue, another sends a little",
    expected="the light one waits one service time more than alone, at most",
)
async def flood(options: Options) -> Sequence[Check]:
    slots = options.sized(8, 2)
    env = {"FOREBAY_SERVER_TRUST_CLIENT_TENANT": "true"}
    async with Cluster() as cluster:
        server = await cluster.serve(*TWO, "--engine", _answers(slots), env=env)
        alone = [(await _post(cluster.http, server, {"X-Tenant": "light"}))[1] for _ in range(8)]
        began = time.monotonic()
        ended: list[float] = []

        async def push() -> None:
            if (await _post(cluster.http, server, {"X-Tenant": "heavy"}))[0] == "200":
                ended.append(time.monotonic())

        heavy = [asyncio.create_task(push()) for _ in range(slots * 20)]
        await asyncio.sleep(SERVICE_S)
        light = [(await _post(cluster.http, server, {"X-Tenant": "light"}))[1] for _ in range(8)]
        served = len(light) + len(ended)
        service_s = slots * (time.monotonic() - began) / served  # as long as one took meanwhile
        waiting = sum(not task.done() for task in heavy)
        for task in heavy:
            task.cancel()
        await asyncio.gather(*heavy, return_exceptions=True)
        limit_s = 1.2 * percentile(alone, 99) + service_s
        return [
            Check("alone p99", f"{percentile(alone, 99):.2f} s"),
            Check("one service beside the flood", f"{service_s:.2f} s of {SERVICE_S:g} s"),
            Check("of the flood still waiting", str(waiting), "> 0", waiting > 0),
            within("the light tenant beside the flood", light, round(limit_s, 2), 99),
        ]


@register(
    "duplicate-start",
    rows=(30,),
    fault="50 connections begin the same session at once, over both gateways",
    expected="exactly one job; every connection but the newest is told it was superseded",
)
async def duplicate_start(options: Options) -> Sequence[Check]:
    async with Cluster() as cluster:
        server = await cluster.serve(*TWO)
        state = SpeechState(secrets.token_hex(16))
        count = options.sized(50, 8)
        ends = await asyncio.gather(
            *(_begin(cluster.http, server.tts, state.start()) for _ in range(count))
        )
        listed = await cluster.status(server, "/api/jobs?limit=1000")
        jobs = listed.get("jobs", [])
        codes = Counter(str(code) for code in ends)
        return [
            Check("jobs", str(len(jobs)), "1", len(jobs) == 1),
            Check("connections", said(codes), "all but one superseded (4409)",
                  codes["4409"] == count - 1),
        ]  # fmt: skip


async def _begin(http: aiohttp.ClientSession, url: str, start: dict[str, Any]) -> int | None:
    """Begin a session and stay for 3 s; the close code, None where nobody closed."""
    async with http.ws_connect(url, compress=0) as socket:
        await socket.send_str(msgspec.json.encode(start).decode())
        try:
            async with asyncio.timeout(3):
                async for _ in socket:
                    continue
        except TimeoutError:
            return None
        return socket.close_code


@register(
    "bad-resume",
    rows=(32,),
    fault="clients resume from beyond the end, from -2, from 2^63 and in an unknown session",
    expected="each is refused by name; no traceback",
)
async def bad_resume(options: Options) -> Sequence[Check]:
    async with Cluster() as cluster:
        server = await cluster.serve(*TWO)
        found = {}
        for last in (10_000, -2, 2**63):
            found[str(last)] = await _resume(cluster.http, server.tts, last)
        named = all(code in ("resume_not_available", "bad_request") for code in found.values())
        return [
            Check("answers", ", ".join(f"{k}: {v}" for k, v in found.items()),
                  "resume_not_available or bad_request", named),
            Check("tracebacks", str(server.text().count("Traceback")), "0",
                  "Traceback" not in server.text()),
        ]  # fmt: skip


async def _resume(http: aiohttp.ClientSession, url: str, last: int) -> str:
    """The error code that resuming a live session from ``last`` is answered with."""
    state = SpeechState(secrets.token_hex(16))
    for known in (False, True):
        async with http.ws_connect(url, compress=0) as socket:
            await socket.send_str(msgspec.json.encode(state.start()).decode())
            await socket.receive()
            if not known:
                await socket.send_str(msgspec.json.encode(state.delta("Hello there.")).decode())
                await socket.receive()
                continue
            asked = state.resume() | {"last_unit_index_received": last}
            await socket.send_str(msgspec.json.encode(asked).decode())
            async with asyncio.timeout(5):
                async for message in socket:
                    said_back = msgspec.json.decode(message.data)
                    if said_back["type"] == "error":
                        return str(said_back["code"])
    return "nothing"

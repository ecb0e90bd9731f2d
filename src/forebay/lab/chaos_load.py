"""More work than there is room for, and clients that ask for what cannot be."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

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
        found = await asyncio.gather(*(_post(cluster.http, server) for _ in range(count)))
        answers = Counter(status for status, _, _ in found)
        refused = [entry for entry in found if entry[0] in ("503", "429")]
        waits = {after for _, _, after in refused}
        return [
            Check("answers", said(answers), "200 and 503", set(answers) <= {"200", "503", "429"}),
            Check("served", str(answers["200"]), f">= {slots}", answers["200"] >= slots),
            Check("refusals that say when to come back",
                  f"{sum(bool(after) for _, _, after in refused)} of {len(refused)}", "all",
                  all(after for _, _, after in refused)),
            Check("different Retry-After", str(len(waits)), ">= 2",
                  len(waits) >= 2 or len(refused) < 20),
            Check("refused after p99",
                  f"{percentile([s for _, s, _ in refused], 99) * 1000:.0f} ms"),
        ]  # fmt: skip


@register(
    "overload",
    rows=(28,),
    fault="twice the work there is capacity for, for half a minute",
    expected="goodput stays >= 90 % of capacity",
)
async def overload(options: Options) -> Sequence[Check]:
    slots = options.sized(20, 2)
    seconds = max(8.0, 30.0 * options.scale)
    rate = 2 * slots / SERVICE_S
    async with Cluster() as cluster:
        server = await cluster.serve(
            *TWO, "--engine", _answers(slots), env={"FOREBAY_LIMITS_QUEUE_JOBS": str(2 * slots)}
        )
        tasks = []
        began = time.monotonic()
        for n in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + n / rate - time.monotonic()))
            tasks.append(asyncio.create_task(_post(cluster.http, server)))
        found = await asyncio.gather(*tasks)
        took_s = time.monotonic() - began
        answers = Counter(status for status, _, _ in found)
        capacity = slots / SERVICE_S * took_s
        share = answers["200"] / capacity
        return [
            Check("answers", said(answers), "200 and 503", set(answers) <= {"200", "503", "429"}),
            Check("refused", str(answers["503"]), "> 0", answers["503"] > 0),
            Check("goodput", f"{share:.0%} of capacity", ">= 90 %", share >= 0.9),
            within("admitted", [s for status, s, _ in found if status == "200"], 3.0, 99),
        ]


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
        heavy = [
            asyncio.create_task(_post(cluster.http, server, {"X-Tenant": "heavy"}))
            for _ in range(slots * 20)
        ]
        await asyncio.sleep(SERVICE_S)
        light = [(await _post(cluster.http, server, {"X-Tenant": "light"}))[1] for _ in range(8)]
        for task in heavy:
            task.cancel()
        await asyncio.gather(*heavy, return_exceptions=True)
        limit_s = 1.2 * percentile(alone, 99) + SERVICE_S
        return [
            Check("alone p99", f"{percentile(alone, 99):.2f} s"),
            within("the light tenant beside the flood", light, limit_s, 99),
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

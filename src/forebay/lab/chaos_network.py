"""Networks between gateways, workers and the store that lose, delay or cut."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

from forebay.lab.chaos import Check, NotRun, Options, register
from forebay.lab.chaos_cluster import SPEECH, Cluster, Server, around, commands
from forebay.lab.chaos_people import Crowd, Span, gaps, history, unharmed, within
from forebay.lab.fault_proxy import FaultProxy

__all__: list[str] = []

TIMES, SPAN_S, REST_S = 4, 3.0, 2.0
"""A partition by turns with none: so often, each so long, and a pause after it."""


def through(url: str, host: str, port: int) -> str:
    """``url`` with another place to connect to."""
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{login}{at}{host}:{port}"))


def _port(url: str) -> int:
    return urlsplit(url).port or 6379


async def _partition(options: Options, *, reset: bool) -> list[Check]:
    async with Cluster() as cluster:
        store = await cluster.store()
        proxy = await FaultProxy(options.seed).start("127.0.0.1", _port(store.url))
        async with proxy:
            speech = ("--engine", f"speech={SPEECH}", "--workers")
            near = await cluster.serve(*speech, "speech=2", env=around(store.url))
            await cluster.ready(near, 2)
            cut_url = through(store.url, proxy.host, proxy.port)
            cut = await cluster.serve(*speech, "speech=0", env=around(cut_url))
            await cluster.ready(cut, 2)
            spoken_s = TIMES * (2 * SPAN_S + REST_S) + 2.0
            others = Crowd(cluster.http, [near.tts], options.sized(60, 4), spoken_s)
            theirs = Crowd(cluster.http, [cut.tts], options.sized(10, 2), spoken_s)
            await asyncio.gather(others.begin(), theirs.begin())
            during: list[Span] = []
            otherwise: list[Span] = []
            ready = 0
            for _ in range(TIMES):
                begun = time.monotonic()
                await asyncio.sleep(SPAN_S)
                otherwise.append((begun, time.monotonic()))
                ready += await _cut_off(cluster, cut, proxy, reset=reset)
                during.append((otherwise[-1][1], time.monotonic()))
                proxy.heal()
                await asyncio.sleep(REST_S)  # what was held up is made up for: neither
            kept, cut_off = await asyncio.gather(others.finish(), theirs.finish())
            return [
                Check("times the cut gateway was ready", f"{ready} of {TIMES}", "0", not ready),
                within("silence at the other gateway", [o.worst_gap_s for o in kept], 2.0, 99),
                *unharmed("typed to heard at the other gateway", kept, during, otherwise),
                *history([*kept, *cut_off]),
            ]


async def _cut_off(cluster: Cluster, cut: Server, proxy: FaultProxy, *, reset: bool) -> bool:
    """Part a gateway from the store for `SPAN_S`; whether it calls itself ready near the end."""
    begun = time.monotonic()
    if reset:
        proxy.refuse()
        proxy.reset()
    else:
        proxy.blackhole()
    await asyncio.sleep(SPAN_S * 2 / 3)
    facts = await cluster.status(cut, "/readyz")
    await asyncio.sleep(max(0.0, begun + SPAN_S - time.monotonic()))
    return facts.get("ready") is not False


@register(
    "partition",
    rows=(15,),
    fault="one of two gateways cannot reach Redis for 4 x 3 s: nothing arrives, nothing is refused",
    expected="it is not ready; people at the other are heard as soon as without; its own go on after",
)
async def partition(options: Options) -> Sequence[Check]:
    return await _partition(options, reset=False)


@register(
    "partition-reset",
    rows=(15,),
    fault="one of two gateways has its connections to Redis reset and refused for 4 x 3 s",
    expected="it is not ready; people at the other are heard as soon as without; its own go on after",
)
async def partition_reset(options: Options) -> Sequence[Check]:
    return await _partition(options, reset=True)


@register(
    "lossy-link",
    rows=(16,),
    fault="a worker machine reaches Redis over a link that loses 5 % and jitters by 30 ms",
    expected="slower and correct",
)
async def lossy_link(options: Options) -> Sequence[Check]:
    async with Cluster() as cluster:
        store = await cluster.store()
        proxy = await FaultProxy(options.seed).start("127.0.0.1", _port(store.url), jitter_s=0.03)
        async with proxy:
            server = await cluster.serve("--workers", "speech=0", env=around(store.url),
                                         ready=False)  # fmt: skip
            await cluster.work(through(store.url, proxy.host, proxy.port), 1)
            await cluster.ready(server, 1)
            proxy.set(loss=0.05)
            crowd = Crowd(cluster.http, [server.tts], options.sized(20, 4), 10)
            await crowd.begin()
            outcomes = await crowd.finish()
            return [*history(outcomes), *gaps(outcomes)]


class Namespace:
    """A machine of its own on this one: a network namespace behind a pair of interfaces."""

    def __init__(self) -> None:
        tag = secrets.token_hex(3)
        self.name = f"fb-{tag}"
        self.ours, self.theirs = f"fbo{tag}", f"fbt{tag}"
        third = secrets.randbelow(200) + 20
        self.gateway = f"10.213.{third}.1"
        self.address = f"10.213.{third}.2"

    def __enter__(self) -> Namespace:
        inside = ("ip", "netns", "exec", self.name)
        commands(
            "a network namespace",
            [
                ["ip", "netns", "add", self.name],
                ["ip", "link", "add", self.ours, "type", "veth", "peer", "name", self.theirs],
                ["ip", "link", "set", self.theirs, "netns", self.name],
                ["ip", "addr", "add", f"{self.gateway}/30", "dev", self.ours],
                ["ip", "link", "set", self.ours, "up"],
                [*inside, "ip", "addr", "add", f"{self.address}/30", "dev", self.theirs],
                [*inside, "ip", "link", "set", self.theirs, "up"],
                [*inside, "ip", "link", "set", "lo", "up"],
            ],
        )
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(NotRun):
            commands("a network namespace", [["ip", "netns", "del", self.name]])
        with contextlib.suppress(NotRun):
            commands("an interface", [["ip", "link", "del", self.ours]])

    def drop(self, share: float) -> None:
        """Lose this share of the packets in both directions."""
        chance = ("-m", "statistic", "--mode", "random", "--probability", str(share))
        inside = ("ip", "netns", "exec", self.name, "iptables")
        commands(
            "packet loss",
            [[*inside, "-A", chain, *chance, "-j", "DROP"] for chain in ("INPUT", "OUTPUT")],
        )

    def cut(self, down: bool) -> None:
        """Take the cable out, or put it back."""
        commands("the cable", [["ip", "link", "set", self.ours, "down" if down else "up"]])


@register(
    "lost-packets",
    rows=(16,),
    fault="a worker machine (a network namespace) loses 5 % of its packets to Redis",
    expected="slower and correct",
)
async def lost_packets(options: Options) -> Sequence[Check]:
    with Namespace() as machine:
        async with Cluster() as cluster:
            store = await cluster.store(bind=f"127.0.0.1 {machine.gateway}")
            server = await cluster.serve("--workers", "speech=0", env=around(store.url),
                                         ready=False)  # fmt: skip
            away = through(store.url, machine.gateway, _port(store.url))
            await cluster.work(away, 1, inside=machine.name)
            await cluster.ready(server, 1)
            machine.drop(0.05)
            crowd = Crowd(cluster.http, [server.tts], options.sized(20, 4), 10)
            await crowd.begin()
            outcomes = await crowd.finish()
            return [*history(outcomes), *gaps(outcomes)]


@register(
    "dead-machine",
    rows=(1, 15),
    fault="one of two worker machines (network namespaces) loses its cable",
    expected="its leases end by the missing heartbeat; others go on; nothing lost",
)
async def dead_machine(options: Options) -> Sequence[Check]:
    with Namespace() as machine:
        async with Cluster() as cluster:
            store = await cluster.store(bind=f"127.0.0.1 {machine.gateway}")
            words = ("--engine", f"speech={SPEECH}", "--workers", "speech=1")
            server = await cluster.serve(*words, env=around(store.url))
            away = through(store.url, machine.gateway, _port(store.url))
            await cluster.work(away, 1, inside=machine.name)
            await cluster.ready(server, 2)
            crowd = Crowd(cluster.http, [server.tts], options.sized(30, 4), 12)
            await crowd.begin()
            machine.cut(True)
            await asyncio.sleep(4.0)
            machine.cut(False)
            outcomes = await crowd.finish()
            return [
                *history(outcomes),
                within("longest silence of a session", [o.worst_gap_s for o in outcomes], 2.5, 99),
            ]

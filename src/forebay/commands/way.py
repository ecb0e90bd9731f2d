"""What `forebay doctor --url` says of the way to a server: proxies that hold streams back, the
network's share of the time, headers that are lost, silences that are cut.

Everything is asked of `gateway.probe`, which stamps what it sends. Whether a proxy holds
pieces back is told from *when they arrive*, not from the gaps between them: a proxy that
clumps makes the gaps look better.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import aiohttp
import msgspec

from forebay.client.reach import why
from forebay.commands.checks import Finding, State

__all__ = ["Probe", "clumped", "first_chunk", "judge_burst", "judge_headers", "way"]

PIECES, EVERY_MS = 8, 100
ROUNDS = 5
GRACE_S = 10.0
TOGETHER = 0.25
"""Pieces that arrive within this share of their distance in sending came in one clump."""
FAR_MS = 100.0
KEEP_PROXY = "proxy_buffering off; gzip off (nginx), flush_interval -1 (Caddy)"
NGINX_EATS = "x-accel-buffering"
"""nginx obeys this header and does not pass it on."""


@dataclass(slots=True)
class Probe:
    """One probe as it came in. Times are seconds; ``at_s``: when the server wrote each line,
    ``came_s``: when each arrived, both since the request."""

    at_s: list[float] = field(default_factory=list)
    came_s: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 0
    cut: bool = False  # it ended before its last line


async def way(http: aiohttp.ClientSession, url: str, idle_s: float) -> AsyncIterator[Finding]:
    """Findings on the way to ``url``. ``idle_s``: how long a silence is tried; 0: none is."""
    usual = await ask(http, url, n=PIECES, every_ms=EVERY_MS)
    if usual.status != 200 or not usual.facts:
        hint = "give a key with --key or FOREBAY_API_KEY" if usual.status in (401, 403) else (
            "a server of this version has it; a proxy may hide /api/probe/"
        )  # fmt: skip
        yield Finding(
            name="the way",
            state="warn",
            detail=f"/api/probe/stream answers {usual.status or 'nothing'}: the way is not known",
            next=hint,
        )
        return
    yield judge_burst("streams", usual)
    yield judge_burst("event streams", await ask(http, url, n=PIECES, every_ms=50, form="sse"))
    if not clumped(usual):
        yield judge_bare(await ask(http, url, n=PIECES, every_ms=50, bare=1))
    yield await round_trip(http, url)
    for finding in judge_headers(usual):
        yield finding
    yield judge_http(usual)
    yield await upgrade(http, url)
    if idle_s > 0:
        for finding in await asyncio.gather(
            idle_stream(http, url, idle_s, usual.facts), idle_socket(http, url, idle_s)
        ):
            yield finding


async def ask(http: aiohttp.ClientSession, url: str, **query: Any) -> Probe:
    """One probe. What fails on the way is in what it lacks."""
    probe, begun = Probe(), time.monotonic()
    took_s = query["n"] * query["every_ms"] / 1000 + GRACE_S
    asked = {name: str(value) for name, value in query.items()}
    timeout = aiohttp.ClientTimeout(total=took_s)
    try:
        async with http.get(f"{url}/api/probe/stream", params=asked, timeout=timeout) as answer:
            probe.status = answer.status
            probe.headers = {name.lower(): value for name, value in answer.headers.items()}
            if answer.status == 200:
                await _read(answer, probe, begun)
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
        probe.cut = True
    probe.cut = probe.cut or len(probe.at_s) < query["n"]
    return probe


async def _read(answer: aiohttp.ClientResponse, probe: Probe, begun: float) -> None:
    async for raw in answer.content:
        line = raw.removeprefix(b"data: ").strip()
        if not line:
            continue
        said = msgspec.json.decode(line)
        probe.came_s.append(time.monotonic() - begun)
        probe.at_s.append(said["at_ms"] / 1000)
        if said["n"] == 1:
            probe.facts = said


async def first_chunk(http: aiohttp.ClientSession, url: str) -> Probe:
    """A short probe: its first piece's way, and whether the second came with it."""
    return await ask(http, url, n=3, every_ms=EVERY_MS)


# ---------------------------------------------------------------------------- bursts


def clumped(probe: Probe) -> bool:
    """Whether at least half of the pieces arrived together although they were sent apart."""
    pairs = list(zip(probe.at_s, probe.came_s, strict=True))
    steps = [
        (later[0] - before[0], later[1] - before[1])
        for before, later in zip(pairs, pairs[1:], strict=False)
    ]
    together = sum(came < sent * TOGETHER for sent, came in steps)
    return bool(steps) and together * 2 >= len(steps)


def _spread(probe: Probe) -> str:
    sent = (probe.at_s[-1] - probe.at_s[0]) * 1000
    came = (probe.came_s[-1] - probe.came_s[0]) * 1000
    return f"{len(probe.at_s)} pieces sent over {sent:.0f} ms arrived over {came:.0f} ms"


def judge_burst(name: str, probe: Probe) -> Finding:
    """Do pieces arrive as they were sent?"""
    if len(probe.at_s) < 2:
        return Finding(
            name=name,
            state="fail",
            detail=f"cut after {len(probe.at_s)} pieces (status {probe.status or 'none'})",
            next="look into the proxy's log",
        )
    first_ms = probe.came_s[0] * 1000
    detail = f"{_spread(probe)}, the first after {first_ms:.0f} ms"
    if clumped(probe):
        packed = probe.headers.get("content-encoding")
        why = f" ({packed} on the way)" if packed else ""
        return Finding(
            name=name,
            state="fail",
            detail=f"a proxy is buffering{why}: {detail}",
            next=KEEP_PROXY + "; forebay config nginx prints a file that does not",
        )
    return Finding(name=name, state="ok", detail=detail)


def judge_bare(probe: Probe) -> Finding:
    """The same without the headers that forbid it: would a proxy buffer?"""
    if len(probe.at_s) >= 2 and clumped(probe):
        return Finding(
            name="buffering",
            state="warn",
            detail="a proxy is buffering whatever does not forbid it; ours does "
            f"(X-Accel-Buffering): without it {_spread(probe)}",
            next=KEEP_PROXY,
        )
    return Finding(name="buffering", state="ok", detail="none, even where nothing forbids it")


# ----------------------------------------------------------------------------- times


async def round_trip(http: aiohttp.ClientSession, url: str) -> Finding:
    """The network's share of an answer's time, and the server's."""
    probes = [await ask(http, url, n=1, every_ms=0) for _ in range(ROUNDS)]
    whole = [(p.came_s[0] * 1000, p.at_s[0] * 1000) for p in probes if p.came_s]
    if not whole:
        return Finding(name="round trip", state="fail", detail="no probe came back")
    total, server = median(w for w, _ in whole), median(s for _, s in whole)
    network = max(0.0, total - server)
    state: State = "warn" if network > FAR_MS else "ok"
    return Finding(
        name="round trip",
        state=state,
        detail=f"network {network:.1f} ms, server {server:.1f} ms (median of {len(whole)})",
        next="every first word waits for it: is the server far, or TLS made anew each time?"
        if state == "warn"
        else "",
    )


# --------------------------------------------------------------------------- headers


def judge_headers(probe: Probe) -> list[Finding]:
    """Each header the server sent: as it came, changed, or stripped."""
    sent: Mapping[str, str] = probe.facts.get("sent", {})
    return [_header(name, value, probe.headers.get(name)) for name, value in sent.items()]


def _header(name: str, sent: str, came: str | None) -> Finding:
    if came is not None and came.replace(" ", "").lower() == sent.replace(" ", "").lower():
        return Finding(name=name, state="ok", detail=f"received: {came}")
    if came is not None:
        state: State = "fail" if name == "content-type" else "warn"
        return Finding(
            name=name,
            state=state,
            detail=f"changed on the way: {sent!r} was sent, {came!r} came",
            next="let the proxy pass it as it is",
        )
    if name == NGINX_EATS:
        return Finding(
            name=name,
            state="ok",
            detail="stripped on the way, as nginx does with it after obeying it",
        )
    return Finding(
        name=name,
        state="warn",
        detail=f"stripped on the way ({sent} was sent)",
        next="let the proxy pass it: no proxy_hide_header, no rule that removes it",
    )


def judge_http(probe: Probe) -> Finding:
    """How the request reached the server."""
    version = str(probe.facts.get("http", ""))
    behind = ", through a proxy that says for whom" if probe.facts.get("forwarded") else ""
    if version == "1.0":
        return Finding(
            name="connection",
            state="fail",
            detail="reaches the server as HTTP/1.0: a connection for each request, none upgrades",
            next="proxy_http_version 1.1 and proxy_set_header Connection (nginx)",
        )
    detail = f"HTTP/{version} at the server, Host {probe.facts.get('host')}{behind}"
    return Finding(name="connection", state="ok", detail=detail)


async def upgrade(http: aiohttp.ClientSession, url: str) -> Finding:
    """Does a connection become a WebSocket?"""
    begun = time.monotonic()
    try:
        async with (
            asyncio.timeout(GRACE_S),
            http.ws_connect(f"{url}/api/probe/socket") as socket,
        ):
            await socket.send_json({"silent_ms": 0})
            said = await socket.receive()
    except (aiohttp.ClientError, TimeoutError) as exc:
        status = getattr(exc, "status", None)
        return Finding(
            name="upgrade",
            state="fail",
            detail=f"no WebSocket gets through: {status or why(exc)}",
            next="proxy_set_header Upgrade $http_upgrade and Connection upgrade (nginx)",
        )
    ms = (time.monotonic() - begun) * 1000
    if said.type is not aiohttp.WSMsgType.TEXT:
        return Finding(
            name="upgrade",
            state="fail",
            detail="the WebSocket opens and is then cut without an answer",
            next="look into the proxy's log",
        )
    return Finding(name="upgrade", state="ok", detail=f"received: 101, answered after {ms:.0f} ms")


# -------------------------------------------------------------------------- silences


async def idle_stream(
    http: aiohttp.ClientSession, url: str, idle_s: float, facts: Mapping[str, Any]
) -> Finding:
    """Is a stream that says nothing for ``idle_s`` cut?"""
    begun = time.monotonic()
    probe = await ask(http, url, n=2, every_ms=round(idle_s * 1000))
    took_s = time.monotonic() - begun
    if not probe.cut:
        return Finding(
            name="silent stream",
            state="ok",
            detail=f"open after {idle_s:g} s; a longer silence: --idle-s",
        )
    beat_s = float(facts.get("heartbeat_s") or 0)
    covered = 0 < beat_s < took_s
    own = f"operations.heartbeat_s ({beat_s:g} s) " + ("is shorter" if covered else "is longer")
    return Finding(
        name="silent stream",
        state="warn" if covered else "fail",
        detail=f"cut after {took_s:.0f} s of silence; {own}",
        next="raise proxy_read_timeout (nginx), read_timeout (Caddy) or the balancer's idle "
        "timeout to 3600 s" + ("" if covered else ", or lower operations.heartbeat_s below it"),
    )


async def idle_socket(http: aiohttp.ClientSession, url: str, idle_s: float) -> Finding:
    """Is a socket on which only pings pass cut?"""
    begun = time.monotonic()
    said: Sequence[Any] = ()
    try:
        async with (
            asyncio.timeout(idle_s + GRACE_S),
            http.ws_connect(f"{url}/api/probe/socket") as socket,
        ):
            await socket.send_json({"silent_ms": round(idle_s * 1000)})
            message = await socket.receive()
            said = [message] if message.type is aiohttp.WSMsgType.TEXT else ()
    except (aiohttp.ClientError, TimeoutError):
        said = ()
    took_s = time.monotonic() - begun
    if said:
        return Finding(
            name="silent socket",
            state="ok",
            detail=f"open after {idle_s:g} s; a longer silence: --idle-s",
        )
    return Finding(
        name="silent socket",
        state="fail",
        detail=f"cut after {took_s:.0f} s with nothing but pings on it",
        next="raise proxy_read_timeout and proxy_send_timeout (nginx) or the balancer's idle "
        "timeout above limits.ping_s",
    )

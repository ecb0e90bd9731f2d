"""`forebay doctor`: is everything there, and if not, what is the next step?"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import typer

from forebay.client.reach import why
from forebay.commands import checks
from forebay.commands.checks import Finding
from forebay.commands.common import console, dump, settled
from forebay.commands.jobs import Server, server
from forebay.commands.quality import quality
from forebay.commands.way import Probe, clumped, first_chunk, way
from forebay.errors import ConfigError

__all__ = ["run"]

WATCH_S = 5.0
EACH_S = 1.0
ANSWER_S = 10.0
FIRST_BYTE_S = 30.0
MARKS = {"ok": "[green]ok  [/]", "warn": "[yellow]warn[/]", "fail": "[red]FAIL[/]"}


def run(
    *,
    url: str | None,
    watch: bool,
    as_json: bool,
    key: str | None,
    config: Path | None,
    idle_s: float = 0.0,
) -> int:
    """Check once, or with ``watch`` on until interrupted: this installation again every
    `WATCH_S`, of a server the first chunk's latency every second.

    0 when nothing failed. Warnings do not fail."""
    where = server(url, key, config) if url else None
    while True:
        status = asyncio.run(_once(where, as_json, config, idle_s))
        if not watch:
            return status
        try:
            if where is not None:
                asyncio.run(_watch(where))
            time.sleep(WATCH_S)
        except KeyboardInterrupt:
            return status
        console.rule(time.strftime("%H:%M:%S"))


async def _watch(where: Server) -> None:
    """One line a second, until interrupted."""
    async with _asking(where) as http:
        while True:
            probe = await first_chunk(http, where.url)
            typer.echo(f"First chunk latency: {_latency(probe)}")
            await asyncio.sleep(EACH_S)


def _latency(probe: Probe) -> str:
    if not probe.came_s:
        return f"none, answered {probe.status or 'nothing'}"
    held = " (arrived in one clump: a proxy is buffering)" if clumped(probe) else ""
    return f"{probe.came_s[0] * 1000:.1f} ms{held}"


def _asking(where: Server) -> aiohttp.ClientSession:
    headers = {"Authorization": f"Bearer {where.key}"} if where.key else {}
    return aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=ANSWER_S))


async def _once(where: Server | None, as_json: bool, config: Path | None, idle_s: float) -> int:
    found = []
    steps = _running(where, idle_s) if where else _installed(config)
    async for finding in steps:
        found.append(finding)
        if not as_json:
            _print(finding)
    failed = [f for f in found if f.state == "fail"]
    if as_json:
        dump([_plain(f)
              for f in found])  # fmt: skip
    elif not failed:
        console.print("nothing is wrong")
    else:
        console.print(f"{len(failed)} of {len(found)} checks failed", style="red")
    return 1 if failed else 0


def _plain(finding: Finding) -> dict[str, str]:
    return {
        "name": finding.name,
        "state": finding.state,
        "detail": finding.detail,
        "next": finding.next,
    }


def _print(finding: Finding) -> None:
    console.print(f"{MARKS[finding.state]} {finding.name:16} ", end="")
    console.print(finding.detail, markup=False)
    if finding.next:
        console.print(f"     next: {finding.next}", markup=False)


async def _installed(file: Path | None) -> AsyncIterator[Finding]:
    try:
        config = settled(file)
    except ConfigError as exc:
        for line in exc.message.splitlines():
            yield Finding(name="settings", state="fail", detail=line, next="forebay config check")
        return
    for finding in checks.machine(config):
        yield finding
    async for finding in checks.engines(config):
        yield finding


# ------------------------------------------------------------------ a running server


async def _running(where: Server, idle_s: float) -> AsyncIterator[Finding]:
    async with _asking(where) as http:
        alive = await _get(http, where.url, "/healthz")
        yield alive
        if alive.state == "fail":
            return
        yield await _get(http, where.url, "/readyz")
        async for finding in way(http, where.url, idle_s):
            yield finding
        yield await _first_byte(http, where.url)
        async for finding in quality(http, where.url):
            yield finding


async def _get(http: aiohttp.ClientSession, url: str, path: str) -> Finding:
    begun = time.monotonic()
    try:
        async with http.get(url + path) as response:
            body = await response.text()
    except (aiohttp.ClientError, TimeoutError) as exc:
        return Finding(
            name=path,
            state="fail",
            detail=f"{url} does not answer: {why(exc)}",
            next="is forebay serve running there? is the port right?",
        )
    ms = (time.monotonic() - begun) * 1000
    if response.status == 200:
        return Finding(name=path, state="ok", detail=f"200 in {ms:.0f} ms")
    hints = {401: "give a key with --key or FOREBAY_API_KEY", 503: _loading(body)}
    return Finding(
        name=path,
        state="fail",
        detail=f"{response.status} in {ms:.0f} ms",
        next=hints.get(response.status, "look into the server's log"),
    )


def _loading(body: str) -> str:
    """What /readyz says of its pools, in a line."""
    try:
        pools: Any = msgspec.json.decode(body).get("pools", [])
        stages = [
            f"{pool.get('name')}: {stage.get('stage')} {stage.get('detail', '')}".strip()
            for pool in pools
            for stage in (pool.get("stages") or {}).values()
        ]
    except (msgspec.DecodeError, AttributeError):
        stages = []
    return "still loading: " + ("; ".join(stages) or "wait, or look into the server's log")


async def _first_byte(http: aiohttp.ClientSession, url: str) -> Finding:
    """One word through /tts: the time to its first audio."""
    name = f"doctor-{time.time_ns():x}"
    begun = time.monotonic()
    try:
        async with asyncio.timeout(FIRST_BYTE_S), http.ws_connect(url + "/tts") as socket:
            start = {"type": "start", "session_id": name, "audio_format": "pcm16_wav"}
            await socket.send_json(start | {"sample_rate": 16000, "channels": 1})
            text = {"type": "text_delta", "session_id": name, "seq": 1, "text": "Hello."}
            await socket.send_json(text)
            await socket.send_json({"type": "text_end", "session_id": name, "seq": 2})
            return await _await_audio(socket, begun)
    except (aiohttp.ClientError, TimeoutError) as exc:
        return Finding(
            name="/tts",
            state="fail",
            detail=f"no audio: {why(exc)} after {time.monotonic() - begun:.1f} s",
            next="forebay jobs list, and the server's log",
        )


async def _await_audio(socket: aiohttp.ClientWebSocketResponse, begun: float) -> Finding:
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.TEXT:
            continue
        said = msgspec.json.decode(message.data)
        if said.get("type") == "audio_chunk":
            size = len(base64.b64decode(said["audio_base64"]))
            ms = (time.monotonic() - begun) * 1000
            return Finding(
                name="/tts", state="ok", detail=f"first audio after {ms:.0f} ms ({size} bytes)"
            )
        if said.get("type") == "error":
            detail = f"{said.get('code')}: {said.get('message')}"
            if "no speech model is served" in detail:  # one that should be, /readyz misses too
                hint = "meant so? then nothing; else see workers.speech and --engine speech=..."
                return Finding(name="/tts", state="warn", detail=detail, next=hint)
            return Finding(name="/tts", state="fail", detail=detail, next="forebay jobs list")
    return Finding(
        name="/tts",
        state="fail",
        detail=f"closed with {socket.close_code} before any audio",
        next="look into the server's log",
    )

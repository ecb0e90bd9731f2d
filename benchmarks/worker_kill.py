"""Claim: a speech worker killed at any moment costs under a second and not one unit.

Sessions speak without pause; every half second or so the worker that serves is killed with
SIGKILL while a warm spare stands by. Counted: the longest silence each session saw around
each kill, and every unit. A unit is 10 ms of tone here, so that typed text never outruns
playback: pacing would hide the silence that is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time

import aiohttp
import msgspec
import psutil

from benchmarks.harness import Server, options, report, run, serving
from forebay.client.s1 import SpeechState
from forebay.lab.stats import summary

SENTENCE = "Rain falls. Rivers rise. Gates open. Lamps burn. "  # a segment every 0.2 s


class Speaker:
    """Speaks sentence after sentence; notes when each chunk came and checks every unit."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.state = SpeechState(secrets.token_hex(16))
        self.arrivals: list[float] = []
        self.errors: list[str] = []
        self.stop = asyncio.Event()

    async def run(self, http: aiohttp.ClientSession) -> None:
        async with http.ws_connect(self.url, compress=0) as socket:
            await socket.send_str(msgspec.json.encode(self.state.start()).decode())
            await socket.receive()
            typing = asyncio.ensure_future(self._type(socket))
            async for message in socket:
                found = msgspec.json.decode(message.data)
                if found["type"] == "audio_chunk":
                    self.arrivals.append(time.monotonic())
                    self.state.chunk(found)
                elif found["type"] == "error":
                    self.errors.append(found["code"])
                    break
                elif found["type"] == "tts_end":
                    break
            self.stop.set()
            await typing

    async def _type(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        words = SENTENCE.split(" ")
        while not self.stop.is_set():
            for word in words[:-1]:
                await socket.send_str(msgspec.json.encode(self.state.delta(word + " ")).decode())
                await asyncio.sleep(0.08)
        with contextlib.suppress(ConnectionError):
            await socket.send_str(msgspec.json.encode(self.state.end()).decode())


async def ready_spares(server: Server) -> int:
    pools = await asyncio.to_thread(server.get, "/api/status")
    speech = next(p for p in pools["pools"] if p["kind"] == "speech")
    return sum(stage["stage"] == "ready" for stage in speech["stages"].values()) - 1


async def main() -> int:
    wanted = options(__doc__ or "", kills=100, sessions=20)
    random.seed(7)
    kills: list[float] = []
    with serving(
        "--engine",
        "speech=synthetic:rtf=0.4,unit_ms=10,latency_ms=10,slots=16",
        "--engine",
        "text=synthetic",
    ) as server:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            speakers = [Speaker(server.tts) for _ in range(wanted.sessions)]
            running = [asyncio.ensure_future(s.run(http)) for s in speakers]
            await asyncio.sleep(2)
            for _ in range(wanted.kills):
                while await ready_spares(server) < 1:  # noqa: ASYNC110 - over HTTP
                    await asyncio.sleep(0.05)
                await asyncio.sleep(random.uniform(0.2, 0.8))
                victim = await asyncio.to_thread(oldest_worker, server)
                kills.append(time.monotonic())
                victim.kill()
                await asyncio.sleep(0.3)  # the dead one is off the books by then
            await asyncio.sleep(2)
            for speaker in speakers:
                speaker.stop.set()
            await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), 90)
    gaps = []
    for speaker in speakers:
        for at in kills:
            before = max((t for t in speaker.arrivals if t <= at), default=at)
            after = min((t for t in speaker.arrivals if t > at), default=None)
            if after is not None:
                gaps.append(after - max(before, at))
    found = summary(gaps)
    totals = {
        "missing": sum(s.state.missing + s.state.gaps for s in speakers),
        "duplicates": sum(s.state.duplicates for s in speakers),
        "mismatched": sum(s.state.mismatched for s in speakers),
        "errors": sum(len(s.errors) for s in speakers),
    }
    rows: list[tuple[str, str, str, bool | None]] = [
        ("kills", str(len(kills)), str(wanted.kills), len(kills) == wanted.kills),
        *((name, str(value), "0", value == 0) for name, value in totals.items()),
        ("kill to next audio p50", f"{found['p50_ms']} ms", "", None),
        ("kill to next audio p99", f"{found['p99_ms']} ms", "", None),
        (
            "kill to next audio, worst",
            f"{found['max_ms']} ms",
            "<= 1000 ms",
            found["max_ms"] <= 1000,
        ),
        ("units spoken", str(sum(s.state.next_unit for s in speakers)), "", None),
    ]
    return report("worker kill", rows, wanted.output_json, gaps=found, totals=totals)


def oldest_worker(server: Server) -> psutil.Process:
    """The one that has served longest: the others are spares or younger."""
    return min(server.workers("speech"), key=lambda p: p.create_time())


if __name__ == "__main__":
    run(main)

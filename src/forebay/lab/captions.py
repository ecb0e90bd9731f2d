"""`forebay bench captions`: speakers and displays of rooms, and a verdict.

Scenarios:

fanout   one speaker, ``displays`` readers of one room
rooms    ``rooms`` rooms with a speaker each, the displays shared out among them
network  one speaker, and one display, behind a network of ``rtt_ms`` that loses ``loss`` of its
         packets; the same captions sent in order, one by one, as a careful client of the
         original would

Every display must show every caption once and in order; anything else makes the exit status
non-zero. The lag is from `send` to the last display that shows the caption.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from forebay.client import CaptionPublisher
from forebay.errors import ConfigError
from forebay.lab.command import Conclusion, ServerMeter, all_held, bearer, run_and_tell
from forebay.lab.fault_proxy import FaultProxy
from forebay.lab.line import Line, text_frame
from forebay.lab.stats import machine, summary

__all__ = ["SCENARIOS", "Arrivals", "Options", "Result", "judge", "main", "run"]

SCENARIOS = ("fanout", "rooms", "network")
DRAIN_S = 15.0
_NUMBER = re.compile(rb"#(\d+)#")


class Arrivals:
    """When which numbered message (``#n#`` in its text) came, over many readers."""

    def __init__(self) -> None:
        self.count: dict[int, int] = defaultdict(int)
        self.last: dict[int, float] = {}

    def heard(self, data: bytes) -> list[int]:
        """The numbers in ``data``, counted."""
        now = time.monotonic()
        numbers = [int(found) for found in _NUMBER.findall(data)]
        for number in numbers:
            self.count[number] += 1
            self.last[number] = now
        return numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """As the command line names them. ``rate``: captions a second of each speaker."""

    url: str = "http://127.0.0.1:8600"
    scenario: str = "fanout"
    displays: int = 1000
    rooms: int = 100
    rate: float = 10.0
    duration_s: float = 10.0
    size: int = 100
    rtt_ms: float = 100.0
    loss: float = 0.01
    key: str | None = None

    def check(self) -> None:
        """Raises `ConfigError`."""
        if self.scenario not in SCENARIOS:
            raise ConfigError(
                f"scenario is {self.scenario!r}, expected one of {', '.join(SCENARIOS)}"
            )
        for name, value, high in (
            ("displays", self.displays, 20_000),
            ("rooms", self.rooms, 1000),
            ("size", self.size, 2000),
        ):
            if not 1 <= value <= high:
                raise ConfigError(f"{name} is {value}, expected 1..{high}")


@dataclass(slots=True)
class Result:
    """Everything the report shows. ``failed`` lists the checks that did not hold."""

    options: dict[str, Any]
    machine: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)  # (s into the run, lag s)


class _Room:
    """One room, its speaker, its displays, and what they have seen."""

    def __init__(self, options: Options, name: str, url: str) -> None:
        self.options, self.name, self.url = options, name, url
        self.access: dict[str, Any] = {"room": name, "passphrase": "bench", "user_name": "bench"}
        self.arrivals = Arrivals()
        self.sent: dict[int, float] = {}
        self.newest: dict[int, int] = {}  # display: newest number it showed
        self.reordered = 0
        self.lines: list[Line] = []
        self.lost = 0

    async def open(self, displays: int) -> None:
        hello = text_frame(
            msgspec.json.encode({"id": 1, "connect": {"data": {"passphrase": "bench"}}}),
            b"\n",
            msgspec.json.encode({"id": 2, "subscribe": {"channel": self.name}}),
        )
        place = self.url.replace("http", "ws", 1) + "/connection/websocket"
        for number in range(len(self.newest), len(self.newest) + displays):
            self.newest[number] = -1
            heard = partial(self._heard, number)
            line = await Line.open(place, heard, self._gone, bearer(self.options.key))
            line.send(hello)
            self.lines.append(line)

    def _heard(self, display: int, data: bytes) -> None:
        for number in self.arrivals.heard(data):
            self.reordered += number <= self.newest[display]
            self.newest[display] = number

    def _gone(self) -> None:
        self.lost += 1

    def text(self, number: int) -> str:
        self.sent[number] = time.monotonic()
        return f"#{number}# ".ljust(self.options.size, "x")

    def close(self) -> None:
        for line in self.lines:
            line.close()

    @property
    def missing(self) -> int:
        return sum(max(0, len(self.lines) - self.arrivals.count[n]) for n in self.sent)

    @property
    def doubled(self) -> int:
        return sum(max(0, self.arrivals.count[n] - len(self.lines)) for n in self.sent)

    def lags(self) -> list[float]:
        last = self.arrivals.last
        return [last[n] - at for n, at in self.sent.items() if n in last]


async def _speak(room: _Room, publisher: CaptionPublisher) -> None:
    options = room.options
    began = time.monotonic()
    for number in range(max(1, round(options.rate * options.duration_s))):
        await asyncio.sleep(max(0.0, began + number / options.rate - time.monotonic()))
        publisher.send(room.text(number))


async def _one_by_one(room: _Room) -> None:
    """What a careful client of the original does: the next one after the answer."""
    async with aiohttp.ClientSession(headers=bearer(room.options.key)) as http:
        for number in range(max(1, round(room.options.rate * room.options.duration_s))):
            body = {**room.access, "text": room.text(number)}
            async with http.post(f"{room.url}/api/send", json=body) as answer:
                await answer.read()


async def _drain(rooms: Sequence[_Room]) -> None:
    end = time.monotonic() + DRAIN_S
    while any(room.missing for room in rooms) and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def _play(
    rooms: Sequence[_Room], displays: int, progress: Callable[[Sequence[_Room], float], None] | None
) -> float:
    """Everybody speaks, to the last display. Returns the seconds it took."""
    options = rooms[0].options
    publishers = [
        CaptionPublisher(room.url, timeout_s=5.0, key=options.key, **room.access) for room in rooms
    ]
    try:
        for index, room in enumerate(rooms):
            share = displays // len(rooms) + (index < displays % len(rooms))
            await room.open(max(1, share))
        await asyncio.sleep(0.5)  # connections of the publishers are open
        began = time.monotonic()
        speaking = asyncio.gather(*map(_speak, rooms, publishers))
        while not speaking.done():
            if progress is not None:
                progress(rooms, time.monotonic() - began)
            await asyncio.wait([speaking], timeout=0.5)
        await speaking
        await _drain(rooms)
        return time.monotonic() - began
    finally:
        await asyncio.gather(*(asyncio.to_thread(p.close, 1.0) for p in publishers))
        for room in rooms:
            room.close()


async def run(
    options: Options, progress: Callable[[Sequence[_Room], float], None] | None = None
) -> Result:
    """Run one scenario and judge it. Raises `ConfigError` for options out of range."""
    options.check()
    shown = msgspec.to_builtins(options)
    shown.pop("key")
    result = Result(options=shown, machine=machine())
    names = [f"bench-{secrets.token_hex(4)}" for _ in range(options.rooms)]
    async with aiohttp.ClientSession() as http:
        meter = ServerMeter(f"{options.url}/x", http, options.key)
        await meter.begin()
        if options.scenario == "network":
            rooms = await _network(options, names, result, progress)
        else:
            count = 1 if options.scenario == "fanout" else options.rooms
            rooms = [_Room(options, name, options.url) for name in names[:count]]
            took = await _play(rooms, options.displays, progress)
            delivered = sum(sum(room.arrivals.count.values()) for room in rooms)
            result.figures |= {
                "deliveries": delivered,
                "deliveries_a_second": round(delivered / took),
            }
        result.figures |= await meter.end()
    _account(result, rooms)
    return result


async def _network(
    options: Options,
    names: Sequence[str],
    result: Result,
    progress: Callable[[Sequence[_Room], float], None] | None,
) -> list[_Room]:
    where = urlsplit(options.url)
    async with FaultProxy() as proxy:
        port = where.port or (443 if where.scheme == "https" else 80)
        await proxy.start(
            where.hostname or "127.0.0.1", port, latency_s=options.rtt_ms / 2000, loss=options.loss
        )
        url = f"http://127.0.0.1:{proxy.port}"
        numbered, serial = (_Room(options, name, url) for name in names[:2])
        await _play([numbered], 1, progress)
        await serial.open(1)
        await asyncio.sleep(0.5)
        began = time.monotonic()
        await _one_by_one(serial)
        await _drain([serial])
        result.figures["one_by_one_s"] = round(time.monotonic() - began, 3)
        result.figures["one_by_one"] = summary(serial.lags())
        serial.close()
        return [numbered]


def _account(result: Result, rooms: Sequence[_Room]) -> None:
    lags = [lag for room in rooms for lag in room.lags()]
    result.figures = {
        "send_to_last_display": summary(lags),
        "captions": sum(len(room.sent) for room in rooms),
        "displays": sum(len(room.lines) for room in rooms),
        "missing": sum(room.missing for room in rooms),
        "doubled": sum(room.doubled for room in rooms),
        "reordered": sum(room.reordered for room in rooms),
        **result.figures,
    }
    first = min((at for room in rooms for at in room.sent.values()), default=0.0)
    for room in rooms:
        for number, at in room.sent.items():
            if number in room.arrivals.last:
                result.points.append((at - first, room.arrivals.last[number] - at))
    for name in ("missing", "doubled", "reordered"):
        if result.figures[name]:
            result.failed.append(f"{result.figures[name]} captions were {name}")


def judge(result: Result) -> Conclusion:
    return all_held(result.failed, well="every display showed every caption once and in order")


def _line(rooms: Sequence[_Room], at: float) -> str:
    sent = sum(len(room.sent) for room in rooms)
    seen = sum(sum(room.arrivals.count.values()) for room in rooms)
    return f"{at:5.1f} s  {sent} captions sent  {seen} shown"


def main(options: Options, *, output_json: Path | None, report: Path | None) -> int:
    """The command; returns the exit status."""
    return run_and_tell(
        lambda progress: run(options, progress),
        _line,
        judge,
        title=f"captions: {options.scenario}",
        output_json=output_json,
        report=report,
    )

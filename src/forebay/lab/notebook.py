"""`forebay bench notebook`: people running cells, and a verdict.

Each has a notebook of its own and runs one cell after another. Most cells print one line, which
measures the way from the request to the first output and how many cells a second there are;
every tenth prints flushed lines, each of which says when it was printed, so that their delay is
measured where server and tool share a clock. Lost, doubled or failed output makes the exit
status non-zero.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from forebay.client.reach import why
from forebay.errors import ConfigError
from forebay.lab.command import ServerMeter, all_held, bearer, run_all, run_and_tell
from forebay.lab.stats import machine, percentile, summary

__all__ = ["Options", "Outcome", "Result", "User", "figures", "judge", "main", "run"]

LINES_EVERY = 10
START_S = 60.0
CELL_S = 60.0
ONE = "print(1, flush=True)"
LINES = (
    "import time\nfor i in range({count}):\n"
    "    print(i, time.time(), flush=True)\n    time.sleep({every_s})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """As the command line names them. ``lines``, ``lines_per_s``: of every tenth cell."""

    url: str = "http://127.0.0.1:8600"
    concurrency: int = 2
    duration_s: float = 20.0
    lines: int = 50
    lines_per_s: float = 100.0
    key: str | None = None

    def check(self) -> None:
        """Raises `ConfigError`."""
        if not 1 <= self.concurrency <= 1000:
            raise ConfigError(f"concurrency is {self.concurrency}, expected 1..1000")
        if not 1 <= self.lines <= 100_000:
            raise ConfigError(f"lines is {self.lines}, expected 1..100000")
        if not 0 < self.lines_per_s <= 10_000:
            raise ConfigError(f"lines a second is {self.lines_per_s:g}, expected up to 10000")


@dataclass(slots=True)
class Outcome:
    """What one person saw. Times are seconds; ``firsts``: (when, request to first output)."""

    firsts: list[tuple[float, float]] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    line_s: list[float] = field(default_factory=list)
    starts_s: list[float] = field(default_factory=list)
    cells: int = 0
    lines: int = 0
    wrong: int = 0
    errors: list[str] = field(default_factory=list)
    ran_s: float = 0.0
    over: bool = False


@dataclass(slots=True)
class Result:
    """Everything the report shows. ``failed`` lists the checks that did not hold."""

    options: dict[str, Any]
    machine: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)


class User:
    """One person with one notebook. `outcome` is filled as it goes."""

    def __init__(self, options: Options, http: aiohttp.ClientSession) -> None:
        self.outcome = Outcome()
        self._options = options
        self._http = http
        self._url = f"{options.url.rstrip('/')}/v1/notebooks/bench-{secrets.token_hex(4)}"
        self._headers = {**bearer(options.key), "Accept": "text/event-stream"}

    async def run(self) -> None:
        try:
            begun = time.monotonic()
            if await self._guarded(ONE, START_S):  # the kernel starts: counted by itself
                self.outcome.starts_s.append(time.monotonic() - begun)
                self.outcome.firsts.clear()
                self.outcome.whole_s.clear()
                self.outcome.cells = 0
                await self._cells()
        finally:
            await self._shut()
            self.outcome.over = True

    async def _cells(self) -> None:
        begun, number = time.monotonic(), 0
        while time.monotonic() - begun < self._options.duration_s:
            number += 1
            if number % LINES_EVERY:
                await self._guarded(ONE, CELL_S)
            else:
                wanted = self._options
                code = LINES.format(count=wanted.lines, every_s=1 / wanted.lines_per_s)
                await self._guarded(code, CELL_S + wanted.lines / wanted.lines_per_s)
        self.outcome.ran_s = time.monotonic() - begun

    async def _guarded(self, code: str, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                return await self._cell(code)
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as exc:
            self.outcome.errors.append(why(exc))
            await asyncio.sleep(0.2)  # a server that refuses is not hammered
            return False

    async def _cell(self, code: str) -> bool:
        body = {"code": code, "cell": secrets.token_hex(4)}
        begun, first, said = time.monotonic(), None, ""
        async with self._http.post(
            f"{self._url}/cells", json=body, headers=self._headers
        ) as answer:
            if answer.status != 200:
                self.outcome.errors.append(str(answer.status))
                await asyncio.sleep(0.2)
                return False
            async for raw in answer.content:
                if not raw.startswith(b"data: "):
                    continue
                event = msgspec.json.decode(raw[6:])
                if event.get("type") == "display" and event.get("what") == "stream":
                    first = first or time.monotonic()
                    text = event["data"]["text/plain"]
                    said += text
                    self._delays(text)
        now = time.monotonic()
        self._judge(code, said)
        self.outcome.cells += 1
        self.outcome.whole_s.append(now - begun)
        if first is not None:
            self.outcome.firsts.append((now, first - begun))
        return True

    def _delays(self, text: str) -> None:
        now = time.time()
        for line in text.splitlines():
            _, _, printed = line.partition(" ")
            if printed:
                self.outcome.lines += 1
                self.outcome.line_s.append(max(0.0, now - float(printed)))

    def _judge(self, code: str, said: str) -> None:
        numbers = [line.partition(" ")[0] for line in said.splitlines()]
        wanted = ["1"] if code == ONE else [str(n) for n in range(self._options.lines)]
        self.outcome.wrong += numbers != wanted

    async def _shut(self) -> None:
        """The kernel is not left behind."""
        try:
            async with self._http.post(f"{self._url}/shutdown", headers=self._headers):
                return
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            self.outcome.errors.append(f"shutdown {type(exc).__name__}")


async def run(
    options: Options, progress: Callable[[Sequence[Outcome], float], None] | None = None
) -> Result:
    """Run and judge. Raises `ConfigError` for options out of range."""
    options.check()
    shown = {
        "url": options.url, "concurrency": options.concurrency, "duration_s": options.duration_s,
        "lines": options.lines, "lines_per_s": options.lines_per_s,
    }  # fmt: skip
    result = Result(options=shown, machine=machine())
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        server = ServerMeter(options.url.rstrip("/") + "/x", http, options.key)
        await server.begin()
        users = [User(options, http) for _ in range(options.concurrency)]
        outcomes = [user.outcome for user in users]
        begin, took_s = await run_all(users, outcomes, progress, time.monotonic)
        result.figures["server"] = await server.end()
    result.figures.update(figures(outcomes, took_s))
    result.points = sorted((at - begin, s) for o in outcomes for at, s in o.firsts)
    result.failed = judge(result.figures)
    return result


def figures(outcomes: Sequence[Outcome], took_s: float) -> dict[str, Any]:
    """Numbers for the run. Times are in milliseconds."""
    return {
        "people": len(outcomes),
        "took_s": round(took_s, 1),
        "kernel_start": summary([s for o in outcomes for s in o.starts_s]),
        "execute_to_first_output": summary([s for o in outcomes for _, s in o.firsts]),
        "whole_cell": summary([s for o in outcomes for s in o.whole_s]),
        "flushed_line": summary([s for o in outcomes for s in o.line_s]),
        "cells": sum(o.cells for o in outcomes),
        "cells_per_s": round(sum(o.cells / o.ran_s for o in outcomes if o.ran_s), 1),
        "lines": sum(o.lines for o in outcomes),
        "wrong": sum(o.wrong for o in outcomes),
        "errors": dict(Counter(e for o in outcomes for e in o.errors)),
    }


def judge(found: dict[str, Any]) -> list[str]:
    """The checklist. Empty when everything held."""
    failed = [f"error {code}: {count}, expected 0" for code, count in found["errors"].items()]
    if found["wrong"]:
        failed.append(f"cells that lost or doubled a line: {found['wrong']}, expected 0")
    if not found["cells"]:
        failed.append("no cell came to its end")
    return failed


def live_line(outcomes: Sequence[Outcome], at_s: float) -> str:
    """One line that says how the run is going."""
    firsts = [s for o in outcomes for _, s in o.firsts]
    return (
        f"{at_s:5.0f} s  {sum(o.cells for o in outcomes)} cells  "
        f"first output p50 {percentile(firsts, 50) * 1000:.1f} ms  "
        f"errors {sum(len(o.errors) for o in outcomes)}"
    )


def main(options: Options, *, output_json: Path | None = None, report: Path | None = None) -> int:
    """Run, show, write what was asked for. Returns the exit status: 0 when all checks held."""
    return run_and_tell(
        partial(run, options),
        live_line,
        lambda result: all_held(result.failed),
        title=f"notebooks: {options.concurrency} people",
        output_json=output_json,
        report=report,
    )

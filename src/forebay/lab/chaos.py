"""`forebay chaos`: break things on purpose, and say whether what was promised held.

A `Scenario` starts servers of its own on loopback, does one kind of damage while simulated
people use them, and returns a list of `Check`s. Its verdict is *held*, *missed*, or *not run*
with the reason, where this machine cannot do that kind of damage. Nothing that already runs
is touched: every victim is a process that the scenario has started.

Per session, the history check counts what a client can see: missing, doubled, reordered and
different units, and terminal events (exactly one).
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from forebay.errors import ConfigError
from forebay.lab.show import write_json
from forebay.lab.stats import machine

__all__ = [
    "Check",
    "Damage",
    "NotRun",
    "Options",
    "Scenario",
    "Score",
    "main",
    "perform",
    "register",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How large to run. ``scale`` 1.0 is what the figures are stated for; smaller machines
    take less. ``seed``: who is hit, and when."""

    scale: float = 1.0
    seed: int = 1

    def sized(self, count: float, least: int = 1) -> int:
        return max(least, round(count * self.scale))

    def check(self) -> None:
        if not 0.01 <= self.scale <= 4:
            raise ConfigError(f"scale is {self.scale}, expected 0.01..4")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a scorecard. ``held`` None: a figure that nothing is asked of."""

    what: str
    seen: str
    wanted: str = ""
    held: bool | None = None


class NotRun(Exception):  # noqa: N818 - no fault of anybody
    """This machine cannot do that. The text says why."""


Damage = Callable[[Options], Awaitable[Sequence[Check]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """``rows``: of the fault catalogue. ``limit_s``: after which it counts as hung."""

    name: str
    rows: tuple[int, ...]
    fault: str
    expected: str
    limit_s: float
    run: Damage


SCENARIOS: dict[str, Scenario] = {}

TESTED: tuple[tuple[int, str, str], ...] = (
    (4, "a job that kills every worker", "test_processes.py"),
    (5, "a worker that says garbage", "test_runner_faults.py, test_link.py"),
    (6, "a job past its run deadline", "test_runner.py, test_queue.py"),
    (7, "a job past its queue deadline", "test_queue.py"),
    (19, "a failover to a replica that lags", "test_redis_faults.py"),
    (31, "repeated and late chunks of a worker", "test_streams.py, test_workers.py"),
    (33, "a wall clock that jumps", "test_wall_clock.py"),
)
"""Faults without a scenario: they are plain tests of this repository, named in
``docs/topics/faults.md``."""


def register(
    name: str, *, rows: tuple[int, ...], fault: str, expected: str, limit_s: float = 180.0
) -> Callable[[Damage], Damage]:
    """Decorate the coroutine function that does the damage."""

    def add(run: Damage) -> Damage:
        SCENARIOS[name] = Scenario(
            name=name, rows=rows, fault=fault, expected=expected, limit_s=limit_s, run=run
        )
        return run

    return add


@dataclass(slots=True, kw_only=True)
class Score:
    """One scenario's line of the scorecard."""

    name: str
    rows: tuple[int, ...]
    fault: str
    expected: str
    verdict: str = ""  # held, missed, not run
    seen: str = ""
    took_s: float = 0.0
    checks: list[Check] = field(default_factory=list)


async def perform(scenario: Scenario, options: Options) -> Score:
    """Run one scenario within its limit. Never raises for what went wrong inside it."""
    score = Score(
        name=scenario.name, rows=scenario.rows, fault=scenario.fault, expected=scenario.expected
    )
    began = time.monotonic()
    try:
        async with asyncio.timeout(scenario.limit_s):
            score.checks = list(await scenario.run(options))
    except NotRun as exc:
        score.verdict, score.seen = "not run", str(exc)
    except TimeoutError:
        score.verdict, score.seen = "missed", f"not over after {scenario.limit_s:g} s"
    except (OSError, RuntimeError) as exc:
        score.verdict, score.seen = "missed", f"{type(exc).__name__}: {exc}"
    else:
        missed = [check for check in score.checks if check.held is False]
        score.verdict = "missed" if missed else "held"
        score.seen = "; ".join(f"{c.what}: {c.seen}" for c in missed or score.checks[:4])
    score.took_s = round(time.monotonic() - began, 1)
    return score


def chosen(names: Sequence[str]) -> list[Scenario]:
    """The scenarios of these names, all for none. Raises `ConfigError` for unknown ones."""
    _load()
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        raise ConfigError(
            f"no scenario is called {unknown[0]!r}, expected one of {', '.join(SCENARIOS)}"
        )
    found = [SCENARIOS[name] for name in names] or list(SCENARIOS.values())
    return sorted(found, key=lambda s: s.rows) if not names else found


MODULES = ("chaos_gateways", "chaos_load", "chaos_network", "chaos_store", "chaos_workers")


def _load() -> None:
    """Import the modules whose scenarios register themselves."""
    for name in MODULES:
        importlib.import_module(f"forebay.lab.{name}")


def listing(console: Console) -> None:
    """Every scenario, and the faults that are plain tests."""
    table = Table("name", "rows", "fault", "expected", title="forebay chaos run NAME")
    for scenario in chosen(()):
        rows = ", ".join(map(str, scenario.rows))
        table.add_row(scenario.name, rows, scenario.fault, scenario.expected)
    console.print(table)
    tests = Table("row", "fault", "where", title="tested without processes")
    for row, fault, where in TESTED:
        tests.add_row(str(row), fault, where)
    console.print(tests)


def main(
    names: Sequence[str], options: Options, *, output_json: Path | None, console: Console
) -> int:
    """Run, print the scorecard, write it down; 1 when something that was promised did not
    hold."""
    options.check()
    scores = []
    for scenario in chosen(names):
        console.print(f"{scenario.name}: {scenario.fault} ...", highlight=False)
        score = _run(perform(scenario, options))
        scores.append(score)
        _show(console, score)
    if len(scores) > 1:
        _card(console, scores)
    if output_json is not None:
        write_json(
            output_json,
            {"machine": machine(), "scale": options.scale, "seed": options.seed, "scores": scores},
        )
    return 1 if any(score.verdict == "missed" for score in scores) else 0


def _run(work: Any) -> Any:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


COLOURS = {"held": "green", "missed": "red", "not run": "yellow"}


def _show(console: Console, score: Score) -> None:
    table = Table("", "seen", "wanted", "", show_header=False)
    for check in score.checks:
        mark = "" if check.held is None else "held" if check.held else "[red]missed[/]"
        table.add_row(check.what, check.seen, check.wanted, mark)
    if score.checks:
        console.print(table)
    said = score.verdict if score.checks else f"{score.verdict}: {score.seen}"
    console.print(f"{score.name}: {said} ({score.took_s:g} s)", style=COLOURS[score.verdict])


def _card(console: Console, scores: Sequence[Score]) -> None:
    table = Table("rows", "fault", "expected", "seen", "verdict", title="scorecard")
    for score in scores:
        verdict = f"[{COLOURS[score.verdict]}]{score.verdict}[/]"
        rows = ", ".join(map(str, score.rows))
        table.add_row(rows, score.fault, score.expected, score.seen, verdict)
    console.print(table)

"""`forebay bench text`: many readers of streamed text, and a verdict.

Scenarios (fractions of the readers):

baseline  everybody asks, reads to the end and asks again
mixed     10 % leave every answer after a few words, 20 % drop the connection and come back

On the surface ``operation`` (`/send_operation`) each answer's pieces are compared with the
whole that closes it, also across a drop. Losses, repeats and errors make the exit status
non-zero; those who leave are what was injected.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from forebay.errors import ConfigError
from forebay.lab.command import ServerMeter, all_held, bearer, run_all, run_and_tell
from forebay.lab.stats import machine, percentile, summary
from forebay.lab.text_user import Fault, Outcome, Plan, User

__all__ = ["PROMPT", "Options", "Result", "figures", "judge", "main", "plans", "run"]

SCENARIOS: dict[str, dict[Fault, float]] = {
    "baseline": {"leave": 0.0, "drop": 0.0},
    "mixed": {"leave": 0.1, "drop": 0.2},
}
SURFACES = ("operation", "chat")
PROMPT = "Tell me in about a hundred words what a mill pond is for."


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """As the command line names them."""

    url: str = "http://127.0.0.1:8600"
    surface: str = "operation"
    scenario: str = "baseline"
    concurrency: int = 32
    duration_s: float = 30.0
    prompt: str = PROMPT
    model: str = ""
    key: str | None = None

    def check(self) -> None:
        """Raises `ConfigError`."""
        for name, value, known in (
            ("scenario", self.scenario, tuple(SCENARIOS)),
            ("surface", self.surface, SURFACES),
        ):
            if value not in known:
                raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        if not 1 <= self.concurrency <= 10_000:
            raise ConfigError(f"concurrency is {self.concurrency}, expected 1..10000")


@dataclass(slots=True)
class Result:
    """Everything the report shows. ``failed`` lists the checks that did not hold."""

    options: dict[str, Any]
    machine: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)  # (s into run, first text s)


def plans(options: Options) -> list[Plan]:
    """One plan a reader. Chat has no way back there, so its droppers leave."""
    shares = SCENARIOS[options.scenario]
    leave = round(shares["leave"] * options.concurrency)
    drop = round(shares["drop"] * options.concurrency) if options.surface == "operation" else 0
    plain = options.concurrency - leave - drop
    counts: dict[Fault, int] = {"leave": leave, "drop": drop, "": plain}
    faults = [fault for fault, count in counts.items() for _ in range(count)]
    return [
        Plan(
            url=options.url.rstrip("/"),
            surface=options.surface,
            prompt=options.prompt,
            until_s=options.duration_s,
            start_after_s=index / options.concurrency,
            fault=fault,
            model=options.model,
            headers=bearer(options.key),
        )
        for index, fault in enumerate(faults)
    ]


async def run(
    options: Options, progress: Callable[[Sequence[Outcome], float], None] | None = None
) -> Result:
    """Run one scenario and judge it. Raises `ConfigError` for options out of range."""
    options.check()
    shown = {
        "url": options.url, "surface": options.surface, "scenario": options.scenario,
        "concurrency": options.concurrency, "duration_s": options.duration_s,
        "model": options.model or "first",
    }  # fmt: skip
    result = Result(options=shown, machine=machine())
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        server = ServerMeter(options.url.rstrip("/") + "/x", http, options.key)
        await server.begin()
        users = [User(plan, http) for plan in plans(options)]
        outcomes = [user.outcome for user in users]
        begin, took_s = await run_all(users, outcomes, progress, time.monotonic)
        result.figures["server"] = await server.end()
    result.figures.update(figures(outcomes, took_s))
    result.points = sorted((at - begin, s) for o in outcomes for at, s in o.firsts)
    result.failed = judge(result.figures)
    return result


def figures(outcomes: Sequence[Outcome], took_s: float) -> dict[str, Any]:
    """Numbers for the run. Times are in milliseconds."""
    pieces = sum(o.pieces for o in outcomes)
    return {
        "readers": len(outcomes),
        "took_s": round(took_s, 1),
        "first_line": summary([s for o in outcomes for s in o.heads_s]),
        "first_text": summary([s for o in outcomes for _, s in o.firsts]),
        "gap": summary([s for o in outcomes for s in o.gaps_s]),
        "whole_answer": summary([s for o in outcomes for s in o.whole_s]),
        "answers": sum(o.answers for o in outcomes),
        "left": sum(o.left for o in outcomes),
        "resumed": sum(o.resumed for o in outcomes),
        "pieces": pieces,
        "pieces_per_s": round(pieces / max(took_s, 1e-9), 1),
        "chars": sum(o.chars for o in outcomes),
        "mismatched": sum(o.mismatched for o in outcomes),
        "errors": dict(Counter(e for o in outcomes for e in o.errors)),
    }


def judge(found: dict[str, Any]) -> list[str]:
    """The checklist. Empty when everything held."""
    failed = [f"error {code}: {count}, expected 0" for code, count in found["errors"].items()]
    if found["mismatched"]:
        failed.append(f"answers that lost or doubled something: {found['mismatched']}, expected 0")
    if not found["answers"]:
        failed.append("no answer came to its end")
    return failed


def live_line(outcomes: Sequence[Outcome], at_s: float) -> str:
    """One line that says how the run is going."""
    firsts = [s for o in outcomes for _, s in o.firsts]
    return (
        f"{at_s:5.0f} s  {sum(not o.over for o in outcomes)} reading  "
        f"{sum(o.answers for o in outcomes)} answers  "
        f"first text p50 {percentile(firsts, 50) * 1000:.0f} ms  "
        f"errors {sum(len(o.errors) for o in outcomes)}"
    )


def main(options: Options, *, output_json: Path | None = None, report: Path | None = None) -> int:
    """Run, show, write what was asked for. Returns the exit status: 0 when all checks held."""
    return run_and_tell(
        partial(run, options),
        live_line,
        lambda result: all_held(result.failed),
        title=f"text {options.surface} {options.scenario}: {options.concurrency} readers",
        output_json=output_json,
        report=report,
    )

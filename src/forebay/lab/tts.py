"""`forebay bench tts`: many simulated users of the voice protocol, and a verdict.

Scenarios (percentages are fractions 0..1 of the sessions):

baseline  everybody types and listens
mixed     10 % drop and come back, 10 % cancel, 10 % stop reading for a while
heavy     30 % stop reading for 10 s, 10 % drop, 10 % cancel

The same tool runs against any server of this protocol. What an injected fault may cause
(a cancelled session, a `backpressure`) is reported beside what was injected; everything
else is an error, and errors make the exit status non-zero.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import aiohttp

from forebay.errors import ConfigError
from forebay.lab.command import ServerMeter, all_held, bearer, run_all, run_and_tell
from forebay.lab.stats import machine, percentile, summary
from forebay.lab.tts_user import Fault, Outcome, Plan, User

__all__ = ["Options", "Result", "judge", "main", "run", "shipped_texts"]

SCENARIOS: dict[str, dict[str, float]] = {
    "baseline": {"disconnect": 0.0, "cancel": 0.0, "backpressure": 0.0, "pause_s": 3.0},
    "mixed": {"disconnect": 0.1, "cancel": 0.1, "backpressure": 0.1, "pause_s": 3.0},
    "heavy": {"disconnect": 0.1, "cancel": 0.1, "backpressure": 0.3, "pause_s": 10.0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """As the command line names them. None means: what the scenario says."""

    url: str = "ws://127.0.0.1:8600/tts"
    scenario: str = "baseline"
    concurrency: int = 50
    cps: float = 5.0
    duration_s: float = 60.0
    text_file: Path | None = None
    disconnect_percent: float | None = None
    cancel_percent: float | None = None
    backpressure_percent: float | None = None
    backpressure_pause_s: float | None = None
    reconnect_delay_s: float = 0.2
    key: str | None = None
    seed: int = 1
    ramp_s: float | None = None  # sessions start spread over this; default one second a hundred

    def share(self, kind: str) -> float:
        own = getattr(self, f"{kind}_percent")
        return SCENARIOS[self.scenario][kind] if own is None else own

    def pause_s(self) -> float:
        own = self.backpressure_pause_s
        return SCENARIOS[self.scenario]["pause_s"] if own is None else own

    def check(self) -> None:
        if self.scenario not in SCENARIOS:
            raise ConfigError(
                f"scenario is {self.scenario!r}, expected one of {', '.join(SCENARIOS)}"
            )
        for kind in ("disconnect", "cancel", "backpressure"):
            if not 0 <= self.share(kind) <= 1:
                raise ConfigError(f"{kind} share is {self.share(kind)}, expected 0..1")
        if not 1 <= self.concurrency <= 10_000:
            raise ConfigError(f"concurrency is {self.concurrency}, expected 1..10000")


@dataclass(slots=True)
class Result:
    """Everything the report shows. `failed` lists the checks that did not hold."""

    options: dict[str, Any]
    machine: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)  # (s into run, latency s)
    cuts: list[tuple[float, float]] = field(default_factory=list)  # (mark to audio, audio) in s


def shipped_texts() -> dict[str, str]:
    """Four texts of 600 characters: English and Chinese, many and few punctuation marks."""
    folder = resources.files("forebay.lab") / "texts"
    return {
        name: (folder / f"{name}.txt").read_text(encoding="utf-8")
        for name in ("en-many", "zh-many", "en-few", "zh-few")
    }


def plans(options: Options, texts: Sequence[str]) -> list[Plan]:
    """One plan a session; faults fall in the middle three fifths of the run."""
    rng = random.Random(options.seed)
    ramp_s = options.ramp_s if options.ramp_s is not None else options.concurrency / 100
    wanted = max(1, round(options.cps * options.duration_s))
    order = list(range(options.concurrency))
    rng.shuffle(order)
    faulty: dict[int, Fault] = {}
    taken = 0
    for kind, name in (("disconnect",) * 2, ("cancel",) * 2, ("backpressure", "pause")):
        count = round(options.share(kind) * options.concurrency)
        for index in order[taken : taken + count]:
            at_s = options.duration_s * rng.uniform(0.2, 0.8)
            for_s = options.pause_s() if name == "pause" else options.reconnect_delay_s
            faulty[index] = Fault(kind=name, at_s=at_s, for_s=for_s)
        taken += count
    headers = bearer(options.key)
    return [
        Plan(
            url=options.url,
            text=texts[index % len(texts)][:wanted],
            cps=options.cps,
            start_after_s=ramp_s * index / options.concurrency,
            faults=(faulty[index],) if index in faulty else (),
            headers=headers,
        )
        for index in range(options.concurrency)
    ]


async def run(
    options: Options, progress: Callable[[Sequence[Outcome], float], None] | None = None
) -> Result:
    """Run one scenario and judge it. Raises `ConfigError` for options out of range."""
    options.check()
    result = Result(options=_plain(options), machine=machine())
    if options.text_file is not None:
        texts = [options.text_file.read_text(encoding="utf-8").strip()]
    else:
        texts = list(shipped_texts().values())
    wanted = round(options.cps * options.duration_s)
    shortest = min(len(t) for t in texts)
    if shortest < wanted:
        result.warnings.append(
            f"the text has {shortest} characters, fewer than cps x duration = {wanted}: "
            f"sessions end after {shortest / options.cps:.0f} s"
        )
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:
        server = ServerMeter(options.url, http, options.key)
        await server.begin()
        users = [User(plan, http) for plan in plans(options, texts)]
        outcomes = [user.outcome for user in users]
        begin, took_s = await run_all(users, outcomes, progress, time.monotonic)
        result.figures["server"] = await server.end()
    result.figures.update(figures(outcomes, begin, took_s))
    result.points = sorted((at - begin, s) for o in outcomes for at, s in o.latencies)
    result.cuts = [pair for o in outcomes for pair in zip(o.cut_s, o.cut_audio_s, strict=True)]
    result.failed = judge(options, result.figures, outcomes)
    return result


def figures(outcomes: Sequence[Outcome], begin: float, took_s: float) -> dict[str, Any]:
    """Numbers for the run and per third of it. Times are in milliseconds."""
    latencies = [(at, s) for o in outcomes for at, s in o.latencies]
    last = max((at for at, _ in latencies), default=begin)
    thirds = []
    for part in range(3):
        low = begin + (last - begin) * part / 3
        high = begin + (last - begin) * (part + 1) / 3 + (part == 2)
        thirds.append(summary([s for at, s in latencies if low <= at < high]))
    return {
        "sessions": len(outcomes),
        "took_s": round(took_s, 1),
        "ended": dict(Counter(o.ended for o in outcomes)),
        "ttfa": summary([o.ttfa_s for o in outcomes if o.ttfa_s is not None]),
        "unit_latency": summary([s for _, s in latencies]),
        "unit_latency_thirds": thirds,
        "cut_to_audio": summary([s for o in outcomes for s in o.cut_s]),
        "drop_to_next_chunk": summary([s for o in outcomes for s in o.gaps_s]),
        "cancel_to_end": summary([o.cancel_s for o in outcomes if o.cancel_s is not None]),
        "audio_after_cancel": sum(o.audio_after_cancel for o in outcomes),
        "units_sent": sum(o.units_sent for o in outcomes),
        "units_received": sum(o.units_received for o in outcomes),
        "missing": sum(o.missing for o in outcomes),
        "duplicates": sum(o.duplicates for o in outcomes),
        "mismatched": sum(o.mismatched for o in outcomes),
        "out_of_order": sum(o.out_of_order for o in outcomes),
        "split_words": sum(o.split_words for o in outcomes),
        "chunks": sum(o.chunks for o in outcomes),
        "audio_s": round(sum(o.audio_s for o in outcomes), 1),
        "resumed": sum(o.resumed for o in outcomes),
        "restarted": sum(o.restarted for o in outcomes),
        "injected": dict(Counter(k for o in outcomes for k in o.injected)),
        "errors": dict(Counter(e for o in outcomes for e in o.errors)),
    }


def judge(options: Options, found: dict[str, Any], outcomes: Sequence[Outcome]) -> list[str]:
    """The checklist. Empty when everything held."""
    failed = [
        f"{name}: {found[name]}, expected 0"
        for name in ("missing", "duplicates", "mismatched", "out_of_order", "audio_after_cancel")
        if found[name]
    ]
    allowed = {"backpressure"} if found["injected"].get("pause") else set()
    for code, count in found["errors"].items():
        if code not in allowed:
            failed.append(f"error {code}: {count}, expected 0")
    quiet = [o for o in outcomes if o.ended == "completed"]
    if any(o.units_sent != o.units_received for o in quiet):
        failed.append("a completed session received another number of units than it sent")
    for o in outcomes:
        if "cancel" in o.injected and o.ended not in {"cancelled", "completed"}:
            failed.append(f"a cancelled session ended as {o.ended or 'nothing'}")
    first, last = found["unit_latency_thirds"][0], found["unit_latency_thirds"][2]
    if options.scenario == "baseline" and last["p99_ms"] > max(
        first["p99_ms"] * 1.1, first["p99_ms"] + 2
    ):
        failed.append(
            f"p99 of the last third {last['p99_ms']} ms, expected <= 1.1 x {first['p99_ms']} ms"
        )
    return failed


def _plain(options: Options) -> dict[str, Any]:
    return {
        "url": options.url,
        "scenario": options.scenario,
        "concurrency": options.concurrency,
        "cps": options.cps,
        "duration_s": options.duration_s,
        "disconnect": options.share("disconnect"),
        "cancel": options.share("cancel"),
        "backpressure": options.share("backpressure"),
        "pause_s": options.pause_s(),
        "reconnect_delay_s": options.reconnect_delay_s,
        "text": str(options.text_file.name) if options.text_file else "shipped",
        "seed": options.seed,
    }


def live_line(outcomes: Sequence[Outcome], at_s: float) -> str:
    """One line that says how the run is going."""
    ttfa = [o.ttfa_s for o in outcomes if o.ttfa_s is not None]
    return (
        f"{at_s:5.0f} s  {sum(not o.ended for o in outcomes)} active  "
        f"{sum(bool(o.ended) for o in outcomes)} done  "
        f"sent {sum(o.units_sent for o in outcomes)} units  "
        f"TTFA p50 {percentile(ttfa, 50) * 1000:.0f} ms  "
        f"errors {sum(len(o.errors) for o in outcomes)}"
    )


def main(options: Options, *, output_json: Path | None = None, report: Path | None = None) -> int:
    """Run, show, write what was asked for. Returns the exit status: 0 when all checks held."""
    return run_and_tell(
        partial(run, options),
        live_line,
        lambda result: all_held(result.failed, result.warnings),
        title=f"tts {options.scenario}: {options.concurrency} sessions at {options.cps:g} chars/s",
        output_json=output_json,
        report=report,
    )

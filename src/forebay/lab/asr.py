"""`forebay bench asr`: many people speaking at once, and a verdict.

Scenarios (seconds of speech each):

short  5 to 15 s, what people say to a machine
long   60 to 120 s, dictation
mixed  80 % short, 20 % long; 10 % lose their line once and come back
flat   exactly ``audio_s`` each, for figures that are to be compared

Against a synthetic recogniser the sound carries its words (`forebay.core.tones`), so every
word is checked; against a real model say `--no-words`, and only chunks are counted.

The verdict separates three things. *Fault*: something broke (a lost, doubled or wrong word,
a session without its end, a lost connection, a crash). *Capacity*: nothing broke, but not
everybody fitted: how many workers would have done. Or all is well.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from forebay.core.capacity import Pool, counted, needed_workers
from forebay.core.tones import speak, words_in
from forebay.errors import ConfigError
from forebay.lab.asr_user import Clip, Outcome, Plan, Speaker
from forebay.lab.command import (
    Conclusion,
    ServerMeter,
    bearer,
    http_base,
    run_all,
    run_and_tell,
)
from forebay.lab.stats import machine, percentile, summary

__all__ = [
    "Options",
    "Result",
    "Verdict",
    "conclude",
    "judge",
    "live_line",
    "main",
    "make_clip",
    "run",
]

SCENARIOS = ("short", "long", "mixed", "flat")
URL = "ws://127.0.0.1:8600/ws/asr"
RATE = 16_000
CLIPS = 24
"""Different recordings in one run; people share them."""
TOLD_LIMIT_S = 1.0
LAG_LIMIT_S = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """As the command line names them. ``duration_s``: no new attempt later than this.
    ``pool``: (workers, slots, rtf), where the caller knows them better than the server says."""

    url: str = URL
    scenario: str = "short"
    concurrency: int = 50
    audio_s: float = 10.0
    chunk_ms: int = 100
    duration_s: float = 120.0
    ramp_s: float = 1.0
    patience_s: float = 60.0
    words: bool = True
    drop_percent: float | None = None
    key: str | None = None
    seed: int = 1
    tenant: str | None = None

    def check(self) -> None:
        if self.scenario not in SCENARIOS:
            raise ConfigError(
                f"scenario is {self.scenario!r}, expected one of {', '.join(SCENARIOS)}"
            )
        if not 1 <= self.concurrency <= 10_000:
            raise ConfigError(f"concurrency is {self.concurrency}, expected 1..10000")
        if not 20 <= self.chunk_ms <= 10_000:
            raise ConfigError(f"chunk is {self.chunk_ms} ms, expected 20..10000")
        if not 0.5 <= self.audio_s <= 3600:
            raise ConfigError(f"audio is {self.audio_s:g} s, expected 0.5..3600")

    @property
    def drops(self) -> float:
        own = self.drop_percent
        return own if own is not None else 0.1 if self.scenario == "mixed" else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``kind``: ok, capacity or fault. ``said``: the sentence a report ends with."""

    kind: str
    said: str
    faults: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Result:
    """Everything the report shows."""

    options: dict[str, Any]
    machine: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=lambda: Verdict(kind="ok", said=""))
    points: list[tuple[float, float]] = field(default_factory=list)  # (s into run, lag s)
    outcomes: list[Outcome] = field(default_factory=list)


# --------------------------------------------------------------------------- material


def make_clip(seconds: float, chunk_ms: int, first_word: int, words: bool = True) -> Clip:
    """About ``seconds`` of sound that says numbered words, from ``first_word`` on."""
    chunk_bytes = RATE * chunk_ms // 1000 * 2
    count = max(1, round(seconds * 1000 / chunk_ms))
    said = words_in(count * chunk_bytes // 2)
    spoken = tuple(f"w{first_word + n}" for n in range(said))
    sound = speak(spoken)
    sound += b"\0" * max(0, count * chunk_bytes - len(sound))
    pieces = [sound[at * chunk_bytes : (at + 1) * chunk_bytes] for at in range(count)]
    return Clip(
        words=spoken if words else (),
        chunks=tuple(base64.b64encode(piece) for piece in pieces),
        chunk_s=chunk_ms / 1000,
    )


def clips(options: Options) -> list[Clip]:
    rng = random.Random(options.seed)
    lengths = [_length(options, rng) for _ in range(min(CLIPS, options.concurrency))]
    return [
        make_clip(length, options.chunk_ms, 1000 * (n + 1), options.words)
        for n, length in enumerate(lengths)
    ]


def _length(options: Options, rng: random.Random) -> float:
    match options.scenario:
        case "flat":
            return options.audio_s
        case "long":
            return rng.uniform(60, 120)
        case "mixed" if rng.random() < 0.2:
            return rng.uniform(60, 120)
        case _:
            return rng.uniform(5, 15)


def plans(options: Options) -> list[Plan]:
    rng = random.Random(options.seed)
    said = clips(options)
    headers = bearer(options.key)
    if options.tenant:
        headers["X-Tenant"] = options.tenant
    made = []
    for index in range(options.concurrency):
        clip = said[index % len(said)]
        drops = (clip.audio_s * rng.uniform(0.2, 0.8),) if rng.random() < options.drops else ()
        made.append(
            Plan(
                url=options.url,
                clip=clip,
                start_after_s=options.ramp_s * index / options.concurrency,
                until_s=options.duration_s,
                patience_s=options.patience_s,
                drops=drops,
                headers=headers,
            )
        )
    return made


# -------------------------------------------------------------------------------- run


async def run(
    options: Options,
    progress: Callable[[Sequence[Outcome], float], None] | None = None,
    workers: tuple[int, int, float] | None = None,
) -> Result:
    """Run one scenario and judge it. ``workers``: (workers, slots each, RTF), where the caller
    knows them better than the server says. Raises `ConfigError` for options out of range."""
    options.check()
    result = Result(options=_plain(options), machine=machine())
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        server = ServerMeter(options.url.replace("/ws/asr", "/asr"), http, options.key)
        await server.begin()
        speakers = [Speaker(plan) for plan in plans(options)]
        outcomes = result.outcomes = [speaker.outcome for speaker in speakers]
        begin, took_s = await run_all(speakers, outcomes, progress, loop.time)
        result.figures["server"] = await server.end()
        workers = workers or await _serving(options, http)
    result.figures.update(figures(outcomes, took_s, workers))
    result.points = sorted((at - begin, lag) for o in outcomes for at, lag in o.lags)
    result.verdict = judge(outcomes, result.figures, workers)
    return result


async def _serving(options: Options, http: aiohttp.ClientSession) -> tuple[int, int, float] | None:
    """(workers, slots each, RTF) of the recognition pool, where the server says them."""
    base = http_base(options.url)
    headers = bearer(options.key)
    try:
        async with http.get(base.rsplit("/ws/", 1)[0] + "/v1/capacity", headers=headers) as answer:
            found = await answer.json() if answer.status == 200 else {}
    except (aiohttp.ClientError, OSError, ValueError):
        return None
    for pool in found.get("pools", ()):
        if pool.get("kind") == "recognition" and pool.get("workers") and pool.get("rtf"):
            return pool["workers"], max(1, pool["slots"] // pool["workers"]), pool["rtf"]
    return None


# ---------------------------------------------------------------------------- figures


def figures(
    outcomes: Sequence[Outcome], took_s: float, workers: tuple[int, int, float] | None
) -> dict[str, Any]:
    """Numbers for the run. Times are in milliseconds, waits in seconds."""
    done = [o for o in outcomes if o.ended == "completed"]
    told = [s for o in outcomes for s in o.told_s]
    eta = [e for o in outcomes for e in o.eta_errors]
    rtf = [o.rtf for o in done if o.rtf is not None]
    heard_s = sum(o.audio_s for o in done)
    found: dict[str, Any] = {
        "speakers": len(outcomes),
        "took_s": round(took_s, 1),
        "ended": dict(Counter(_ended(o) for o in outcomes)),
        "attempts": sum(o.attempts for o in outcomes),
        "refusals": dict(sum((o.refusals for o in outcomes), Counter[str]())),
        "told": summary(told),
        "told_late": sum(s > TOLD_LIMIT_S for s in told),
        "lag": summary([lag for o in done for _, lag in o.lags]),
        "finish_to_final": summary([o.final_s for o in done if o.final_s is not None]),
        "client_rtf_p50": round(percentile(rtf, 50), 3),
        "client_rtf_p95": round(percentile(rtf, 95), 3),
        "queued": sum(bool(o.notices) for o in outcomes),
        "longest_place": max((n.position for o in outcomes for n in o.notices), default=0),
        "eta_error_median": round(median(eta), 3) if eta else None,
        "eta_error_n": len(eta),
        "audio_s": round(heard_s, 1),
        "audio_s_per_s": round(heard_s / took_s, 2),
        "chunks": sum(o.sent for o in outcomes),
        "chunks_lost": sum(o.lost_chunks for o in done),
        "results_repeated": sum(o.repeated_chunks for o in outcomes),
        "results_out_of_order": sum(o.out_of_order for o in outcomes),
        "words": sum(o.words for o in done),
        "words_missing": sum(o.missing_words for o in done),
        "words_extra": sum(o.extra_words for o in done),
        "terminal_events": sum(o.finals for o in outcomes),
        "resumed": sum(o.resumed for o in outcomes),
        "errors": dict(Counter(e for o in outcomes for e in o.errors)),
    }
    if workers is not None:
        count, slots, factor = workers
        found["goodput"] = round(heard_s * factor / (took_s * count * slots), 3)
        found["workers"] = f"{count} x {counted(slots, 'slot')}, RTF {factor:g}"
    return found


def _ended(outcome: Outcome) -> str:
    return outcome.ended or "still running"


def judge(
    outcomes: Sequence[Outcome], found: dict[str, Any], workers: tuple[int, int, float] | None
) -> Verdict:
    """What a run comes to: a fault, a lack of capacity, or neither."""
    faults = [
        f"{found[name]} {said}"
        for name, said in (
            ("chunks_lost", "chunks lost"),
            ("results_repeated", "results came twice"),
            ("results_out_of_order", "results out of order"),
            ("words_missing", "words missing"),
            ("words_extra", "words too many"),
        )
        if found[name]
    ]
    faults += [f"{count} x {code}" for code, count in found["errors"].items()]
    several = sum(o.finals > 1 for o in outcomes)
    if several:
        faults.append(f"{several} sessions had more than one final result")
    if faults:
        return Verdict(
            kind="fault",
            said="fault: " + "; ".join(faults) + ". Look for process.exited, worker.gone and "
            "job.failed in the server's log, and at `forebay jobs list` for what the engine "
            "failed on, with --dead for what crashed workers",
            faults=faults,
        )
    waiting = found["queued"] + sum(o.ended == "refused" for o in outcomes)
    if not waiting and not found["refusals"]:
        return Verdict(kind="ok", said="ok: everybody was served at once and in real time")
    said = (
        f"capacity: nothing crashed; {found['queued']} speakers waited, "
        f"{sum(found['refusals'].values())} attempts were refused"
    )
    if workers is not None:
        count, slots, factor = workers
        needed = needed_workers(len(outcomes), Pool(rtf=factor, slots=slots))
        more = max(1, needed - count)
        said += f". For all {len(outcomes)} at once add {counted(more, 'worker')} ({needed} in all)"
    return Verdict(kind="capacity", said=said)


def _plain(options: Options) -> dict[str, Any]:
    return {
        "url": options.url,
        "scenario": options.scenario,
        "concurrency": options.concurrency,
        "audio_s": options.audio_s if options.scenario == "flat" else options.scenario,
        "chunk_ms": options.chunk_ms,
        "duration_s": options.duration_s,
        "drops": options.drops,
        "words_checked": options.words,
        "seed": options.seed,
    }


# ----------------------------------------------------------------------------- face


def live_line(outcomes: Sequence[Outcome], at_s: float) -> str:
    """One line that says how the run is going."""
    lags = [o.lags[-1][1] for o in outcomes if o.lags and not o.ended]
    return (
        f"{at_s:5.0f} s  {sum(not o.ended for o in outcomes)} here  "
        f"{sum(o.left_at is not None and not o.ended for o in outcomes)} heard  "
        f"{sum(o.ended == 'completed' for o in outcomes)} done  "
        f"{sum(sum(o.refusals.values()) for o in outcomes)} refusals  "
        f"lag p95 {percentile(lags, 95) * 1000:.0f} ms  "
        f"errors {sum(len(o.errors) for o in outcomes)}"
    )


def conclude(result: Result) -> Conclusion:
    """What a run comes to, for the report and the exit status."""
    verdict = result.verdict
    return Conclusion(
        said=verdict.said,
        style={"ok": "green", "capacity": "yellow", "fault": "red"}[verdict.kind],
        status=1 if verdict.kind == "fault" else 0,
        facts={"verdict": {"kind": verdict.kind, "said": verdict.said}},
    )


def main(options: Options, *, output_json: Path | None = None, report: Path | None = None) -> int:
    """Run, show, write what was asked for. Returns 0 unless there was a fault."""
    return run_and_tell(
        partial(run, options),
        live_line,
        conclude,
        title=f"asr {options.scenario}: {options.concurrency} speakers",
        output_json=output_json,
        report=report,
    )

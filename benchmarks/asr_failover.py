"""Claim: recognition workers killed at random, every two seconds, cost not one word.

Many speakers on many workers; while they speak a worker is killed with SIGKILL every
``--every`` seconds. Counted at the client: chunks without a result, words missing or too
many against what was said, sessions without exactly one end.
"""

from __future__ import annotations

from benchmarks.asr_overload import RTF
from benchmarks.harness import options, report, run
from forebay.lab.asr import Options
from forebay.lab.asr_killed import Killing
from forebay.lab.asr_killed import run as bench


async def main() -> int:
    wanted = options(__doc__ or "", clients=500, workers=60, audio=10.0, every=2.0, chunk_ms=100)
    result = await bench(
        Options(
            scenario="flat",
            audio_s=wanted.audio,
            concurrency=wanted.clients,
            chunk_ms=wanted.chunk_ms,
            patience_s=120,
        ),
        Killing(every_s=wanted.every, workers=wanted.workers, rtf=RTF),
    )
    found = result.figures
    done = found["ended"].get("completed", 0)
    rows: list[tuple[str, str, str, bool | None]] = [
        ("workers killed", str(found["workers_killed"]), ">= 1", found["workers_killed"] >= 1),
        ("sessions completed", f"{done} of {wanted.clients}", "all", done == wanted.clients),
        ("chunks lost", str(found["chunks_lost"]), "0", not found["chunks_lost"]),
        ("results twice", str(found["results_repeated"]), "0", not found["results_repeated"]),
        ("words missing", str(found["words_missing"]), "0", not found["words_missing"]),
        ("words too many", str(found["words_extra"]), "0", not found["words_extra"]),
        (
            "terminal events",
            str(found["terminal_events"]),
            str(wanted.clients),
            found["terminal_events"] == wanted.clients,
        ),
        ("errors", str(found["errors"] or 0), "0", not found["errors"]),
        ("lag p50 / p95 / p99", _times(found["lag"]), "", None),
        ("client-side RTF p95", str(found["client_rtf_p95"]), "", None),
    ]
    return report("recognition, killed workers", rows, wanted.output_json, figures=found)


def _times(times: dict[str, float]) -> str:
    return " / ".join(f"{times[key]:.0f}" for key in ("p50_ms", "p95_ms", "p99_ms")) + " ms"


if __name__ == "__main__":
    run(main)

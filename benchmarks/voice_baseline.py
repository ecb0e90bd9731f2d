"""Claim: typed text becomes speech at once, for 50 and for 500 people, with nothing lost.

The engine is synthetic: 40 ms of tone a unit at RTF 0.1, 10 ms latency, 16 slots. So 500
sessions at 5 characters a second keep about 11 slots busy.
"""

from __future__ import annotations

from benchmarks.harness import options, report, run, serving
from forebay.lab.stats import summary
from forebay.lab.tts import Options
from forebay.lab.tts import run as bench

ENGINE = "speech=synthetic:rtf=0.1,latency_ms=10,slots=16"


async def main() -> int:
    wanted = options(__doc__ or "", duration=60.0, small=50, large=500)
    rows: list[tuple[str, str, str, bool | None]] = []
    raw = {}
    p99 = {}
    with serving("--engine", ENGINE, "--engine", "text=synthetic") as server:
        for sessions in (wanted.small, wanted.large):
            result = await bench(
                Options(url=server.tts, concurrency=sessions, duration_s=wanted.duration)
            )
            found = result.figures
            raw[sessions] = found
            p99[sessions] = found["ttfa"]["p99_ms"]
            exact = {k: found[k] for k in ("missing", "duplicates", "mismatched", "out_of_order")}
            rows += [
                (f"{sessions}: errors", str(found["errors"] or 0), "0", not found["errors"]),
                (
                    f"{sessions}: missing/duplicate/mismatched/disordered",
                    "/".join(map(str, exact.values())),
                    "0/0/0/0",
                    not any(exact.values()),
                ),
                (
                    f"{sessions}: words split",
                    str(found["split_words"]),
                    "0",
                    not found["split_words"],
                ),
                (
                    f"{sessions}: sent == received",
                    f"{found['units_sent']} / {found['units_received']}",
                    "equal",
                    found["units_sent"] == found["units_received"],
                ),
                (
                    f"{sessions}: checklist",
                    "; ".join(result.failed) or "held",
                    "held",
                    not result.failed,
                ),
            ]
            if sessions == wanted.small:
                # What the engine itself takes for a segment: its latency, and RTF x audio.
                added = summary([took - 0.010 - 0.1 * audio for took, audio in result.cuts])
                rows.append(
                    (
                        f"{sessions}: cut to audio over the engine's own time, p50",
                        f"{added['p50_ms']} ms (p99 {added['p99_ms']} ms)",
                        "<= 10 ms",
                        added["p50_ms"] <= 10,
                    )
                )
                p50 = found["ttfa"]["p50_ms"]
                rows.append((f"{sessions}: TTFA p50", f"{p50} ms", "<= 1000 ms", p50 <= 1000))
            rows += [
                (f"{sessions}: TTFA p99", f"{found['ttfa']['p99_ms']} ms", "", None),
                (
                    f"{sessions}: clause mark to audio p50/p99",
                    f"{found['cut_to_audio']['p50_ms']} / {found['cut_to_audio']['p99_ms']} ms",
                    "",
                    None,
                ),
                (f"{sessions}: gateway", str(found["server"]), "", None),
            ]
    ratio = p99[wanted.large] / max(p99[wanted.small], 1e-9)
    rows.append(("TTFA p99, large over small", f"{ratio:.2f}x", "<= 2x", ratio <= 2))
    return report("voice baseline", rows, wanted.output_json, figures=raw)


if __name__ == "__main__":
    run(main)

"""Claim: with an engine that costs nothing, the gateway adds little to a bare server.

Peer in the same run: `benchmarks.peers.minimal_tts`, which answers from memory. Compared:
the time from a clause mark typed to its audio heard (Chinese text, whose marks need no
look-ahead), 50 sessions. Also: with the engine of `voice_baseline`, the same time less
what the engine itself takes for that piece (latency + RTF x audio).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib import resources
from pathlib import Path

from benchmarks.harness import free_port, options, report, run, serving
from forebay.lab.tts import Options
from forebay.lab.tts import run as bench


async def main() -> int:
    wanted = options(__doc__ or "", duration=20.0, sessions=50)
    text = Path(str(resources.files("forebay.lab") / "texts" / "zh-many.txt"))

    async def measure(url: str) -> dict[str, float]:
        result = await bench(
            Options(
                url=url, concurrency=wanted.sessions, duration_s=wanted.duration, text_file=text
            )
        )
        if result.figures["errors"] or result.figures["missing"]:
            raise SystemExit(f"the run itself failed: {result.failed}")
        found: dict[str, float] = result.figures["cut_to_audio"]
        return found

    port = free_port()
    peer = subprocess.Popen(  # noqa: ASYNC220 - before anything is measured
        [sys.executable, "-m", "benchmarks.peers.minimal_tts", "--port", str(port)]
    )
    try:
        await asyncio.sleep(1)
        floor = await measure(f"ws://127.0.0.1:{port}/tts")
    finally:
        peer.terminate()
        peer.wait()
    with serving(
        "--engine", "speech=synthetic:rtf=0,latency_ms=0,slots=16", "--engine", "text=synthetic"
    ) as server:
        ours = await measure(server.tts)
    ratio = ours["p50_ms"] / max(floor["p50_ms"], 1e-9)
    rows: list[tuple[str, str, str, bool | None]] = [
        ("minimal server p50 / p99", f"{floor['p50_ms']} / {floor['p99_ms']} ms", "", None),
        ("ours p50", f"{ours['p50_ms']} ms", "<= 20 ms", ours["p50_ms"] <= 20),
        ("ours p99", f"{ours['p99_ms']} ms", "", None),
        ("ours over minimal, p50", f"{ratio:.1f}x", "", None),
    ]
    return report("voice floor", rows, wanted.output_json, floor=floor, ours=ours)


if __name__ == "__main__":
    run(main)

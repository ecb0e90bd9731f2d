"""Claim: 128 streams of tokens at once stay close to a bare pass-through, and a burst costs
a fraction of what LiteLLM's proxy pays.

First 128 streams of 8 tokens a second each, asked in turns of the model server itself, of a
bare aiohttp pass-through and of Forebay: time to first token over the server's own, and the
gap between tokens. Then 32 streams whose tokens come as fast as they can: chunks delivered
for each second of processor time of all processes of a proxy.
"""

from __future__ import annotations

import contextlib
from typing import Any

from benchmarks.harness import options, report, run, serving
from benchmarks.openai_proxy import MODEL, Target, child, figures, litellm, load, pin, settle
from benchmarks.peers import litellm_proxy

STREAMS = 128
TOKENS = 16
INTERVAL_MS = 125.0
BURST_STREAMS = 32
BURST_TOKENS = 400


async def turns(
    stack: contextlib.ExitStack, tokens: int, interval_ms: float, program: str | None, name: str
) -> tuple[list[Target], Target, bool]:
    """The model server and what stands in front of it, started and pinned."""
    arguments = ("--tokens", str(tokens), "--interval-ms", f"{interval_ms:g}")
    fake, fake_pid = stack.enter_context(child("tests.fakes.sglang", *arguments))
    bare, bare_pid = stack.enter_context(child("benchmarks.peers.passthrough", "--upstream", fake))
    engine = f"text=openai:base_url={fake},model={MODEL},slots=256"
    server = stack.enter_context(
        serving("--engine", engine, "--engine", "speech=synthetic", "--workers", "speech=0")
    )
    other = stack.enter_context(litellm(program, fake))
    ours = Target(name, server.http, (server.process.pid,))
    proxies = [Target("pass-through", bare, (bare_pid,)), ours, *([other] if other else [])]
    await settle(proxies)
    return proxies, Target("direct", fake), pin(proxies, [fake_pid])


async def steady(requests: int) -> tuple[dict[str, Any], bool]:
    with contextlib.ExitStack() as stack:
        proxies, direct, pinned = await turns(stack, TOKENS, INTERVAL_MS, None, "Forebay")
        targets = [direct, *proxies]
        for target in targets:
            await load(target, 8, 1, TOKENS, INTERVAL_MS)
            target.seen.clear()
        for _ in range(requests):
            for target in targets:
                await load(target, STREAMS, 1, TOKENS, INTERVAL_MS)
        return {t.name: figures(t, direct)[str(STREAMS)] for t in targets}, pinned


async def burst(requests: int, program: str | None) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        proxies, direct, _ = await turns(stack, BURST_TOKENS, 0, program, "Forebay")
        found = {}
        for target in proxies:
            await load(target, 4, 1, BURST_TOKENS, 0)
            target.seen.clear()
            each = 1 if target.name == "LiteLLM" else requests
            await load(target, BURST_STREAMS, each, BURST_TOKENS, 0)
            seen = target.seen[BURST_STREAMS]
            found[target.name] = {
                "chunks": seen.chunks,
                "cpu_s": round(seen.cpu_s, 2),
                "chunks_per_cpu_s": round(seen.chunks / max(seen.cpu_s, 1e-6)),
                "failed": seen.failed,
            }
        return found


async def main() -> int:
    wanted = options(__doc__ or "", requests=3, bursts=4, litellm="")
    found, pinned = await steady(wanted.requests)
    rushed = await burst(wanted.bursts, litellm_proxy.find(wanted.litellm))
    ours, bare = found["Forebay"], found["pass-through"]
    rows: list[tuple[str, str, str, bool | None]] = [
        (
            f"{name}, {STREAMS} streams",
            f"TTFT {f['ttft_p50_ms']} (+{f['added_p50_ms']}) ms, gap p99 {f['gap_p99_ms']} ms, "
            f"{f['cpu_us_per_chunk']} us a chunk",
            "",
            None,
        )
        for name, f in found.items()
    ]
    added = ours["added_p50_ms"] / max(0.01, bare["added_p50_ms"])
    gap = ours["gap_p99_ms"] / max(0.01, bare["gap_p99_ms"])
    rows += [
        ("added TTFT p50 over pass-through", f"{added:.1f}x", "<= 3x", added <= 3),
        ("p99 gap over pass-through", f"{gap:.1f}x", "<= 2x", gap <= 2),
    ]
    for name, f in rushed.items():
        rows.append((f"{name}, burst", f"{f['chunks_per_cpu_s']} chunks a CPU second", "", None))
    if "LiteLLM" in rushed:
        ratio = rushed["Forebay"]["chunks_per_cpu_s"] / rushed["LiteLLM"]["chunks_per_cpu_s"]
        rows.append(("burst over LiteLLM", f"{ratio:.1f}x", ">= 5x", ratio >= 5))
    else:
        rows.append(("LiteLLM", "not installed, skipped", litellm_proxy.HOW, None))
    failed = ours["failed"] + rushed["Forebay"]["failed"]
    rows.append(("answers that were not whole", str(failed), "0", failed == 0))
    return report(
        "token streams", rows, wanted.output_json, steady=found, burst=rushed, pinned=pinned
    )


if __name__ == "__main__":
    run(main)

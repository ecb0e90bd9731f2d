"""Claim: the first photo is ready as soon as one model run takes, whatever the number of clients.

A model that takes a fixed time a tile serves one photo after another; 1 to 5 clients send one
photo each at once, and the same photos as one batch. Compared with the run of one client:
first result, whole time against as many serial runs, success; stream against batch; and how
long status calls take while the model works. With ``--engine`` another engine is measured, on
photos of a quarter of the size, unless told otherwise; a real model's time is never twice the
same, so all have ``--rounds`` turns (3), one client again before each, and medians are compared.
With ``--url`` a server is measured that is running already.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from benchmarks.harness import options, report, run, serving
from forebay.lab import photos as lab

FIRST, TOTAL, SOONER, STATUS_MS = 1.10, 1.05, 0.30, 20.0


@contextlib.contextmanager
def served(wanted: Any) -> Iterator[str]:
    if wanted.url:
        yield wanted.url
        return
    with serving(
        "--engine", f"image={wanted.engine}", "--workers", "text=0", "--workers", "speech=0"
    ) as server:
        server.wait_spares()
        yield server.http


async def main() -> int:
    wanted = options(
        __doc__ or "", clients=5, width=0, height=0, engine="synthetic:tile_ms=150", url="",
        limit=200.0, rounds=0,
    )  # fmt: skip
    rows: list[tuple[str, str, str, bool | None]]
    whole = not wanted.url and wanted.engine.startswith("synthetic")
    width = wanted.width or (1080 if whole else 540)
    height = wanted.height or (1440 if whole else 720)
    with served(wanted) as url:
        try:
            async with asyncio.timeout(wanted.limit):
                result = await lab.run(
                    lab.Options(
                        url=url,
                        concurrency=wanted.clients,
                        width=width,
                        height=height,
                        rounds=wanted.rounds or (1 if whole else 3),
                    )
                )
        except TimeoutError:
            rows = [("everything", f"not done within {wanted.limit:g} s", "done", False)]
            return report("photos", rows, wanted.output_json)
    found = result.figures
    one = found["stream_1"]
    rows = [(f"one client, {width}x{height}: first result", f"{one['first_s']:.2f} s", "", None)]
    for count in range(2, wanted.clients + 1):
        first, total = found[f"stream_{count}"]["first_s"], found[f"stream_{count}"]["total_s"]
        ratio, serial = first / one["first_s"], total / (count * one["total_s"])
        rows.append((f"{count} clients: first result, over one's", f"{ratio:.3f}x",
                     f"<= {FIRST}x", ratio <= FIRST))  # fmt: skip
        rows.append((f"{count} clients: whole time, over {count} serial runs", f"{serial:.3f}x",
                     f"<= {TOTAL}x", serial <= TOTAL))  # fmt: skip
    last = wanted.clients
    batch, stream = found[f"batch_{last}"]["total_s"], found[f"stream_{last}"]["first_s"]
    sooner = 1 - stream / batch
    rows.append((f"{last} photos: first result sooner than the batch", f"{sooner:.0%}",
                 f">= {SOONER:.0%}", sooner >= SOONER))  # fmt: skip
    failed = [photo.error for photo in result.photos if photo.error]
    rows.append(("photos that failed", f"{len(failed)} of {len(result.photos)}", "0", not failed))
    p99 = found["status_call_p99_ms"]
    rows.append(("status call while the model works, p99", f"{p99:.1f} ms", f"<= {STATUS_MS:g} ms",
                 p99 <= STATUS_MS))  # fmt: skip
    return report("photos", rows, wanted.output_json, figures=found)


if __name__ == "__main__":
    run(main)

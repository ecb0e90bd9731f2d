"""Claim: 500 readers who take their text slowly cost those who read at once nothing.

The slow ones ask for long answers over a small receive window and take half a kilobyte a
second; by then the model has said everything, and what they have not taken waits for them.
Seven interleaved pairs: A, fast readers alone, B beside the slow ones; compared is the p99 of
the gap between two tokens, the server on one core and the load on the other. It passes at
p99(B) <= 1.2 x p99(A) or + 2 ms, whichever is larger; a difference inside the A/A spread is
"not distinguishable". Nobody may be cut, and no answer lose a word.

The gateway's memory is told for each slow reader: by how much it rose while those of one pair
were there. An answer stays for five minutes after its end, for whoever comes back, so each
pair adds its own; that sum, told too, is what the store's bound is for.

``--slow``, ``--pairs``, ``--pair-s``: smaller or larger.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from statistics import median

import msgspec
import psutil

from benchmarks.harness import options, report, run, serving
from forebay.lab.text import Options
from forebay.lab.text import run as bench

ENGINE = "text=synthetic:tokens=80,token_ms=25,slots=700"
WINDOW_BYTES = 4096
BITE_BYTES = 512
BITE_EVERY_S = 1.0
SPREAD_S = 10.0  # they come one after another, as people do
SETTLE_S = 3.0  # by then the model has said what it had to say to the last of them
WORD = "x" * 3000
WORDS = 40
ANSWER_KB = len(WORD) * WORDS / 1000


async def _ask(port: int) -> socket.socket:
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW_BYTES)
    line.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(line, ("127.0.0.1", port))
    body = msgspec.json.encode(
        {
            "model": "synthetic",
            "stream": True,
            "max_tokens": WORDS,
            "messages": [{"role": "user", "content": WORD}],
        }
    )
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    await loop.sock_sendall(line, head.encode() + body)
    return line


class Slow:
    """Readers who take `BITE_BYTES` a second each."""

    def __init__(self) -> None:
        self.lines: list[socket.socket] = []
        self.cut = 0
        self.refused = 0
        self._answered: set[socket.socket] = set()

    async def come(self, port: int, count: int) -> None:
        for _ in range(count):
            self.lines.append(await _ask(port))
            await asyncio.sleep(SPREAD_S / count)

    async def read(self) -> None:
        while True:
            for line in list(self.lines):
                self._bite(line)
            await asyncio.sleep(BITE_EVERY_S)

    def _bite(self, line: socket.socket) -> None:
        try:
            data = line.recv(BITE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.cut += 1
            self.lines.remove(line)
        elif line not in self._answered:
            self._answered.add(line)
            self.refused += not data.startswith(b"HTTP/1.1 200")


@contextlib.asynccontextmanager
async def slow(port: int, count: int) -> AsyncIterator[Slow]:
    readers = Slow()
    reading = asyncio.create_task(readers.read())
    try:
        await readers.come(port, count)
        await asyncio.sleep(SETTLE_S)
        yield readers
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        for line in readers.lines:
            line.close()
        await asyncio.sleep(1)


async def fast_p99(url: str, readers: int, seconds: float) -> float:
    result = await bench(Options(url=url, surface="chat", concurrency=readers, duration_s=seconds))
    if result.failed:
        raise RuntimeError(f"fast readers were harmed: {result.failed}")
    found: float = result.figures["gap"]["p99_ms"]
    return found


async def main() -> int:
    wanted = options(__doc__ or "", slow=500, fast=12, pairs=7, pair_s=6.0)
    with serving("--engine", ENGINE, "--workers", "speech=0") as server:
        if len(os.sched_getaffinity(0)) >= 2:
            for process in server.tree():
                process.cpu_affinity([0])
            psutil.Process().cpu_affinity([1])
        await fast_p99(server.http, wanted.fast, 2.0)  # code and connections are warm
        async with slow(server.port, 5):
            before = server.gateway().memory_info().rss
        alone, beside, rises = [], [], []
        cut = refused = 0
        for _ in range(wanted.pairs):
            alone.append(await fast_p99(server.http, wanted.fast, wanted.pair_s))
            began = server.gateway().memory_info().rss
            async with slow(server.port, wanted.slow) as readers:
                beside.append(await fast_p99(server.http, wanted.fast, wanted.pair_s))
                rises.append((server.gateway().memory_info().rss - began) / wanted.slow / 1000)
            cut, refused = cut + readers.cut, refused + readers.refused
        kept_mb = (server.gateway().memory_info().rss - before) / 1e6
    a, b, spread = median(alone), median(beside), max(alone) - min(alone)
    limit = max(a * 1.2, a + 2)
    said = "not distinguishable" if abs(b - a) <= spread else f"{b - a:+.1f} ms"
    each_kb, answers = max(rises), wanted.slow * wanted.pairs
    rows: list[tuple[str, str, str, bool | None]] = [
        ("gap p99 alone (median, A/A spread)", f"{a:.1f} ms, {spread:.1f} ms", "", None),
        (f"gap p99 beside {wanted.slow} slow readers", f"{b:.1f} ms ({said})",
         f"<= {limit:.1f} ms", b <= limit),
        ("slow readers refused, cut", f"{refused}, {cut}", "0, 0", not (refused or cut)),
        ("a slow reader: gateway memory", f"{each_kb:.0f} KB",
         f"its answer is {ANSWER_KB:.0f} KB", None),
        ("kept after they left", f"{kept_mb:.0f} MB",
         f"{answers} answers of 5 minutes: {answers * ANSWER_KB / 1000:.0f} MB", None),
    ]  # fmt: skip
    return report(
        "Text: slow readers", rows, wanted.output_json, alone=alone, beside=beside, rises_kb=rises
    )


if __name__ == "__main__":
    run(main)
